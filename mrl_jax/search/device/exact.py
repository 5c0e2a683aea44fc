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
from mrl_jax.nesting import Nesting, blocks_of
from mrl_jax.search.device import candidates, placement
from mrl_jax.search.device.placement import Array, Sharded, Split
from mrl_jax.search.schedule import Metric


class Sizes(NamedTuple):
    """How much is worked on at a time.

    Attributes:
      queries: of one call, a power of two.
      tile: rows, a multiple of 512, whose scores at one prefix are [tile, queries].
      maxima: the most maxima of blocks, prefixes x queries x blocks.
      candidates: the most numbers of rows that are scored again, but at least one query's.
    """

    queries: int
    tile: int
    maxima: int
    candidates: int


_CPU = Sizes(256, 1024, 2**26, 2**18)  # scores stay in the cache of a core
_ACCELERATOR = Sizes(1024, 8192, 2**28, 2**28)
# Up to here a product from the first dim on costs less than adding to the running one.
_SHORT = 32
# Rows and blocks looked into beyond k, because maxima and final scores are rounded differently.
_SPARE_ROWS, _SPARE_BLOCKS = 24, 3
# Neighbouring blocks that are one group when the largest maxima are looked for.
_GROUP = 8
# So many times more rows are looked into if rounding leaves open which are the best.
_MORE = 16
# Rather than this share of all rows, all are looked into: one more pass would save little.
_LARGE_PART = 1 / 4
# Products in float32 of shorter rows, or of prefixes of a smaller part of their query's length, may
# lose digits.
_SHORT_ROW, _SHORT_PART = 2.0**-60, 2.0**-28
# Smaller products than this may be rounded to 0.
_LEAST = 2.0**-100


class Scan(NamedTuple):
    """What a compiled pass depends on beside its arrays and their `Split`.

    Every device goes through its rows in `spans` parts of `tiles` tiles of `tile` rows, which
    consist of blocks of `block` rows. It looks into `keep` blocks and scores `finalists` of their
    rows in float64. It holds `candidates` numbers of rows at a time.
    """

    dims: tuple[int, ...]
    spans: int
    tiles: int
    tile: int
    block: int
    keep: int
    finalists: int
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
    again and sorted. Besides its arguments (the database lies on the devices) and its result, a
    search needs one number per row and prefix, and memory that grows with neither N nor B.

    The result is that of float64, also far from the origin, of short vectors, and of rows that are
    nearly equal: maxima are products of float32 and only rule rows out. Where their rounding leaves
    open which rows are the best, more rows are scored in float64: some at first, and all if even
    those nearly tie, as rows of hash codes or of very few dims do by the thousands. To search the
    same database again, keep a `DeviceIndex` of it.

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
      ValueError: illegal shapes, dtypes, dims, k or metric; NaN or infinity, or vectors
        longer than 4e18.
    """
    dims = Nesting(tuple(dims)).dims
    query_bd = placement.checked("queries", query_bd, dims[-1])
    placed, split = placement.place(database_nd, dims, metric, mesh)
    row_gbk, score_gbk = search(placed, split, query_bd, dims, k)
    return row_gbk, score_gbk.astype(np.float32)


def search(
    placed: Sharded,
    split: Split,
    query_bd: Array,
    dims: tuple[int, ...],
    k: int,
    *,
    look_again: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """`top_k` of a placed database by some of its dims; scores are float64.

    Without `look_again` no query takes longer than others, but if more than a few rows nearly tie,
    rounding may decide which of them are compared in float64.
    """
    k = placement.check_k(k, split.rows)

    def chunk(query_bd):
        if not look_again:
            scan = make_scan(split, dims, k, len(query_bd))
            return _search(placed, query_bd, split, scan, k)[:3]
        return _find(placed, split, query_bd, dims, k, k)

    at_most = sizes_for(split.mesh).queries
    return placement.in_chunks(chunk, query_bd, dims[-1], at_most, split.mesh)


def _find(
    placed: Sharded, split: Split, query_bd: jax.Array, dims: tuple[int, ...], k: int, many: int
):
    """Rows and scores [G, B, k] by looking into the best `many` rows, and whether all are legal.

    If the rounding of float32 leaves open which rows are the best, those queries look into more
    rows, only at those dims; and if even these nearly tie, into all rows.
    """
    scan = make_scan(split, dims, many, len(query_bd))
    row_gbk, score_gbk, legal, sure_gb = _search(placed, query_bd, split, scan, k)
    open_gb = np.asarray(sure_gb) == 0
    if not legal or not open_gb.any():
        return row_gbk, score_gbk, legal
    row_gbk, score_gbk, query_bd = (np.array(x) for x in (row_gbk, score_gbk, query_bd))
    open_g, more = np.flatnonzero(open_gb.any(1)), _MORE * k
    if many == k and more < _LARGE_PART * split.local:
        groups, find = [open_g], functools.partial(_find, k=k, many=more)
    else:
        groups, find = open_g[:, None], functools.partial(_search_all, k=k)
    for some_g in groups:
        some_dims = tuple(dims[g] for g in some_g)
        open_b = np.flatnonzero(open_gb[some_g].any(0))
        # Few sizes, so that few programs are compiled; as many numbers as maxima at most.
        at_most = sizes_for(split.mesh).maxima // (len(some_g) * (more + _SPARE_ROWS))
        size = min(4 ** math.ceil(math.log(len(open_b), 4)), 2 ** int(math.log2(max(at_most, 1))))
        for start in range(0, len(open_b), size):
            some_b = np.resize(open_b[start : start + size], size)
            some_bd = placement.everywhere(query_bd[some_b], split.mesh)
            found = find(placed, split, some_bd, some_dims)
            row_gbk[np.ix_(some_g, some_b)], score_gbk[np.ix_(some_g, some_b)] = found[:2]
    return row_gbk, score_gbk, legal


def sizes_for(mesh: Mesh) -> Sizes:
    """What suits the devices of a mesh."""
    return _CPU if mesh.devices.flat[0].platform == "cpu" else _ACCELERATOR


def make_scan(split: Split, dims: tuple[int, ...], k: int, queries: int) -> Scan:
    """A pass that finds the k best rows of each of so many queries."""
    sizes = sizes_for(split.mesh)
    # Weighs finding a large maximum against scoring a row again, as measured on a CPU.
    best = math.sqrt(8 * split.local / ((k + _SPARE_BLOCKS) * (25 + 2 * sum(dims) / len(dims))))
    block = 2 ** min(max(round(math.log2(best)), 0), 6)
    tile = min(sizes.tile, split.local // placement.LEAST_ROWS * placement.LEAST_ROWS)
    tiles = -(-split.local // tile)
    spans = -(-tiles * (tile // block) * len(dims) * queries // sizes.maxima)
    tiles = -(-tiles // spans)
    keep = k + max(_SPARE_ROWS // block, _SPARE_BLOCKS)
    blocks = spans * tiles * tile // block
    keep = blocks if k == split.local else min(keep, blocks)
    finalists = keep * block if k == split.local else min(k + _SPARE_ROWS, keep * block)
    return Scan(dims, spans, tiles, tile, block, keep, finalists, sizes.candidates)


def _start(split: Split, scan: Scan, t: jax.Array) -> jax.Array:
    """The first row of tile t. The last tiles begin early enough to be whole."""
    return jnp.minimum(t * scan.tile, split.local - scan.tile)


def _exists(split: Split, scan: Scan, t: jax.Array, row: jax.Array) -> jax.Array:
    """Whether there is this device's row of tile t, and the tile before does not have it."""
    return (row >= t * scan.tile) & (split.first() + row < split.rows)


def ranges(dims: tuple[int, ...]) -> list[tuple[int, int]]:
    """The dims of each prefix's product: all of them, or those that it adds."""
    return [(0 if lo <= _SHORT else lo, hi) for lo, hi in blocks_of(dims)]


def block_maxima(split: Split, scan: Scan, placed: Sharded, part_gdb, t: jax.Array) -> list:
    """Within `on_mesh`: the best score of every block of tile t, G times [blocks, B].

    Scores here rank rows as the metric does: product * scale + offset. The queries come in parts,
    one for each of `ranges`.
    """
    start = _start(split, scan, t)
    exists_n = _exists(split, scan, t, start + jnp.arange(scan.tile, dtype=jnp.int32))
    product_nb, maxima = None, []
    for (lo, hi), part_db in zip(ranges(scan.dims), part_gdb, strict=True):
        corner = start, jnp.full((), lo, start.dtype)
        tile_nd = lax.dynamic_slice(placed.database_nd, corner, (scan.tile, hi - lo))
        tile_nd = tile_nd.astype(jnp.float32)
        if placed.centre_d is not None:
            tile_nd -= placed.centre_d[None, lo:hi]
        block_nb = exact_dot(tile_nd, part_db)
        product_nb = product_nb + block_nb if lo else block_nb
        norm_n = lax.dynamic_slice_in_dim(placed.norm_gn[split.dims.index(hi)], start, scan.tile)
        scale_n, offset_n = _score_of_product(split, norm_n)
        offset_n = jnp.where(exists_n, offset_n, -jnp.inf)
        score_nb = product_nb * scale_n[:, None] + offset_n[:, None]
        maxima.append(_maxima(score_nb, scan.block))
    return maxima


def _score_of_product(split: Split, norm_n: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Scale and offset of each row; rows too short for products in float32 may have any score."""
    if split.metric == "cosine":
        # A query's own norm scales all its scores alike.
        short_n = (norm_n > placement.SHORTEST) & (norm_n < _SHORT_ROW)
        return 1 / norm_n, jnp.where(short_n, jnp.inf, jnp.zeros_like(norm_n))
    offset_n = -jnp.square(norm_n) / 2 if split.metric == "l2" else jnp.zeros_like(norm_n)
    return jnp.ones_like(norm_n), offset_n


def compared(split: Split, placed: Sharded, query_bd, dim: int) -> jax.Array:
    """Queries [B, dim] as `block_maxima` multiplies them."""
    query_bd = query_bd[:, :dim]
    if placed.centre_d is not None:
        return query_bd - placed.centre_d[None, :dim]
    if split.metric == "cosine":
        # To about unit length by powers of two, which rounds nothing.
        _, power_gb = jnp.frexp(placement.lengths(query_bd, (dim,)))
        return jnp.ldexp(query_bd, -power_gb[0][:, None])
    return query_bd


def _maxima(x_nb: jax.Array, size: int) -> jax.Array:
    """The maxima of groups of so many neighbours, [N / size, B]."""
    # Queries last: a maximum over the dim before runs along vectors of them.
    return x_nb.reshape(-1, size, x_nb.shape[-1]).max(1)


def _largest_blocks(split: Split, scan: Scan, placed: Sharded, query_bd):
    """The `keep` blocks with the largest maxima, [G, B, keep] in rising order, -1 for none; and a
    bound that no maximum of another block exceeds, [G, B].
    """
    queries = len(query_bd)
    in_span = scan.tiles * scan.tile // scan.block
    shape = len(scan.dims), queries, scan.keep
    if scan.keep == scan.spans * in_span:
        all_gbk = jnp.broadcast_to(jnp.arange(scan.keep, dtype=jnp.int32), shape)
        return all_gbk, jnp.full(shape[:2], -jnp.inf, jnp.float32)
    compared_bd = compared(split, placed, query_bd, scan.dims[-1])
    part_gdb = [compared_bd[:, lo:hi].T for lo, hi in ranges(scan.dims)]

    def of_span(found, span):
        maxima_gtjb = lax.map(
            functools.partial(block_maxima, split, scan, placed, part_gdb),
            span * scan.tiles + jnp.arange(scan.tiles, dtype=jnp.int32),
        )
        maxima_gjb = [maxima_tjb.reshape(in_span, queries) for maxima_tjb in maxima_gtjb]
        # The largest are among the members of the groups with the largest maxima.
        groups_gbj = jnp.stack([_maxima(maxima_jb, _GROUP).T for maxima_jb in maxima_gjb])
        group_gbk = candidates.largest(groups_gbj, min(scan.keep, groups_gbj.shape[-1]))
        block_gbc = candidates.members(group_gbk, _GROUP)
        query_b1 = jnp.arange(queries, dtype=jnp.int32)[:, None]
        largest_gbc = jnp.stack(
            [
                maxima_jb[block_bc, query_b1]
                for maxima_jb, block_bc in zip(maxima_gjb, block_gbc, strict=True)
            ]
        )
        # Blocks of earlier spans come first and have smaller rows.
        both = zip(found, (largest_gbc, span * in_span + block_gbc), strict=True)
        return candidates.best(*(jnp.concatenate(x, -1) for x in both), scan.keep), None

    none = jnp.full(shape, -jnp.inf, jnp.float32), jnp.full(shape, -1, jnp.int32)
    (largest_gbk, block_gbk), _ = lax.scan(of_span, none, jnp.arange(scan.spans, dtype=jnp.int32))
    return jnp.sort(block_gbk, -1), largest_gbk[..., -1]


def shortlist(split: Split, scan: Scan, placed: Sharded, query_bd):
    """Within `on_mesh`: this device's rows that may be among the best.

    Returns:
      score_gbc: [G, B, C] float32, as in `block_maxima`; -inf where there is no row.
      row_gbc: [G, B, C] of this device, rising where there are rows.
      bound_gb: [G, B] what no score of another row exceeds.
    """
    block_gbk, bound_gb = _largest_blocks(split, scan, placed, query_bd)
    place_gbc = candidates.members(block_gbk, scan.block)
    t_gbc = place_gbc // scan.tile
    row_gbc = _start(split, scan, t_gbc) + place_gbc % scan.tile
    exists_gbc = (t_gbc >= 0) & _exists(split, scan, t_gbc, row_gbc)
    row_gbc = jnp.maximum(row_gbc, 0)
    compared_bd = compared(split, placed, query_bd, scan.dims[-1])
    scores = []
    for m, row_bc in zip(scan.dims, row_gbc, strict=True):
        product_bc = candidates.products(
            placed.database_nd, placed.centre_d, compared_bd, row_bc, m, scan.candidates
        )
        norm_n = placed.norm_gn[split.dims.index(m)]
        scale_bc, offset_bc = _score_of_product(split, norm_n[row_bc])
        scores.append(product_bc * scale_bc + offset_bc)
    # `lax.top_k` holds -0.0 to be less than 0.0.
    score_gbc = jnp.stack(scores)
    score_gbc = jnp.where(score_gbc == 0, 0, score_gbc)
    return jnp.where(exists_gbc, score_gbc, -jnp.inf), row_gbc, bound_gb


def _rounding(dim: int) -> float:
    """The error of a float32 sum of `dim` products and an offset, relative to both lengths.

    Errors add up to at most `dim` roundings, and hardly ever to more than eight times the root of
    `dim` (Higham and Mary, SIAM J. Sci. Comput. 41, 2019).
    """
    return (min(dim, 8 * math.sqrt(dim)) + 16) * 2.0**-24


def _floor(split: Split, scan: Scan, placed: Sharded, query_bd, score_gbk) -> jax.Array:
    """Within `on_mesh`: this device's rows with lower `block_maxima` are not the best, [G, B].

    The floor is the k-th best score, in the same units, less their possible rounding error.
    """
    compared_bd = compared(split, placed, query_bd, scan.dims[-1])
    length_gb = placement.lengths(compared_bd, scan.dims)
    floors = []
    for m, length_b, score_bk in zip(scan.dims, length_gb, score_gbk, strict=True):
        norm_n = placed.norm_gn[split.dims.index(m)]
        longest, error = norm_n.max().astype(jnp.float64), _rounding(m)
        worst_b, length_b = score_bk[:, -1], length_b.astype(jnp.float64)
        if split.metric == "cosine":
            # Products of a prefix much shorter than its query may have been rounded to 0.
            short_b = (length_b > placement.SHORTEST) & (length_b < _SHORT_PART)
            floor_b = jnp.where(short_b, -jnp.inf, length_b * (worst_b - error))
        elif split.metric == "l2":
            worst_b = (worst_b + jnp.square(length_b)) / 2
            floor_b = worst_b - error * jnp.square(length_b + longest) - _LEAST
        else:
            floor_b = worst_b - error * length_b * longest - _LEAST
        # All scores of a query of zeros are 0, but for l2.
        nothing_b = (length_b <= placement.SHORTEST) & (split.metric != "l2")
        floors.append(jnp.where(nothing_b, jnp.inf, floor_b))
    return jnp.stack(floors)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _search(placed: Sharded, query_bd, split: Split, scan: Scan, k: int):
    """Rows and scores [G, B, k], whether all queries are legal, and which are certain [G, B]."""

    def local(placed, query_bd):
        rough_gbc, row_gbc, bound_gb = shortlist(split, scan, placed, query_bd)
        chosen_gbf = candidates.largest(rough_gbc, scan.finalists)
        rough_gbf, row_gbf = candidates.pick(chosen_gbf, rough_gbc, row_gbc)
        if scan.finalists < row_gbc.shape[-1]:
            bound_gb = jnp.maximum(bound_gb, rough_gbf.min(-1))
        scores = []
        for m, row_bf in zip(scan.dims, row_gbf, strict=True):
            sums = candidates.sums(
                split, placed.database_nd, query_bd, row_bf, (0, m), scan.candidates
            )
            scores.append(candidates.scores(split, query_bd, *sums, m))
        score_gbf = jnp.where(rough_gbf == -jnp.inf, -jnp.inf, jnp.stack(scores))
        found = candidates.best(score_gbf, row_gbf, min(k, scan.finalists))
        score_gbk, row_gbk = _of_all_devices(split, *found, k)
        sure_gb = bound_gb < _floor(split, scan, placed, query_bd, score_gbk)
        sure_gb |= bound_gb == -jnp.inf
        return score_gbk, row_gbk, lax.pmin(sure_gb.astype(jnp.int32), split.mesh.axis_names)

    score_gbk, row_gbk, sure_gb = placement.on_mesh(local, split, placed, query_bd)
    return row_gbk, score_gbk, placement.legal_queries(query_bd, scan.dims), sure_gb


def _of_all_devices(split: Split, score_bk, row_bk, k: int):
    """Within `on_mesh`: the k best of what all devices found among their rows, [..., B, k]."""
    # Devices come in the order of their rows.
    mine, names = (score_bk, split.first() + row_bk), split.mesh.axis_names
    return candidates.best(*lax.all_gather(mine, names, axis=score_bk.ndim - 1, tiled=True), k)


@functools.partial(jax.jit, static_argnames=("split", "dims", "k"))
def _search_all(placed: Sharded, split: Split, query_bd, dims: tuple[int], *, k: int):
    """Rows and scores [1, B, k] by one prefix, with all rows compared in float64."""
    tile, (dim,) = placement.LEAST_ROWS, dims

    def local(placed, query_bd):
        def of_tile(t, found):
            start = jnp.minimum(t * tile, split.local - tile)
            row_n = start + jnp.arange(tile, dtype=jnp.int32)
            sums = candidates.sums_of_all(split, placed.database_nd, query_bd, start, tile, dim)
            score_bn = candidates.scores(split, query_bd, *sums, dim)
            new_n = (row_n >= t * tile) & (split.first() + row_n < split.rows)
            score_bn = jnp.where(new_n, score_bn, -jnp.inf)
            row_bn = jnp.broadcast_to(row_n, score_bn.shape)
            # Few are sorted. Rows of earlier tiles come first and are smaller.
            both = zip(found, candidates.best(score_bn, row_bn, min(k, tile)), strict=True)
            return candidates.best(*(jnp.concatenate(x, 1) for x in both), k)

        shape = len(query_bd), k
        none = jnp.full(shape, -jnp.inf, jnp.float64), jnp.zeros(shape, jnp.int32)
        tiles = -(-split.local // tile)
        found = lax.fori_loop(jnp.int32(0), jnp.int32(tiles), of_tile, none)
        return _of_all_devices(split, *found, k)

    score_bk, row_bk = placement.on_mesh(local, split, placed, query_bd)
    return row_bk[None], score_bk[None]
