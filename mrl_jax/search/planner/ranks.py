"""Where the true neighbours of queries stand when all rows are compared by few dims.

A schedule finds a neighbour if every stage keeps more rows than are ahead of it there, and if it
looks into the list that holds it. So the ranks of neighbours, counted once, tell the recall of any
number of candidates and lists.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from mrl_jax.errors import DataError
from mrl_jax.search.index import clusters, codes
from mrl_jax.search.index.exhaustive import Exhaustive
from mrl_jax.search.index.rows import Legal, Source, legal
from mrl_jax.search.plan import Code, Plan
from mrl_jax.search.schedule import Metric

_SHARD_NUMBERS = 2**25  # of vectors in memory at a time
_TILE = 4096  # rows of a sample compared at a time
_BLOCK = 256  # with so many queries
_FAR, _FAR_ROWS = 1 / 64, 1024  # of a sample: a share or a number, whichever is larger
_LOOKED_AT = 4096  # rows that tell where the share begins
# Two sums of the same products differ by less, relative to the score.
_ROUNDING = 2e-6


class Sample(NamedTuple):
    """Some rows of a database, drawn without replacement.

    Attributes:
      rows: N, all there are.
      row_n: [n] which these are, rising.
      vector_nd: [n, D] float32.
    """

    rows: int
    row_n: np.ndarray
    vector_nd: np.ndarray

    @property
    def whole(self) -> bool:
        """Whether these are all."""
        return len(self.row_n) == self.rows

    @property
    def far(self) -> float:
        """Neighbours behind this share of all rows count as never found.

        So many candidates would cost more than comparing all rows.
        """
        return min(1.0, max(_FAR, _FAR_ROWS / len(self.row_n)))


class Truth(NamedTuple):
    """The nearest rows of some queries by all dims.

    Attributes:
      query_bd: [B, D] float32.
      row_bk: [B, k] int64, the nearest first.
      vector_bkd: [B, k, D] float32.
    """

    query_bd: np.ndarray
    row_bk: np.ndarray
    vector_bkd: np.ndarray

    def only(self, chosen_b: np.ndarray) -> "Truth":
        """Of some queries."""
        return Truth(*(x[chosen_b] for x in self))


def neighbours(
    source: Source,
    query_bd: np.ndarray,
    k: int,
    metric: Metric,
    *,
    dim: int | None = None,
    progress: bool = False,
    visit: Callable[[int, np.ndarray], None] | None = None,
) -> np.ndarray:
    """The k nearest rows of every query, [B, k] int64, from one reading of a source.

    The first `dim` dims are compared, or all. `visit` gets every part that is read: its first row,
    and its vectors. DataError for NaN, infinity or a vector longer than 4e18.
    """
    if not legal(query_bd).all():
        raise DataError("a query holds NaN or infinity, or is longer than 4e18")
    source = Legal(source)
    found = Exhaustive(query_bd[:, :dim], k, metric)
    size = max(1, _SHARD_NUMBERS // source.width)
    firsts = range(0, source.rows, size)
    for first in tqdm(firsts, desc="exact search", unit="part", disable=not progress):
        shard_nd = source.read(first, min(first + size, source.rows))
        found.take(first, shard_nd)
        if visit is not None:
            visit(first, shard_nd)
    return found.row_bk


def look(
    source: Source, query_bd: np.ndarray, k: int, metric: Metric, size: int, seed: int, progress
) -> tuple[Truth, Sample]:
    """True neighbours among all rows, and a sample of `size` rows, from one reading."""
    rng = np.random.default_rng(seed)
    row_n = np.sort(rng.choice(source.rows, size, replace=False, shuffle=False))
    vector_nd = np.empty((size, source.width), np.float32)

    def take(first: int, shard_nd: np.ndarray) -> None:
        a, b = np.searchsorted(row_n, [first, first + len(shard_nd)])
        vector_nd[a:b] = shard_nd[row_n[a:b] - first]

    row_bk = neighbours(source, query_bd, k, metric, progress=progress, visit=take)
    # In rising order, so that every part of a file is read once.
    wanted_u, at_bk = np.unique(row_bk, return_inverse=True)
    vector_ud = np.concatenate([source.read(row, row + 1) for row in wanted_u.tolist()])
    truth = Truth(query_bd, row_bk, vector_ud[at_bk.reshape(row_bk.shape)])
    return truth, Sample(source.rows, row_n, vector_nd)


def best_scores(truth: Truth, metric: Metric) -> np.ndarray:
    """Of the nearest row of every query [B], see `plan.Asked`."""
    query_bd, near_bd = (x.astype(np.float64) for x in (truth.query_bd, truth.vector_bkd[:, 0]))
    if metric == "l2":
        return -np.square(query_bd - near_bd).sum(1)
    product_b, length_b = (query_bd * near_bd).sum(1), np.linalg.norm(query_bd, axis=1)
    if metric == "cosine":
        length_b *= np.linalg.norm(near_bd, axis=1)
    return product_b / np.maximum(length_b, np.finfo(np.float32).tiny)


def decoded(z_nw: np.ndarray, code: Code) -> np.ndarray:
    """What codes of vectors stand for, [N, w] float32."""
    code_nw, gain_n = codes.encode(z_nw, code)
    if code == "int8":
        return code_nw.view(np.int8) * gain_n[:, None]
    if code == "binary":
        sign_nw = np.unpackbits(code_nw, axis=1, count=z_nw.shape[1]).astype(np.float32) * 2 - 1
        return sign_nw * gain_n[:, None]
    return code_nw.view(code).astype(np.float32)


def as_stored(z_nd: np.ndarray, code: Code, dims: Sequence[int]) -> np.ndarray:
    """What the codes of stages' blocks of dims stand for, [N, dims[-1]] float32."""
    spans = itertools.pairwise((0, *dims))
    return np.concatenate([decoded(z_nd[:, lo:hi], code) for lo, hi in spans], 1)


def _products(query_bw: np.ndarray, z_nw: np.ndarray, metric: Metric) -> np.ndarray:
    """[B, N] float32, rounded about as those of an index are."""
    if metric == "l2":
        # Far from the origin float32 leaves few digits of a distance, and these matter.
        return (query_bw.astype(np.float64) @ z_nw.T.astype(np.float64)).astype(np.float32)
    return query_bw @ z_nw.T


def _as_scored(product, norm, metric: Metric):
    """As the index's loops rank rows."""
    if metric == "cosine":
        return product / norm
    return product - np.square(norm) / 2 if metric == "l2" else product


def prefix_ranks(
    truth: Truth, sample: Sample, dims: tuple[int, ...], code: Code, metric: Metric
) -> np.ndarray:
    """The rank of every neighbour among all N rows in the stage at dims[-1], [B, k]; 1 is first.

    `dims` are those of the stages up to this one, each of which has codes of the dims that it adds.
    Rows ahead of a neighbour are counted in the sample and scaled by N / n, which is right on
    average; the other neighbours of its query, which are ahead of it most often, are all counted.
    Beyond `Sample.far` ranks are infinite.
    """
    dim = dims[-1]
    query_bw = as_stored(codes.compared(truth.query_bd, metric), code, dims)
    near_bkw = truth.vector_bkd[..., :dim]
    b, k, _ = near_bkw.shape
    flat_mw = near_bkw.reshape(b * k, dim)
    near_bkw = as_stored(flat_mw, code, dims).reshape(b, k, dim)
    exactly = np.float64 if metric == "l2" else np.float32
    product_bk = np.einsum("bkw,bw->bk", near_bkw, query_bw, dtype=exactly).astype(np.float32)
    score_bk = _as_scored(product_bk, codes.norms(flat_mw).reshape(b, k), metric)
    # By l2 both sums are rounded once, from float64.
    bar_bk = score_bk if metric == "l2" else score_bk + _ROUNDING * np.abs(score_bk)
    order_bk = np.argsort(bar_bk, 1)
    rising_bk = np.take_along_axis(bar_bk, order_bk, 1)
    looked_nd = sample.vector_nd[:: -(-len(sample.row_n) // _LOOKED_AT), :dim]
    looked_bn = _products(query_bw, as_stored(looked_nd, code, dims), metric)
    looked_bn = _as_scored(looked_bn, codes.norms(looked_nd), metric)
    far_b1 = np.quantile(looked_bn, 1 - sample.far, axis=1, keepdims=True)
    least_b1 = np.maximum(rising_bk[:, :1], far_b1)
    # [b, j]: how many rows exceed exactly j of a query's k bars.
    exceeds_bj = np.zeros((b, k + 1), np.int64)
    for start in range(0, len(sample.row_n), _TILE):
        tile_nd = sample.vector_nd[start : start + _TILE, :dim]
        tile_nw, norm_n = as_stored(tile_nd, code, dims), codes.norms(tile_nd)
        if metric == "cosine":
            tile_nw /= norm_n[:, None]
        for first in range(0, b, _BLOCK):
            rows = slice(first, first + _BLOCK)
            score_bn = _products(query_bw[rows], tile_nw, metric)
            if metric == "l2":
                score_bn -= np.square(norm_n) / 2
            at_e = np.flatnonzero(score_bn > least_b1[rows])
            b_e = at_e // len(tile_nd)
            exceeded_e = (score_bn.ravel()[at_e, None] > rising_bk[rows][b_e]).sum(1)
            counts = np.bincount(b_e * (k + 1) + exceeded_e, minlength=len(score_bn) * (k + 1))
            exceeds_bj[rows] += counts.reshape(-1, k + 1)
    ahead_bk = np.empty((b, k))
    np.put_along_axis(ahead_bk, order_bk, exceeds_bj[:, ::-1].cumsum(1)[:, ::-1][:, 1:], 1)
    before_bkj = score_bk[:, None, :] > bar_bk[:, :, None]
    sampled_bk = np.isin(truth.row_bk, sample.row_n)
    others_bk = ahead_bk - (before_bkj & sampled_bk[:, None, :]).sum(2)
    # N / n, of the rows that are no neighbours.
    scale_b = (sample.rows - k) / np.maximum(len(sample.row_n) - sampled_bk.sum(1), 1)
    rank_bk = 1 + before_bkj.sum(2) + np.maximum(others_bk, 0) * scale_b[:, None]
    return np.where(bar_bk < far_b1, np.inf, rank_bk)


class ListRanks(NamedTuple):
    """Clusters of the first `dim` dims.

    Attributes:
      dim: of them.
      lists: how many.
      rank_bk: [B, k] which of a query's nearest lists holds its neighbour; 1 is the nearest.
      share_p: [lists] of all rows in the nearest list, the nearest two, ...; mean over queries.
    """

    dim: int
    lists: int
    rank_bk: np.ndarray
    share_p: np.ndarray


def list_ranks(
    truth: Truth, sample: Sample, lists: int, dim: int, metric: Metric, seed: int
) -> ListRanks:
    """Clusters the sample: the ranks of lists do not depend on the number of rows."""
    centroid_ld = clusters.fit(sample.vector_nd[:, :dim], lists, metric, seed)
    query_bd = clusters.directions(truth.query_bd[:, :dim], metric)
    length_l = np.linalg.norm(centroid_ld, axis=1)
    order_bl = np.argsort(-_as_scored(query_bd @ centroid_ld.T, length_l, metric), 1)
    rank_bl = np.empty_like(order_bl)
    np.put_along_axis(rank_bl, order_bl, np.arange(1, lists + 1)[None], 1)
    b, k = truth.row_bk.shape
    flat_md = truth.vector_bkd[..., :dim].reshape(b * k, dim)
    list_bk = clusters.nearest(flat_md, centroid_ld, 1, metric).reshape(b, k)
    of_rows_n = clusters.nearest(sample.vector_nd[:, :dim], centroid_ld, 1, metric)[:, 0]
    share_l = np.bincount(of_rows_n, minlength=lists) / len(of_rows_n)
    rank_bk = np.take_along_axis(rank_bl, list_bk, 1)
    return ListRanks(dim, lists, rank_bk, share_l[order_bl].cumsum(1).mean(0))


class Ranks(NamedTuple):
    """All ranks that were counted among N = `rows` rows.

    Attributes:
      prefix: [B, k] by code and dims of the stages up to this one.
      clusters: by their dim.
      rotated: whether dims are principal directions, not the first ones.
    """

    rows: int
    prefix: dict[tuple[Code, tuple[int, ...]], np.ndarray]
    clusters: dict[int, ListRanks]
    rotated: bool = False

    def of(self, code: Code, dims: tuple[int, ...]) -> np.ndarray:
        """The ranks of neighbours in the stage at dims[-1], [B, k].

        Those that `with_blocks` has not counted are taken from a single stage of as many dims,
        whose codes differ if a row has a scale for each block.
        """
        return self.prefix.get((code, dims), self.prefix[code, dims[-1:]])

    def only(self, chosen_b: np.ndarray) -> "Ranks":
        """The ranks of some queries."""
        prefix = {key: rank_bk[chosen_b] for key, rank_bk in self.prefix.items()}
        lists = {m: c._replace(rank_bk=c.rank_bk[chosen_b]) for m, c in self.clusters.items()}
        return self._replace(prefix=prefix, clusters=lists)

    def recall(self, plan: Plan) -> np.ndarray:
        """The share of every query's neighbours that the plan finds, [B].

        Rows of lists that are not looked into count as ahead, though they are not in the way: the
        plan finds this or slightly more.
        """
        found = [np.ones(1, bool)]
        dims = tuple(stage.dim for stage in plan.schedule.stages)
        for g, stage in enumerate(plan.schedule.stages, start=1):
            found.append(self.of(plan.code, dims[:g]) <= stage.keep)
        if plan.lists > 1:
            found.append(self.clusters[plan.list_dim].rank_bk <= plan.probes)
        shape = next(iter(self.prefix.values())).shape
        return np.broadcast_to(np.logical_and.reduce(np.broadcast_arrays(*found)), shape).mean(1)


def count(
    truth: Truth,
    sample: Sample,
    dims: Sequence[int],
    kinds: Sequence[Code],
    lists: int,
    list_dims: Sequence[int],
    metric: Metric,
    *,
    seed: int,
    progress: bool,
) -> Ranks:
    """Ranks by these codes and by float32, for each prefix; and of lists, if lists > 1."""
    wanted = [(code, dim) for dim in dims for code in dict.fromkeys(("float32", *kinds))]
    wanted = [(code, dim) for code, dim in wanted if code != "binary" or dim % 8 == 0]
    prefix, found = {}, {}
    work = sum(dim for _, dim in wanted) + (len(list_dims) * lists if lists > 1 else 0)
    with tqdm(desc="ranks", total=work, unit="dim", disable=not progress) as bar:
        for code, dim in wanted:
            prefix[code, (dim,)] = prefix_ranks(truth, sample, (dim,), code, metric)
            bar.update(dim)
        for dim in list_dims if lists > 1 else ():
            found[dim] = list_ranks(truth, sample, lists, dim, metric, seed)
            bar.update(lists)
    return Ranks(sample.rows, prefix, found)


def with_blocks(
    counted: Ranks,
    truth: Truth,
    sample: Sample,
    wanted: Iterable[tuple[Code, tuple[int, ...]]],
    metric: Metric,
    *,
    progress: bool,
) -> Ranks:
    """Also counts the codes of later stages, if they have scales of their own.

    There are many pairs of stages, so only the `wanted` ones are counted.
    """
    more = {
        (code, dims[:g])
        for code, dims in wanted
        for g in range(2, len(dims) + 1)
        if code in ("int8", "binary")
    }
    ordered = tqdm(sorted(more), desc="ranks of blocks", unit="code", disable=not progress)
    found = {key: prefix_ranks(truth, sample, key[1], key[0], metric) for key in ordered}
    return counted._replace(prefix={**counted.prefix, **found})
