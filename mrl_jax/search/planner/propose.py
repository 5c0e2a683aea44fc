"""Proposes a plan: measures what few dims, codes and clusters recall and cost on the data at hand.

True neighbours are found among all vectors. Their ranks by few dims, the first ones or principal
directions, are counted once (`ranks`), in a sample if there are many vectors. From these follow the
cheapest efforts of all designs of codes (`options`) and the graphs worth trying (`walks`), of which
a few are built and timed (`trial`); how widely a graph must be searched is tried out. A third
of the queries decides what is tried and in which order plans are considered; the others measure the
recall.
"""

import collections
import dataclasses
import functools
import itertools
import math
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from mrl_jax.errors import DataError, UsageError
from mrl_jax.search.index import rabitq, rotation
from mrl_jax.search.plan import Asked, Plan
from mrl_jax.search.planner import options, ranks, trial, walks
from mrl_jax.search.planner.options import Design, Option
from mrl_jax.search.planner.promises import (
    FEWEST_QUERIES,
    MOST_QUERIES,
    SAFETY,
    Wanted,
    held_out,
    pick,
    prediction_interval,
    queries_needed,
)
from mrl_jax.search.planner.ranks import Ranks, Sample, Truth
from mrl_jax.search.planner.trial import Times
from mrl_jax.search.schedule import Metric, Schedule
from mrl_jax.store.vectors import Vectors

PAPER = (16, 200)  # dims and candidates of the paper's own schedule (section 4.3.1)
_SAMPLE_NUMBERS = 2**28  # at most in memory: 1 GiB
_NEIGHBOUR_NUMBERS = 2**26
_LEAST_DIM = 8
_CLUSTERED_ROWS = 10_000  # fewer are scanned sooner than their lists are found
_MOST_CANDIDATES = 0.25  # of all rows: more are no shortlist
_FURTHER_AIMS = (0.8, 0.9, 0.95)  # that the frontier shows


@dataclasses.dataclass(frozen=True)
class Point:
    """A plan and what is expected of it.

    Attributes:
      role: "exact", "paper" or "" for others.
      recall: mean over the queries held out.
      low, high: `LEVEL` prediction interval of the mean over as many other queries of their kind.
      resident: bytes beside whole vectors.
      vectors: bytes of whole vectors.
    """

    plan: Plan
    role: str
    recall: float
    low: float
    high: float
    times: Times
    resident: int
    vectors: int

    @property
    def memory(self) -> int:
        """Bytes that every search may read."""
        return self.resident + (0 if self.plan.schedule.stages else self.vectors)

    @property
    def merits(self) -> tuple[float, ...]:
        """Recall, QPS and negative memory."""
        return self.recall, self.times.qps, -self.memory

    def fits(self, wanted: Wanted) -> bool:
        """Whether it keeps to the limits."""
        within_memory = wanted.memory is None or self.memory <= wanted.memory
        latency = self.times.latency_ms["p99"]
        return within_memory and (wanted.latency_ms is None or latency <= wanted.latency_ms)


@dataclasses.dataclass(frozen=True)
class Proposal:
    """What `propose` found.

    Attributes:
      chosen: by `pick`, of the points within the limits. Its interval is wider than those of the
        others, which hold for each plan by itself and not for one that is picked by them.
      points: those tried that no other one beats, and the two baselines, by falling recall.
      rows, width: of the vectors.
      sample_rows: in which ranks were counted and times measured.
      tuned_on, held_out: numbers of queries.
      themselves: how many queries are rows, which any plan finds: others are found less often.
    """

    chosen: Point
    points: tuple[Point, ...]
    rows: int
    width: int
    sample_rows: int
    tuned_on: int
    held_out: int
    themselves: int


def beats(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether merits a are as good as b in everything, and better in something."""
    return tuple(a) != tuple(b) and all(x >= y for x, y in zip(a, b, strict=True))


def propose(
    vectors: Vectors, queries: Vectors, wanted: Wanted, *, progress: bool = False
) -> Proposal:
    """The plan with the highest QPS that reaches the target within the limits, and the frontier.

    Queries, [>= 40, D], are of the kind that will be asked, texts say where images are searched by
    texts: whatever is promised is measured with them alone, and holds for no others. At most 4,000
    of them are used.

    Raises:
      UsageError: numbers that do not fit the vectors.
      DataError: too few queries; or no plan reaches the target, and what can be reached.
    """
    dims = _checked(vectors, queries, wanted)
    k, rows, width, metric = wanted.k, vectors.rows, vectors.width, wanted.metric
    asked = min(queries.rows, MOST_QUERIES, max(FEWEST_QUERIES, _NEIGHBOUR_NUMBERS // (k * width)))
    query_bd = queries.sample(asked, wanted.seed)
    rng = np.random.default_rng((wanted.seed, 1))
    held_b = rng.permutation(asked) < held_out(asked)  # the others are tuned on
    size = min(rows, wanted.sample_rows, max(_SAMPLE_NUMBERS // width, 1))
    truth, sample = ranks.look(vectors, query_bd, k, metric, size, wanted.seed, progress)
    roles = {Plan(Schedule.exact(width), metric): "exact"}
    if PAPER[0] < width and k <= PAPER[1] < rows:
        roles[Plan(Schedule.adaptive(*PAPER, width), metric)] = "paper"
    ranked = sorted({*dims, *(s.dim for plan in roles for s in plan.schedule.stages)})
    # Where all rows are searched by every plan that is tried, ranks need not say what they recall.
    ranked_b = ~held_b if sample.whole else np.ones(asked, bool)
    views = {False: _View(truth.only(ranked_b), sample, ranked)}
    if turned := walks.rotated_dims(dims):
        views[True] = views[False].turned(turned, metric)
    lists, list_dims = _clusters(rows, size, dims)
    counted = {
        rotated: ranks.count(
            view.truth, view.sample, view.dims, options.CODES, lists,
            [m for m in list_dims if m in view.dims], metric, seed=wanted.seed, progress=progress,
        )._replace(rotated=rotated)
        for rotated, view in views.items()
    }  # fmt: skip
    of_tuned_b = ~held_b[ranked_b]
    tuned = {rotated: found.only(of_tuned_b) for rotated, found in counted.items()}
    walked = _walks(tuned, dims, rows, wanted, width, lists)
    most = max(k, int(min(sample.far, _MOST_CANDIDATES) * rows))
    families = options.FEW_FAMILIES if walked else options.FAMILIES
    promising = _promising(tuned, dims, most, wanted, width, families)
    for rotated, view in views.items():
        blocks = {(x.code, x.dims) for x in promising if x.rotated == rotated}
        counted[rotated] = found = ranks.with_blocks(
            counted[rotated], view.truth, view.sample, blocks, metric, progress=progress
        )
        tuned[rotated] = found.only(of_tuned_b)
    found = [_cheapest(tuned[x.rotated], x, most, wanted, width) for x in promising]
    # Beside graphs every other effort is enough, the widest among them: these take most time.
    tried = [option.plan for options in found for option in options[:: -2 if walked else 1]]
    plans = list(dict.fromkeys([*roles, *tried]))
    points, tuned_pb, held_pb = [], [], []
    tries = itertools.chain(
        _try(plans, sample, truth, wanted, progress),
        _try_graphs(walked, vectors, sample, truth, held_b, wanted, progress),
    )
    for tried in tries:
        recall_b = _recall(tried, truth.row_bk, counted)
        tuned_pb.append(recall_b[~held_b])
        held_pb.append(recall_b[held_b])
        role = roles.get(tried.plan, "")
        points.append(_point(tried, role, held_pb[-1], vectors, wanted))
    best, chosen = _choose(points, np.array(tuned_pb), np.array(held_pb), wanted)
    if chosen.plan.schedule.stages:
        asked = Asked.of(ranks.best_scores(truth, metric), k, chosen.low)
        chosen = dataclasses.replace(chosen, plan=dataclasses.replace(chosen.plan, asked=asked))
    points[best] = chosen
    kept = [
        p
        for p in points
        if p is chosen or p.role or not any(beats(q.merits, p.merits) for q in points)
    ]
    kept.sort(key=lambda p: (-p.recall, -p.times.qps))
    return Proposal(
        chosen=chosen,
        points=tuple(kept),
        rows=rows,
        width=width,
        sample_rows=size,
        tuned_on=int((~held_b).sum()),
        held_out=int(held_b.sum()),
        themselves=int((truth.vector_bkd == query_bd[:, None]).all(-1).any(-1).sum()),
    )


class _View(NamedTuple):
    """Queries, their neighbours and a sample, and the dims by which they are looked at."""

    truth: Truth
    sample: Sample
    dims: Sequence[int]

    def turned(self, dims: Sequence[int], metric: Metric) -> "_View":
        """The same by principal directions."""
        truth, sample = self.truth, self.sample
        rotation_dm = rotation.fit(sample.vector_nd[: rotation.EXAMPLES], dims[-1], metric)
        query_bm, vector_bkm = truth.query_bd @ rotation_dm, truth.vector_bkd @ rotation_dm
        of_rows = sample._replace(vector_nd=sample.vector_nd @ rotation_dm)
        return _View(Truth(query_bm, truth.row_bk, vector_bkm), of_rows, dims)


def _try(
    plans: Sequence[Plan], sample: Sample, truth: Truth, wanted: Wanted, progress: bool
) -> Iterator[trial.Tried]:
    """Builds one index for the plans of each design, one after another."""
    groups = collections.defaultdict(list)
    for plan in plans:
        groups[options.design_of(plan)].append(plan)
    with (
        tempfile.TemporaryDirectory(prefix="mrl_jax_plan_") as folder,
        tqdm(desc="trials", total=len(plans), unit="plan", disable=not progress) as bar,
    ):
        built = pathlib.Path(folder) / "index"
        for group in groups.values():
            index = trial.built(built, sample, group[0], wanted.seed)
            yield from trial.tries(index, sample, group, truth.query_bd, truth.row_bk)
            bar.update(len(group))
            shutil.rmtree(built)


def _walks(
    tuned: Mapping[bool, Ranks],
    dims: Sequence[int],
    rows: int,
    wanted: Wanted,
    width: int,
    lists: int,
) -> list[walks.Walk]:
    """The graphs and lists of rabitqlib to be tried."""
    if rows < _CLUSTERED_ROWS:
        return []
    aim = 1 - (1 - wanted.target_recall) * SAFETY[2]
    memory = math.inf if wanted.memory is None else wanted.memory
    dims = dims if wanted.dims else (*dims, width)
    return walks.worth_trying(tuned, dims, wanted.k, aim, width, memory, lists)


def _try_graphs(
    walked: Sequence[walks.Walk],
    vectors: Vectors,
    sample: Sample,
    truth: Truth,
    held_b: np.ndarray,
    wanted: Wanted,
    progress: bool,
) -> Iterator[trial.Tried]:
    """Builds each, finds out how widely it must be searched, and times that."""
    metric, k = wanted.metric, wanted.k
    query_bd, row_bk, _ = truth
    # What ranks tell of codes holds among all rows; a graph of more rows must be made to know.
    walked = walked if sample.whole else list(dict.fromkeys((*walked[:1], *walked[-1:])))
    for walk in tqdm(walked, desc="graphs", unit="graph", disable=not progress):
        with tempfile.TemporaryDirectory(prefix="mrl_jax_plan_") as folder:
            plan = walk.plan(metric, k, k)
            index = trial.built(pathlib.Path(folder) / "index", sample, plan, wanted.seed)
            found = trial.of_index(index, k)
            if not sample.whole:
                found = trial.of_all(vectors, sample, plan, wanted.seed)

            def recall(chosen_b, effort: int, keep: int, found=found) -> np.ndarray:
                return trial.recall(found(query_bd[chosen_b], effort, keep), row_bk[chosen_b])

            of_tuned = functools.partial(recall, ~held_b)
            plans = walks.plans(walk, metric, k, _aims(wanted), of_tuned)
            if plans:
                for tried in trial.tries(index, sample, plans, query_bd, row_bk):
                    if tried.recall_b is None:
                        effort = rabitq.form(walk.factory).effort(tried.plan.parameters)
                        (stage,) = tried.plan.schedule.stages
                        recall_b = recall(slice(None), effort, stage.keep)
                        tried = tried._replace(recall_b=recall_b)
                    yield tried


def _checked(vectors: Vectors, queries: Vectors, wanted: Wanted) -> tuple[int, ...]:
    """The prefixes that may be stages."""
    width = vectors.width
    if queries.width != width:
        raise DataError(f"queries have {queries.width} dims, the vectors {width}")
    if wanted.k > vectors.rows:
        raise UsageError(f"k must be 1 to {vectors.rows}, the number of vectors; got {wanted.k}")
    if queries.rows < FEWEST_QUERIES:
        raise DataError(f"a plan needs at least {FEWEST_QUERIES} queries, there are {queries.rows}")
    for dim in wanted.dims:
        if not 1 <= dim < width:
            raise UsageError(
                f"dims must be 1 to {width - 1}, fewer than the vectors have; got {dim}"
            )
    powers = (2**i for i in range(int(math.log2(_LEAST_DIM)), 64) if 2**i < width)
    return tuple(sorted(set(wanted.dims))) or tuple(powers)


def _clusters(rows: int, sampled: int, dims: Sequence[int]) -> tuple[int, tuple[int, ...]]:
    """How many lists, and the dims they may be of; 1 if lists are not worth it."""
    if rows < _CLUSTERED_ROWS or not dims:
        return 1, ()
    lists = 2 ** round(math.log2(4 * math.sqrt(rows)))
    least, most = (
        min(dims, key=lambda m: abs(math.log2(m * share / dims[-1]))) for share in (16, 4)
    )
    return min(lists, sampled // 16), tuple(sorted({least, most}))


def _aims(wanted: Wanted) -> list[float]:
    missed = 1 - wanted.target_recall
    return sorted({*_FURTHER_AIMS, *(1 - missed * safety for safety in SAFETY)})


def _cheapest(
    counted: Ranks, design: Design, most: int, wanted: Wanted, width: int
) -> list[Option]:
    """Efforts by which a design reaches the target with more or less to spare, and lower aims."""
    return options.cheapest(counted, design, wanted.k, most, width, wanted.metric, _aims(wanted))


def _promising(
    tuned: Mapping[bool, Ranks],
    dims: Sequence[int],
    most: int,
    wanted: Wanted,
    width: int,
    families: int,
) -> list[Design]:
    """The designs that, by ranks, reach the most that can be reached for least."""
    found: list[list[Option]] = []
    for rotated, counted in tuned.items():
        stage_dims = walks.rotated_dims(dims) if rotated else dims
        for design in options.designs(counted, options.CODES, stage_dims):
            size = options.row_bytes(design) * counted.rows + 4 * design.lists * design.list_dim
            if wanted.memory is None or size <= wanted.memory:
                found.append(_cheapest(counted, design, most, wanted, width))
    # With half the misses that are allowed the interval should reach the target.
    enough = 1 - (1 - wanted.target_recall) / 2
    for aim in reversed([aim for aim in _aims(wanted) if aim <= enough]):
        reaching = [next((o for o in f if o.recall >= aim), None) for f in found]
        if any(reaching):
            return options.worth_trying([o for o in reaching if o], families)
    best = sorted((f[-1] for f in found if f), key=lambda o: (-o.recall, o.cost))
    return [options.design_of(o.plan) for o in best[:families]]


def _recall(tried: trial.Tried, row_bk: np.ndarray, counted: Mapping[bool, Ranks]) -> np.ndarray:
    """The recall of every query, [B]: as found if all vectors were searched, otherwise by ranks."""
    if not tried.plan.schedule.stages:
        return np.ones(len(row_bk))
    if tried.recall_b is None:
        return counted[tried.plan.rotated].recall(tried.plan)
    return tried.recall_b


def _point(
    tried: trial.Tried, role: str, recall_b: np.ndarray, vectors: Vectors, wanted: Wanted
) -> Point:
    low, high = 1.0, 1.0
    if tried.plan.schedule.stages:
        low, high = prediction_interval(recall_b, wanted.k, wanted.seed)
    plan, rows = tried.plan, vectors.rows
    resident = round(tried.row_bytes * rows) + trial.shared_bytes(plan)
    whole = 4 * rows * vectors.width
    return Point(plan, role, float(recall_b.mean()), low, high, tried.times, resident, whole)


def _choose(
    points: Sequence[Point], tuned_pb: np.ndarray, held_pb: np.ndarray, wanted: Wanted
) -> tuple[int, Point]:
    """Which point is proposed, and the point itself with the interval that accepted it."""
    at_p = np.array([p for p, point in enumerate(points) if point.fits(wanted)], int)
    fitting = [points[p] for p in at_p]
    if not fitting:
        fast = min(points, key=lambda p: p.times.latency_ms["p99"])
        small = min(points, key=lambda p: p.memory)
        raise DataError(
            "no plan keeps to the limits: the fastest one tried has "
            f"{fast.times.latency_ms['p99']:.3g} ms ({fast.plan.schedule}), the smallest needs "
            f"{small.memory:,} bytes ({small.plan.schedule})"
        )
    p, (low, high), reaches = pick(
        tuned_pb[at_p],
        held_pb[at_p],
        np.array([point.times.qps for point in fitting]),
        np.array([point.memory for point in fitting]),
        np.array([not point.plan.schedule.stages for point in fitting]),
        wanted,
    )
    best = dataclasses.replace(fitting[p], low=low, high=high)
    if reaches:
        return int(at_p[p]), best
    needed, held = queries_needed(wanted), held_pb.shape[1]
    few = needed is not None and needed > 2 * held
    raise DataError(
        f"no plan within the limits reaches recall@{wanted.k} {wanted.target_recall:g}: the best "
        f"is {best.recall:.4f}, {low:.4f} or more for other queries ({best.plan.schedule}, "
        f"{best.plan.code})"
        + (f"; {2 * held} queries are too few to promise more, give {needed}" if few else "")
    )
