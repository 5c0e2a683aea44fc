"""The k best rows of a database for each query, exactly, at every prefix in one pass."""

import bisect
import functools
import math
import operator
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mrl_jax.kernels.prefix import exact_dot, prefix_norms
from mrl_jax.nesting import Nesting

Metric = Literal["cosine", "inner", "l2"]
Array = np.ndarray | jax.Array


class _Sizes(NamedTuple):
    """How much is worked on at a time.

    Attributes:
      queries: of one call, and
      tile: rows, a multiple of 128: their scores at one prefix are [tile, queries].
      maxima: at most so many maxima of blocks, prefixes x queries x blocks.
      candidates: at most so many numbers of rows that are scored again, but one query's at least.
    """

    queries: int
    tile: int
    maxima: int
    candidates: int


_CPU = _Sizes(256, 512, 2**26, 2**18)  # scores stay in the cache of a core
_ACCELERATOR = _Sizes(1024, 8192, 2**28, 2**28)
# Up to here a product from the first dim on costs less than adding to the running one.
_SHORT = 32
# Blocks that are looked into beyond k: their maxima are rounded otherwise than final scores.
_SPARE_BLOCKS = 3
# Vectors of this length or more are refused, because squares of their differences may be infinite.
_TOO_LONG = 2.0**62


class _Plan(NamedTuple):
    """What a compiled search depends on beside its arrays.

    Every device has `local` rows. It goes through them in `spans` parts of `tiles` tiles of `tile`
    rows, and every tile consists of blocks of `block` rows. `together` queries score their
    candidates at a time.
    """

    dims: tuple[int, ...]
    k: int
    metric: Metric
    rows: int
    local: int
    spans: int
    tiles: int
    tile: int
    block: int
    together: int


class _Terms(NamedTuple):
    """What makes scores of products, [tiles, G, tile] on every device: product * scale + offset.

    They rank rows as the metric does. The offset of a place in a tile that is no row, or a row of
    the tile before, is -inf.
    """

    scale_tgn: jax.Array
    offset_tgn: jax.Array


def top_k(
    database_nd: Array,
    query_bd: Array,
    dims: Sequence[int],
    k: int,
    *,
    metric: Metric = "cosine",
    mesh: Mesh | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best rows of a database for every query, at every prefix, by comparing with all rows.

    One pass serves all prefixes: the products over the first m_g dims are those over m_{g-1} dims
    plus one block product. Of the scores only the maxima of small blocks of rows are kept: the k
    best rows lie in the k blocks with the largest maxima. Rows of these blocks alone are scored
    again and sorted. Beside its arguments (the database lies on the devices) and its result, a
    search needs two numbers per row and prefix, and memory that grows with neither N nor B.

    Scores are rounded as float32 is: by about 1e-7 of the lengths of the two vectors. Rows that are
    nearer to each other than that may change places. It compiles once for every N, dims and k, so
    many searches with few queries each are best asked for in equal numbers.

    Args:
      database_nd: [N, >= m_G] floating point; computed with in float32. On a mesh the same on every
        process, or one global array.
      query_bd: [B, >= m_G], the same on every process.
      dims: prefix lengths m_1 < ... < m_G.
      k: how many rows, 1 to N.
      metric: "cosine", of which a vector of length 0 has 0 with all others; "inner", the product;
        or "l2", minus the squared Euclidean distance, so that here, too, the largest score wins.
      mesh: the rows are split over all its devices; any N will do. None: one device.

    Returns:
      rows_gbk: [G, B, k] int32, the best row first, on every process. Ties go to the smaller row,
        on any mesh; equal rows tie.
      scores_gbk: [G, B, k] float32.

    Raises:
      ValueError: shapes, dtypes, dims, k or a metric that cannot be; NaN or infinity, or vectors
        longer than 4e18.
    """
    dims = Nesting(tuple(dims)).dims
    k = operator.index(k)
    _check(database_nd, query_bd, dims, k, metric)
    if mesh is None:
        mesh = Mesh(np.array(jax.local_devices()[:1]), ("rows",))
    sizes = _CPU if mesh.devices.flat[0].platform == "cpu" else _ACCELERATOR
    size = _chunk_size(len(query_bd), sizes.queries)
    plan = _plan(dims, k, metric, len(database_nd), mesh.size, sizes._replace(queries=size))
    database_nd = _placed(database_nd, plan.local * mesh.size, dims[-1], mesh)
    terms, legal = _row_terms(database_nd, plan, mesh)
    _check_numbers("the database", legal)
    whole = NamedSharding(mesh, PartitionSpec())
    rows, scores = [], []
    for start in range(0, len(query_bd), size):
        chunk_bd = np.asarray(query_bd[start : start + size, : dims[-1]], np.float32)
        valid = len(chunk_bd)
        chunk_bd = np.pad(chunk_bd, ((0, size - valid), (0, 0)))
        chunk_bd = jax.make_array_from_callback(chunk_bd.shape, whole, chunk_bd.__getitem__)
        row_gbk, score_gbk, legal = _search(database_nd, terms, chunk_bd, plan, mesh)
        _check_numbers("a query", legal)
        rows.append(np.asarray(row_gbk)[:, :valid])
        scores.append(np.asarray(score_gbk)[:, :valid])
    return np.concatenate(rows, 1), np.concatenate(scores, 1)


def _check(database_nd, query_bd, dims: tuple[int, ...], k: int, metric: str) -> None:
    for name, x in (("database", database_nd), ("queries", query_bd)):
        if x.ndim != 2 or x.shape[0] < 1 or x.shape[1] < dims[-1]:
            raise ValueError(f"{name} must be [>= 1, >= {dims[-1]}], got {x.shape}")
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{name} must be floating point, got {x.dtype}")
    if not 1 <= k <= len(database_nd):
        raise ValueError(f"k must be 1 to {len(database_nd)}, the rows there are; got {k}")
    if metric not in get_args(Metric):
        raise ValueError(f"metric must be one of {', '.join(get_args(Metric))}; got {metric!r}")


def _check_numbers(name: str, legal: jax.Array) -> None:
    if not legal:
        raise ValueError(f"{name} holds NaN or infinity, or is a vector longer than 4e18")


def _chunk_size(queries: int, at_most: int) -> int:
    """Chunks of one size, a multiple of 8, with little padding."""
    chunks = -(-queries // at_most)
    return -(-queries // (8 * chunks)) * 8


def _plan(dims, k: int, metric: str, rows: int, devices: int, sizes: _Sizes) -> _Plan:
    local = -(-rows // devices)
    # What finding a large maximum costs, against scoring a row again; as measured on a CPU.
    best = math.sqrt(8 * local / ((k + _SPARE_BLOCKS) * (25 + 2 * sum(dims) / len(dims))))
    block = 2 ** min(max(round(math.log2(best)), 3), 7)
    tile = min(sizes.tile, -(-local // block) * block)
    local = max(local, tile)
    tiles = -(-local // tile)
    spans = -(-tiles * (tile // block) * len(dims) * sizes.queries // sizes.maxima)
    tiles = -(-tiles // spans)
    candidates = min(k + _SPARE_BLOCKS, tiles * tile // block) * block
    together = min(max(sizes.candidates // (candidates * dims[-1]), 1), sizes.queries)
    return _Plan(dims, k, metric, rows, local, spans, tiles, tile, block, together)


def _placed(database_nd: Array, rows: int, width: int, mesh: Mesh) -> jax.Array:
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
        if part_nd.dtype == np.float64:
            part_nd = part_nd.astype(np.float32)
        lacking = len(range(rows)[index[0]]) - len(part_nd)
        return np.pad(part_nd, ((0, lacking), (0, 0))) if lacking else part_nd

    return jax.make_array_from_callback((rows, width), sharding, part)


def _on_mesh(local, mesh: Mesh, *arguments, outputs):
    """Runs a function of one device's rows on all; the third argument, queries, is not split."""
    split = PartitionSpec(mesh.axis_names)
    inputs = (split, split, PartitionSpec())[: len(arguments)]
    # What is gathered from all devices is the same on all; the checker cannot see it.
    return jax.shard_map(local, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)(
        *arguments
    )


def _tile(plan: _Plan, database_nd: jax.Array, t: jax.Array) -> jax.Array:
    """Tile t as [tile, m_G] float32. The last tiles begin early enough to be whole."""
    tile_nd = lax.dynamic_slice_in_dim(database_nd, t * plan.tile, plan.tile)
    return tile_nd[:, : plan.dims[-1]].astype(jnp.float32)


def _row(plan: _Plan, t: jax.Array, place: jax.Array) -> jax.Array:
    """Which of the device's rows is at a place in tile t."""
    return jnp.minimum(t * plan.tile, plan.local - plan.tile) + place


@functools.partial(jax.jit, static_argnums=(1, 2))
def _row_terms(database_nd: jax.Array, plan: _Plan, mesh: Mesh) -> tuple[_Terms, jax.Array]:
    """The terms, and whether all vectors are finite and not too long."""

    def local(database_nd):
        first = lax.axis_index(mesh.axis_names) * plan.local

        def of_tile(t):
            norm_gn = prefix_norms(_tile(plan, database_nd, t), plan.dims)
            row_n = _row(plan, t, jnp.arange(plan.tile))
            exists_n = (row_n >= t * plan.tile) & (first + row_n < plan.rows)
            scale_gn, offset_gn = jnp.ones_like(norm_gn), jnp.zeros_like(norm_gn)
            if plan.metric == "cosine":  # the query's norm scales all its scores alike
                scale_gn = 1 / norm_gn
            elif plan.metric == "l2":
                offset_gn = -jnp.square(norm_gn) / 2
            terms = _Terms(scale_gn, jnp.where(exists_n[None], offset_gn, -jnp.inf))
            return terms, (norm_gn[-1] < _TOO_LONG).all()

        terms, legal_t = lax.map(of_tile, jnp.arange(plan.spans * plan.tiles))
        return terms, lax.pmin(legal_t.all().astype(jnp.int32), mesh.axis_names)

    outputs = PartitionSpec(mesh.axis_names), PartitionSpec()
    return _on_mesh(local, mesh, database_nd, outputs=outputs)


def _block_maxima(plan: _Plan, database_nd, terms: _Terms, query_bd, t) -> jax.Array:
    """The best score of every block of tile t, [G, blocks, B]."""
    tile_nd = _tile(plan, database_nd, t)
    scale_gn, offset_gn = terms.scale_tgn[t], terms.offset_tgn[t]
    product_nb, maxima = None, []
    for g, (lo, hi) in enumerate(Nesting(plan.dims).blocks):
        if lo <= _SHORT:
            product_nb = exact_dot(tile_nd[:, :hi], query_bd[:, :hi].T)
        else:
            product_nb += exact_dot(tile_nd[:, lo:hi], query_bd[:, lo:hi].T)
        score_nb = product_nb * scale_gn[g][:, None] + offset_gn[g][:, None]
        # Queries last: a maximum over the dim before runs along vectors of them.
        maxima.append(score_nb.reshape(-1, plan.block, len(query_bd)).max(1))
    return jnp.stack(maxima)


def _largest(x_gbn: jax.Array, k: int) -> jax.Array:
    """Where the k largest numbers are, [G, B, k] in rising order; of equal ones the first.

    On a CPU `lax.top_k` is slow: it is shown the k groups of 8 with the largest maxima only.
    """
    count = x_gbn.shape[-1]
    if count % 8 or count < 16 * k:
        return jnp.sort(lax.top_k(x_gbn, k)[1], -1)
    group_gbk = _largest(x_gbn.reshape(*x_gbn.shape[:-1], -1, 8).max(-1), k)
    index_gbc = _members(group_gbk, 8)
    chosen_gbk = lax.top_k(jnp.take_along_axis(x_gbn, index_gbc, -1), k)[1]
    return jnp.sort(jnp.take_along_axis(index_gbc, chosen_gbk, -1), -1)


def _members(group_gbk: jax.Array, size: int) -> jax.Array:
    """The members of groups of one size in order: [G, B, k * size]."""
    member_gbkr = size * group_gbk[..., None] + jnp.arange(size)[None, None, None]
    return member_gbkr.reshape(*group_gbk.shape[:-1], -1)


def _scores(plan: _Plan, database_nd, terms: _Terms, query_d, t_gc, place_gc) -> jax.Array:
    """Scores [G, C] of one query and C rows per prefix, by a sum for each.

    Equal rows get equal scores wherever they are, which a matrix product does not promise.
    """
    row_gc = _row(plan, t_gc, place_gc)
    scores = []
    for prefixes in _alike(plan.dims):
        dims = plan.dims[prefixes]
        width = dims[-1]
        # Slices of some dims, not rows of one slice: that would be a copy of the database.
        cut = functools.partial(lax.dynamic_slice, database_nd, slice_sizes=(1, width))
        row_cd = jax.vmap(lambda row, cut=cut: cut((row, 0))[0])(row_gc[prefixes].ravel())
        row_gcd = row_cd.astype(jnp.float32).reshape(len(dims), -1, width)
        inside_gd = np.arange(width)[None] < np.array(dims)[:, None]
        if plan.metric == "l2":
            part_gcd = -jnp.square(row_gcd - query_d[None, None, :width])
        else:
            part_gcd = row_gcd * query_d[None, None, :width]
        scores.append(jnp.where(inside_gd[:, None], part_gcd, 0).sum(-1))
    g_gc = np.arange(len(plan.dims))[:, None]
    score_gc = jnp.concatenate(scores)
    if plan.metric == "cosine":
        score_gc *= terms.scale_tgn[t_gc, g_gc, place_gc]
    return jnp.where(terms.offset_tgn[t_gc, g_gc, place_gc] > -jnp.inf, score_gc, -jnp.inf)


def _alike(dims: tuple[int, ...]) -> list[slice]:
    """Runs of prefixes of which the last is less than 4 times the first: few, for the compiler."""
    runs, end = [], len(dims)
    while end:
        start = bisect.bisect_right(dims, dims[end - 1] // 4)
        runs.insert(0, slice(start, end))
        end = start
    return runs


def _best(score_gbc: jax.Array, row_gbc: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k best scores and their rows, which must rise where scores are equal."""
    score_gbk, chosen_gbk = lax.top_k(score_gbc, k)
    return score_gbk, jnp.take_along_axis(row_gbc, chosen_gbk, -1)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _search(database_nd, terms: _Terms, query_bd, plan: _Plan, mesh: Mesh):
    """Rows and scores [G, B, k], and whether all queries are finite and not too long."""
    prefixes, queries = len(plan.dims), len(query_bd)
    blocks = plan.tiles * plan.tile // plan.block

    def of_span(database_nd, terms, query_bd, best, span):
        maxima_tgjb = lax.map(
            functools.partial(_block_maxima, plan, database_nd, terms, query_bd),
            span * plan.tiles + jnp.arange(plan.tiles),
        )
        maxima_gbj = maxima_tgjb.transpose(1, 3, 0, 2).reshape(prefixes, queries, blocks)
        block_gbk = _largest(maxima_gbj, min(plan.k + _SPARE_BLOCKS, blocks))
        member_gbc = _members(block_gbk, plan.block)
        t_gbc, place_gbc = span * plan.tiles + member_gbc // plan.tile, member_gbc % plan.tile
        score_bgc = lax.map(
            lambda x: _scores(plan, database_nd, terms, *x),
            (query_bd, t_gbc.swapaxes(0, 1), place_gbc.swapaxes(0, 1)),
            batch_size=plan.together if plan.together > 1 else None,
        )
        found = score_bgc.swapaxes(0, 1), _row(plan, t_gbc, place_gbc)
        # Rows of earlier spans come first and are smaller.
        score_gbc, row_gbc = (jnp.concatenate(x, -1) for x in zip(best, found, strict=True))
        return _best(score_gbc, row_gbc, best[0].shape[-1]), None

    def local(database_nd, terms, query_bd):
        nothing = jnp.full((prefixes, queries, min(plan.k, plan.local)), -jnp.inf)
        (score_gbk, row_gbk), _ = lax.scan(
            functools.partial(of_span, database_nd, terms, query_bd),
            (nothing, jnp.zeros(nothing.shape, jnp.int32)),
            jnp.arange(plan.spans),
        )
        row_gbk += lax.axis_index(mesh.axis_names) * plan.local
        # Devices come in the order of their rows.
        gathered = lax.all_gather((score_gbk, row_gbk), mesh.axis_names, axis=2, tiled=True)
        return _best(*gathered, plan.k)

    whole = PartitionSpec()
    score_gbk, row_gbk = _on_mesh(local, mesh, database_nd, terms, query_bd, outputs=whole)
    norm_gb = prefix_norms(query_bd, plan.dims)
    if plan.metric == "cosine":
        score_gbk /= norm_gb[..., None]
    return row_gbk, score_gbk, (norm_gb[-1] < _TOO_LONG).all()
