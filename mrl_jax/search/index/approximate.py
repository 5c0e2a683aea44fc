"""Indexes of faiss, where a plan leaves a stage of the search to them; their errors become ours."""

import contextlib
import math
import os
import pathlib
import threading
from collections.abc import Iterator

import numpy as np

from mrl_jax.errors import DataError, UsageError
from mrl_jax.runtime.forks import with_openmp
from mrl_jax.search.index import pages
from mrl_jax.search.index.clusters import directions, faiss
from mrl_jax.search.schedule import Metric

_MORE = 8  # times as many lists are looked into if an index finds too few rows
_SLOWER = 8  # times as long a graph takes to find a row, at least, as a comparison of one takes


@contextlib.contextmanager
def _said_by_faiss(what: str) -> Iterator[None]:
    """An error of faiss becomes a UsageError that does not quote faiss's code."""
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split()).rpartition(": ")[2]
        raise UsageError(f"faiss cannot {what}: {reason}") from None


def compared(z_nd: np.ndarray, metric: Metric) -> np.ndarray:
    """What faiss compares, by product or distance: for cosine directions, else the vectors."""
    z_nd = np.ascontiguousarray(z_nd, np.float32)
    return directions(z_nd, metric) if metric == "cosine" else z_nd


@with_openmp
def train(z_nd: np.ndarray, factory: str, parameters: str, metric: Metric):
    """An empty index of faiss, trained on examples [N, d], which takes rows and these parameters.

    Raises:
      UsageError: faiss cannot make it, or not of so few examples.
    """
    kind = faiss().METRIC_L2 if metric == "l2" else faiss().METRIC_INNER_PRODUCT
    z_nd = compared(z_nd, metric)
    with _said_by_faiss(f"make {factory!r} of {len(z_nd)} x {z_nd.shape[1]}"):
        trained = faiss().index_factory(z_nd.shape[1], factory, kind)
        trained.train(z_nd)
        tried = faiss().clone_index(trained)
        tried.add(z_nd[:1])
    _ask(tried, parameters)
    _search(tried, z_nd[:1], 1, parameters)
    return trained


@with_openmp
def add(index, z_nd: np.ndarray, metric: Metric) -> None:
    """Adds rows [N, d] to an index of faiss."""
    index.add(compared(z_nd, metric))


def _ask(index, parameters: str) -> None:
    if parameters:
        with _said_by_faiss(f"use the parameters {parameters!r}"):
            faiss().ParameterSpace().set_index_parameters(index, parameters)


def _search(index, query_bd: np.ndarray, asked: int, parameters: str, told=None) -> np.ndarray:
    """The rows [B, asked] that an index finds, which was asked by these parameters."""
    # Some values, such as 0 lists to look into, are refused only here.
    with _said_by_faiss(f"search by the parameters {parameters!r}"):
        return index.search(query_bd, asked, params=told)[1]


def write(index, path: pathlib.Path) -> None:
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


# One for all indexes, and a new one in a fork, where a thread that held it would be gone.
_reading = threading.Lock()


def _start_anew() -> None:
    global _reading
    _reading = threading.Lock()


os.register_at_fork(after_in_child=_start_anew)


class Stored:
    """An index of faiss in a file, which is read when it is needed, even if its name is gone then.

    It must have so many rows of `width` dims.
    """

    def __init__(self, file: pages.File, rows: int, width: int):
        self._file, self._rows, self._width = file, rows, width
        self._asked = None, None

    @property
    def bytes(self) -> int:
        """Of the file."""
        return self._file.size

    def damaged(self, reason: str) -> DataError:
        """The error that says so."""
        return DataError(f"{self._file.path} is damaged: {reason}")

    def asked(self, parameters: str = ""):
        """The index, asked by these parameters and otherwise by faiss's own defaults.

        Raises:
          UsageError: it has no such parameters.
          DataError: it cannot be read.
        """
        asked, index = self._asked
        if asked == parameters:
            return index
        with _reading:
            asked, index = self._asked
            if asked != parameters:
                # An index keeps what it was told; only reading it again brings its defaults back.
                index = self._read()
                _ask(index, parameters)
                self._asked = parameters, index
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
        if (index.ntotal, index.d) != (self._rows, self._width):
            raise self.damaged(
                f"it holds {index.ntotal} rows of {index.d} dims instead of "
                f"{self._rows} of {self._width}"
            )
        return index

    def search(
        self,
        query_bd: np.ndarray,
        keep: int,
        least: int,
        parameters: str,
        allowed_n: np.ndarray,
        rows: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of every query the `keep` nearest rows, by the dims of the index, that are allowed.

        An index that looks into lists may find fewer if these hold no more; below `least` it looks
        into more lists. Raises as `asked`.

        Args:
          query_bd: [B, d], as `compared`.
          keep: fewer than `rows`.
          least: at most `keep`.
          parameters: how it is asked at first.
          allowed_n: [N] bool, in the order they were added.
          rows: how many that allows.

        Returns:
          row_bk: [B, keep], the rows found, then -1.
          lacking_m: [m], the queries that found too few whatever was tried.
        """
        index = self.asked(parameters)
        takes_mask, dead = _takes_mask(index), self._rows - rows
        row_bk, lacking_m = np.full((len(query_bd), keep), -1), np.arange(len(query_bd))
        wanted = keep if faiss().try_extract_index_ivf(index) is None else least
        # The fewer rows may be found, the more lists hold as many of them as were planned for.
        least_effort = self._rows / rows if takes_mask else 1
        for effort in (least_effort, _MORE * least_effort):
            asked = keep
            if not takes_mask:
                # Some of what it finds is not allowed: assume twice the share that it has of all.
                asked = effort * (keep + (2 * keep * dead // rows + 8 if dead else 0))
                if asked * (_SLOWER if dead > rows else 1) > rows:
                    break
            told = _told(index, asked, allowed_n if takes_mask and dead else None, effort)
            found_mk = _search(index, query_bd[lacking_m], asked, parameters, told)
            if found_mk.max(initial=0) >= self._rows:
                raise self.damaged(f"it finds row {found_mk.max()} of {self._rows}")
            if not takes_mask:
                found_mk = np.where(allowed_n[found_mk], found_mk, -1)
                first_mk = np.argsort(found_mk < 0, 1, kind="stable")[:, :keep]
                found_mk = np.take_along_axis(found_mk, first_mk, 1)
            row_bk[lacking_m] = found_mk
            lacking_m = lacking_m[(found_mk >= 0).sum(1) < wanted]
            if not len(lacking_m):
                break
            wanted = keep
        return row_bk, lacking_m
