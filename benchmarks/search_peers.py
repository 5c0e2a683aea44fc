"""Indexes of other libraries on a prefix, and the exact ranking of what they bring."""

import importlib
import pathlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, NamedTuple

import faiss
import numpy as np

# Neighbours that are asked for.
K = 10
FLOOR = "faiss/exact"
# Rows that are handed to an index at a time.
CHUNK = 50_000
KEEPS = (15, 20, 30, 50, 80, 120, 200, 300, 500, 800, 1200, 2000)
PROBES = (2, 4, 6, 8, 12, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128, 192, 256, 384, 512)
# Of a graph: nodes looked at per candidate that is wanted, with a final ranking and without.
WIDER = (1, 1.5, 2, 3, 4, 6)
WIDE = (1, 1.5, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, 64, 96)


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
      dim: of the index; the candidates are ranked by all dims when it has fewer.
      metric: how prefixes are compared. They are parts of vectors of unit length: "inner" leaves
        them so long as they are, for "cosine" they have unit length as well.
    """

    imports: ClassVar[tuple[str, ...]] = ()
    efforts: tuple[float, ...] = (0,)
    keeps: tuple[int, ...] = KEEPS
    metric: str = "cosine"

    def __init__(self, name: str, dim: int, width: int, threads: int):
        self.name, self.dim, self.width, self.threads = name, dim, width, threads
        if dim == width:
            self.keeps = (0,)

    @property
    def reranks(self) -> tuple[str, ...]:
        """Who may rank the candidates."""
        return ("",) if self.dim == self.width else tuple(RERANK)

    def missing(self) -> str | None:
        """Why it cannot run here."""
        for package in self.imports:
            try:
                importlib.import_module(package)
            except ImportError:
                return f"{package} is not installed"
        return None

    def build(self, vectors: pathlib.Path, folder: pathlib.Path) -> None:
        """Makes the index of a .npy file of unit vectors."""
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
        """Of the index, and of the vectors beside it that candidates are ranked by."""
        index = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        return index, 4 * self.width * len(self.z_nd) if self.dim < self.width else 0

    def reads(self, q_bd: np.ndarray, setting: Setting) -> float | None:
        """Bytes that one of these queries must read, on average; None = not counted."""
        return None

    def describe(self, setting: Setting) -> str:
        """For the report."""
        parts = [f"effort {setting.effort:g}"] if setting.effort else []
        parts += [f"keep {setting.keep}"] if setting.keep else []
        parts += [f"ranked by {setting.rerank}"] if setting.rerank else []
        return ", ".join(parts + ([f"{setting.threads} thread"] if setting.threads == 1 else []))


class FaissExact(Case):
    """All rows by the first dims: faiss.knn, which is what IndexFlatIP runs."""

    def build(self, vectors, folder):
        """Only copies the prefix, if it is one."""
        if self.dim < self.width:
            np.save(folder / "prefix.npy", np.concatenate(list(self.prefix_chunks(vectors))))

    def load(self, folder):
        """The rows."""
        return np.load(folder / "prefix.npy") if self.dim < self.width else self.z_nd

    def first(self, q_bd, effort, keep, threads):
        """By rank."""
        return faiss.knn(q_bd, self.index, keep, metric=faiss.METRIC_INNER_PRODUCT)[1]

    def bytes(self, folder):
        """All of it is the index."""
        return self.index.nbytes, self.z_nd.nbytes if self.dim < self.width else 0


class NumpyExact(FaissExact):
    """All rows by BLAS: in blocks, or, for one query, as one product by all threads."""

    def first(self, q_bd, effort, keep, threads):
        """By rank."""
        ids, scores = [], []
        block = len(self.index) if len(q_bd) == 1 else 16_384
        for start in range(0, len(self.index), block):
            scores_bn = q_bd @ self.index[start : start + block].T
            top = np.argpartition(scores_bn, -min(keep, scores_bn.shape[1]))[:, -keep:]
            ids.append(top + start)
            scores.append(np.take_along_axis(scores_bn, top, 1))
        return best(np.concatenate(ids, 1), np.concatenate(scores, 1), keep)


class Faiss(Case):
    """What faiss.index_factory makes of a prefix."""

    def __init__(self, name: str, factory: str, dim: int, width: int, threads: int):
        super().__init__(name, dim, width, threads)
        self.factory, self.lists = factory, 0
        if factory.startswith("IVF"):
            self.lists = int(factory.split(",")[0][3:])
            self.efforts = tuple(probes for probes in PROBES if probes <= self.lists)
        else:
            self.efforts = WIDER if dim < width else WIDE

    def build(self, vectors, folder):
        """Trains on a sample, adds in chunks."""
        faiss.omp_set_num_threads(self.threads)
        index = faiss.index_factory(self.dim, self.factory, faiss.METRIC_INNER_PRODUCT)
        if self.lists:
            z_nd = np.load(vectors, mmap_mode="r")
            # As many as its k-means uses at most, but not so many that they fill the memory.
            rows = min(256 * self.lists, max(40 * self.lists, 2**27 // self.dim), len(z_nd))
            picked = np.sort(np.random.default_rng(0).choice(len(z_nd), rows, replace=False))
            index.train(self.prefixes(z_nd[:, : self.dim][picked]))
        for chunk_nd in self.prefix_chunks(vectors):
            index.add(chunk_nd)
        faiss.write_index(index, str(folder / "index.faiss"))

    def load(self, folder):
        """Into memory."""
        return faiss.read_index(str(folder / "index.faiss"))

    def first(self, q_bd, effort, keep, threads):
        """By rank."""
        if self.lists:
            self.index.nprobe = int(effort)
            # One query: its lists are shared by the threads, which otherwise have one query each.
            self.index.parallel_mode = 1 if len(q_bd) == 1 and threads > 1 else 0
        else:
            self.index.hnsw.efSearch = int(effort * keep)
        return self.index.search(q_bd, keep)[1]

    def describe(self, setting):
        """In faiss's words."""
        wide = f"efSearch={int(setting.effort * max(setting.keep, K))}"
        name = f"nprobe={setting.effort:g}" if self.lists else wide
        return ", ".join(filter(None, (name, super().describe(setting._replace(effort=0)))))


class Usearch(Case):
    """usearch's graph of int8 codes, which have unit length per row."""

    imports = ("usearch.index",)
    efforts = WIDER

    def _new(self):
        from usearch.index import Index

        return Index(ndim=self.dim, metric="ip", dtype="i8")

    def build(self, vectors, folder):
        """With its own defaults."""
        index, start = self._new(), 0
        for chunk_nd in self.prefix_chunks(vectors):
            keys = np.arange(start, start + len(chunk_nd))
            index.add(keys, chunk_nd, threads=self.threads)
            start += len(chunk_nd)
        index.save(str(folder / "index.usearch"))

    def load(self, folder):
        """Into memory."""
        index = self._new()
        index.load(str(folder / "index.usearch"))
        return index

    def first(self, q_bd, effort, keep, threads):
        """By rank."""
        self.index.expansion_search = int(effort * keep)
        found = self.index.search(q_bd, keep, threads=threads)
        return found.keys.reshape(len(q_bd), keep).astype(np.int64)

    def describe(self, setting):
        """In its own words."""
        wide = f"expansion={int(setting.effort * setting.keep)}, "
        return wide + super().describe(setting._replace(effort=0))


class Hnswlib(Case):
    """hnswlib's graph."""

    imports = ("hnswlib",)
    efforts = WIDER

    def _new(self):
        import hnswlib

        return hnswlib.Index("ip", self.dim)

    def build(self, vectors, folder):
        """With its own defaults."""
        index = self._new()
        index.init_index(len(np.load(vectors, mmap_mode="r")), M=16, ef_construction=200)
        for chunk_nd in self.prefix_chunks(vectors):
            index.add_items(chunk_nd, num_threads=self.threads)
        index.save_index(str(folder / "index.hnswlib"))

    def load(self, folder):
        """Into memory."""
        index = self._new()
        index.load_index(str(folder / "index.hnswlib"))
        return index

    def first(self, q_bd, effort, keep, threads):
        """By rank."""
        self.index.set_ef(int(effort * keep))
        return self.index.knn_query(q_bd, keep, num_threads=threads)[0].astype(np.int64)

    def describe(self, setting):
        """In its own words."""
        ef = f"ef={int(setting.effort * setting.keep)}, "
        return ef + super().describe(setting._replace(effort=0))


def lists_for(rows: int) -> int:
    """4 sqrt(rows) as a power of two: 1,024 for 100,000 rows, 4,096 for a million."""
    return 2 ** round(np.log2(4 * rows**0.5))


def scaled(dim: int, width: int) -> int:
    """A prefix of 2,048 dims for another width: as their square roots, a multiple of 8."""
    return max(8, 8 * round(dim * (width / 2048) ** 0.5 / 8))


def cases(rows: int, width: int, threads: int) -> list[Case]:
    """The peers for one set of vectors, exact search first."""
    ivf = f"IVF{lists_for(rows)}"
    p64, p128, p256 = (scaled(dim, width) for dim in (64, 128, 256))
    code = f"PQ{p256 // 4}x4fs"
    of: list[tuple[Callable, tuple]] = [
        (FaissExact, (FLOOR, width)),
        (NumpyExact, ("numpy/exact", width)),
        (FaissExact, (f"faiss/flat {p128}", p128)),
        (Faiss, ("faiss/HNSW32", "HNSW32", width)),
        (Faiss, (f"faiss/HNSW32 {p64}", "HNSW32", p64)),
        (Faiss, (f"faiss/HNSW32 {p128}", "HNSW32", p128)),
        (Faiss, ("faiss/IVF", f"{ivf},Flat", width)),
        (Faiss, (f"faiss/IVF {p128}", f"{ivf},Flat", p128)),
        (Faiss, (f"faiss/IVF-PQ {p256}", f"{ivf},{code}", p256)),
        (Faiss, (f"faiss/IVF-SQ8 {p128}", f"{ivf},SQ8", p128)),
        (Usearch, (f"usearch/int8 {p128}", p128)),
        (Hnswlib, (f"hnswlib/HNSW {p64}", p64)),
        (Hnswlib, (f"hnswlib/HNSW {p128}", p128)),
    ]
    found = {about[0]: make(*about, width, threads) for make, about in of if about[-1] <= width}
    return list(found.values())
