"""The rows that an index is written from."""

from typing import Protocol

import numpy as np

from mrl_jax.errors import DataError

NO_ID = -1  # where there are fewer results than asked for
# Vectors of this length or more are refused, because squares of their differences may be infinite.
TOO_LONG = 2.0**62


class Source(Protocol):
    """Vectors to be indexed, such as `mrl_jax.store.vectors.Vectors`.

    Attributes:
      rows: N.
      width: dims of each.
      ids: [N] int64.
    """

    rows: int
    width: int
    ids: np.ndarray

    def read(self, first: int, last: int) -> np.ndarray:
        """Rows first to last - 1, float32."""

    def sample(self, n: int, seed: int, width: int | None = None) -> np.ndarray:
        """The first `width` dims of n rows that are drawn without replacement."""


class InMemory:
    """Vectors in memory; ids are row numbers."""

    def __init__(self, vector_nd: np.ndarray):
        self._vector_nd = vector_nd
        self.rows, self.width = vector_nd.shape
        self.ids = np.arange(self.rows)

    def read(self, first: int, last: int) -> np.ndarray:
        """Rows first to last - 1."""
        return self._vector_nd[first:last]

    def sample(self, n: int, seed: int, width: int | None = None) -> np.ndarray:
        """The first `width` dims of n rows, in their order."""
        row_n = np.random.default_rng(seed).choice(self.rows, n, replace=False, shuffle=False)
        return self._vector_nd[np.sort(row_n), :width]


def legal(z_nd: np.ndarray) -> np.ndarray:
    """Which rows an index can work with: those of numbers, shorter than `TOO_LONG`."""
    # Cheaper than lengths: no vector is longer than the root of d times its largest number.
    if max(z_nd.max(), -z_nd.min()) < TOO_LONG / z_nd.shape[1] ** 0.5:
        return np.ones(len(z_nd), bool)
    return np.linalg.norm(z_nd.astype(np.float64), axis=1) < TOO_LONG


class Legal:
    """A source, checked as it is read.

    Raises:
      DataError: an id that stands for "none found"; later NaN, infinity, or vectors longer than
        4e18.
    """

    def __init__(self, source: Source):
        self._source = source
        self.rows, self.width, self.ids = source.rows, source.width, source.ids
        if (self.ids == NO_ID).any():
            raise DataError(f"no vector can have the id {NO_ID}: it stands for none found")

    def read(self, first: int, last: int) -> np.ndarray:
        """Rows first to last - 1."""
        z_nd = _float32(self._source.read(first, last))
        legal_n = legal(z_nd)
        if not legal_n.all():
            row = first + legal_n.argmin()
            raise DataError(f"row {row} holds NaN or infinity, or is longer than 4e18")
        return z_nd

    def sample(self, n: int, seed: int, width: int | None = None) -> np.ndarray:
        """The first `width` dims of n rows."""
        z_nd = _float32(self._source.sample(n, seed, width))
        if not legal(z_nd).all():
            raise DataError("a vector holds NaN or infinity, or is longer than 4e18")
        return z_nd


def _float32(z_nd: np.ndarray) -> np.ndarray:
    """The same in this machine's byte order; what float32 cannot hold is infinite, and refused."""
    with np.errstate(over="ignore"):
        return np.asarray(z_nd, np.float32)
