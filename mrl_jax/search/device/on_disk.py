"""Exact search of vectors on disk, a shard of rows at a time, wherever each shard is searched."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from mrl_jax.nesting import Nesting
from mrl_jax.search.device import exact, placement
from mrl_jax.search.schedule import Metric
from mrl_jax.store.vectors import Vectors


class Found(NamedTuple):
    """The best rows of some part of a database.

    Attributes:
      rows_gbk: [G, B, k] int64, row numbers among all, the best first.
      scores_gbk: [G, B, k] float64 of a part that is to be merged, else float32.
    """

    rows_gbk: np.ndarray
    scores_gbk: np.ndarray

    def rounded(self) -> "Found":
        """As `top_k` gives scores, which need no more digits once all parts are merged."""
        return self._replace(scores_gbk=self.scores_gbk.astype(np.float32))


def top_k_of_rows(
    vectors: Vectors,
    first: int,
    last: int,
    query_bd: np.ndarray,
    dims: Sequence[int],
    k: int,
    metric: Metric = "cosine",
) -> Found:
    """The k best, or all if there are fewer, of rows first to last - 1; see `top_k`."""
    dims, shard_nd = Nesting(tuple(dims)).dims, vectors.read(first, last)
    placed, split = placement.place(shard_nd, dims, metric, None)
    rows_gbk, scores_gbk = exact.search(placed, split, query_bd, dims, min(k, last - first))
    return Found(rows_gbk.astype(np.int64) + first, scores_gbk)


def merge_top_k(parts: Iterable[Found], k: int) -> Found:
    """The k best of all parts, or all if there are fewer; ties go to the smaller row.

    A row that several parts have found must have the same score in all of them; it counts once. The
    parts may come in any order and be merged in any grouping: the result is the same, bit for bit.
    """
    rows_gbc, scores_gbc = (np.concatenate(x, -1) for x in zip(*parts, strict=True))
    order_gbc = np.lexsort((rows_gbc, -scores_gbc), axis=-1)
    rows_gbc = np.take_along_axis(rows_gbc, order_gbc, -1)
    scores_gbc = np.take_along_axis(scores_gbc, order_gbc, -1)
    again_gbc = np.zeros(rows_gbc.shape, bool)
    again_gbc[..., 1:] = rows_gbc[..., 1:] == rows_gbc[..., :-1]
    # Every query has found as many different rows: all there are, or at least k.
    k = min(k, int((~again_gbc).sum(-1).min()))
    first_gbk = np.argsort(again_gbc, -1, kind="stable")[..., :k]
    return Found(
        np.take_along_axis(rows_gbc, first_gbk, -1), np.take_along_axis(scores_gbc, first_gbk, -1)
    )


def spans(rows: int, shard_rows: int) -> list[tuple[int, int]]:
    """The first row of every shard and the one after its last.

    All have the same size, so that equal rows get equal scores in all of them: rounding depends on
    the compiled program, and that on the size. The last shard therefore takes some rows again.

    Raises:
      ValueError: shards without rows.
    """
    if shard_rows < 1:
        raise ValueError(f"a shard must have at least 1 row, got {shard_rows}")
    size = min(rows, shard_rows)
    return [(min(first, rows - size), min(first + size, rows)) for first in range(0, rows, size)]


def check_k(k: int, rows: int) -> None:
    """Raises a ValueError where so many rows cannot be found."""
    if not 1 <= k <= rows:
        raise ValueError(f"k must be 1 to {rows}, the number of rows; got {k}")


def top_k_on_disk(
    vectors: Vectors,
    query_bd: np.ndarray,
    dims: Sequence[int],
    k: int,
    *,
    metric: Metric = "cosine",
    shard_rows: int = 65536,
) -> Found:
    """`top_k` of vectors on disk, of which one shard is in memory at a time.

    The scores are those of `top_k` but for rounding, which depends on `shard_rows`.

    Raises:
      ValueError: as `top_k`.
      DataError: NaN or infinity in the vectors, or damaged files.
    """
    check_k(k, vectors.rows)
    found = None
    for first, last in spans(vectors.rows, shard_rows):
        part = top_k_of_rows(vectors, first, last, query_bd, dims, k, metric)
        found = merge_top_k([found, part] if found else [part], k)
    return found.rounded()
