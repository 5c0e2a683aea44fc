"""Rows found by comparing all: the nearest, or those near enough. It is what is true."""

from collections.abc import Iterator

import numpy as np

from mrl_jax.search.index import codes, loops
from mrl_jax.search.schedule import Metric

_TILE = 1024  # rows of one matrix product
_FAR = 2.0  # times their spread: rows at this distance from the origin are moved there


class _Compared:
    """Queries, and the matrix products of float32 that rule out most rows for them.

    Scores are summed in float64, each in the same order, so that equal rows tie wherever they are.
    A product only rules out rows that cannot be among those wanted, by a bound of its rounding.
    """

    def __init__(self, query_bd: np.ndarray, metric: Metric):
        self._metric = metric
        self._query_bd = self._compared_bd = np.ascontiguousarray(query_bd, np.float32)
        self._length_b = loops.lengths(self._query_bd)
        if metric == "cosine":
            # Directions: the product of a short query and a short row would be 0 in float32.
            self._compared_bd = self._query_bd / codes.norms(self._query_bd)[:, None]
        self._centre_d = None

    def _tiles(self, vector_nd: np.ndarray, norm_n: np.ndarray | None) -> Iterator[tuple]:
        """What the loops take of a tile: its first row, products, vectors and lengths."""
        vector_nd = vector_nd[:, : self._query_bd.shape[1]]
        if self._metric == "l2" and self._centre_d is None:
            self._centre(vector_nd[:_TILE])
        for i in range(0, len(vector_nd), _TILE):
            tile_rd = compared_rd = vector_nd[i : i + _TILE]
            norm_r = None if norm_n is None else norm_n[i : i + _TILE]
            if self._metric == "l2" and self._centre_d.any():
                compared_rd, norm_r = tile_rd - self._centre_d, None
            if norm_r is None:
                norm_r = codes.norms(compared_rd)
            yield i, self._compared_bd @ compared_rd.T, tile_rd, norm_r

    def _centre(self, some_rd: np.ndarray) -> None:
        """Chooses the origin: distances do not depend on it, but rounding grows with lengths."""
        centre_d = some_rd.mean(0, dtype=np.float64).astype(np.float32)
        spread = np.sqrt(np.square(loops.lengths(some_rd - centre_d)).mean())
        if np.linalg.norm(centre_d) < _FAR * spread:
            centre_d = np.zeros_like(centre_d)
        self._centre_d = centre_d
        self._compared_bd = self._query_bd - centre_d


class Exhaustive(_Compared):
    """The k best rows for every query among all rows shown to it; of equal ones the smaller.

    Attributes:
      row_bk: [B, k] int64, the best first; `NO_ROW` where fewer were shown.
      score_bk: [B, k] float64: cosine, product, or minus the squared distance; -inf for no row.
      compared_b: [B] int64, how many rows were not ruled out by products.
    """

    def __init__(self, query_bd: np.ndarray, k: int, metric: Metric):
        super().__init__(query_bd, metric)
        queries = len(self._query_bd)
        self.compared_b = np.zeros(queries, np.int64)
        self.row_bk = np.full((queries, k), loops.NO_ROW)
        self.score_bk = np.full((queries, k), -np.inf)

    def take(self, first: int, vector_nd: np.ndarray, norm_n: np.ndarray | None = None) -> None:
        """Takes in rows from number `first` on, after all rows of smaller numbers.

        Args:
          first: number of the first row.
          vector_nd: [n, >= width of the queries] float32; the first dims are compared.
          norm_n: [n] their `codes.norms` over these dims, if known.
        """
        for i, product_br, tile_rd, norm_r in self._tiles(vector_nd, norm_n):
            loops.compare_products(
                loops.METRICS[self._metric], product_br, first + i, tile_rd, norm_r,
                self._query_bd, self._length_b, loops.lengths(self._compared_bd),
                self.compared_b, self.row_bk, self.score_bk,
            )  # fmt: skip


class Within(_Compared):
    """For every query all rows whose score is at least `least`, among all rows shown to it."""

    def __init__(self, query_bd: np.ndarray, least: float, metric: Metric):
        super().__init__(query_bd, metric)
        self._least = least
        self._found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def take(self, first: int, vector_nd: np.ndarray, norm_n: np.ndarray | None = None) -> None:
        """Takes in rows from number `first` on, as `Exhaustive.take`."""
        for i, product_br, tile_rd, norm_r in self._tiles(vector_nd, norm_n):
            query_f, row_f, score_f = loops.within_products(
                loops.METRICS[self._metric], product_br, self._least, tile_rd, norm_r,
                self._query_bd, self._length_b, loops.lengths(self._compared_bd),
            )  # fmt: skip
            self._found.append((query_f, first + i + row_f, score_f))

    def found(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Queries, rows and scores [F] of all that were found, in no order."""
        nothing = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
        return tuple(map(np.concatenate, zip(nothing, *self._found, strict=True)))
