"""Graphs and lists of rabitqlib worth trying, and how widely each must be searched."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mrl_jax.search.index import rabitq
from mrl_jax.search.plan import Plan
from mrl_jax.search.planner.options import rising
from mrl_jax.search.planner.ranks import Ranks
from mrl_jax.search.schedule import Metric, Schedule

GRAPH = "SymphonyQG32,8"
BITS = 3  # of a dim in lists: more find hardly more, as rows are ranked by all dims
DESIGNS = 2  # graphs that are built; beside them one kind of lists, for their few bytes
_WIDEST = 512  # principal directions
_NUMBERS = 2**31  # that may be in memory to make one: 8 GiB
_MOST_SEEN = 1024
# Rows in view that a search needs about, at least and for each row that is ranked: the fewer dims
# the graph is of, the more rows are ranked, and the more are nearer by these dims.
_LEAST_SEEN, _SEEN_EACH = 64, 5
_WIDER = 1.35  # between efforts
# What a search costs, roughly, in nanoseconds of one core. This only decides what is measured.
_SEEN, _SEEN_DIM = 250.0, 0.7  # a row in view, a dim of its code
_READ, _READ_BYTE = 4.0, 0.15  # a row of a list, a byte of its code
_CANDIDATE, _CANDIDATE_DIM = 60.0, 0.6  # fetched from anywhere in memory, a dim of it
_PROBED = 1 / 16  # of the lists are read, about
RecallOf = Callable[[int, int], np.ndarray]


class Walk(NamedTuple):
    """A graph or lists over first dims, or principal directions, of `rows` x `width` vectors."""

    rotated: bool
    dim: int
    factory: str
    rows: int
    width: int

    def plan(self, metric: Metric, effort: int, keep: int) -> Plan:
        """How it is searched with an effort, and so many rows that are ranked."""
        schedule = Schedule(((self.dim, keep),), self.width)
        parameters = f"{rabitq.form(self.factory).parameter}={effort}"
        how = {"factory": self.factory, "parameters": parameters, "rotated": self.rotated}
        return Plan(schedule, metric, **how)

    def cost(self, effort: int, keep: int) -> float:
        """Nanoseconds a query."""
        form = rabitq.form(self.factory)
        if form.graph:
            first = effort * (_SEEN + self.dim * _SEEN_DIM)
        else:
            read = self.rows * min(effort / form.count, 1)
            first = read * (_READ + self.dim * form.bits / 8 * _READ_BYTE)
        return first + keep * (_CANDIDATE + self.width * _CANDIDATE_DIM)

    def most(self) -> int:
        """The largest effort that is tried."""
        form = rabitq.form(self.factory)
        return min(_MOST_SEEN, self.rows - 1) if form.graph else form.count


def rotated_dims(dims: Sequence[int]) -> list[int]:
    """Of these dims those that principal directions are looked at by."""
    return [m for m in dims if m <= _WIDEST]


def worth_trying(
    counted: Mapping[bool, Ranks],
    dims: Sequence[int],
    k: int,
    recall: float,
    width: int,
    most: float,
    lists: int,
) -> list[Walk]:
    """The graphs, and the lists, that reach a recall for least, by ranks.

    Args:
      counted: ranks by first dims (False) and by principal directions (True).
      dims: that may be stages.
      k: neighbours asked for.
      recall: of them.
      width: of vectors, also a graph's where `dims` has it.
      most: bytes that all rows of one may need.
      lists: how many there are, if more than one.
    """
    graphs, of_lists = [], []
    for rotated, ranks in counted.items():
        for dim in dims:
            if dim < rabitq.LEAST_DIM or dim * ranks.rows > _NUMBERS or (rotated and dim == width):
                continue
            if dim == width:
                keep = k + k // 2
            elif ("float32", (dim,)) in ranks.prefix:
                rank_n = np.sort(ranks.prefix["float32", (dim,)].ravel())
                keep = max(k, rank_n[min(math.ceil(recall * len(rank_n)), len(rank_n)) - 1])
            else:
                continue
            if keep > _MOST_SEEN:
                continue
            seen = max(_LEAST_SEEN, _SEEN_EACH * int(keep))
            for found, factory, effort in (
                (graphs, GRAPH, seen),
                (of_lists, f"IVFRaBitQ{lists},{BITS}", math.ceil(lists * _PROBED)),
            ):
                walk = Walk(rotated, dim, factory, ranks.rows, width)
                fits = rabitq.form(factory).row_bytes(dim) * ranks.rows <= most
                if fits and (lists > 1 or found is graphs):
                    found.append((walk.cost(effort, int(keep)), walk))
    return [walk for _, walk in (*sorted(graphs)[:DESIGNS], *sorted(of_lists)[:1])]


def plans(
    walk: Walk, metric: Metric, k: int, aims: Sequence[float], recall: RecallOf
) -> list[Plan]:
    """For each aim, as far as one can be reached, the cheapest search that finds as much.

    Args:
      walk: what is searched.
      metric, k: by what, and for how many.
      aims: shares of the k neighbours to be found, rising.
      recall: of every query, given an effort and how many rows are ranked.
    """
    graph = rabitq.form(walk.factory).graph

    @functools.cache
    def reached(effort: int, keep: int) -> float:
        return float(recall(effort, keep).mean())

    def least_keep(effort: int, aim: float) -> int | None:
        """How many must be ranked; None if all that may be are too few."""
        keeps = rising(k, min(effort, walk.rows) if graph else min(_MOST_SEEN, walk.rows))
        low, high = 0, len(keeps) - 1
        if reached(effort, int(keeps[high])) < aim:
            return None
        while low < high:
            middle = (low + high) // 2
            if reached(effort, int(keeps[middle])) >= aim:
                high = middle
            else:
                low = middle + 1
        return int(keeps[low])

    least, most = k if graph else 1, walk.most()
    if most <= least:
        return []
    count = max(2, round(np.log(most / least) / np.log(_WIDER)))
    efforts = np.unique(np.rint(np.geomspace(least, most, count)).astype(int)).tolist()
    found, first = [], 0
    for aim in aims:
        tried = []
        for i in range(first, len(efforts)):
            keep = least_keep(efforts[i], aim)
            if keep is None:
                continue
            if not tried:
                first = i  # a higher aim needs no less effort
            tried.append((walk.cost(efforts[i], keep), efforts[i], keep))
            if len(tried) > 1 and tried[-1][0] > tried[-2][0]:
                break
        if not tried:
            break
        found.append(walk.plan(metric, *min(tried)[1:]))
    return list(dict.fromkeys(found))
