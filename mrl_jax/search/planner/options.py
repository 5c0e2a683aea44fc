"""Plans worth trying: for every design the least effort whose recall, by ranks, is enough."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mrl_jax.search.index import codes
from mrl_jax.search.plan import Code, Plan
from mrl_jax.search.planner.ranks import Ranks
from mrl_jax.search.schedule import Metric, Schedule

CODES: tuple[Code, ...] = ("int8", "float32", "binary")
# What a query costs, roughly, in nanoseconds of one core. This only decides what is tried, and then
# measured.
_ROW, _ROW_BYTE = 4.0, 0.03  # a row of a scan, a byte of its code
_CANDIDATE, _CANDIDATE_BYTE = 60.0, 0.15  # fetched from anywhere in memory
_CENTROID_DIM = 0.02
# A row has a gain and a norm for every stage; its number, norm and deletion mark.
_BESIDE_CODE, _BESIDE_STAGES = 8, 9
_STEP = 1.25  # between numbers of candidates, or of lists, that are considered
# Designs that are tried; and beside graphs, which are faster where there is room for them.
FAMILIES, FEW_FAMILIES = 6, 3


class Design(NamedTuple):
    """What an index is built by: all of a plan except the effort of searches."""

    code: Code
    dims: tuple[int, ...]
    lists: int
    list_dim: int
    rotated: bool = False
    factory: str = ""


def design_of(plan: Plan) -> Design:
    """Plans of one design can share an index."""
    dims = tuple(stage.dim for stage in plan.schedule.stages)
    return Design(plan.code, dims, plan.lists, plan.list_dim, plan.rotated, plan.factory)


class Option(NamedTuple):
    """A plan, its recall and cost by ranks, and the bytes of a row that its scan may read."""

    plan: Plan
    recall: float
    cost: float
    row_bytes: int


def row_bytes(design: Design) -> int:
    """Bytes of a row beside its whole vector, not counting centroids."""
    spans = zip((0, *design.dims), design.dims, strict=False)
    stages = sum(codes.code_bytes(b - a, design.code) + _BESIDE_CODE for a, b in spans)
    return stages + _BESIDE_STAGES


def designs(ranks: Ranks, kinds: Sequence[Code], dims: Sequence[int]) -> Iterator[Design]:
    """One or two stages in each of these codes, with each kind of clusters and without."""
    clusters = [(1, 0), *((c.lists, c.dim) for c in ranks.clusters.values())]
    stages = [(m,) for m in dims] + list(itertools.combinations(dims, 2))
    for code, stage_dims in itertools.product(kinds, stages):
        if code == "binary" and any(m % 8 for m in stage_dims):
            continue
        yield from (Design(code, stage_dims, *kind, ranks.rotated) for kind in clusters)


def rising(first: int, last: int) -> np.ndarray:
    """Whole numbers that rise by about `_STEP` from first to last."""
    count = max(1, round(np.log(max(last, 1) / first) / np.log(_STEP)))
    return np.unique(np.rint(np.geomspace(first, max(first, last), count + 1)).astype(int))


def cheapest(
    ranks: Ranks,
    design: Design,
    k: int,
    most: int,
    width: int,
    metric: Metric,
    aims: Sequence[float],
) -> list[Option]:
    """The cheapest effort by which a design reaches each aim, if any does.

    Aims are shares of the k neighbours to be found, rising. No stage keeps more than `most`
    candidates, and the final comparison is by `width` dims.
    """
    keep_n = rising(k, most)
    stages = (design.dims[: g + 1] for g in range(len(design.dims)))
    axes = [(ranks.of(design.code, dims), keep_n) for dims in stages]
    if design.lists > 1:
        found = ranks.clusters[design.list_dim]
        axes.append((found.rank_bk, rising(1, design.lists)))
    recall = _recalls(axes)
    cost = _costs(ranks, design, [steps for _, steps in axes], width)
    if len(design.dims) == 2:  # a stage never keeps more than the one before
        cost[keep_n[:, None] < keep_n[None, :]] = np.inf
    options, before = [], None
    for aim in aims:
        masked = np.where(recall >= aim, cost, np.inf)
        best = np.unravel_index(masked.argmin(), masked.shape)
        if not np.isfinite(masked[best]):
            break
        if best == before:
            continue
        before = best
        effort = [int(steps[i]) for (_, steps), i in zip(axes, best, strict=True)]
        stages = tuple(zip(design.dims, effort, strict=False))
        probes = effort[-1] if design.lists > 1 else 1
        lists = {"lists": design.lists, "list_dim": design.list_dim, "probes": probes}
        about = {**lists, "rotated": design.rotated}
        plan = Plan(Schedule(stages, width), metric, design.code, **about)
        options.append(Option(plan, float(recall[best]), float(cost[best]), row_bytes(design)))
    return options


def _recalls(axes) -> np.ndarray:
    """The share of neighbours within all limits, for all combinations of the axes' steps."""
    places = [np.searchsorted(steps, ranks_bk.ravel()) for ranks_bk, steps in axes]
    shape = tuple(len(steps) + 1 for _, steps in axes)
    counts = np.bincount(np.ravel_multi_index(places, shape), minlength=np.prod(shape))
    counts = counts.reshape(shape).astype(float)
    for axis in range(counts.ndim):
        counts = counts.cumsum(axis)
    return counts[tuple(slice(None, -1) for _ in axes)] / len(places[0])


def _costs(ranks: Ranks, design: Design, steps: Sequence[np.ndarray], width: int) -> np.ndarray:
    """Nanoseconds a query, for all combinations of the axes' steps."""
    steps = np.ix_(*steps)
    scanned, cost = ranks.rows, 0.0
    if design.lists > 1:
        scanned = ranks.rows * ranks.clusters[design.list_dim].share_p[steps[-1] - 1]
        cost = design.lists * design.list_dim * _CENTROID_DIM
    spans = zip((0, *design.dims), design.dims, strict=False)
    sizes = [codes.code_bytes(b - a, design.code) for a, b in spans]
    cost = cost + scanned * (_ROW + sizes[0] * _ROW_BYTE)
    for kept, size in zip(steps, (*sizes[1:], 4 * width), strict=False):
        cost = cost + kept * (_CANDIDATE + size * _CANDIDATE_BYTE)
    return np.array(np.broadcast_to(cost, np.broadcast_shapes(*(s.shape for s in steps))))


def worth_trying(options: Sequence[Option], count: int = FAMILIES) -> list[Design]:
    """The designs of a few of these options, which all reach the same recall.

    Of the options that no other undercuts in both cost and size: the cheapest, the smallest and
    some in between; then the cheapest of each code, with and without clusters.
    """
    chosen: list[Design] = []
    front, smallest = [], np.inf
    for option in sorted(options, key=lambda o: (o.cost, o.row_bytes)):
        if option.row_bytes < smallest:
            front.append(option)
            smallest = option.row_bytes
    picks = np.unique(np.linspace(0, len(front) - 1, max(1, count // 2)).round().astype(int))
    best_of = {}
    for option in sorted(options, key=lambda o: o.cost):
        best_of.setdefault((option.plan.code, option.plan.lists > 1), option)
    for option in [*(front[i] for i in picks if front), *best_of.values()]:
        design = design_of(option.plan)
        if design not in chosen and len(chosen) < count:
            chosen.append(design)
    return chosen
