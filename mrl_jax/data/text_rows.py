"""Rows of texts on their way into arrays, every different text once; no object per text is kept."""

from hashlib import blake2b
from typing import Any

import numpy as np

from mrl_jax.data.array_cache import Parts
from mrl_jax.errors import DataError, shown

# Texts put into arrays at a time, or fewer of so many bytes. Few, as they may be long.
_PART, _PART_BYTES = 1 << 10, 1 << 22


def utf8(value: Any, column: str, where: str) -> bytes:
    """A text as UTF-8.

    Raises:
      DataError: it is none, or empty, or cannot be written so; names `where` and the column.
    """
    if not isinstance(value, str):
        raise DataError(f"{where}: {column} must be a text, got {shown(value)}")
    if not value.strip():
        raise DataError(f"{where}: {column} is empty")
    try:
        return value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, as JSON can write it
        raise DataError(f"{where}: {column} is not valid Unicode: {shown(value)}") from None


class Distinct:
    """Collects texts, and at the end numbers them in the order in which they appear.

    Texts are told apart by digests of 128 bits: of 10^9 texts, two share one with a probability
    of 10^-21. Numbering takes about 60 bytes of memory for every text that is added.

    Args:
      parts: where the different texts go, see `finish`.
      name: what a text is called there.
    """

    def __init__(self, parts: Parts, name: str):
        self._parts, self._name = parts, name
        self._texts: list[bytes] = []
        self._digests: list[bytes] = []
        self._bytes = 0

    def add(self, text: bytes) -> bytes:
        """One more text; gives its digest."""
        digest = blake2b(text, digest_size=16).digest()
        self._texts.append(text)
        self._digests.append(digest)
        self._bytes += len(text)
        if len(self._texts) >= _PART or self._bytes >= _PART_BYTES:
            self._flush()
        return digest

    def _flush(self) -> None:
        content = b"\0".join([*self._texts, b""])
        sizes = np.array([len(text) + 1 for text in self._texts], np.int64)
        self._parts.append(f"all_{self._name}s", np.frombuffer(content, np.uint8))
        self._parts.append(f"all_{self._name}_sizes", sizes)
        digests = np.frombuffer(b"".join(self._digests), np.uint64)
        self._parts.append(f"all_{self._name}_digests", digests)
        self._texts.clear()
        self._digests.clear()
        self._bytes = 0

    def finish(self) -> tuple[np.ndarray, int]:
        """Writes NAMEs and NAME_starts, see `Strings`: the different texts.

        Returns:
          The numbers [M] int32 of all that were added, and how many are different.

        Raises:
          DataError: more texts than int32 can number.
        """
        self._flush()
        number_m, first_m = _numbered(self._parts.array(f"all_{self._name}_digests"))
        if first_m.sum() > np.iinfo(np.int32).max:
            raise DataError(f"{first_m.sum():,} different {self._name}s are too many to number")
        self._copy(first_m)
        for kind in ("s", "_sizes", "_digests"):
            self._parts.drop(f"all_{self._name}{kind}")
        return number_m, int(first_m.sum())

    def _copy(self, first_m: np.ndarray) -> None:
        """Copies each text that is the first of its kind, part by part."""
        parts, name = self._parts, self._name
        flat, size_m = parts.array(f"all_{name}s"), parts.array(f"all_{name}_sizes")
        parts.append(f"{name}_starts", np.zeros(1, np.int64))
        begin = end = 0
        for start in range(0, len(first_m), _PART):
            sizes, first = size_m[start : start + _PART], first_m[start : start + _PART]
            content = flat[begin : begin + int(sizes.sum())]
            parts.append(f"{name}s", content[np.repeat(first, sizes)])
            parts.append(f"{name}_starts", end + np.cumsum(sizes[first]))
            begin, end = begin + len(content), end + int(sizes[first].sum())


class TextRows:
    """Collects rows, and at the end numbers their texts, see `Distinct`.

    The arrays go to `parts`; with `ordered`, rows of the same texts in another order differ.
    """

    def __init__(self, parts: Parts, *, ordered: bool):
        self._parts, self._ordered = parts, ordered
        self._texts = Distinct(parts, "text")
        self._row_digests: list[bytes] = []
        self._row_sizes: list[int] = []
        self._scores: list[float] = []

    def add(self, texts: list[bytes], score: float | None = None) -> None:
        """One more row; all of them have a score or none."""
        digests = [self._texts.add(text) for text in texts]
        row = b"".join(digests if self._ordered else sorted(digests))
        self._row_digests.append(blake2b(row, digest_size=16).digest())
        self._row_sizes.append(len(texts))
        if score is not None:
            self._scores.append(score)
        if len(self._row_sizes) >= _PART:
            self._flush()

    def _flush(self) -> None:
        append = self._parts.append
        append("row_digests", np.frombuffer(b"".join(self._row_digests), np.uint64))
        append("row_sizes", np.array(self._row_sizes, np.int64))
        if self._scores:
            append("score", np.array(self._scores, np.float32))
        for values in (self._row_digests, self._row_sizes, self._scores):
            values.clear()

    def finish(self, sides: list[str]) -> int:
        """Writes `texts` and `text_starts` (see `Strings`), `same` and `score` (see `TextSplit`).

        Args:
          sides: of rows that all have as many texts: also writes their numbers under each name.
            []: rows are groups, and `members` and `starts` are written.

        Returns:
          How many rows repeat another.

        Raises:
          DataError: more texts than int32 can number.
        """
        self._flush()
        parts = self._parts
        number_m, texts = self._texts.finish()
        _, first_n = _numbered(parts.array("row_digests"))
        row_sizes = parts.array("row_sizes")
        if sides:
            for side, number_n in zip(sides, number_m.reshape(-1, len(sides)).T, strict=True):
                parts.append(side, number_n)
            parts.append("same", np.arange(texts, dtype=np.int32))
        else:
            parts.append("members", number_m)
            parts.append("starts", np.concatenate([[0], np.cumsum(row_sizes)]).astype(np.int64))
            group_m = np.repeat(np.arange(len(row_sizes)), row_sizes)
            parts.append("same", _connected(number_m, group_m, texts))
        parts.drop("row_digests")
        parts.drop("row_sizes")
        return int(len(first_n) - first_n.sum())


def _numbered(digest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """M digests [2 M] uint64 numbered by first appearance, [M] int32; and which are first, [M]."""
    digest_m2 = digest.reshape(-1, 2)
    order = np.lexsort(digest_m2.T)  # stable: the first of equals comes first
    ordered_m2 = digest_m2[order]
    new = np.ones(len(order), bool)
    new[1:] = (ordered_m2[1:] != ordered_m2[:-1]).any(1)
    del ordered_m2
    first_m = np.zeros(len(order), bool)
    first_m[order[new]] = True
    number_of_first = np.cumsum(first_m, dtype=np.int32) - np.int32(1)
    number_m = np.empty(len(order), np.int32)
    number_m[order] = number_of_first[order[new]][np.cumsum(new) - 1]
    return number_m, first_m


def _connected(members: np.ndarray, group_m: np.ndarray, texts: int) -> np.ndarray:
    """One number for all texts of a group, and of the groups that share one of them; [texts]."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    nodes = texts + int(group_m[-1]) + 1
    edges = coo_array((np.ones(len(members)), (members, texts + group_m)), shape=(nodes, nodes))
    _, component = connected_components(edges, directed=False)
    return component[:texts].astype(np.int32)
