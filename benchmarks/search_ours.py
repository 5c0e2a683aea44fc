"""Our own indexes, and the least time that what they read must take."""

import contextlib
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from benchmarks.search_peers import KEEPS, PROBES, Case, K, Setting, lists_for, scaled
from mrl_jax.search.index import Index, clusters
from mrl_jax.search.plan import Plan
from mrl_jax.search.schedule import Schedule
from mrl_jax.store.vectors import open_vectors

# Candidates of a second stage: of the first one's, and at least.
SECOND_SHARE, SECOND_LEAST = 0.25, 14
# Beside its code a row of a stage has a scale and a norm, and in the first stage a deletion mark.
BESIDE_CODE = 8


class Ours(Case):
    """int8 codes of one or two prefixes, in lists or all of them, then whole vectors."""

    imports = ("numba", "numkong")

    def __init__(self, name: str, dims: tuple[int, ...], lists: int, width: int, threads: int):
        super().__init__(name, dims[0], width, threads)
        self.dims, self.lists = dims, lists
        self.efforts = tuple(p for p in PROBES if p <= lists) if lists > 1 else (1,)
        self.keeps = KEEPS

    @property
    def reranks(self):
        """The index does it."""
        return ("",)

    def _keeps(self, keep: int) -> tuple[int, ...]:
        second = min(keep, max(SECOND_LEAST, round(SECOND_SHARE * keep)))
        return (keep, second)[: len(self.dims)]

    def build(self, vectors, folder):
        """Written by the library; then its copy of the vectors is made the file all cases read."""
        stages = tuple(zip(self.dims, self._keeps(100), strict=True))
        plan = Plan(
            Schedule(stages, self.width),
            metric=self.metric,
            code="int8",
            lists=self.lists,
            list_dim=self.dims[0] if self.lists > 1 else 0,
        )
        Index.build(folder / "index", open_vectors(vectors), plan=plan)

    def open(self, vectors, folder):
        """Opened, and where its lists begin."""
        self.z_nd = np.load(vectors, mmap_mode="r")
        # The same bytes: one file leaves room for the others in the page cache.
        (copy,) = (folder / "index").glob("segment-*/vectors.npy")
        if not copy.samefile(vectors) and copy.stat().st_size == vectors.stat().st_size:
            with contextlib.suppress(OSError):  # another file system
                link = copy.with_name("link.npy")
                os.link(vectors, link)
                link.replace(copy)
        self.index = Index.open(folder / "index")
        (bounds,) = (folder / "index").glob("segment-*/bounds.npy")
        self.size_l = np.diff(np.load(bounds))
        if self.lists > 1:
            (centroids,) = (folder / "index").glob("shared-*/centroids.npy")
            self.centroid_ld = np.load(centroids)

    def candidates(self, q_bd, setting):
        """Its results."""
        return self.index.search(
            q_bd,
            K,
            keeps=self._keeps(min(setting.keep, len(self.z_nd))),
            probes=int(setting.effort),
            threads=setting.threads or self.threads,
        )[0]

    def bytes(self, folder):
        """As it says itself."""
        found = self.index.bytes()
        return found["resident"], found["vectors"]

    def reads(self, q_bd, setting):
        """Centroids, codes of the lists looked into, codes and whole vectors of candidates."""
        rows, centroids = len(self.z_nd), 0
        if self.lists > 1:
            prefix_bd, probes = q_bd[:, : self.dim], int(setting.effort)
            list_bp = clusters.nearest(prefix_bd, self.centroid_ld, probes, self.metric)
            rows, centroids = self.size_l[list_bp].sum(1).mean(), self.centroid_ld.nbytes
        total, keeps = centroids + rows * (self.dim + BESIDE_CODE + 1), self._keeps(setting.keep)
        for i in range(1, len(self.dims)):
            total += keeps[i - 1] * (self.dims[i] - self.dims[i - 1] + BESIDE_CODE)
        return float(total + keeps[-1] * 4 * self.width)

    def describe(self, setting: Setting) -> str:
        """As a schedule."""
        stages = tuple(zip(self.dims, self._keeps(setting.keep), strict=True))
        probes = f"{setting.effort:g} of {self.lists} lists, " if self.lists > 1 else ""
        thread = f", {setting.threads} thread" if setting.threads == 1 else ""
        return probes + str(Schedule(stages, self.width)) + thread


def cases(rows: int, width: int, threads: int) -> list[Case]:
    """Ours for one set of vectors."""
    lists = lists_for(rows)
    forms = (((128, 512), lists), ((128,), lists), ((64, 256), lists), ((128, 512), 1))
    found = {}
    for dims, number in forms:
        dims = tuple(d for d in (scaled(dim, width) for dim in dims) if d < width)
        kind = "clusters" if number > 1 else "all rows"
        name = f"mrl_jax/{kind} {'-'.join(map(str, dims))}"
        found[name] = Ours(name, dims, number, width, threads)
    return list(found.values())


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
