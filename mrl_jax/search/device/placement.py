"""A database on devices: its rows split over a mesh, beside the norms of their prefixes."""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mrl_jax.kernels.prefix import prefix_norms
from mrl_jax.nesting import Nesting
from mrl_jax.runtime.forks import check_not_forked
from mrl_jax.search.schedule import Metric

Array = np.ndarray | jax.Array

# Every device has at least so many rows, padded with zeros, and works on multiples of it.
LEAST_ROWS = 512
# Vectors of this length or more are refused, because squares of their differences may be infinite.
_TOO_LONG = 2.0**62
# Norms are at least this, the smallest normal number of float32, so that one can divide by them.
SHORTEST = 2.0**-126
# Rows are moved to their mean if it is this many times as far from the origin as they are from it.
_FAR = 2.0


def double(function: Callable) -> Callable:
    """Lets a function compute in float64, which JAX lacks otherwise.

    Whole numbers and constants then have 64 bits unless they say otherwise.
    """

    @functools.wraps(function)
    def wrapped(*arguments, **options):
        with jax.enable_x64(True):
            return function(*arguments, **options)

    return wrapped


class Split(NamedTuple):
    """How a database is split over devices: what compiled searches depend on beside arrays.

    Attributes:
      dims: prefixes whose norms are known.
      rows: of the database; the rows behind them are zeros.
      local: rows of every device, in order.
      mesh: the rows are split over all its devices.
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
    """A database on devices.

    Attributes:
      database_nd: [devices * local, >= m_G], the rows split over all devices.
      norm_gn: [G, devices * local] float32, the lengths of the prefixes, at least `SHORTEST`; for
        l2 of their differences from the centre.
      centre_d: [m_G] float32, on every device: by l2 the origin of rows that are far from 0.
    """

    database_nd: jax.Array
    norm_gn: jax.Array
    centre_d: jax.Array | None = None


@double
def place(
    database_nd: Array, dims: Sequence[int], metric: Metric, mesh: Mesh | None
) -> tuple[Sharded, Split]:
    """Splits the rows over the devices of a mesh and measures their prefixes; raises as `top_k`."""
    dims = Nesting(tuple(dims)).dims
    database_nd = checked("database", database_nd, dims[-1])
    if metric not in get_args(Metric):
        raise ValueError(f"metric must be one of {', '.join(get_args(Metric))}; got {metric!r}")
    if mesh is None:
        mesh = Mesh(np.array(jax.local_devices()[:1]), ("rows",))
    local = max(-(-len(database_nd) // mesh.size), LEAST_ROWS)
    split = Split(dims, metric, len(database_nd), local, mesh)
    database_nd = _over_devices(database_nd, local * mesh.size, dims[-1], mesh)
    centre_d = _centre(database_nd, split) if metric == "l2" else None
    if centre_d is not None and not centre_d.any():
        centre_d = None
    norm_gn, legal = _norms(database_nd, centre_d, split)
    _check_numbers("the database", legal)
    return Sharded(database_nd, norm_gn, centre_d), split


def checked(name: str, x: Array, width: int) -> Array:
    """The array, if it is a floating-point matrix with so many columns and none of it is masked."""
    check_not_forked()
    if not isinstance(x, jax.Array):
        if np.ma.is_masked(x):
            raise ValueError(f"{name} must have a number everywhere, some are masked")
        x = np.asarray(x)
    if x.ndim != 2 or x.shape[0] < 1 or x.shape[1] < width:
        raise ValueError(f"{name} must be [>= 1, >= {width}], got {x.shape}")
    if not jnp.issubdtype(_native(x.dtype), jnp.floating):
        raise ValueError(f"{name} must be floating point, got {x.dtype}")
    return x


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


def _over_devices(database_nd: Array, rows: int, width: int, mesh: Mesh) -> jax.Array:
    """The database, padded with zeros to so many rows, split over all devices."""
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    missing = rows - len(database_nd)
    if isinstance(database_nd, jax.Array) and (
        sharding.is_fully_addressable or not database_nd.is_fully_addressable
    ):
        if missing:
            database_nd = jnp.pad(database_nd, ((0, missing), (0, 0)))
        return jax.device_put(database_nd, sharding)
    database_nd = np.asarray(database_nd)[:, :width]
    # Those of one or two bytes stay as small as they are.
    kept = database_nd.dtype.itemsize < 4 and database_nd.dtype.isnative

    def part(index):
        part_nd = database_nd[index]
        if not kept:
            with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused
                part_nd = part_nd.astype(np.float32)
        lacking = len(range(rows)[index[0]]) - len(part_nd)
        return np.pad(part_nd, ((0, lacking), (0, 0))) if lacking else part_nd

    return jax.make_array_from_callback((rows, width), sharding, part)


def everywhere(x: np.ndarray, mesh: Mesh) -> jax.Array:
    """An array, the same on every process, on all devices."""
    return jax.make_array_from_callback(
        x.shape, NamedSharding(mesh, PartitionSpec()), x.__getitem__
    )


def on_mesh(local: Callable, split: Split, *arguments, outputs: PartitionSpec | None = None):
    """Runs a function of each device's part of a `Sharded`, and of all queries, on all devices.

    Its results are the same on all, unless `outputs` says how they are split.
    """
    rows, whole = split.mesh.axis_names, PartitionSpec()
    centre = None if arguments[0].centre_d is None else whole
    inputs = (Sharded(PartitionSpec(rows), PartitionSpec(None, rows), centre), whole)
    # What is gathered from all devices is the same on all; the checker cannot see it.
    return jax.shard_map(
        local,
        mesh=split.mesh,
        in_specs=inputs[: len(arguments)],
        out_specs=whole if outputs is None else outputs,
        check_vma=False,
    )(*arguments)


def _tiles(local: int) -> tuple[int, Callable]:
    """How many tiles a device has, and the first row of one; the last begins early enough."""
    return -(-local // LEAST_ROWS), lambda t: jnp.minimum(t * LEAST_ROWS, local - LEAST_ROWS)


@functools.partial(jax.jit, static_argnums=1)
def _centre(database_nd: jax.Array, split: Split) -> jax.Array:
    """The mean of all rows, or the origin if that is near enough."""
    rows = split.mesh.axis_names
    tiles, first_of = _tiles(split.local)

    def local(database_nd):
        def of_tile(t, sums):
            start, shape = first_of(t), (LEAST_ROWS, split.dims[-1])
            tile_nd = lax.dynamic_slice(database_nd, (start, jnp.zeros_like(start)), shape)
            new_n = start + jnp.arange(LEAST_ROWS) >= t * LEAST_ROWS
            tile_nd = jnp.where(new_n[:, None], tile_nd.astype(jnp.float64), 0)
            return sums[0] + tile_nd.sum(0), sums[1] + jnp.square(tile_nd).sum()

        nothing = jnp.zeros(split.dims[-1], jnp.float64), jnp.zeros((), jnp.float64)
        return lax.psum(lax.fori_loop(0, tiles, of_tile, nothing), rows)

    sum_d, squares = jax.shard_map(
        local,
        mesh=split.mesh,
        in_specs=PartitionSpec(rows),
        out_specs=PartitionSpec(),
        check_vma=False,
    )(database_nd)
    mean_d = sum_d / split.rows
    distance = jnp.square(mean_d).sum()
    spread = squares / split.rows - distance
    return jnp.where(distance > _FAR**2 * spread, mean_d, 0).astype(jnp.float32)


@functools.partial(jax.jit, static_argnums=2)
def _norms(
    database_nd: jax.Array, centre_d: jax.Array | None, split: Split
) -> tuple[jax.Array, jax.Array]:
    """Norms [G, N] of the prefixes, and whether all vectors are finite and not too long."""
    rows = split.mesh.axis_names
    tiles, first_of = _tiles(split.local)

    def local(database_nd, centre_d):
        def of_tile(t, state):
            norm_gn, legal = state
            start, shape = first_of(t), (LEAST_ROWS, split.dims[-1])
            tile_nd = lax.dynamic_slice(database_nd, (start, jnp.zeros_like(start)), shape)
            tile_nd = tile_nd.astype(jnp.float32)
            legal &= (lengths(tile_nd, split.dims[-1:]) < _TOO_LONG).all()
            if centre_d is not None:
                tile_nd -= centre_d[None]
            tile_gn = lengths(tile_nd, split.dims)
            return lax.dynamic_update_slice(norm_gn, tile_gn, (jnp.zeros_like(start), start)), legal

        norm_gn = jnp.zeros((len(split.dims), split.local), jnp.float32)
        norm_gn, legal = lax.fori_loop(0, tiles, of_tile, (norm_gn, jnp.array(True)))
        return norm_gn, lax.pmin(legal.astype(jnp.int32), rows)

    return jax.shard_map(
        local,
        mesh=split.mesh,
        in_specs=(PartitionSpec(rows), PartitionSpec()),
        out_specs=(PartitionSpec(None, rows), PartitionSpec()),
        check_vma=False,
    )(database_nd, centre_d)


def lengths(a_bd: jax.Array, dims: tuple[int, ...]) -> jax.Array:
    """The lengths of prefixes, [G, B] float32, from float64, where no square becomes 0."""
    return prefix_norms(a_bd.astype(jnp.float64), dims, SHORTEST).astype(jnp.float32)


def legal_queries(query_bd: jax.Array, dims: tuple[int, ...]) -> jax.Array:
    """Whether all queries are finite and not too long."""
    return (lengths(query_bd, dims[-1:]) < _TOO_LONG).all()


@double
def in_chunks(
    search: Callable[[jax.Array], tuple[jax.Array, jax.Array, jax.Array]],
    query_bd: Array,
    width: int,
    at_most: int,
    mesh: Mesh,
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and scores [..., B, k] of all queries, some at a time.

    So many at a time are `at_most` or a smaller power of two: few programs serve all batches.

    Args:
      search: gives, for queries [b, width], rows and scores [..., b, k] and whether all queries are
        legal.
      query_bd: the queries, the same on every process.
      width: how many of their dims matter.
      at_most: a power of two.
      mesh: where the search runs.
    """
    query_bd = checked("queries", query_bd, width)
    rows, scores, start = [], [], 0
    while start < len(query_bd):
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused
            chunk_bd = np.asarray(query_bd[start : start + at_most, :width], np.float32)
        valid = len(chunk_bd)
        size = 1 << (valid - 1).bit_length()
        # Padding with a query itself opens no question of rounding that is not open anyway.
        chunk_bd = everywhere(np.pad(chunk_bd, ((0, size - valid), (0, 0)), "edge"), mesh)
        row_bk, score_bk, legal = search(chunk_bd)
        _check_numbers("a query", legal)
        rows.append(np.asarray(row_bk)[..., :valid, :])
        scores.append(np.asarray(score_bk)[..., :valid, :])
        start += valid
    return np.concatenate(rows, -2), np.concatenate(scores, -2)
