"""faiss and numpy: exact search, and what `faiss.index_factory` makes."""

import re

import faiss
import numpy as np

from benchmarks.search_case import PROBES, Case, GraphCase, best, lists_for, scaled

# What all others are compared with.
FLOOR = "faiss/exact"


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
        return self.index.nbytes, self.z_nd.nbytes if self.ranked else 0

    def first_reads(self, setting):
        """All."""
        return float(self.index.nbytes)


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


class FaissLists(Case):
    """Lists of faiss.index_factory, perhaps of a rotation (OPQ)."""

    def __init__(
        self, name: str, factory: str, dim: int, width: int, threads: int, ranked: bool = False
    ):
        super().__init__(name, dim, width, threads, ranked)
        self.factory, self.lists = factory, int(re.search(r"IVF(\d+)", factory)[1])
        self.efforts = tuple(probes for probes in PROBES if probes <= self.lists)

    def build(self, vectors, folder):
        """Trains on a sample, adds in chunks."""
        faiss.omp_set_num_threads(self.threads)
        index = faiss.index_factory(self.dim, self.factory, faiss.METRIC_INNER_PRODUCT)
        if self.factory.startswith("OPQ"):
            # The rotation is learned for codes of four bits, as they are kept. By itself faiss
            # learns it for eight, which takes several times as long.
            rotation = faiss.downcast_VectorTransform(index.chain.at(0))
            four_bits = faiss.ProductQuantizer(rotation.d_out, rotation.M, 4)  # faiss keeps none
            rotation.pq = four_bits
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
        index = faiss.read_index(str(folder / "index.faiss"))
        self.inner = faiss.extract_index_ivf(index)
        return index

    def first(self, q_bd, effort, keep, threads):
        """By rank."""
        self.inner.nprobe = int(effort)
        # One query: its lists are shared by the threads, which otherwise have one query each.
        self.inner.parallel_mode = 1 if len(q_bd) == 1 and threads > 1 else 0
        return self.index.search(q_bd, keep)[1]

    def first_reads(self, setting):
        """Centroids, and codes as if all lists had the same length."""
        codes = setting.effort / self.lists * len(self.z_nd) * self.inner.code_size
        return 4.0 * self.lists * self.inner.d + codes

    def describe(self, setting):
        """In faiss's words."""
        about = super().describe(setting._replace(effort=0))
        return ", ".join(filter(None, (f"nprobe={setting.effort:g}", about)))


class FaissGraph(GraphCase):
    """faiss's graph of float32 vectors."""

    words = "efSearch"
    links = 32

    def build(self, vectors, folder):
        """Links found as widely as those of hnswlib."""
        faiss.omp_set_num_threads(self.threads)
        index = faiss.IndexHNSWFlat(self.dim, self.links, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 100
        for chunk_nd in self.prefix_chunks(vectors):
            index.add(chunk_nd)
        faiss.write_index(index, str(folder / "index.faiss"))

    def load(self, folder):
        """Into memory."""
        return faiss.read_index(str(folder / "index.faiss"))

    def first(self, q_bd, effort, keep, threads):
        """By rank."""
        self.index.hnsw.efSearch = int(effort * keep)
        return self.index.search(q_bd, keep)[1]

    def row_bytes(self):
        """Numbers, and twice the links at the bottom."""
        return 4 * self.dim + 2 * 4 * self.links


def cases(rows: int, width: int, threads: int) -> list[Case]:
    """Those for one set of vectors, exact search first."""
    ivf = f"IVF{lists_for(rows)}"
    p64, p128, p256 = (scaled(dim, width) for dim in (64, 128, 256))
    # Two of the dims that OPQ leaves, which are half of them at most, to a code of four bits.
    parts = scaled(224, width)
    code = f"PQ{p256 // 4}x4fs"
    return [
        FaissExact(FLOOR, width, width, threads),
        NumpyExact("numpy/exact", width, width, threads),
        FaissGraph("faiss/HNSW32", width, width, threads),
        FaissLists("faiss/IVF", f"{ivf},Flat", width, width, threads),
        FaissLists("faiss/IVF-SQ8", f"{ivf},SQ8", width, width, threads, ranked=True),
        FaissLists(
            "faiss/OPQ-IVF-PQ", f"OPQ{parts}_{2 * parts},{ivf},PQ{parts}x4fs", width, width,
            threads, ranked=True,
        ),
        FaissExact(f"faiss/flat {p128}", p128, width, threads),
        FaissGraph(f"faiss/HNSW32 {p64}", p64, width, threads),
        FaissGraph(f"faiss/HNSW32 {p128}", p128, width, threads),
        FaissLists(f"faiss/IVF {p128}", f"{ivf},Flat", p128, width, threads),
        FaissLists(f"faiss/IVF-PQ {p256}", f"{ivf},{code}", p256, width, threads),
        FaissLists(f"faiss/IVF-SQ8 {p128}", f"{ivf},SQ8", p128, width, threads),
    ]  # fmt: skip
