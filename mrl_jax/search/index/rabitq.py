"""First stages by rabitqlib, whose codes are those of RaBitQ (Gao and Long, arXiv 2405.12497).

"SymphonyQG32,8" is a graph (Gou et al., arXiv 2411.12229): a search walks from row to row towards
the query, and compares the 32 links of a row all at once, by codes of a bit for each dim. Numbers
of 8 bits, or 4, or as they are (0), decide which rows stay in view.

"IVFRaBitQ1024,3" are 1,024 lists of rows in codes of 3 bits a dim, 1 to 9 (arXiv 2409.09913): a
search reads the lists that are nearest to the query.
"""

import pathlib
import re
import tempfile
from typing import Any, NamedTuple

import numpy as np

from mrl_jax import extras
from mrl_jax.errors import UsageError
from mrl_jax.runtime.forks import with_openmp
from mrl_jax.search.index import approximate, clusters, files, pages
from mrl_jax.search.index.threads import cores
from mrl_jax.search.plan import Plan

_FACTORY = re.compile(r"(SymphonyQG|IVFRaBitQ)([1-9]\d{0,5}),(\d)")
_FILE, _CENTROIDS = "rabitq.bin", "rabitq_centroids.npy"
LEAST_DIM = 64  # which rabitqlib can rotate
# A smaller segment has neither: all of its rows are compared, hardly later than a graph is walked.
FEWEST_ROWS = 1000
# How wide the graph is searched for the links of a row. With half of it a graph of 100,000 captions
# takes two thirds of the time to build, and finds .004 less.
_CONSTRUCTION = 200
_EFFORTS = {"ef": 64, "nprobe": 16}  # of a search by default: rows in view, lists that are read
_BESIDE_CODE = 29  # bytes of a row in a list beside its code, about
_NONE = np.uint32(2**32 - 1)  # the row where a search has found no more


def _rabitqlib():
    with extras.needed("search", "an index of rabitqlib"):
        import rabitqlib
    return rabitqlib


def is_one(factory: str) -> bool:
    """Whether a factory is of this library."""
    return factory.startswith(("SymphonyQG", "IVFRaBitQ"))


class Form(NamedTuple):
    """What a factory says.

    Attributes:
      graph: whether it is a graph, or lists.
      count: links of a row, or lists.
      bits: of a dim; 0: a graph has numbers as they are.
    """

    graph: bool
    count: int
    bits: int

    @property
    def parameter(self) -> str:
        """The name of the effort of a search."""
        return "ef" if self.graph else "nprobe"

    def effort(self, parameters: str) -> int:
        """Rows in view, or lists that are read; UsageError if these are no parameters."""
        name = self.parameter
        found = re.fullmatch(rf"{name}=([1-9]\d{{0,8}})", parameters)
        if parameters and not found:
            raise UsageError(
                f"the parameter of such an index is {name}, such as {name}={_EFFORTS[name]}; "
                f"got {parameters!r}"
            )
        return int(found[1]) if found else _EFFORTS[name]

    def row_bytes(self, dim: int) -> int:
        """Of a row, about: its code, and for a graph those of its links with their numbers."""
        coded = -(-dim // 32) * 32
        if not self.graph:
            return coded * self.bits // 8 + _BESIDE_CODE
        own = coded * self.bits // 8 + 8 if self.bits else 4 * dim
        return own + self.count * (coded // 8 + 12)


def form(factory: str) -> Form:
    """What a factory says; UsageError if that cannot be."""
    found = _FACTORY.fullmatch(factory)
    if found:
        graph, count, bits = found[1] == "SymphonyQG", int(found[2]), int(found[3])
        if (count % 32 == 0 and bits in (0, 4, 8)) if graph else bits:
            return Form(graph, count, bits)
    raise UsageError(
        "an index of rabitqlib is SymphonyQGLINKS,BITS with a multiple of 32 links and 0, 4 or 8 "
        f"bits, or IVFRaBitQLISTS,BITS with 1 to 9 bits, such as SymphonyQG32,8; got {factory!r}"
    )


class Built:
    """A graph or lists in memory, of rows [N, d] as `approximate.compared` gives them."""

    def __init__(self, index: Any, graph: bool):
        self._index, self._graph = index, graph
        self.rows, self.width = index.num_points, index.dim

    @classmethod
    @with_openmp
    def of(cls, z_nd: np.ndarray, plan: Plan, centroid_ld: np.ndarray | None) -> "Built":
        """Of `FEWEST_ROWS` or more; for lists of clusters with these centroids.

        No two are the same: their rotations are random.
        """
        what, threads = form(plan.factory), cores()
        # As directions, neighbours by cosine are those by distance, which the library does best.
        metric = "ip" if plan.metric == "inner" else "l2"
        if what.graph:
            index = _rabitqlib().SymqgIndex(z_nd.shape[1], what.count, metric, what.bits)
            index.build(z_nd, _CONSTRUCTION, threads)
        else:
            list_n = np.concatenate(
                [
                    clusters.nearest(z_nd[i : i + 8192], centroid_ld, 1, plan.metric)[:, 0]
                    for i in range(0, len(z_nd), 8192)
                ]
            ).astype(np.uint32)
            index = _rabitqlib().IvfIndex(*z_nd.shape[::-1], what.count, what.bits, metric)
            index.build(z_nd, centroid_ld, list_n, threads)
        return cls(index, what.graph)

    @classmethod
    def read(cls, path: pathlib.Path, graph: bool) -> "Built":
        """RuntimeError or ValueError if it cannot be read."""
        kind = _rabitqlib().SymqgIndex if graph else _rabitqlib().IvfIndex
        return cls(kind.load(str(path)), graph)

    def write(self, path: pathlib.Path) -> None:
        """OSError if it cannot be written."""
        try:
            self._index.save(str(path))
        except RuntimeError as error:
            raise OSError(f"rabitqlib: {error}") from None

    def search(self, query_bd: np.ndarray, asked: int, effort: int) -> np.ndarray:
        """The nearest rows [B, asked] that are found with this effort, nearest first, then -1."""
        if self._graph:
            row_bk, _ = self._index.search(query_bd, asked, max(effort, asked), 1)
        else:
            row_bk, _ = self._index.search(query_bd, asked, effort, num_threads=1)
        found_bk = row_bk.astype(np.int64)
        if not self._graph:
            found_bk[row_bk == _NONE] = -1
        return found_bk


def centroids(z_nd: np.ndarray, plan: Plan, seed: int) -> np.ndarray | None:
    """Of the lists of a plan, made of examples [N, d]; None for a graph."""
    what = form(plan.factory)
    return None if what.graph else clusters.fit(z_nd, what.count, plan.metric, seed)


def train(folder: pathlib.Path, z_nd: np.ndarray, plan: Plan, seed: int) -> None:
    """Writes what `Trained` opens, made of examples [N, d].

    Raises:
      UsageError: the plan cannot be followed.
      DataError: fewer examples than lists.
    """
    form(plan.factory).effort(plan.parameters), _rabitqlib()
    if z_nd.shape[1] < LEAST_DIM:
        raise UsageError(
            f"{plan.factory} needs {LEAST_DIM} dims or more, the plan has {z_nd.shape[1]}"
        )
    if (centroid_ld := centroids(z_nd, plan, seed)) is not None:
        files.save(folder / _CENTROIDS, centroid_ld)


class Trained:
    """What makes the graphs or lists of segments."""

    def __init__(self, folder: pages.Folder, plan: Plan):
        self._plan, self._centroids, what = plan, None, form(plan.factory)
        if not what.graph:
            shape = (what.count, plan.schedule.stages[0].dim)
            self._centroids = folder.array(_CENTROIDS, np.float32, shape)

    def writer(self, rows: int) -> "Writer":
        """Writes the graph or lists of a segment of so many rows."""
        return Writer(rows, self._plan, self._centroids and self._centroids.whole())


class Writer:
    """Takes the rows of a segment, a chunk at a time, and writes the graph or lists of them."""

    def __init__(self, rows: int, plan: Plan, centroid_ld: np.ndarray | None):
        self._plan, self._taken, self._centroid_ld = plan, 0, centroid_ld
        self._z_nd = None
        if rows >= FEWEST_ROWS:
            self._z_nd = np.empty((rows, plan.schedule.stages[0].dim), np.float32)

    def add(self, z_nd: np.ndarray) -> None:
        """The next rows [n, d]."""
        if self._z_nd is not None:
            taken = self._z_nd[self._taken : self._taken + len(z_nd)]
            taken[:] = approximate.compared(z_nd, self._plan.metric)
            self._taken += len(z_nd)

    def write(self, folder: pathlib.Path) -> None:
        """Writes what `stored` opens; OSError if it cannot."""
        if self._z_nd is not None:
            Built.of(self._z_nd, self._plan, self._centroid_ld).write(folder / _FILE)


class Stored(approximate.Stored):
    """A graph or lists in a file."""

    def __init__(self, file: pages.File, rows: int, plan: Plan):
        super().__init__(file, rows, plan.schedule.stages[0].dim)
        self._form = form(plan.factory)

    def _told(self, index: Built | None, parameters: str) -> Built:
        self._form.effort(parameters)
        return index or self._read()

    def _read(self) -> Built:
        content, graph = self._file.content(), self._form.graph
        try:
            try:
                found = Built.read(self._file.path, graph)
            except RuntimeError:
                if self._file.path.exists():
                    raise
                # Its name is gone, but not what is mapped.
                with tempfile.TemporaryDirectory(prefix="mrl_jax_rabitq_") as folder:
                    copy = pathlib.Path(folder) / _FILE
                    content.tofile(copy)
                    found = Built.read(copy, graph)
        except (RuntimeError, ValueError):
            raise self.damaged("rabitqlib cannot read it") from None
        self._checked(found.rows, found.width)
        return found

    def _takes_mask(self, index: Built) -> bool:
        return False

    def _has_lists(self, index: Built) -> bool:
        return not self._form.graph

    def _found(self, index: Built, query_bd, asked, parameters, allowed_n, effort) -> np.ndarray:
        most = self._rows if self._form.graph else self._form.count
        wide = int(np.ceil(self._form.effort(parameters) * (1 if self._form.graph else effort)))
        return index.search(query_bd, min(asked, self._rows), min(wide, most))


def stored(folder: pages.Folder, rows: int, plan: Plan) -> Stored | None:
    """The graph or lists of a segment; None if all of its rows are compared."""
    return None if rows < FEWEST_ROWS else Stored(folder.file(_FILE), rows, plan)
