"""What is wanted of a plan, and which of those tried can be promised to keep it."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from mrl_jax.errors import UsageError
from mrl_jax.search.schedule import Metric

LEVEL = 0.99  # of prediction intervals
FEWEST_QUERIES, MOST_QUERIES = 40, 4000
_TUNED = 1 / 3  # of the queries decide what is tried
SAMPLE_ROWS = 200_000
_AS_FAST = 0.9  # of the highest QPS counts as equal, and the smaller index is chosen
# The square of the level's normal quantile: as for proportions (Agresti and Coull, 1998), except
# that all are failures.
_UNSEEN = 7
_BEYOND = 25  # resampled means beyond each end of an interval
# Shares of the misses that the target allows: plans with fewer are tried as well, as the interval
# must reach the target.
SAFETY = (1.0, 0.7, 0.5, 0.3, 0.15, 0.05)


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a plan should reach.

    Attributes:
      target_recall: the share of the k exact nearest neighbours to be found.
      k: how many are asked for.
      metric: that makes them the nearest.
      memory: bytes that a search may need: codes, norms and centroids; for exact search also whole
        vectors. None: any.
      latency_ms: of 99 % of single queries. None: any.
      dims: prefixes that may be stages; (): powers of two.
      sample_rows: the most rows in which ranks are counted and times measured.
      seed: of all random choices.
    """

    target_recall: float
    k: int = 10
    metric: Metric = "cosine"
    memory: int | None = None
    latency_ms: float | None = None
    dims: tuple[int, ...] = ()
    sample_rows: int = SAMPLE_ROWS
    seed: int = 0

    def __post_init__(self):
        if not 0 < self.target_recall <= 1:
            raise UsageError(f"target recall must be above 0, at most 1; got {self.target_recall}")
        for name in ("memory", "latency_ms"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"{name} must be above 0, got {value}")
        for name, least in (("k", 1), ("sample_rows", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} must be at least {least}, got {getattr(self, name)}")


def prediction_interval(
    recall_b: np.ndarray, k: int, seed: int, level: float = LEVEL, also_b: Sequence[float] = ()
) -> tuple[float, float]:
    """Where the mean over as many other queries lies with probability `level`, by bootstrap.

    Both these queries and the others are resampled, so the interval is wider than one of the
    expectation. `_UNSEEN` queries are added that miss as much as the worst that was seen, here or
    by the same plan for other queries `also_b`, at least one of k: resampling only the few misses
    that were seen would promise too much, most of all where a few queries miss far more than the
    others. With few queries the spread is uncertain too: deviations are stretched as Student's t is
    wider than the normal.
    """
    n, least = len(recall_b), min(1 - 1 / k, recall_b.min(), *also_b)
    seen_b = np.append(recall_b, [least] * _UNSEEN)
    value_v, count_v = np.unique(seen_b, return_counts=True)
    rng, beyond = np.random.default_rng(seed), (1 - level) / 2
    times_rv, others_rv = (
        rng.multinomial(n, count_v / len(seen_b), math.ceil(_BEYOND / beyond)) for _ in range(2)
    )
    ends = np.quantile((times_rv - others_rv) @ value_v / n, [beyond, 1 - beyond])
    low, high = ends * stats.t.isf(beyond, n - 1) / stats.norm.isf(beyond)
    mean = recall_b.mean()
    return float(max(0.0, mean + low)), float(min(1.0, mean + high))


def held_out(queries: int) -> int:
    """How many of so many queries measure the recall."""
    return queries - round(queries * _TUNED)


def queries_needed(wanted: Wanted) -> int | None:
    """How many queries it takes to promise the target for a plan that misses nothing.

    A power of two times `FEWEST_QUERIES`; None if `MOST_QUERIES` are too few.
    """
    queries = FEWEST_QUERIES
    while queries <= MOST_QUERIES:
        held = np.ones(held_out(queries))
        low, _ = prediction_interval(held, wanted.k, wanted.seed, _levels(0))
        if low >= wanted.target_recall:
            return queries
        queries *= 2
    return None


def _levels(tested: int) -> float:
    """The level of the interval of a plan that is tested after so many others.

    The probabilities of being wrong add up to that of `LEVEL`, so the interval of whichever plan is
    chosen is wrong no more often.
    """
    return 1 - (1 - LEVEL) / 2 ** (tested + 1)


def pick(
    tuned_pb: np.ndarray, held_pb: np.ndarray, qps_p: np.ndarray, memory_p: np.ndarray,
    exact_p: np.ndarray, wanted: Wanted,
) -> tuple[int, tuple[float, float], bool]:  # fmt: skip
    """Which of some plans to propose, its recall's interval, and whether this reaches the target.

    The order of plans follows from the queries tuned on: first the fastest whose interval there
    reaches the target, then those that miss ever less. The other queries accept the first plan
    whose interval reaches the target. So none is chosen for luck with the queries that measure it.

    Args:
      tuned_pb: [P, B] recall by the queries tuned on.
      held_pb: [P, b] by the others.
      qps_p: [P] queries a second.
      memory_p: [P] of plans about as fast, the one that needs least comes first.
      exact_p: [P] which are exact search, whose recall is certain.
      wanted: target, k and seed.
    """
    k, seed, missed = wanted.k, wanted.seed, 1 - wanted.target_recall
    # The interval there would be of as many queries as there are others.
    narrower = math.sqrt(tuned_pb.shape[1] / held_pb.shape[1])
    mean_p = tuned_pb.mean(1)
    low_p = [prediction_interval(recall_b, k, seed)[0] for recall_b in tuned_pb]
    surely_p = np.where(exact_p, 1.0, mean_p - narrower * (mean_p - low_p))
    order = []
    for safety in (*SAFETY, 0.0):
        reaching = np.flatnonzero(surely_p >= 1 - missed * safety)
        if len(reaching):
            enough = reaching[qps_p[reaching] >= _AS_FAST * qps_p[reaching].max()]
            order.append(int(enough[memory_p[enough].argmin()]))
    # If the queries are too few for any plan to be sure there, the best one may still be.
    order = list(dict.fromkeys(order)) or [int(mean_p.argmax())]
    tested = []
    for p in order:
        interval = (1.0, 1.0)
        if not exact_p[p]:
            level = _levels(len(tested))
            interval = prediction_interval(held_pb[p], k, seed, level, tuned_pb[p])
        tested.append((p, interval))
        if interval[0] >= wanted.target_recall:
            return p, interval, True
    return *max(tested, key=lambda found: found[1][0]), False
