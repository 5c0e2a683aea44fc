"""Times of an index, by queries that come at once or one by one; and plans tried on a sample."""

import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mrl_jax.search.index import Index
from mrl_jax.search.index.rows import InMemory
from mrl_jax.search.plan import Plan
from mrl_jax.search.planner.ranks import Sample

PERCENTILES = (50, 90, 99)
_SECONDS = 0.1  # spent on measuring one number, unless its two rounds take longer
_ROUNDS = 2
_FEWEST, _MOST = 20, 500  # queries that are asked singly
Ask = Callable[[np.ndarray], object]


def batch_seconds(ask: Ask, query_bd: np.ndarray) -> float:
    """Seconds a query if all come at once: of the best round."""
    rounds, start = [], time.perf_counter()
    while len(rounds) < _ROUNDS or time.perf_counter() - start < _SECONDS / 2:
        begun = time.perf_counter()
        ask(query_bd)
        rounds.append(time.perf_counter() - begun)
    return min(rounds) / len(query_bd)


def single_seconds(ask: Ask, query_bd: np.ndarray) -> np.ndarray:
    """Seconds of queries that come one by one, [n]: of each the better of two rounds.

    That leaves out what else the machine does, but not how queries differ.
    """
    query_bd = query_bd[:_MOST]
    seconds_rb, start = np.full((_ROUNDS, len(query_bd)), np.inf), time.perf_counter()
    asked = len(query_bd)
    for r in range(_ROUNDS):
        for b in range(asked):
            begun = time.perf_counter()
            ask(query_bd[b : b + 1])
            ended = time.perf_counter()
            seconds_rb[r, b] = ended - begun
            if r == 0 and b + 1 >= _FEWEST and ended - start > _SECONDS / _ROUNDS:
                asked = b + 1
                break
    return seconds_rb[:, :asked].min(0)


class Times(NamedTuple):
    """What a search takes.

    Attributes:
      qps: queries a second if all come at once.
      latency_ms: of queries that come one by one, at `PERCENTILES`.
    """

    qps: float
    latency_ms: dict[str, float]

    @classmethod
    def of(cls, batch: float, single_b: np.ndarray) -> "Times":
        """From seconds a query among many, and of single queries."""
        values = np.percentile(1e3 * single_b, PERCENTILES)
        latency = {f"p{p}": float(v) for p, v in zip(PERCENTILES, values, strict=True)}
        return cls(1 / batch, latency)


def times(index: Index, query_bd: np.ndarray, k: int) -> Times:
    """The times of an index that is searched by its plan."""
    ask = functools.partial(index.search, k=k)
    ask(query_bd[:1])  # compiles, and maps files
    return Times.of(batch_seconds(ask, query_bd), single_seconds(ask, query_bd))


def centroid_bytes(plan: Plan) -> int:
    """The bytes of an index's centroids."""
    return 4 * plan.lists * plan.list_dim if plan.lists > 1 else 0


class Tried(NamedTuple):
    """What a plan found, [B, k] (None if only in a sample); times among all N rows; bytes a row.

    The bytes count neither whole vectors nor centroids.
    """

    plan: Plan
    row_bk: np.ndarray | None
    times: Times
    row_bytes: float


def tries(
    folder: pathlib.Path,
    sample: Sample,
    plans: Sequence[Plan],
    query_bd: np.ndarray,
    k: int,
    seed: int,
    done: Callable[[], object],
) -> list[Tried]:
    """Builds an index of the sample by the design that all the plans share, and asks it by each.

    It scans as many rows as a search of all N rows would: in more lists, as these are shorter. If
    there are too few lists, the time of the rest is estimated from the scan alone.
    """
    index = Index.build(folder, InMemory(sample.vector_nd), plan=plans[0], seed=seed)
    found = index.bytes()["resident"] - centroid_bytes(plans[0])
    best: dict[Plan, tuple[float, np.ndarray]] = {}
    # All of them twice, so that a moment in which the machine was busy spoils no plan.
    for plan in [*plans, *plans]:
        batch, single_b = _seconds(index, plan, query_bd, k, sample)
        if plan in best:
            b = min(len(single_b), len(best[plan][1]))
            batch = min(batch, best[plan][0])
            single_b = np.minimum(single_b[:b], best[plan][1][:b])
            done()
        best[plan] = batch, single_b
    return [
        Tried(
            plan,
            _ask(index, plan, k, sample)[0](query_bd)[0] if sample.whole else None,
            Times.of(*best[plan]),
            found / index.rows,
        )
        for plan in plans
    ]


def _ask(index: Index, plan: Plan, k: int, sample: Sample) -> tuple[Ask, float]:
    """A search that scans about as many rows as one of all N, and the share that it leaves out."""
    wanted = plan.probes * sample.rows / index.rows
    probes = min(plan.lists, max(1, round(wanted)))
    keeps = tuple(min(s.keep, index.rows) for s in plan.schedule.stages)
    ask = functools.partial(index.search, k=k, keeps=keeps, probes=probes)
    return ask, max(0.0, wanted / probes - 1)


def _seconds(index: Index, plan: Plan, query_bd: np.ndarray, k: int, sample: Sample):
    """Seconds of a query among many, and of single ones [n], in a search of all N rows."""
    ask, more = _ask(index, plan, k, sample)
    ask(query_bd[:1])  # compiles, and maps files
    batch, single_b = batch_seconds(ask, query_bd), single_seconds(ask, query_bd)
    if more:
        scan = functools.partial(ask, keeps=tuple(min(k, s.keep) for s in plan.schedule.stages))
        batch += more * batch_seconds(scan, query_bd)
        single_b = single_b + more * np.median(single_seconds(scan, query_bd))
    return batch, single_b
