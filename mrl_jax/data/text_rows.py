"""Rows of texts on their way into arrays, every different text once; no object per text is kept."""

from hashlib import blake2b

import numpy as np

from mrl_jax.data.array_cache import Parts
from mrl_jax.errors import DataError

# Texts put into arrays at a time, or fewer of so many bytes. Few, as they may be long.
_PART, _PART_BYTES = 1 << 10, 1 << 22


class TextRows:
    """Collects rows, and at the end numbers their texts in the order in which they appear.

    Texts are told apart by digests of 128 bits: of 10^9 texts, two share one with a probability
    of 10^-21. Numbering takes about 60 bytes of memory for every text of every row.

    The arrays go to `parts`; with `ordered`, rows of the same texts in another order differ.
    """

    def __init__(self, parts: Parts, *, ordered: bool):
        self._parts, self._ordered = parts, ordered
        self._texts: list[bytes] = []
        self._digests: list[bytes] = []
        self._row_digests: list[bytes] = []
        self._row_sizes: list[int] = []
        self._scores: list[float] = []
        self._bytes = 0

    def add(self, texts: list[bytes], score: float | None = None) -> None:
        """One more row; all of them have a score or none."""
        digests = [blake2b(text, digest_size=16).digest() for text in texts]
        self._texts += texts
        self._digests += digests
        row = b"".join(digests if self._ordered else sorted(digests))
        self._row_digests.append(blake2b(row, digest_size=16).digest())
        self._row_sizes.append(len(texts))
        if score is not None:
            self._scores.append(score)
        self._bytes += sum(map(len, texts))
        if len(self._texts) >= _PART or self._bytes >= _PART_BYTES:
            self._flush()

    def _flush(self) -> None:
        append = self._parts.append
        content = b"\0".join([*self._texts, b""])
        append("all_texts", np.frombuffer(content, np.uint8))
        append("all_sizes", np.array([len(text) + 1 for text in self._texts], np.int64))
        append("all_digests", np.frombuffer(b"".join(self._digests), np.uint64))
        append("row_digests", np.frombuffer(b"".join(self._row_digests), np.uint64))
        append("row_sizes", np.array(self._row_sizes, np.int64))
        if self._scores:
            append("score", np.array(self._scores, np.float32))
        lists = (self._texts, self._digests, self._row_digests, self._row_sizes, self._scores)
        for values in lists:
            values.clear()
        self._bytes = 0

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
        if self._texts:
            self._flush()
        parts = self._parts
        number_m, first_m = _numbered(parts.array("all_digests"))
        if first_m.sum() > np.iinfo(np.int32).max:
            raise DataError(f"{first_m.sum():,} different texts are more than can be numbered")
        self._copy_texts(first_m)
        _, first_n = _numbered(parts.array("row_digests"))
        row_sizes = parts.array("row_sizes")
        texts = int(first_m.sum())
        if sides:
            for side, number_n in zip(sides, number_m.reshape(-1, len(sides)).T, strict=True):
                parts.append(side, number_n)
            parts.append("same", np.arange(texts, dtype=np.int32))
        else:
            parts.append("members", number_m)
            parts.append("starts", np.concatenate([[0], np.cumsum(row_sizes)]).astype(np.int64))
            group_m = np.repeat(np.arange(len(row_sizes)), row_sizes)
            parts.append("same", _connected(number_m, group_m, texts))
        for name in ("all_texts", "all_sizes", "all_digests", "row_digests", "row_sizes"):
            parts.drop(name)
        return int(len(first_n) - first_n.sum())

    def _copy_texts(self, first_m: np.ndarray) -> None:
        """Copies each text that is the first of its kind, part by part."""
        flat, size_m = self._parts.array("all_texts"), self._parts.array("all_sizes")
        self._parts.append("text_starts", np.zeros(1, np.int64))
        begin = end = 0
        for start in range(0, len(first_m), _PART):
            sizes, first = size_m[start : start + _PART], first_m[start : start + _PART]
            content = flat[begin : begin + int(sizes.sum())]
            self._parts.append("texts", content[np.repeat(first, sizes)])
            self._parts.append("text_starts", end + np.cumsum(sizes[first]))
            begin, end = begin + len(content), end + int(sizes[first].sum())


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
