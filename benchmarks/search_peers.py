"""Indexes of other libraries: usearch, hnswlib, rabitqlib, ScaNN, SVS and turbovec."""

import contextlib
import pathlib
import shutil

import faiss
import numpy as np

from benchmarks import search_faiss
from benchmarks.search_case import PROBES, Case, GraphCase, K, lists_for, scaled

# rabitqlib can rotate so many dims or more.
LEAST_ROTATED = 64


class Usearch(GraphCase):
    """usearch's graph, of float32 numbers or of int8 codes, which have unit length per row."""

    imports = ("usearch.index",)
    words = "expansion"
    links = 16

    def __init__(self, name: str, code: str, dim: int, width: int, threads: int):
        super().__init__(name, dim, width, threads, ranked=code == "i8")
        self.code = code

    def _new(self):
        from usearch.index import Index

        return Index(ndim=self.dim, metric="ip", dtype=self.code)

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

    def row_bytes(self):
        """Numbers, and twice the links at the bottom, of five bytes each."""
        return self.dim * (1 if self.code == "i8" else 4) + 2 * 5 * self.links


class Hnswlib(GraphCase):
    """hnswlib's graph."""

    imports = ("hnswlib",)
    links = 16

    def _new(self):
        import hnswlib

        return hnswlib.Index("ip", self.dim)

    def build(self, vectors, folder):
        """With its own defaults."""
        index = self._new()
        rows = len(np.load(vectors, mmap_mode="r"))
        index.init_index(rows, M=self.links, ef_construction=200)
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

    def row_bytes(self):
        """Numbers, and twice the links at the bottom."""
        return 4 * self.dim + 2 * 4 * self.links


class SymphonyQG(GraphCase):
    """rabitqlib's graph (arXiv 2411.12229): the codes of a row's links lie beside it.

    With 0 bits it holds float32 vectors, by which it ranks rows itself, otherwise codes.
    """

    imports = ("rabitqlib",)
    links = 32

    def __init__(self, name: str, bits: int, dim: int, width: int, threads: int):
        super().__init__(name, dim, width, threads, ranked=bits > 0)
        self.bits = bits

    def build(self, vectors, folder):
        """By distance where rows have unit length, which it does best."""
        import rabitqlib

        whole = self.metric == "cosine" or self.dim == self.width
        metric = "l2" if whole else "ip"
        index = rabitqlib.SymqgIndex(self.dim, self.links, metric, self.bits)
        index.build(np.concatenate(list(self.prefix_chunks(vectors))), 200, self.threads)
        index.save(str(folder / "index.rabitqlib"))

    def load(self, folder):
        """Into memory."""
        import rabitqlib

        return rabitqlib.SymqgIndex.load(str(folder / "index.rabitqlib"))

    def first(self, q_bd, effort, keep, threads):
        """By rank."""
        found, _ = self.index.search(q_bd, keep, int(effort * keep), num_threads=threads)
        ids_bk = found.astype(np.int64)
        ids_bk[ids_bk >= len(self.z_nd)] = -1  # where it found fewer
        return ids_bk

    def row_bytes(self):
        """Its numbers, and a bit for every dim of its links, with three numbers of each."""
        own = self.dim * self.bits // 8 if self.bits else 4 * self.dim
        return own + self.links * (self.dim // 8 + 12)


class RabitqLists(Case):
    """rabitqlib's lists, with codes of 7 bits a dim (arXiv 2409.09913)."""

    imports = ("rabitqlib",)
    bits = 7
    examples = 100  # of a cluster

    def __init__(self, name: str, lists: int, dim: int, width: int, threads: int):
        super().__init__(name, dim, width, threads)
        self.lists = lists
        self.efforts = tuple(probes for probes in PROBES if probes <= lists)

    def build(self, vectors, folder):
        """Of clusters that faiss finds."""
        import rabitqlib

        faiss.omp_set_num_threads(self.threads)
        z_nd = np.concatenate(list(self.prefix_chunks(vectors)))
        means = faiss.Kmeans(self.dim, self.lists, niter=10, max_points_per_centroid=self.examples)
        means.train(z_nd)
        list_n = means.index.search(z_nd, 1)[1][:, 0].astype(np.uint32)
        index = rabitqlib.IvfIndex(self.dim, len(z_nd), self.lists, self.bits, "l2")
        index.build(z_nd, means.centroids, list_n, self.threads)
        index.save(str(folder / "index.rabitqlib"))

    def load(self, folder):
        """Into memory."""
        import rabitqlib

        return rabitqlib.IvfIndex.load(str(folder / "index.rabitqlib"))

    def first(self, q_bd, effort, keep, threads):
        """By rank."""
        found, _ = self.index.search(q_bd, keep, int(effort), num_threads=threads)
        return found.astype(np.int64)

    def first_reads(self, setting):
        """Centroids, and the first bit of every dim, as if all lists had the same length."""
        rows = setting.effort / self.lists * len(self.z_nd)
        return 4.0 * self.lists * self.dim + rows * self.dim / 8

    def describe(self, setting):
        """In its own words."""
        about = super().describe(setting._replace(effort=0))
        return ", ".join(filter(None, (f"nprobe={setting.effort:g}", about)))


class Scann(Case):
    """ScaNN: a tree, codes of four bits for two dims, and a ranking by its own float32 copy."""

    imports = ("scann",)

    def __init__(self, name: str, width: int, threads: int):
        super().__init__(name, width, width, threads, ranked=True)
        self.efforts = PROBES

    @property
    def reranks(self):
        """The index does it."""
        return ("",)

    def build(self, vectors, folder):
        """With the tree that its guide advises for so many rows."""
        import scann

        z_nd = np.concatenate(list(self.prefix_chunks(vectors)))
        leaves = max(1, round(2 * len(z_nd) ** 0.5))
        index = scann.scann_ops_pybind.builder(z_nd, K, "dot_product")
        index = index.tree(leaves, leaves, training_sample_size=min(len(z_nd), 250_000))
        index = index.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(100)
        index.set_n_training_threads(self.threads).build().serialize(str(folder))
        return {"leaves": leaves}

    def load(self, folder):
        """Into memory."""
        import scann

        index = scann.scann_ops_pybind.load_searcher(str(folder))
        index.set_num_threads(self.threads)
        return index

    def candidates(self, q_bd, setting):
        """Its results."""
        how = {"leaves_to_search": int(setting.effort), "pre_reorder_num_neighbors": setting.keep}
        if len(q_bd) == 1:
            return self.index.search(q_bd[0], K, **how)[0][None].astype(np.int64)
        return self.index.search_batched_parallel(q_bd, K, **how)[0].astype(np.int64)

    def bytes(self, folder):
        """It holds the vectors too."""
        return super().bytes(folder)[0], 0

    def first_reads(self, setting):
        """Centroids, and half a byte for two dims, as if all leaves had the same length."""
        leaves = max(1, round(2 * len(self.z_nd) ** 0.5))
        rows = min(setting.effort / leaves, 1) * len(self.z_nd)
        return 4.0 * leaves * self.width + rows * self.width / 4

    def describe(self, setting):
        """In its own words."""
        return f"leaves={setting.effort:g}, reorder {setting.keep}"


class Svs(GraphCase):
    """Intel's Vamana graph: of float32 vectors; of LVQ's codes of 4 bits, then 8 more; or LeanVec.

    LeanVec compares fewer dims first, of a rotation, then all, both by codes of 8 bits.
    """

    imports = ("svs",)
    words = "window"
    links = 64

    def __init__(self, name: str, code: str, width: int, threads: int):
        super().__init__(name, width, width, threads)
        self.code, self.fewer = code, scaled(368, width)

    def missing(self):
        """Its codes end the process on processors of others."""
        if found := super().missing():
            return found
        if self.code == "float32":
            return None
        with contextlib.suppress(OSError):
            if "GenuineIntel" in pathlib.Path("/proc/cpuinfo").read_text():
                return None
        return "its compressed vectors need a processor of Intel"

    def build(self, vectors, folder):
        """With the parameters that its guide advises for inner products."""
        import svs

        z_nd, written = np.concatenate(list(self.prefix_chunks(vectors))), folder / "written"
        if self.code == "float32":
            data = z_nd
        else:
            written.mkdir()
            svs.write_vecs(z_nd, str(written / "z.fvecs"))
            data = svs.VectorDataLoader(
                str(written / "z.fvecs"), svs.DataType.float32, dims=self.width
            )
            data = self._coded(svs, data)
        about = svs.VamanaBuildParameters(
            alpha=0.95, graph_max_degree=self.links, window_size=128, max_candidate_pool_size=256
        )
        index = svs.Vamana.build(about, data, svs.DistanceType.MIP, num_threads=self.threads)
        index.save(*(str(folder / part) for part in ("config", "graph", "data")))
        shutil.rmtree(written, ignore_errors=True)

    def _coded(self, svs, data):
        if self.code == "LVQ":
            return svs.LVQLoader(data, primary=4, residual=8)
        kinds = {f"{part}_kind": svs.LeanVecKind.lvq8 for part in ("primary", "secondary")}
        return svs.LeanVecLoader(data, self.fewer, **kinds)

    def load(self, folder):
        """Into memory."""
        import svs

        kinds = {
            "float32": svs.VectorDataLoader, "LVQ": svs.LVQLoader, "LeanVec": svs.LeanVecLoader
        }  # fmt: skip
        return svs.Vamana(
            str(folder / "config"),
            svs.GraphLoader(str(folder / "graph")),
            kinds[self.code](str(folder / "data")),
            svs.DistanceType.MIP,
            num_threads=self.threads,
        )

    def first(self, q_bd, effort, keep, threads):
        """By rank."""
        if self.index.num_threads != threads:
            self.index.num_threads = threads
        self.index.search_window_size = int(effort * keep)
        return self.index.search(q_bd, keep)[0].astype(np.int64)

    def row_bytes(self):
        """Numbers that are compared first, and links."""
        numbers = {"float32": 4 * self.width, "LVQ": self.width // 2, "LeanVec": self.fewer}
        return numbers[self.code] + 4 * self.links


class Turbovec(Case):
    """turbovec: all rows by codes of 4 bits a dim."""

    imports = ("turbovec",)

    def __init__(self, name: str, width: int, threads: int):
        super().__init__(name, width, width, threads, ranked=True)

    def build(self, vectors, folder):
        """With its own defaults."""
        import turbovec

        index = turbovec.TurboQuantIndex(self.dim, 4)
        for chunk_nd in self.prefix_chunks(vectors):
            index.add(chunk_nd)
        index.write(str(folder / "index.turbovec"))

    def load(self, folder):
        """Into memory."""
        import turbovec

        index = turbovec.TurboQuantIndex.load(str(folder / "index.turbovec"))
        index.prepare()
        return index

    def first(self, q_bd, effort, keep, threads):
        """By rank."""
        return np.asarray(self.index.search(q_bd, keep)[1]).astype(np.int64)

    def first_reads(self, setting):
        """All codes."""
        return len(self.z_nd) * self.dim / 2


def cases(rows: int, width: int, threads: int) -> list[Case]:
    """The peers for one set of vectors, exact search first."""
    p64, p128, p256 = (scaled(dim, width) for dim in (64, 128, 256))
    of = [
        *search_faiss.cases(rows, width, threads),
        Usearch("usearch/float32", "f32", width, width, threads),
        Usearch("usearch/int8", "i8", width, width, threads),
        Hnswlib("hnswlib/HNSW", width, width, threads),
        SymphonyQG("rabitqlib/SymphonyQG", 0, width, width, threads),
        SymphonyQG("rabitqlib/SymphonyQG8", 8, width, width, threads),
        RabitqLists("rabitqlib/IVF7", lists_for(rows), width, width, threads),
        Scann("scann/tree-AH", width, threads),
        Svs("svs/Vamana", "float32", width, threads),
        Svs("svs/Vamana-LVQ", "LVQ", width, threads),
        Svs("svs/Vamana-LeanVec", "LeanVec", width, threads),
        Turbovec("turbovec/4 bits", width, threads),
        Usearch(f"usearch/int8 {p128}", "i8", p128, width, threads),
        Hnswlib(f"hnswlib/HNSW {p64}", p64, width, threads),
        Hnswlib(f"hnswlib/HNSW {p128}", p128, width, threads),
    ]
    for dim in (p128, p256):
        if dim >= LEAST_ROTATED:
            of.append(SymphonyQG(f"rabitqlib/SymphonyQG {dim}", 0, dim, width, threads))
            of.append(SymphonyQG(f"rabitqlib/SymphonyQG8 {dim}", 8, dim, width, threads))
    return list({case.name: case for case in of if case.dim <= width}.values())
