"""Indexes of faiss, where a plan leaves a stage of the search to them; their errors become ours."""

import contextlib
import math
import pathlib
from collections.abc import Iterator

import numpy as np

from mrl_jax.errors import UsageError
from mrl_jax.runtime.forks import with_openmp
from mrl_jax.search.index import approximate, pages
from mrl_jax.search.index.clusters import faiss
from mrl_jax.search.plan import Plan
from mrl_jax.search.schedule import Metric

_TRAINED, _FILE = "trained.faiss", "shortlist.faiss"


@contextlib.contextmanager
def _said_by_faiss(what: str) -> Iterator[None]:
    """An error of faiss becomes a UsageError that does not quote faiss's code."""
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split()).rpartition(": ")[2]
        raise UsageError(f"faiss cannot {what}: {reason}") from None


@with_openmp
def _trained(z_nd: np.ndarray, factory: str, parameters: str, metric: Metric):
    """An empty index, trained on examples [N, d], which takes rows and these parameters."""
    kind = faiss().METRIC_L2 if metric == "l2" else faiss().METRIC_INNER_PRODUCT
    z_nd = approximate.compared(z_nd, metric)
    with _said_by_faiss(f"make {factory!r} of {len(z_nd)} x {z_nd.shape[1]}"):
        trained = faiss().index_factory(z_nd.shape[1], factory, kind)
        trained.train(z_nd)
        tried = faiss().clone_index(trained)
        tried.add(z_nd[:1])
    _ask(tried, parameters)
    _search(tried, z_nd[:1], 1, parameters)
    return trained


def _ask(index, parameters: str) -> None:
    if parameters:
        with _said_by_faiss(f"use the parameters {parameters!r}"):
            faiss().ParameterSpace().set_index_parameters(index, parameters)


def _search(index, query_bd: np.ndarray, asked: int, parameters: str, told=None) -> np.ndarray:
    """The rows [B, asked] that an index finds, which was asked by these parameters."""
    # Some values, such as 0 lists to look into, are refused only here.
    with _said_by_faiss(f"search by the parameters {parameters!r}"):
        return index.search(query_bd, asked, params=told)[1]


def _write(index, path: pathlib.Path) -> None:
    """Writes an index of faiss; OSError if it cannot (faiss itself overlooks a full disk)."""
    with path.open("wb") as file:
        faiss().write_index(index, faiss().PyCallbackIOWriter(file.write))


def _takes_mask(index) -> bool:
    """Whether an index of faiss can be told which rows it may find, and finds the best of them.

    Graphs can be told, but stop once enough rows are nearer, whether or not they may be found.
    """
    library, index = faiss(), faiss().downcast_index(index)
    if isinstance(index, library.IndexPreTransform):
        return _takes_mask(index.index)
    if isinstance(index, library.IndexRefine):
        return _takes_mask(index.base_index)
    return isinstance(index, library.IndexIVF | library.IndexFlat | library.IndexScalarQuantizer)


def _told(index, asked: int, allowed_n: np.ndarray | None, effort: float):
    """Parameters by which an index of faiss gives as many rows as asked for; None if it needs none.

    Args:
      index: of faiss, possibly made of several.
      asked: rows it is asked for.
      allowed_n: [N] which rows it may find; None: all.
      effort: so many times the lists that it looks into by itself.
    """
    library, index = faiss(), faiss().downcast_index(index)
    if isinstance(index, library.IndexPreTransform):
        inner = _told(index.index, asked, allowed_n, effort)
        return inner and library.SearchParametersPreTransform(index_params=inner)
    if isinstance(index, library.IndexRefine):
        base_asked = min(int(asked * index.k_factor), index.ntotal)
        inner = _told(index.base_index, base_asked, allowed_n, effort)
        of_base = {"k_factor": index.k_factor, "base_index_params": inner}
        return inner and library.IndexRefineSearchParameters(**of_base)
    if isinstance(index, library.IndexHNSW):
        # It stops once it has seen so many that are nearer than the next, whatever it is asked for.
        wide = max(asked, index.hnsw.efSearch)
        return library.SearchParametersHNSW(efSearch=wide) if wide > index.hnsw.efSearch else None
    told = {}
    if allowed_n is not None:
        told["sel"] = library.IDSelectorBitmap(np.packbits(allowed_n, bitorder="little"))
    if isinstance(index, library.IndexIVF):
        probes = min(math.ceil(index.nprobe * effort), index.nlist)
        lists = _told(index.quantizer, probes, None, 1)
        if lists is not None:
            told["quantizer_params"] = lists
        if told or effort > 1:
            return library.SearchParametersIVF(nprobe=probes, **told)
    return library.SearchParameters(**told) if told else None


class Stored(approximate.Stored):
    """An index of faiss in a file."""

    def _told(self, index, parameters: str):
        # An index keeps what it was told; only reading it again brings its defaults back.
        index = self._read()
        _ask(index, parameters)
        return index

    def _read(self):
        content, at = self._file.content(), 0

        def read(size: int) -> bytes:
            """The next bytes, as files give them, without a copy of all."""
            nonlocal at
            at += size
            return content[at - size : at].tobytes()

        try:
            index = faiss().read_index(faiss().PyCallbackIOReader(read))
        except RuntimeError:
            raise self.damaged("faiss cannot read it") from None
        self._checked(index.ntotal, index.d)
        return index

    def _takes_mask(self, index) -> bool:
        return _takes_mask(index)

    def _has_lists(self, index) -> bool:
        return faiss().try_extract_index_ivf(index) is not None

    def _found(self, index, query_bd, asked, parameters, allowed_n, effort) -> np.ndarray:
        told = _told(index, asked, allowed_n, effort)
        return _search(index, query_bd, asked, parameters, told)


class Trained:
    """An empty index, trained once, which the index of every segment is a copy of."""

    def __init__(self, folder: pages.Folder, plan: Plan):
        self._stored = Stored(folder.file(_TRAINED), 0, plan.schedule.stages[0].dim)
        self._metric = plan.metric

    def writer(self, rows: int) -> "Writer":
        """Writes the index of a segment of so many rows."""
        return Writer(self._stored.asked(), self._metric)


class Writer:
    """Takes the rows of a segment, a chunk at a time, and writes the index of them."""

    def __init__(self, trained, metric: Metric):
        self._index, self._metric = faiss().clone_index(trained), metric

    @with_openmp
    def add(self, z_nd: np.ndarray) -> None:
        """The next rows [n, d]."""
        self._index.add(approximate.compared(z_nd, self._metric))

    def write(self, folder: pathlib.Path) -> None:
        """Writes what `stored` opens; OSError if it cannot."""
        _write(self._index, folder / _FILE)


def train(folder: pathlib.Path, z_nd: np.ndarray, plan: Plan, seed: int) -> None:
    """Writes what `Trained` opens, made of examples [N, d]; faiss has a seed of its own.

    Raises:
      UsageError: faiss cannot make it, or not of so few examples.
    """
    _write(_trained(z_nd, plan.factory, plan.parameters, plan.metric), folder / _TRAINED)


def stored(folder: pages.Folder, rows: int, plan: Plan) -> Stored:
    """The index of a segment."""
    return Stored(folder.file(_FILE), rows, plan.schedule.stages[0].dim)
