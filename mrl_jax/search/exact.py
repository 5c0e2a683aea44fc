"""The k best rows of a database for each query, exactly, at every prefix in one pass."""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from mrl_jax.kernels.prefix import exact_dot
from mrl_jax.nesting import Nesting
from mrl_jax.search import candidates, placement
from mrl_jax.search.placement import Array, Layout, Metric, Sharded


class Sizes(NamedTuple):
    """How much is worked on at a time.

    Attributes:
      queries: of one call, a power of two, and
      tile: rows, a multiple of 512: their scores at one prefix are [tile, queries].
      maxima: at most so many maxima of blocks, prefixes x queries x blocks.
      candidates: at most so many numbers of rows that are scored again, but one query's at least.
    """

    queries: int
    tile: int
    maxima: int
    candidates: int


_CPU = Sizes(256, 1024, 2**26, 2**18)  # scores stay in the cache of a core
_ACCELERATOR = Sizes(1024, 8192, 2**28, 2**28)
# Up to here a product from the first dim on costs less than adding to the running one.
_SHORT = 32
# Rows, and blocks, that are looked into beyond k: maxima are rounded otherwise than final scores.
_SPARE_ROWS, _SPARE_BLOCKS = 24, 3
# So many neighbouring blocks are one group when the largest maxima are looked for.
_GROUP = 8


class Plan(NamedTuple):
    """What a compiled pass depends on beside its arrays and their layout.

    Every device goes through its rows in `spans` parts of `tiles` tiles of `tile` rows, and every
    tile consists of blocks of `block` rows. It looks into `keep` blocks, and holds `candidates`
    numbers of their rows at a time.
    """

    dims: tuple[int, ...]
    spans: int
    tiles: int
    tile: int
    block: int
    keep: int
    candidates: int


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
    search needs one number per row and prefix, and memory that grows with neither N nor B.

    Scores are rounded as float32 is: by about 1e-7 of the lengths of the two vectors. Rows that are
    nearer to each other than that may change places. Who asks the same database again should keep a
    `DeviceIndex` of it.

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
    placement.check_vectors("queries", query_bd, dims[-1])
    placed, layout = placement.place(database_nd, dims, metric, mesh)
    return search(placed, layout, query_bd, dims, k)


def search(
    placed: Sharded, layout: Layout, query_bd: Array, dims: tuple[int, ...], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """`top_k` of a database that is placed, by some of its dims."""
    k = placement.check_k(k, layout.rows)

    def chunk(query_bd):
        return _search(placed, query_bd, layout, make_plan(layout, dims, k, len(query_bd)), k)

    at_most = sizes_for(layout.mesh).queries
    return placement.in_chunks(chunk, query_bd, dims[-1], at_most, layout.mesh)


def sizes_for(mesh: Mesh) -> Sizes:
    """What suits the devices of a mesh."""
    return _CPU if mesh.devices.flat[0].platform == "cpu" else _ACCELERATOR


def make_plan(layout: Layout, dims: tuple[int, ...], k: int, queries: int) -> Plan:
    """A pass that finds the k best rows of each of so many queries."""
    sizes = sizes_for(layout.mesh)
    # What finding a large maximum costs, against scoring a row again; as measured on a CPU.
    best = math.sqrt(8 * layout.local / ((k + _SPARE_BLOCKS) * (25 + 2 * sum(dims) / len(dims))))
    block = 2 ** min(max(round(math.log2(best)), 0), 6)
    tile = min(sizes.tile, layout.local // placement.LEAST_ROWS * placement.LEAST_ROWS)
    tiles = -(-layout.local // tile)
    spans = -(-tiles * (tile // block) * len(dims) * queries // sizes.maxima)
    tiles = -(-tiles // spans)
    keep = k + max(_SPARE_ROWS // block, _SPARE_BLOCKS)
    keep = min(keep, spans * tiles * tile // block)
    return Plan(dims, spans, tiles, tile, block, keep, sizes.candidates)


def _start(layout: Layout, plan: Plan, t: jax.Array) -> jax.Array:
    """The first row of tile t. The last tiles begin early enough to be whole."""
    return jnp.minimum(t * plan.tile, layout.local - plan.tile)


def _exists(layout: Layout, plan: Plan, t: jax.Array, row: jax.Array) -> jax.Array:
    """Whether this device's row of tile t is one, and none of the tile before."""
    return (row >= t * plan.tile) & (layout.first() + row < layout.rows)


def ranges(dims: tuple[int, ...]) -> list[tuple[int, int]]:
    """The dims over which a product is made for each prefix: all, or those it adds."""
    return [(0 if lo <= _SHORT else lo, hi) for lo, hi in Nesting(dims).blocks]


def block_maxima(layout: Layout, plan: Plan, placed: Sharded, part_gdb, t: jax.Array) -> list:
    """Within `on_mesh`: the best score of every block of tile t, G times [blocks, B].

    Scores here rank rows as the metric does: product * scale + offset. The queries come in parts,
    one for each of `ranges`.
    """
    start = _start(layout, plan, t)
    exists_n = _exists(layout, plan, t, start + jnp.arange(plan.tile))
    product_nb, maxima = None, []
    for (lo, hi), part_db in zip(ranges(plan.dims), part_gdb, strict=True):
        tile_nd = lax.dynamic_slice(placed.database_nd, (start, lo), (plan.tile, hi - lo))
        block_nb = exact_dot(tile_nd.astype(jnp.float32), part_db)
        product_nb = product_nb + block_nb if lo else block_nb
        norm_n = lax.dynamic_slice_in_dim(placed.norm_gn[layout.dims.index(hi)], start, plan.tile)
        # A query's own norm scales all its scores alike.
        scale_n = 1 / norm_n if layout.metric == "cosine" else jnp.ones_like(norm_n)
        offset_n = -jnp.square(norm_n) / 2 if layout.metric == "l2" else jnp.zeros_like(norm_n)
        offset_n = jnp.where(exists_n, offset_n, -jnp.inf)
        score_nb = product_nb * scale_n[:, None] + offset_n[:, None]
        maxima.append(_maxima(score_nb, plan.block))
    return maxima


def _maxima(x_nb: jax.Array, size: int) -> jax.Array:
    """The maxima of groups of so many neighbours, [N / size, B]."""
    # Queries last: a maximum over the dim before runs along vectors of them.
    return x_nb.reshape(-1, size, x_nb.shape[-1]).max(1)


def _largest_blocks(layout: Layout, plan: Plan, placed: Sharded, query_bd) -> jax.Array:
    """The `keep` blocks with the largest maxima, [G, B, keep] in rising order; -1 is none."""
    queries = len(query_bd)
    in_span = plan.tiles * plan.tile // plan.block
    part_gdb = [query_bd[:, lo:hi].T for lo, hi in ranges(plan.dims)]

    def of_span(found, span):
        maxima_gtjb = lax.map(
            functools.partial(block_maxima, layout, plan, placed, part_gdb),
            span * plan.tiles + jnp.arange(plan.tiles),
        )
        maxima_gjb = [maxima_tjb.reshape(in_span, queries) for maxima_tjb in maxima_gtjb]
        # The largest are among the members of the groups with the largest maxima.
        groups_gbj = jnp.stack([_maxima(maxima_jb, _GROUP).T for maxima_jb in maxima_gjb])
        group_gbk = candidates.largest(groups_gbj, min(plan.keep, groups_gbj.shape[-1]))
        block_gbc = candidates.members(group_gbk, _GROUP)
        query_b1 = jnp.arange(queries)[:, None]
        largest_gbc = jnp.stack(
            [
                maxima_jb[block_bc, query_b1]
                for maxima_jb, block_bc in zip(maxima_gjb, block_gbc, strict=True)
            ]
        )
        # Blocks of earlier spans come first and have smaller rows.
        both = zip(found, (largest_gbc, span * in_span + block_gbc), strict=True)
        return candidates.best(*(jnp.concatenate(x, -1) for x in both), plan.keep), None

    shape = len(plan.dims), queries, plan.keep
    none = jnp.full(shape, -jnp.inf), jnp.full(shape, -1)
    (_, block_gbk), _ = lax.scan(of_span, none, jnp.arange(plan.spans))
    return jnp.sort(block_gbk, -1)


def scored(layout: Layout, plan: Plan, placed: Sharded, query_bd) -> tuple[jax.Array, jax.Array]:
    """Within `on_mesh`: this device's rows that may be among the best, scored one by one.

    Returns:
      sum_gbc: [G, B, C] as `candidates.sums`; -inf where there is no row.
      row_gbc: [G, B, C] of this device, rising where there are rows.
    """
    place_gbc = candidates.members(_largest_blocks(layout, plan, placed, query_bd), plan.block)
    t_gbc = place_gbc // plan.tile
    row_gbc = _start(layout, plan, t_gbc) + place_gbc % plan.tile
    exists_gbc = (t_gbc >= 0) & _exists(layout, plan, t_gbc, row_gbc)
    row_gbc = jnp.maximum(row_gbc, 0)
    sum_gbc = jnp.stack(
        [
            candidates.sums(layout, placed.database_nd, query_bd, row_bc, (0, m), plan.candidates)
            for m, row_bc in zip(plan.dims, row_gbc, strict=True)
        ]
    )
    return jnp.where(exists_gbc, sum_gbc, -jnp.inf), row_gbc


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _search(placed: Sharded, query_bd, layout: Layout, plan: Plan, k: int):
    """Rows and scores [G, B, k], and whether all queries are finite and not too long."""

    def local(placed, query_bd):
        sum_gbc, row_gbc = scored(layout, plan, placed, query_bd)
        scale_gbc = jnp.stack(
            [
                candidates.scales(layout, placed, row_bc, m)
                for m, row_bc in zip(plan.dims, row_gbc, strict=True)
            ]
        )
        found = candidates.best(sum_gbc * scale_gbc, row_gbc, min(k, sum_gbc.shape[-1]))
        score_gbk, row_gbk = found[0], layout.first() + found[1]
        # Devices come in the order of their rows.
        rows = layout.mesh.axis_names
        gathered = lax.all_gather((score_gbk, row_gbk), rows, axis=2, tiled=True)
        return candidates.best(*gathered, k)

    score_gbk, row_gbk = placement.on_mesh(local, layout, placed, query_bd)
    norm_gb, legal = placement.query_norms(query_bd, plan.dims)
    if layout.metric == "cosine":
        score_gbk /= norm_gb[..., None]
    return row_gbk, score_gbk, legal
