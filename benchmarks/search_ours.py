"""Our own indexes, the plan that is chosen by itself, and the bandwidth of memory."""

import contextlib
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from benchmarks.search_case import PROBES, WIDER, Case, K, lists_for, scaled
from mrl_jax.search.index import Index, clusters, codes, rabitq
from mrl_jax.search.plan import Plan
from mrl_jax.search.schedule import Schedule
from mrl_jax.store.vectors import open_vectors

# Candidates of a second stage: of the first one's, and at least.
SECOND_SHARE, SECOND_LEAST = 0.25, 14
GRAPH = "SymphonyQG32,8"
# Beside its code a row of a stage has a scale and a norm, and in the first stage a deletion mark.
BESIDE_CODE = 8
# Principal directions, at most; and of those that vectors have.
MOST_ROTATED, ROTATED_SHARE = 512, 0.5


class Ours(Case):
    """An index by a plan; subclasses say by which one a setting is searched."""

    imports = ("numba", "numkong")

    def __init__(
        self, name: str, dim: int, width: int, threads: int, ranked: bool = True,
        rotated: bool = False,
    ):  # fmt: skip
        super().__init__(name, dim, width, threads, ranked)
        self.rotated = rotated

    @property
    def by_prefix(self):
        """Principal directions tell most of any vectors."""
        return super().by_prefix and not self.rotated

    @property
    def reranks(self):
        """The index does it."""
        return ("",)

    def plan(self, effort: float, keep: int) -> Plan:
        """How it is built, and searched."""
        raise NotImplementedError

    def build(self, vectors, folder):
        """Written by the library."""
        plan = self.plan(self.efforts[0], self.keeps[-1])
        Index.build(folder / "index", open_vectors(vectors), plan=plan)

    def open(self, vectors, folder):
        """Opened; and its copy of the vectors is made the file that all cases read."""
        self.z_nd = np.load(vectors, mmap_mode="r")
        # The same bytes: one file leaves room for the others in the page cache.
        (copy,) = (folder / "index").glob("segment-*/vectors.npy")
        if not copy.samefile(vectors) and copy.stat().st_size == vectors.stat().st_size:
            with contextlib.suppress(OSError):  # another file system
                link = copy.with_name("link.npy")
                os.link(vectors, link)
                link.replace(copy)
        self.folder = folder / "index"
        self.index = Index.open(self.folder)

    def candidates(self, q_bd, setting):
        """Its results."""
        plan = self.plan(setting.effort, setting.keep)
        return self.index.search(
            q_bd,
            K,
            keeps=[stage.keep for stage in plan.schedule.stages],
            probes=plan.probes if plan.lists > 1 else None,
            parameters=plan.parameters or None,
            threads=setting.threads or self.threads,
        )[0]

    def bytes(self, folder):
        """As it says itself."""
        found = self.index.bytes()
        return found["resident"], found["vectors"]

    def reads(self, q_bd, setting):
        """The rotation; rows in view of a graph, or centroids and codes; then candidates."""
        plan = self.plan(setting.effort, setting.keep)
        rows, stages, total = len(self.z_nd), plan.schedule.stages, 0.0
        if not stages:
            return 4.0 * rows * self.width
        if plan.rotated:
            total += 4 * self.width * stages[-1].dim
        if plan.factory:
            form, dim = rabitq.form(plan.factory), stages[0].dim
            effort = form.effort(plan.parameters)
            if not form.graph:
                effort *= rows / form.count
                total += 4 * form.count * dim
            return total + effort * form.row_bytes(dim) + stages[0].keep * 4 * self.width
        if plan.lists > 1:
            rows = self._rows_of_lists(q_bd, plan)
            total += 4 * plan.lists * plan.list_dim
        before = 0
        for stage in stages:
            code = codes.code_bytes(stage.dim - before, plan.code) + BESIDE_CODE + (before == 0)
            total += rows * code
            rows, before = stage.keep, stage.dim
        return float(total + rows * 4 * self.width)

    def _rows_of_lists(self, q_bd, plan):
        """Rows that a query compares, on average."""
        (centroids,) = self.folder.glob("shared-*/centroids.npy")
        (bounds,) = self.folder.glob("segment-*/bounds.npy")
        if plan.rotated:
            (rotation,) = self.folder.glob("shared-*/rotation.npy")
            q_bd = q_bd @ np.load(rotation)
        part_bd, centroid_ld = np.ascontiguousarray(q_bd[:, : plan.list_dim]), np.load(centroids)
        list_bp = clusters.nearest(part_bd, centroid_ld, plan.probes, plan.metric)
        return np.diff(np.load(bounds))[list_bp].sum(1).mean()

    def describe(self, setting):
        """As a schedule."""
        plan = self.plan(setting.effort, setting.keep)
        parts = ["rotated"] if plan.rotated else []
        parts += [f"{plan.factory} {plan.parameters}"] if plan.factory else []
        parts += [f"{plan.probes} of {plan.lists} lists"] if plan.lists > 1 else []
        thread = ["1 thread"] if setting.threads == 1 else []
        return ", ".join([*parts, str(plan.schedule), *thread])


class Codes(Ours):
    """int8 codes of one or two prefixes, in lists or all of them, then whole vectors."""

    def __init__(self, name: str, dims: tuple[int, ...], lists: int, width: int, threads: int):
        super().__init__(name, dims[0], width, threads)
        self.dims, self.lists = dims, lists
        self.efforts = tuple(p for p in PROBES if p <= lists) if lists > 1 else (1,)

    def plan(self, effort, keep):
        """With so many lists read."""
        second = min(keep, max(SECOND_LEAST, round(SECOND_SHARE * keep)))
        return Plan(
            Schedule(tuple(zip(self.dims, (keep, second), strict=False)), self.width),
            metric=self.metric,
            code="int8",
            lists=self.lists,
            list_dim=self.dims[0] if self.lists > 1 else 0,
            probes=int(effort),
        )


class Graph(Ours):
    """A graph of codes of 8 bits a dim, then whole vectors."""

    imports = (*Ours.imports, "rabitqlib")

    def __init__(self, name: str, dim: int, width: int, threads: int, rotated: bool = False):
        super().__init__(name, dim, width, threads, rotated=rotated)
        self.efforts = WIDER

    def plan(self, effort, keep):
        """With so many times the candidates in view."""
        return Plan(
            Schedule(((self.dim, keep),), self.width),
            metric=self.metric,
            factory=GRAPH,
            parameters=f"ef={int(effort * keep)}",
            rotated=self.rotated,
        )


class Planned(Ours):
    """The plan that `Index.build` chooses by itself for a recall and other queries.

    It is searched as it was planned, whatever it finds.
    """

    efforts = (0,)

    def __init__(self, target: float, width: int, threads: int):
        super().__init__(f"mrl_jax/planned {target:g}", width, width, threads, ranked=False)
        self.only_target = target

    def missing(self):
        """It needs queries."""
        if self.plan_queries is None:
            return "no queries are left to plan with: give more than those that are measured"
        return super().missing()

    def build(self, vectors, folder):
        """Planned, then built."""
        from mrl_jax.search.planner import promises, propose

        wanted = promises.Wanted(self.only_target, K, self.metric)
        start = time.perf_counter()
        proposal = propose.propose(open_vectors(vectors), open_vectors(self.plan_queries), wanted)
        seconds, chosen = time.perf_counter() - start, proposal.chosen
        Index.build(folder / "index", open_vectors(vectors), plan=chosen.plan)
        return {
            "planning_seconds": seconds,
            "promised": {
                "recall": chosen.recall, "interval": [chosen.low, chosen.high],
                "qps": chosen.times.qps, "p50_ms": chosen.times.latency_ms["p50"],
            },
        }  # fmt: skip

    def plan(self, effort, keep):
        """Its own."""
        return self.index.plan


def cases(rows: int, width: int, threads: int, targets: tuple[float, ...]) -> list[Case]:
    """Ours for one set of vectors."""
    lists, found = lists_for(rows), []
    for dims, number in (((128, 512), lists), ((128,), lists), ((64, 256), lists), ((128, 512), 1)):
        dims = tuple(d for d in (scaled(dim, width) for dim in dims) if d < width)
        kind = "clusters" if number > 1 else "all rows"
        name = f"mrl_jax/{kind} {'-'.join(map(str, dims))}"
        found.append(Codes(name, dims, number, width, threads))
    least = rabitq.LEAST_DIM
    for dim in (scaled(dim, width) for dim in (128, 256, 512)):
        if least <= dim < width:
            found.append(Graph(f"mrl_jax/graph {dim}", dim, width, threads))
    if width >= least:
        found.append(Graph("mrl_jax/graph", width, width, threads))
    for dim in sorted({min(MOST_ROTATED, int(ROTATED_SHARE * width)), MOST_ROTATED // 2}):
        if least <= dim < width:
            name = f"mrl_jax/graph rotated {dim}"
            found.append(Graph(name, dim, width, threads, rotated=True))
    found += [Planned(target, width, threads) for target in targets]
    return list({case.name: case for case in found}.values())


def bandwidth(threads: int, megabytes: int = 256) -> float:
    """Bytes a second that as many threads read (sum of products) or copy, whichever are more.

    A copy counts twice: what it reads and what it writes.
    """
    source_pn = np.ones((threads, megabytes * 2**18 // threads), np.float32)
    target_pn = np.zeros_like(source_pn)

    def read(p: int) -> None:
        for block_n in np.array_split(source_pn[p], 64):
            block_n @ block_n

    def copy(p: int) -> None:
        np.copyto(target_pn[p], source_pn[p])

    rates = []
    with ThreadPoolExecutor(threads) as pool:
        for work, times in ((read, 1), (copy, 2)) * 5:
            start = time.perf_counter()
            list(pool.map(work, range(threads)))
            rates.append(times * source_pn.nbytes / (time.perf_counter() - start))
    return max(rates)
