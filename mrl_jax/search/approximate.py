"""Indexes of faiss, for a stage of the search that is left to it; its errors become ours."""

import contextlib
import pathlib
import threading
from collections.abc import Callable, Iterator

import numpy as np

from mrl_jax.errors import DataError, UsageError
from mrl_jax.search import pages
from mrl_jax.search.clusters import directions, faiss
from mrl_jax.search.exact import Metric


@contextlib.contextmanager
def _said_by_faiss(what: str) -> Iterator[None]:
    """An error of faiss becomes a UsageError, without the place in its code."""
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split()).rpartition(": ")[2]
        raise UsageError(f"faiss cannot {what}: {reason}") from None


def compared(z_nd: np.ndarray, metric: Metric) -> np.ndarray:
    """What faiss compares, by product or distance: for cosine directions, else the vectors."""
    z_nd = np.ascontiguousarray(z_nd, np.float32)
    return directions(z_nd, metric) if metric == "cosine" else z_nd


def train(z_nd: np.ndarray, factory: str, parameters: str, metric: Metric):
    """An empty index of faiss, trained on examples [N, d], that takes rows and parameters.

    Raises:
      UsageError: faiss makes none of this, or not of so few examples.
    """
    kind = faiss().METRIC_L2 if metric == "l2" else faiss().METRIC_INNER_PRODUCT
    z_nd = compared(z_nd, metric)
    with _said_by_faiss(f"make {factory!r} of {len(z_nd)} x {z_nd.shape[1]}"):
        trained = faiss().index_factory(z_nd.shape[1], factory, kind)
        trained.train(z_nd)
        faiss().clone_index(trained).add(z_nd[:1])
    _ask(faiss().clone_index(trained), parameters)
    return trained


def _ask(index, parameters: str) -> None:
    if parameters:
        with _said_by_faiss(f"use the parameters {parameters!r}"):
            faiss().ParameterSpace().set_index_parameters(index, parameters)


def write(index, path: pathlib.Path) -> None:
    """Writes an index of faiss; OSError where it cannot (faiss itself overlooks a full disk)."""
    with path.open("wb") as file:
        faiss().write_index(index, faiss().PyCallbackIOWriter(file.write))


def _reader(content: np.ndarray) -> Callable[[int], bytes]:
    """Gives so many further bytes at each call, as files do, without a copy of all of them."""
    at = 0

    def read(size: int) -> bytes:
        nonlocal at
        at += size
        return content[at - size : at].tobytes()

    return read


class Stored:
    """An index of faiss in a file; it is read when it is needed, also if its name is gone then.

    Args:
      file: that holds it.
      rows: that it must have.
      width: dims of each.
    """

    def __init__(self, file: pages.File, rows: int, width: int):
        self._file, self._rows, self._width = file, rows, width
        self._lock = threading.Lock()
        self._asked, self._index = None, None

    @property
    def bytes(self) -> int:
        """Of the file."""
        return self._file.size

    def damaged(self, reason: str) -> DataError:
        """The error that says so."""
        return DataError(f"{self._file.path} is damaged: {reason}")

    def asked(self, parameters: str = ""):
        """The index, asked by these parameters and by faiss's own defaults beside them.

        Raises:
          UsageError: it has no such parameters.
          DataError: it cannot be read.
        """
        with self._lock:
            if self._asked != parameters:
                # It keeps what it was told: its defaults are back when it is read again.
                read = _reader(self._file.content())
                try:
                    index = faiss().read_index(faiss().PyCallbackIOReader(read))
                except RuntimeError:
                    raise self.damaged("faiss cannot read it") from None
                if (index.ntotal, index.d) != (self._rows, self._width):
                    raise self.damaged(
                        f"it holds {index.ntotal} rows of {index.d} dims instead of "
                        f"{self._rows} of {self._width}"
                    )
                _ask(index, parameters)
                self._asked, self._index = parameters, index
            return self._index
