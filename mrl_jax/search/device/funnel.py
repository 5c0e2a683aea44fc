"""Searching by a schedule on devices: find with few dims, decide with many."""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from mrl_jax.search.device import candidates, exact, placement
from mrl_jax.search.device.placement import Array, Sharded, Split
from mrl_jax.search.schedule import Metric, Schedule


class DeviceIndex:
    """A database placed on devices once, to be searched often.

    The norms of its prefixes are computed here. A program is compiled for every schedule and k, and
    for a few numbers of queries: batches are cut into powers of two up to 256 (1,024 on
    accelerators).

    Args:
      database_nd: [N, >= m_G] floating point; computed with in float32. On a mesh the same on every
        process, or one global array.
      dims: prefix lengths m_1 < ... < m_G that searches may use.
      metric: as for `top_k`.
      mesh: the rows are split over all its devices; any N will do. None: one device.

    Raises:
      ValueError: as `top_k`.
    """

    def __init__(
        self,
        database_nd: Array,
        dims: Sequence[int],
        metric: Metric = "cosine",
        mesh: Mesh | None = None,
    ):
        self._placed, self._split = placement.place(database_nd, dims, metric, mesh)

    @property
    def dims(self) -> tuple[int, ...]:
        """The prefixes that searches may use."""
        return self._split.dims

    def top_k(self, query_bd: Array, k: int) -> tuple[np.ndarray, np.ndarray]:
        """`mrl_jax.search.top_k` at all dims: rows and scores [G, B, k]."""
        row_gbk, score_gbk = exact.search(self._placed, self._split, query_bd, self.dims, k)
        return row_gbk, score_gbk.astype(np.float32)

    def search(self, query_bd: Array, schedule: Schedule, k: int) -> tuple[np.ndarray, np.ndarray]:
        """`funnel`: rows and scores [B, k].

        Raises:
          ValueError: as `funnel`, or the schedule has dims that the index lacks.
        """
        split = self._split
        if not set(schedule.dims) <= set(self.dims):
            raise ValueError(f"{schedule} needs dims that are none of the index's {self.dims}")
        k = placement.check_k(k, split.rows)
        schedule.check(k, self.dims[-1])
        if not schedule.stages:
            rows, scores = exact.search(self._placed, split, query_bd, (schedule.final,), k)
            return rows[0], scores[0].astype(np.float32)

        def chunk(query_bd):
            return _search(
                self._placed, query_bd, split, _stages(split, schedule, len(query_bd)), k
            )

        at_most = exact.sizes_for(split.mesh).queries
        rows, scores = placement.in_chunks(chunk, query_bd, schedule.final, at_most, split.mesh)
        return rows, scores.astype(np.float32)


def funnel(
    database_nd: Array,
    query_bd: Array,
    schedule: Schedule,
    k: int,
    *,
    metric: Metric = "cosine",
    mesh: Mesh | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best rows for every query, found by a schedule (arXiv 2205.13147, section 4.3.2).

    The first stage compares all rows of the database; to the products of its best `keep` the next
    stage adds those over the missing dims, and so on. Whatever the mesh, the best rows of the whole
    database are kept, and every device compares those that it has. Beside its arguments and its
    result, a search needs one number per row and dim of the schedule, and memory that grows with
    neither N nor B. Of rows that the first stage's products, in float32, do not tell apart, any may
    go on; all that go on are compared as by `top_k`. To search the same database again, keep a
    `DeviceIndex` of it.

    Args:
      database_nd: [N, >= schedule.final] floating point; computed with in float32. On a mesh the
        same on every process, or one global array.
      query_bd: [B, >= schedule.final], the same on every process.
      schedule: a stage that keeps more than N rows keeps all of them; `Schedule.exact(d)` gives
        what `top_k` gives.
      k: how many rows, at most N and what the last stage keeps.
      metric: as for `top_k`.
      mesh: the rows are split over all its devices; any N will do. None: one device.

    Returns:
      rows_bk: [B, k] int32, the best row first, on every process. Ties go to the smaller row, in
        every stage; equal rows tie.
      scores_bk: [B, k] float32, over the first `schedule.final` dims.

    Raises:
      ValueError: as `top_k`.
    """
    query_bd = placement.checked("queries", query_bd, schedule.final)
    index = DeviceIndex(database_nd, sorted(set(schedule.dims)), metric, mesh)
    return index.search(query_bd, schedule, k)


class _Stages(NamedTuple):
    """What a compiled search depends on beside its arrays and their `Split`.

    `first` is the pass over all rows, of which the best `keeps[0]` go on; these are compared by
    `dims[1]` dims, the best `keeps[1]` of them go on, and so forth.
    """

    first: exact.Scan
    dims: tuple[int, ...]
    keeps: tuple[int, ...]


def _stages(split: Split, schedule: Schedule, queries: int) -> _Stages:
    keeps = tuple(min(stage.keep, split.rows) for stage in schedule.stages)
    first = exact.make_scan(split, schedule.dims[:1], keeps[0], queries)
    return _Stages(first, schedule.dims, keeps)


def _added(
    split: Split, stages: _Stages, placed: Sharded, query_bd, row_bc, dims: tuple[int, int]
) -> tuple[jax.Array, jax.Array]:
    """`candidates.sums` over dims lo to hi of candidates [B, C].

    Rows rise along a query's candidates, so those of one device are neighbours: it moves a window
    over them until all queries are done. The sums of the others come from other devices.
    """
    lo, hi = dims
    at_most = stages.first.candidates
    queries, count = row_bc.shape
    windows = max(split.mesh.size, -(-count * (hi - lo) // at_most))
    window = -(-count // windows)
    local_bc = row_bc - split.first()
    start_b1 = (local_bc < 0).sum(1, keepdims=True)
    end_b1 = (local_bc < split.local).sum(1, keepdims=True)

    def of_window(state):
        begin_b1, *found = state
        place_bw = begin_b1 + jnp.arange(window)[None]
        inside_bw = place_bw < end_b1
        (row_bw,) = candidates.pick(jnp.minimum(place_bw, count - 1), local_bc)
        row_bw = jnp.where(inside_bw, row_bw, 0)
        news = candidates.sums(split, placed.database_nd, query_bd, row_bw, dims, at_most)
        at = jnp.arange(queries)[:, None], jnp.where(inside_bw, place_bw, count)
        found = [x_bc.at[at].set(x_bw, mode="drop") for x_bc, x_bw in zip(found, news, strict=True)]
        return begin_b1 + window, *found

    nothing = jnp.zeros((queries, count), jnp.float64)
    if lo == hi:
        return nothing, nothing
    _, *found = lax.while_loop(
        lambda state: (state[0] < end_b1).any(), of_window, (start_b1, nothing, nothing)
    )
    return lax.psum(tuple(found), split.mesh.axis_names)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _search(placed: Sharded, query_bd, split: Split, stages: _Stages, k: int):
    """Rows and scores [B, k], and whether all queries are finite and not too long."""

    def local(placed, query_bd):
        (score_bc,), (row_bc,), _ = exact.shortlist(split, stages.first, placed, query_bd)
        chosen_bk = candidates.largest(score_bc, min(stages.keeps[0], score_bc.shape[-1]))
        score_bk, row_bk = candidates.pick(chosen_bk, score_bc, row_bc)
        dims, at_most = (0, stages.dims[0]), stages.first.candidates
        sums = candidates.sums(split, placed.database_nd, query_bd, row_bk, dims, at_most)
        sum_bk = jnp.where(score_bk == -jnp.inf, -jnp.inf, sums[0])
        # Devices come in the order of their rows, so these rise.
        mine = score_bk, sum_bk, sums[1], split.first() + row_bk
        score_bc, *found = lax.all_gather(mine, split.mesh.axis_names, axis=1, tiled=True)
        for block, keep in zip(itertools.pairwise(stages.dims), stages.keeps, strict=True):
            sum_bc, squares_bc, row_bc = candidates.pick(candidates.largest(score_bc, keep), *found)
            more = _added(split, stages, placed, query_bd, row_bc, block)
            found = sum_bc + more[0], squares_bc + more[1], row_bc
            score_bc = candidates.scores(split, query_bd, *found[:2], block[1])
        return candidates.best(score_bc, found[2], k)

    score_bk, row_bk = placement.on_mesh(local, split, placed, query_bd)
    return row_bk, score_bk, placement.legal_queries(query_bd, stages.dims)
