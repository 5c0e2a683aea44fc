"""A database on devices: its rows split over a mesh, beside the norms of their prefixes."""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mrl_jax.kernels.prefix import prefix_norms
from mrl_jax.nesting import Nesting

Metric = Literal["cosine", "inner", "l2"]
Array = np.ndarray | jax.Array

# Every device has at least so many rows, some of them zeros, and works on multiples of it.
LEAST_ROWS = 512
# Vectors of this length or more are refused, because squares of their differences may be infinite.
_TOO_LONG = 2.0**62


class Layout(NamedTuple):
    """What compiled searches depend on beside numbers.

    Attributes:
      dims: prefixes whose norms are known.
      metric: how rows are compared.
      rows: how many there are; behind them are zeros.
      local: how many every device has; the devices have them in order.
      mesh: over all of whose devices the rows are split.
    """

    dims: tuple[int, ...]
    metric: Metric
    rows: int
    local: int
    mesh: Mesh

    def first(self) -> jax.Array:
        """Within `on_mesh`: which row is this device's first."""
        return lax.axis_index(self.mesh.axis_names) * self.local


class Sharded(NamedTuple):
    """A database, placed.

    Attributes:
      database_nd: [devices * local, >= m_G], the rows split over all devices.
      norm_gn: [G, devices * local] float32, the norms of the prefixes, at least 1e-12; likewise.
    """

    database_nd: jax.Array
    norm_gn: jax.Array


def place(
    database_nd: Array, dims: Sequence[int], metric: Metric, mesh: Mesh | None
) -> tuple[Sharded, Layout]:
    """Splits the rows over the devices of a mesh and measures their prefixes.

    Raises:
      ValueError: shapes, dtypes, dims or a metric that cannot be; NaN or infinity, or vectors
        longer than 4e18.
    """
    dims = Nesting(tuple(dims)).dims
    check_vectors("database", database_nd, dims[-1])
    if metric not in get_args(Metric):
        raise ValueError(f"metric must be one of {', '.join(get_args(Metric))}; got {metric!r}")
    if mesh is None:
        mesh = Mesh(np.array(jax.local_devices()[:1]), ("rows",))
    local = max(-(-len(database_nd) // mesh.size), LEAST_ROWS)
    layout = Layout(dims, metric, len(database_nd), local, mesh)
    database_nd = _split(database_nd, local * mesh.size, dims[-1], mesh)
    norm_gn, legal = _norms(database_nd, layout)
    _check_numbers("the database", legal)
    return Sharded(database_nd, norm_gn), layout


def check_vectors(name: str, x: Array, width: int) -> None:
    """Refuses what is no matrix of floating point with so many columns."""
    if x.ndim != 2 or x.shape[0] < 1 or x.shape[1] < width:
        raise ValueError(f"{name} must be [>= 1, >= {width}], got {x.shape}")
    if not jnp.issubdtype(_native(x.dtype), jnp.floating):
        raise ValueError(f"{name} must be floating point, got {x.dtype}")


def _native(dtype: np.dtype) -> np.dtype:
    """The same numbers in this machine's byte order, the only one that JAX knows."""
    return dtype.newbyteorder("=")


def check_k(k: int, rows: int) -> int:
    """k as an integer, where there are so many rows."""
    k = operator.index(k)
    if not 1 <= k <= rows:
        raise ValueError(f"k must be 1 to {rows}, the rows there are; got {k}")
    return k


def _check_numbers(name: str, legal: jax.Array) -> None:
    if not legal:
        raise ValueError(f"{name} holds NaN or infinity, or is a vector longer than 4e18")


def _split(database_nd: Array, rows: int, width: int, mesh: Mesh) -> jax.Array:
    """The database, filled up to so many rows by zeros, split over all devices."""
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    missing = rows - len(database_nd)
    if isinstance(database_nd, jax.Array) and (
        sharding.is_fully_addressable or not database_nd.is_fully_addressable
    ):
        if missing:
            database_nd = jnp.pad(database_nd, ((0, missing), (0, 0)))
        return jax.device_put(database_nd, sharding)
    database_nd = np.asarray(database_nd)[:, :width]

    def part(index):
        part_nd = database_nd[index]
        native = _native(part_nd.dtype)
        part_nd = part_nd.astype(np.float32 if native == np.float64 else native, copy=False)
        lacking = len(range(rows)[index[0]]) - len(part_nd)
        return np.pad(part_nd, ((0, lacking), (0, 0))) if lacking else part_nd

    return jax.make_array_from_callback((rows, width), sharding, part)


def on_mesh(local: Callable, layout: Layout, *arguments, outputs: PartitionSpec | None = None):
    """Runs a function of one device's `Sharded` and of queries, which all have, on all devices.

    Its results are the same on all, unless `outputs` says how they are split.
    """
    rows = layout.mesh.axis_names
    inputs = (Sharded(PartitionSpec(rows), PartitionSpec(None, rows)), PartitionSpec())
    # What is gathered from all devices is the same on all; the checker cannot see it.
    return jax.shard_map(
        local,
        mesh=layout.mesh,
        in_specs=inputs[: len(arguments)],
        out_specs=PartitionSpec() if outputs is None else outputs,
        check_vma=False,
    )(*arguments)


@functools.partial(jax.jit, static_argnums=1)
def _norms(database_nd: jax.Array, layout: Layout) -> tuple[jax.Array, jax.Array]:
    """Norms [G, N] of the prefixes, and whether all vectors are finite and not too long."""
    rows = layout.mesh.axis_names

    def local(database_nd):
        def of_tile(t, norm_gn):
            start = jnp.minimum(t * LEAST_ROWS, layout.local - LEAST_ROWS)
            shape = (LEAST_ROWS, layout.dims[-1])
            tile_nd = lax.dynamic_slice(database_nd, (start, 0), shape).astype(jnp.float32)
            tile_gn = prefix_norms(tile_nd, layout.dims)
            return lax.dynamic_update_slice(norm_gn, tile_gn, (0, start))

        norm_gn = jnp.zeros((len(layout.dims), layout.local))
        norm_gn = lax.fori_loop(0, -(-layout.local // LEAST_ROWS), of_tile, norm_gn)
        legal = (norm_gn[-1] < _TOO_LONG).all()
        return norm_gn, lax.pmin(legal.astype(jnp.int32), rows)

    return jax.shard_map(
        local,
        mesh=layout.mesh,
        in_specs=PartitionSpec(rows),
        out_specs=(PartitionSpec(None, rows), PartitionSpec()),
        check_vma=False,
    )(database_nd)


def query_norms(query_bd: jax.Array, dims: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Norms [G, B] of the prefixes, and whether all queries are finite and not too long."""
    norm_gb = prefix_norms(query_bd, dims)
    return norm_gb, (norm_gb[-1] < _TOO_LONG).all()


def in_chunks(
    search: Callable[[jax.Array], tuple[jax.Array, jax.Array, jax.Array]],
    query_bd: Array,
    width: int,
    at_most: int,
    mesh: Mesh,
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and scores [..., B, k] of all queries, some at a time.

    The numbers asked for at a time are `at_most` and powers of two below, so that few programs
    serve batches of any size.

    Args:
      search: of queries [b, width], gives rows and scores [..., b, k] and whether all queries are
        legal.
      query_bd: the queries, the same on every process.
      width: how many of their dims matter.
      at_most: a power of two.
      mesh: where the search runs.

    Raises:
      ValueError: queries that cannot be.
    """
    check_vectors("queries", query_bd, width)
    whole = NamedSharding(mesh, PartitionSpec())
    rows, scores, start = [], [], 0
    while start < len(query_bd):
        chunk_bd = np.asarray(query_bd[start : start + at_most, :width], np.float32)
        valid = len(chunk_bd)
        size = 1 << (valid - 1).bit_length()
        chunk_bd = np.pad(chunk_bd, ((0, size - valid), (0, 0)))
        chunk_bd = jax.make_array_from_callback(chunk_bd.shape, whole, chunk_bd.__getitem__)
        row_bk, score_bk, legal = search(chunk_bd)
        _check_numbers("a query", legal)
        rows.append(np.asarray(row_bk)[..., :valid, :])
        scores.append(np.asarray(score_bk)[..., :valid, :])
        start += valid
    return np.concatenate(rows, -2), np.concatenate(scores, -2)
