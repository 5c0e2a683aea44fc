"""What vectors of an index are read from while it is written."""

import itertools
from collections.abc import Sequence

import numpy as np

from mrl_jax.errors import DataError
from mrl_jax.search.index.segment import Segment, Source, legal

NO_ID = -1  # where there are fewer results than asked for


class Legal:
    """A source without what an index cannot hold.

    Raises:
      DataError: an id that says "none found"; on reading: NaN, infinity, or vectors longer than
        4e18.
    """

    def __init__(self, source: Source):
        self._source = source
        self.rows, self.width, self.ids = source.rows, source.width, source.ids
        if (self.ids == NO_ID).any():
            raise DataError(f"no vector can have the id {NO_ID}: it says that none was found")

    def read(self, first: int, last: int) -> np.ndarray:
        """Rows first to last - 1."""
        z_nd = _float32(self._source.read(first, last))
        legal_n = legal(z_nd)
        if not legal_n.all():
            row = first + legal_n.argmin()
            raise DataError(f"row {row} holds NaN or infinity, or is longer than 4e18")
        return z_nd

    def sample(self, n: int, seed: int, width: int) -> np.ndarray:
        """The first dims of some of the rows."""
        z_nd = _float32(self._source.sample(n, seed, width))
        if not legal(z_nd).all():
            raise DataError("a vector holds NaN or infinity, or is longer than 4e18")
        return z_nd


def _float32(z_nd: np.ndarray) -> np.ndarray:
    """The same in this machine's byte order; what float32 cannot hold is infinite, and refused."""
    with np.errstate(over="ignore"):
        return np.asarray(z_nd, np.float32)


class Alive:
    """What is not deleted of some segments."""

    def __init__(self, segments: Sequence[Segment], width: int):
        self.width = width
        self._rows = [(part, np.flatnonzero(part.alive)) for part in segments]
        self._starts = list(itertools.accumulate((len(r) for _, r in self._rows), initial=0))
        self.rows = self._starts[-1]
        self.ids = np.concatenate([part.ids[row_n] for part, row_n in self._rows])

    def read(self, first: int, last: int) -> np.ndarray:
        """Rows first to last - 1."""
        found = []
        for (part, row_n), start in zip(self._rows, self._starts, strict=False):
            wanted = row_n[max(first - start, 0) : max(last - start, 0)]
            found.append(part.vectors.at(wanted)[wanted])
        return np.concatenate(found)
