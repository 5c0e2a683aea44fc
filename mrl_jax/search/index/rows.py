"""The rows that an index is written from."""

from typing import Any, Protocol

import ml_dtypes
import numpy as np

from mrl_jax.errors import DataError
from mrl_jax.search.index import attributes as tables
from mrl_jax.search.index import ids as names

# Vectors of this length or more are refused, because squares of their differences may be infinite.
TOO_LONG = 2.0**62


class Source(Protocol):
    """Vectors to be indexed, such as `mrl_jax.store.vectors.Vectors`.

    Attributes:
      rows: N.
      width: dims of each.
      ids: [N] int64 or texts.
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


def source_of(vectors: Any) -> Source:
    """Vectors as they are given: a source, or an array [N, D] of numpy or JAX.

    Raises:
      ValueError: an array that is not of floating point numbers, of another shape, or empty.
    """
    if all(hasattr(vectors, name) for name in ("rows", "width", "read")):
        return vectors
    z_nd = floats(vectors, "vectors")
    if z_nd.ndim != 2 or not z_nd.size:
        raise ValueError(f"vectors must be [N, D] and not empty, got {z_nd.shape}")
    return InMemory(z_nd)


def floats(values: Any, what: str) -> np.ndarray:
    """An array of floating point numbers, as it is given; ValueError if it is none."""
    if np.ma.is_masked(values):
        raise ValueError(f"{what} must have a number everywhere, some are masked")
    z = np.asarray(values)
    if not (np.issubdtype(z.dtype, np.floating) or z.dtype == ml_dtypes.bfloat16):
        raise ValueError(f"{what} must be floating point, got {z.dtype}")
    return z


def legal(z_nd: np.ndarray) -> np.ndarray:
    """Which rows an index can work with: those of numbers, shorter than `TOO_LONG`."""
    # Cheaper than lengths: no vector is longer than the root of d times its largest number.
    if max(z_nd.max(), -z_nd.min()) < TOO_LONG / z_nd.shape[1] ** 0.5:
        return np.ones(len(z_nd), bool)
    return np.linalg.norm(z_nd.astype(np.float64), axis=1) < TOO_LONG


class Legal:
    """The vectors of a source, checked as they are read.

    Raises:
      DataError: NaN, infinity, or vectors longer than 4e18.
    """

    def __init__(self, source: Source):
        self._source = source
        self.rows, self.width = source.rows, source.width

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


class Rows(Legal):
    """Vectors with ids and attributes, as an index takes them in.

    Attributes:
      ids: [N], see `mrl_jax.search.index.ids`.
      attributes: a table of N rows; None: there are none.

    Raises:
      DataError: ids that rows cannot have, or another number of them; attributes where rows of the
        index have none, none where they have some, or other ones. Also as `Legal`.
      ValueError: ids that are neither whole numbers nor texts.
    """

    def __init__(
        self,
        vectors: Any,
        ids: Any,
        attributes: tables.Table | None,
        kind: names.Kind | None = None,
        schema: Any = None,
    ):
        """Of an array or a source; `kind` and `schema` are those of the index they are added to."""
        source = source_of(vectors)
        super().__init__(source)
        self.ids = names.taken(source.ids if ids is None else ids)
        if len(self.ids) != self.rows:
            raise DataError(f"there are {len(self.ids)} ids for {self.rows} vectors")
        names.check_new(self.ids, kind)
        if schema is not None and attributes is None:
            raise DataError(
                "vectors of this index have attributes: give those of the new ones, too"
            )
        if schema is None and kind is not None and attributes is not None:
            raise DataError("vectors of this index have no attributes")
        self.attributes = None
        if attributes is not None:
            self.attributes = tables.taken(attributes, self.rows, schema)


def _float32(z_nd: np.ndarray) -> np.ndarray:
    """The same in this machine's byte order; what float32 cannot hold is infinite, and refused."""
    with np.errstate(over="ignore"):
        return np.asarray(z_nd, np.float32)
