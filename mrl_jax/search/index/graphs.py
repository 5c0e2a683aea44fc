"""Graphs of rabitqlib: every row is linked to near ones, whose codes lie beside it.

SymphonyQG (Gou et al., arXiv 2411.12229): a search walks from row to row towards the query, and
compares the links of a row all at once, by RaBitQ's codes of a bit for each dim (arXiv 2405.12497).
"""

import pathlib
import re
import tempfile

import numpy as np

from mrl_jax import extras
from mrl_jax.errors import UsageError
from mrl_jax.runtime.forks import with_openmp
from mrl_jax.search.index import approximate, pages
from mrl_jax.search.index.threads import cores
from mrl_jax.search.plan import Plan

_FACTORY = re.compile(r"SymphonyQG(\d{1,4}),([048])")
_PARAMETERS = re.compile(r"ef=([1-9]\d{0,8})")
_FILE = "graph.bin"
LEAST_DIM = 64  # which rabitqlib can rotate
# A smaller segment has no graph: all of its rows are compared, hardly later than a graph is walked.
FEWEST_ROWS = 1000
# How wide the graph is searched for the links of a row. With half of it a graph of 100,000 captions
# takes two thirds of the time to build, and finds .004 less.
_CONSTRUCTION = 200
_SEEN = 64  # rows that a search keeps in view by default


def _rabitqlib():
    with extras.needed("search", "a graph"):
        import rabitqlib
    return rabitqlib


def is_graph(factory: str) -> bool:
    """Whether a factory is one of these graphs: "SymphonyQG32,8", of 32 links and 8 bits a dim."""
    return factory.startswith("SymphonyQG")


def row_bytes(dim: int, factory: str) -> int:
    """Of a row in such a graph: its codes, and those of its links with their numbers."""
    links, bits = _parsed(factory)
    coded = -(-dim // 32) * 32
    own = coded * bits // 8 + 8 if bits else 4 * dim
    return own + links * (coded // 8 + 12)


def _parsed(factory: str) -> tuple[int, int]:
    """Links and bits; UsageError if it is no graph."""
    found = _FACTORY.fullmatch(factory)
    if not found or not int(found[1]) or int(found[1]) % 32:
        raise UsageError(
            f"a graph is SymphonyQGLINKS,BITS with a multiple of 32 links and 4 or 8 bits a dim or "
            f"0 for numbers as they are, such as SymphonyQG32,8; got {factory!r}"
        )
    return int(found[1]), int(found[2])


def seen(parameters: str) -> int:
    """Rows kept in view; UsageError if these are no parameters."""
    found = _PARAMETERS.fullmatch(parameters)
    if parameters and not found:
        raise UsageError(f"a graph has the parameter ef, such as ef={_SEEN}; got {parameters!r}")
    return int(found[1]) if found else _SEEN


def train(folder: pathlib.Path, z_nd: np.ndarray, plan: Plan) -> None:
    """Nothing is learned once for all segments; but UsageError if the plan cannot be followed."""
    _parsed(plan.factory), seen(plan.parameters), _rabitqlib()
    if z_nd.shape[1] < LEAST_DIM:
        raise UsageError(f"a graph needs {LEAST_DIM} dims or more, the plan has {z_nd.shape[1]}")


class Trained:
    """What makes the graphs of segments."""

    def __init__(self, folder: pages.Folder, plan: Plan):
        self._plan = plan

    def writer(self, rows: int) -> "Writer":
        """Writes the graph of a segment of so many rows."""
        return Writer(rows, self._plan)


class Graph:
    """A graph in memory, of rows [N, d] as `approximate.compared` gives them."""

    def __init__(self, index):
        self._index = index
        self.rows, self.width = index.num_points, index.dim

    @classmethod
    @with_openmp
    def build(cls, z_nd: np.ndarray, plan: Plan, threads: int) -> "Graph":
        """Of more rows than the plan's links. No two are the same: their rotations are random."""
        links, bits = _parsed(plan.factory)
        # As directions, neighbours by cosine are those by distance, which the library does best.
        metric = "ip" if plan.metric == "inner" else "l2"
        index = _rabitqlib().SymqgIndex(z_nd.shape[1], links, metric, bits)
        index.build(z_nd, _CONSTRUCTION, threads)
        return cls(index)

    @classmethod
    def read(cls, path: pathlib.Path) -> "Graph":
        """RuntimeError or ValueError if it cannot be read."""
        return cls(_rabitqlib().SymqgIndex.load(str(path)))

    def write(self, path: pathlib.Path) -> None:
        """OSError if it cannot be written."""
        try:
            self._index.save(str(path))
        except RuntimeError as error:
            raise OSError(f"rabitqlib: {error}") from None

    def search(self, query_bd: np.ndarray, asked: int, seen: int) -> np.ndarray:
        """The nearest rows [B, asked] that are found with so many in view, the nearest first."""
        row_bk, _ = self._index.search(query_bd, asked, max(seen, asked), 1)
        return row_bk.astype(np.int64)


class Writer:
    """Takes the rows of a segment, a chunk at a time, and writes the graph of them."""

    def __init__(self, rows: int, plan: Plan):
        self._plan, self._taken = plan, 0
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
            Graph.build(self._z_nd, self._plan, cores()).write(folder / _FILE)


class Stored(approximate.Stored):
    """A graph in a file."""

    def _told(self, index: Graph | None, parameters: str) -> Graph:
        seen(parameters)
        return index or self._read()

    def _read(self) -> Graph:
        content = self._file.content()
        try:
            try:
                graph = Graph.read(self._file.path)
            except RuntimeError:
                if self._file.path.exists():
                    raise
                # Its name is gone, but not what is mapped.
                with tempfile.TemporaryDirectory(prefix="mrl_jax_graph_") as folder:
                    copy = pathlib.Path(folder) / _FILE
                    content.tofile(copy)
                    graph = Graph.read(copy)
        except (RuntimeError, ValueError):
            raise self.damaged("rabitqlib cannot read it") from None
        self._checked(graph.rows, graph.width)
        return graph

    def _takes_mask(self, index: Graph) -> bool:
        return False

    def _has_lists(self, index: Graph) -> bool:
        return False

    def _found(self, index: Graph, query_bd, asked, parameters, allowed_n, effort) -> np.ndarray:
        asked = min(asked, self._rows)
        return index.search(query_bd, asked, min(seen(parameters), self._rows))


def stored(folder: pages.Folder, rows: int, plan: Plan) -> Stored | None:
    """The graph of a segment; None if all of its rows are compared."""
    if rows < FEWEST_ROWS:
        return None
    return Stored(folder.file(_FILE), rows, plan.schedule.stages[0].dim)
