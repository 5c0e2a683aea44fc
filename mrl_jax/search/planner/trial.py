"""Times of an index, by queries that come at once or one by one; and plans tried on a sample."""

import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mrl_jax.search.index import Index, approximate, rabitq, rotation
from mrl_jax.search.index.rows import InMemory, Source
from mrl_jax.search.index.segment import CHUNK, widest
from mrl_jax.search.plan import Plan
from mrl_jax.search.planner.ranks import Sample

PERCENTILES = (50, 90, 99)
SECONDS = 0.1  # spent on measuring one number, unless its two rounds take longer
_ROUNDS = 2
_FEWEST, _MOST = 20, 500  # queries that are asked singly
_BATCH = 1000  # that are asked at once
Ask = Callable[[np.ndarray], object]
# Rows [B, c] for queries, so many rows in view or lists read, and so many rows that are ranked.
Found = Callable[[np.ndarray, int, int], np.ndarray]


def batch_seconds(ask: Ask, query_bd: np.ndarray) -> float:
    """Seconds a query if many come at once: of the best round."""
    query_bd = query_bd[:_BATCH]
    rounds, start = [], time.perf_counter()
    while len(rounds) < _ROUNDS or time.perf_counter() - start < SECONDS / 2:
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
            if r == 0 and b + 1 >= _FEWEST and ended - start > SECONDS / _ROUNDS:
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


def shared_bytes(plan: Plan) -> int:
    """The bytes of an index's centroids, and of its rotation."""
    found = 4 * plan.schedule.final * widest(plan) if plan.rotated else 0
    if plan.lists > 1:
        found += 4 * plan.lists * plan.list_dim
    if rabitq.is_one(plan.factory) and not (form := rabitq.form(plan.factory)).graph:
        found += 4 * form.count * widest(plan)
    return found


class Tried(NamedTuple):
    """What a plan takes.

    Attributes:
      plan: that was tried.
      recall_b: [B] of all N rows; None if it was only tried on a sample of them.
      times: among all N rows, for a graph among those of the sample.
      row_bytes: counting neither whole vectors nor what all rows share.
    """

    plan: Plan
    recall_b: np.ndarray | None
    times: Times
    row_bytes: float


def built(folder: pathlib.Path, sample: Sample, plan: Plan, seed: int) -> Index:
    """An index of the sample, as plans of one design share it."""
    return Index.build(folder, InMemory(sample.vector_nd), plan=plan, seed=seed)


def tries(
    index: Index,
    sample: Sample,
    plans: Sequence[Plan],
    query_bd: np.ndarray,
    row_bk: np.ndarray,
) -> list[Tried]:
    """Asks an index of the sample by plans that share its design; `row_bk` is what is true.

    It scans as many rows as a search of all N rows would: in more lists, as these are shorter. If
    there are too few lists, the time of the rest is estimated from the scan alone.
    """
    found, k = index.bytes()["resident"] - shared_bytes(plans[0]), row_bk.shape[1]
    best: dict[Plan, tuple[float, np.ndarray]] = {}
    # All of them twice, so that a moment in which the machine was busy spoils no plan.
    for plan in [*plans, *plans]:
        batch, single_b = _seconds(index, plan, query_bd, k, sample)
        if plan in best:
            b = min(len(single_b), len(best[plan][1]))
            batch = min(batch, best[plan][0])
            single_b = np.minimum(single_b[:b], best[plan][1][:b])
        best[plan] = batch, single_b
    return [
        Tried(
            plan,
            recall(_ask(index, plan, k, sample)[0](query_bd)[0], row_bk) if sample.whole else None,
            Times.of(*best[plan]),
            found / index.rows,
        )
        for plan in plans
    ]


def of_index(index: Index, k: int) -> Found:
    """What an index with a graph or lists of rabitqlib finds of all rows."""
    name = rabitq.form(index.plan.factory).parameter

    def found(query_bd: np.ndarray, effort: int, keep: int) -> np.ndarray:
        return index.search(query_bd, k, keeps=(keep,), parameters=f"{name}={effort}")[0]

    return found


def of_all(vectors: Source, sample: Sample, plan: Plan, seed: int) -> Found:
    """What a graph or lists of all rows, of the dims of a plan alone, leave to be ranked."""
    dim, rotation_dm = widest(plan), None
    if plan.rotated:
        rotation_dm = rotation.fit(sample.vector_nd[: rotation.EXAMPLES], dim, plan.metric)

    def compared(z_nd: np.ndarray) -> np.ndarray:
        short_nm = z_nd[:, :dim] if rotation_dm is None else z_nd @ rotation_dm
        return approximate.compared(short_nm, plan.metric)

    z_nm = np.empty((vectors.rows, dim), np.float32)
    for i in range(0, vectors.rows, CHUNK):
        z_nm[i : i + CHUNK] = compared(vectors.read(i, min(i + CHUNK, vectors.rows)))
    # Lists are made of the sample, as all rows are too many examples.
    centroid_ld = rabitq.centroids(compared(sample.vector_nd), plan, seed)
    built = rabitq.Built.of(z_nm, plan, centroid_ld)
    return lambda query_bd, effort, keep: built.search(compared(query_bd), keep, effort)


def recall(found_bc: np.ndarray, row_bk: np.ndarray) -> np.ndarray:
    """The share of every query's neighbours that was found, [B]."""
    return (row_bk[:, :, None] == found_bc[:, None, :]).any(2).mean(1)


def _ask(index: Index, plan: Plan, k: int, sample: Sample) -> tuple[Ask, float]:
    """A search that scans about as many rows as one of all N, and the share that it leaves out."""
    wanted = plan.probes * sample.rows / index.rows
    probes = min(plan.lists, max(1, round(wanted)))
    keeps = tuple(min(s.keep, index.rows) for s in plan.schedule.stages)
    told = {"parameters": plan.parameters} if plan.factory else {"probes": probes}
    if rabitq.is_one(plan.factory) and not (form := rabitq.form(plan.factory)).graph:
        read = form.effort(plan.parameters) * sample.rows / index.rows
        told = {"parameters": f"{form.parameter}={min(form.count, max(1, round(read)))}"}
    ask = functools.partial(index.search, k=k, keeps=keeps, **told)
    return ask, 0.0 if plan.factory else max(0.0, wanted / probes - 1)


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
