"""Many texts in one array, which may be a mapped file: no object per text."""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

_PART = 1 << 10  # texts read at a time: few, as they may be long


class Strings(Sequence):
    """Texts by number.

    Attributes:
      flat: [bytes] uint8, UTF-8, a zero byte behind every text.
      starts: [N + 1] int64, where each begins.
    """

    def __init__(self, flat: np.ndarray, starts: np.ndarray):
        self.flat, self.starts = flat, starts

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Strings":
        """From Unicode texts."""
        coded = [text.encode() + b"\0" for text in texts]
        starts = np.concatenate([[0], np.cumsum([len(text) for text in coded], dtype=np.int64)])
        return cls(np.frombuffer(b"".join(coded), np.uint8), starts)

    def __len__(self) -> int:
        """How many texts."""
        return len(self.starts) - 1

    def __getitem__(self, place: int | slice) -> str | list[str]:
        """One text; of a slice the list of them."""
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        row = range(len(self))[place]
        return self.flat[self.starts[row] : self.starts[row + 1] - 1].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        """All texts in order, faster than one by one."""
        for first in range(0, len(self), _PART):
            starts = self.starts[first : first + _PART + 1]
            flat = self.flat[starts[0] : starts[-1]].tobytes()
            places = (starts - starts[0]).tolist()
            for begin, end in itertools.pairwise(places):
                yield flat[begin : end - 1].decode()
