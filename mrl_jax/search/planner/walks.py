"""Graphs worth trying, and how widely each must be searched."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mrl_jax.search.index import graphs
from mrl_jax.search.plan import Plan
from mrl_jax.search.planner.options import rising
from mrl_jax.search.planner.ranks import Ranks
from mrl_jax.search.schedule import Metric, Schedule

FACTORY = "SymphonyQG32,8"
DESIGNS = 2  # that are built
_WIDEST = 512  # principal directions
_NUMBERS = 2**31  # that may be in memory to make a graph: 8 GiB
_MOST_SEEN = 1024
# Rows in view that a search needs about, at least and for each row that is ranked: the fewer dims
# the graph is of, the more rows are ranked, and the more are nearer by these dims.
_LEAST_SEEN, _SEEN_EACH = 64, 5
_WIDER = 1.35  # between numbers of rows in view
# What a search costs, roughly, in nanoseconds of one core. This only decides what is measured.
_SEEN, _SEEN_DIM = 250.0, 0.7  # a row in view, a dim of its code
_CANDIDATE, _CANDIDATE_DIM = 60.0, 0.6  # fetched from anywhere in memory, a dim of it
RecallOf = Callable[[int, int], np.ndarray]


class Walk(NamedTuple):
    """A graph over the first dims, or principal directions, of vectors of `width` dims."""

    rotated: bool
    dim: int

    def plan(self, width: int, metric: Metric, seen: int, keep: int) -> Plan:
        """How it is searched with so many rows in view, of which so many are ranked."""
        schedule = Schedule(((self.dim, keep),), width)
        about = {"factory": FACTORY, "parameters": f"ef={seen}", "rotated": self.rotated}
        return Plan(schedule, metric, **about)


def cost(dim: int, width: int, seen: int, keep: int) -> float:
    """Nanoseconds a query."""
    walk = seen * (_SEEN + dim * _SEEN_DIM)
    return walk + keep * (_CANDIDATE + width * _CANDIDATE_DIM)


def rotated_dims(dims: Sequence[int]) -> list[int]:
    """Of these dims those that principal directions are looked at by."""
    return [m for m in dims if m <= _WIDEST]


def worth_trying(
    counted: Mapping[bool, Ranks], dims: Sequence[int], k: int, recall: float, width: int, most: int
) -> list[Walk]:
    """The graphs that reach a recall for least, by ranks; the cheapest first.

    Args:
      counted: ranks by first dims (False) and by principal directions (True).
      dims: that may be stages.
      k: neighbours asked for.
      recall: of them.
      width: of vectors, also a graph's where `dims` has it.
      most: bytes that all rows of a graph may need.
    """
    found = []
    for rotated, ranks in counted.items():
        for dim in dims:
            small = graphs.row_bytes(dim, FACTORY) * ranks.rows <= most
            if dim < graphs.LEAST_DIM or not small or dim * ranks.rows > _NUMBERS:
                continue
            if dim == width:
                keep = k + k // 2
            elif ("float32", (dim,)) in ranks.prefix:
                rank_n = np.sort(ranks.prefix["float32", (dim,)].ravel())
                last = rank_n[min(int(np.ceil(recall * len(rank_n))), len(rank_n)) - 1]
                keep = max(k, int(last)) if last <= _MOST_SEEN else 0
            else:
                continue
            if keep and not (rotated and dim == width):
                seen = max(_LEAST_SEEN, _SEEN_EACH * keep)
                found.append((cost(dim, width, seen, keep), Walk(rotated, dim)))
    return [walk for _, walk in sorted(found)[:DESIGNS]]


def plans(
    walk: Walk,
    width: int,
    metric: Metric,
    k: int,
    rows: int,
    aims: Sequence[float],
    recall: RecallOf,
) -> list[Plan]:
    """For each aim, as far as one can be reached, the cheapest search that finds as much.

    Args:
      walk: the graph.
      width, metric, k, rows: of the vectors, and how many are asked for.
      aims: shares of the k neighbours to be found, rising.
      recall: of every query, given rows in view and how many of them are ranked.
    """

    @functools.cache
    def reached(seen: int, keep: int) -> float:
        return float(recall(seen, keep).mean())

    def least_keep(seen: int, aim: float) -> int | None:
        """How many must be ranked; None if all in view are too few."""
        keeps = rising(k, seen)
        low, high = 0, len(keeps) - 1
        if reached(seen, int(keeps[high])) < aim:
            return None
        while low < high:
            middle = (low + high) // 2
            if reached(seen, int(keeps[middle])) >= aim:
                high = middle
            else:
                low = middle + 1
        return int(keeps[low])

    most = min(_MOST_SEEN, rows - 1)
    count = max(2, round(np.log(most / k) / np.log(_WIDER)))
    views = np.unique(np.rint(np.geomspace(k, most, count)).astype(int)) if most > k else []
    found, first = [], 0
    for aim in aims:
        efforts = []
        for i in range(first, len(views)):
            keep = least_keep(int(views[i]), aim)
            if keep is None:
                continue
            if not efforts:
                first = i  # a higher aim needs no narrower view
            efforts.append((cost(walk.dim, width, int(views[i]), keep), int(views[i]), keep))
            if len(efforts) > 1 and efforts[-1][0] > efforts[-2][0]:
                break
        if not efforts:
            break
        found.append(walk.plan(width, metric, *min(efforts)[1:]))
    return list(dict.fromkeys(found))
