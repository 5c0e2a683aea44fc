"""What all cases of the search benchmark share, and the exact ranking of what indexes bring."""

import importlib
import pathlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, NamedTuple

import faiss
import numpy as np

# Neighbours that are asked for.
K = 10
# Rows that are handed to an index at a time.
CHUNK = 50_000
KEEPS = (10, 12, 15, 20, 30, 50, 80, 120, 200, 300, 500, 800, 1200, 2000)
# Of lists: 2, 3, 4, 5, 6, 8 and so on, a fifth more each time.
PROBES = tuple(np.unique(np.rint(np.geomspace(2, 512, 32)).astype(int)).tolist())
# Of a graph: nodes looked at per candidate that is wanted, with a final ranking and without.
WIDER = (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
WIDE = tuple(float(f"{x:.3g}") for x in np.geomspace(1, 100, 42))


class Setting(NamedTuple):
    """How a query is asked; more of either finds more.

    Attributes:
      effort: of the first stage, e.g. lists read.
      keep: its candidates that are ranked by all dims.
      rerank: by whom, a key of `RERANK`; "" = no ranking or the index's own.
      threads: at most; 0 = all that the case has.
    """

    effort: float = 0
    keep: int = 0
    rerank: str = ""
    threads: int = 0


def best(ids_bk: np.ndarray, scores_bk: np.ndarray, k: int) -> np.ndarray:
    """The ids with the k highest scores, in falling order."""
    if k < ids_bk.shape[1]:
        top_bk = np.argpartition(scores_bk, -k, axis=1)[:, -k:]
        ids_bk, scores_bk = (np.take_along_axis(a, top_bk, 1) for a in (ids_bk, scores_bk))
    return np.take_along_axis(ids_bk, np.argsort(-scores_bk, axis=1), 1)


def rerank_faiss(z_nd: np.ndarray, q_bd: np.ndarray, ids_bk: np.ndarray, threads: int):
    """Inner products as faiss.IndexRefineFlat computes them, without a copy of the vectors."""
    b = len(q_bd)
    if b == 1 and threads > 1:  # it has a thread per query: one query is made several
        padded = np.full((threads, -(-ids_bk.shape[1] // threads)), -1, np.int64)
        padded.ravel()[: ids_bk.size] = ids_bk
        q_bd, ids_bk = np.repeat(q_bd, threads, 0), padded
    ids_bk = np.ascontiguousarray(ids_bk, np.int64)
    scores_bk = np.empty(ids_bk.shape, np.float32)
    pointers = (faiss.swig_ptr(a) for a in (scores_bk, q_bd, z_nd, ids_bk))
    faiss.fvec_inner_products_by_idx(*pointers, q_bd.shape[1], *ids_bk.shape)
    return (ids_bk.reshape(b, -1), scores_bk.reshape(b, -1))


def rerank_numpy(z_nd: np.ndarray, q_bd: np.ndarray, ids_bk: np.ndarray, threads: int):
    """Rows are gathered and multiplied, by as many threads."""

    def some(part: slice) -> np.ndarray:
        rows = (z_nd.take(np.maximum(ids_k, 0), 0) for ids_k in ids_bk[part])
        pairs = zip(rows, q_bd[part], strict=True)
        return np.stack([rows_kd @ q_d for rows_kd, q_d in pairs])

    if len(q_bd) == 1:
        scores_bk = some(slice(None))
    else:
        edges = np.linspace(0, len(q_bd), min(threads, len(q_bd)) + 1).astype(int)
        with ThreadPoolExecutor(threads) as pool:
            scores_bk = np.concatenate(list(pool.map(some, map(slice, edges, edges[1:]))))
    return ids_bk, np.where(ids_bk < 0, -np.inf, scores_bk)


RERANK = {"faiss": rerank_faiss, "numpy": rerank_numpy}


class Case:
    """One way to search; subclasses say how. Sent to other processes before it is opened.

    Attributes:
      name: "library/form".
      imports: packages without which it is skipped.
      efforts, keeps: what is tried, rising.
      dim: of the index, the first ones of all `width`.
      ranked: whether its candidates are ranked by whole vectors, as they are where it has fewer
        dims; or, where it has all of them, because it compares codes.
      only_target: the recall it was made for: it is measured for this one alone, whatever it finds.
      plan_queries: a file of queries like those that are measured, for what is made by some.
      metric: how prefixes are compared. They are parts of vectors of unit length: "inner" leaves
        them so long as they are, for "cosine" they have unit length as well.
    """

    imports: ClassVar[tuple[str, ...]] = ()
    efforts: tuple[float, ...] = (0,)
    keeps: tuple[int, ...] = KEEPS
    metric: str = "cosine"
    only_target: float | None = None
    plan_queries: pathlib.Path | None = None

    def __init__(self, name: str, dim: int, width: int, threads: int, ranked: bool = False):
        self.name, self.dim, self.width, self.threads = name, dim, width, threads
        self.ranked = ranked or dim < width
        if not self.ranked:
            self.keeps = (0,)

    @property
    def by_prefix(self) -> bool:
        """Whether it needs vectors whose first dims tell most."""
        return self.dim < self.width

    @property
    def reranks(self) -> tuple[str, ...]:
        """Who may rank the candidates."""
        return tuple(RERANK) if self.ranked else ("",)

    def missing(self) -> str | None:
        """Why it cannot run here."""
        for package in self.imports:
            try:
                importlib.import_module(package)
            except ImportError:
                return f"{package} is not installed"
        return None

    def build(self, vectors: pathlib.Path, folder: pathlib.Path) -> dict | None:
        """Makes the index of a .npy file of unit vectors; what there is to say of it."""
        raise NotImplementedError

    def open(self, vectors: pathlib.Path, folder: pathlib.Path) -> None:
        """Makes ready to search."""
        self.z_nd = np.load(vectors, mmap_mode="r")
        self.index = self.load(folder)

    def prefixes(self, z_nd: np.ndarray) -> np.ndarray:
        """The first dims of some rows, to be compared by inner product."""
        prefix_nm = np.array(z_nd[:, : self.dim], np.float32, order="C")
        if self.metric == "cosine" and self.dim < self.width:
            faiss.normalize_L2(prefix_nm)
        return prefix_nm

    def prefix_chunks(self, vectors: pathlib.Path) -> Iterator[np.ndarray]:
        """Those of all rows, some at a time."""
        z_nd = np.load(vectors, mmap_mode="r")
        for start in range(0, len(z_nd), CHUNK):
            yield self.prefixes(z_nd[start : start + CHUNK])

    def load(self, folder: pathlib.Path) -> Any:
        """The index that was built."""
        raise NotImplementedError

    def first(self, q_bd: np.ndarray, effort: float, keep: int, threads: int) -> np.ndarray:
        """The index's own result, ids [b, keep] int64, -1 where there is none."""
        raise NotImplementedError

    def candidates(self, q_bd: np.ndarray, setting: Setting) -> np.ndarray:
        """Ids among which the final ranking, if there is one, finds its ten."""
        short_bd = np.ascontiguousarray(q_bd[:, : self.dim])
        keep, threads = max(K, min(setting.keep, len(self.z_nd))), setting.threads or self.threads
        faiss.omp_set_num_threads(threads)
        return self.first(short_bd, setting.effort, keep, threads)

    def search(self, q_bd: np.ndarray, setting: Setting) -> np.ndarray:
        """Ids of the ten nearest, [b, 10] int64."""
        ids_bk = self.candidates(q_bd, setting)
        if setting.rerank:
            threads = setting.threads or self.threads
            ids_bk, scores_bk = RERANK[setting.rerank](self.z_nd, q_bd, ids_bk, threads)
            ids_bk = best(ids_bk, scores_bk, K)
        return ids_bk

    def bytes(self, folder: pathlib.Path) -> tuple[int, int]:
        """Held in memory; and mapped: whole vectors, of which candidates are read."""
        index = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        return index, 4 * self.width * len(self.z_nd) if self.ranked else 0

    def reads(self, q_bd: np.ndarray, setting: Setting) -> float | None:
        """Bytes that one of these queries reads, on average, or at least; None = not counted."""
        first = self.first_reads(setting)
        return None if first is None else first + setting.keep * 4.0 * self.width * self.ranked

    def first_reads(self, setting: Setting) -> float | None:
        """Those of the index itself."""
        return None

    def describe(self, setting: Setting) -> str:
        """For the report."""
        parts = [f"effort {setting.effort:g}"] if setting.effort else []
        parts += [f"keep {setting.keep}"] if setting.keep else []
        parts += [f"ranked by {setting.rerank}"] if setting.rerank else []
        return ", ".join(parts + ([f"{setting.threads} thread"] if setting.threads == 1 else []))


class GraphCase(Case):
    """A walk from row to row, with some rows in view: `effort` times those that are wanted.

    Attributes:
      words: what the library calls them.
    """

    words: ClassVar[str] = "ef"

    def __init__(self, name: str, dim: int, width: int, threads: int, ranked: bool = False):
        super().__init__(name, dim, width, threads, ranked)
        self.efforts = WIDER if self.ranked else WIDE

    def view(self, setting: Setting) -> int:
        """Rows in view."""
        return int(setting.effort * max(setting.keep, K))

    def row_bytes(self) -> int:
        """Of what is read of every row in view: its numbers, and which rows it is linked to."""
        raise NotImplementedError

    def first_reads(self, setting: Setting) -> float:
        """Every row that is in view in the end was read; others were too."""
        return float(self.view(setting) * self.row_bytes())

    def describe(self, setting: Setting) -> str:
        """In the library's own words."""
        about = super().describe(setting._replace(effort=0))
        return ", ".join(filter(None, (f"{self.words}={self.view(setting)}", about)))


def lists_for(rows: int) -> int:
    """4 sqrt(rows) as a power of two: 1,024 for 100,000 rows, 4,096 for a million."""
    return 2 ** round(np.log2(4 * rows**0.5))


def scaled(dim: int, width: int) -> int:
    """A prefix of 2,048 dims for another width: as their square roots, a multiple of 8."""
    return max(8, 8 * round(dim * (width / 2048) ** 0.5 / 8))
