"""Indexes of faiss, for a stage of the search that is left to it; its errors become ours."""

import contextlib
import mmap
import pathlib
import threading
from collections.abc import Iterator

import numpy as np

from mrl_jax.errors import DataError, UsageError
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


class Stored:
    """An index of faiss in a file; it is read when it is needed, also if its name is gone then.

    Attributes:
      bytes: of the file.

    Raises:
      DataError: there is no file.
    """

    def __init__(self, path: pathlib.Path):
        self._path, self._lock = path, threading.Lock()
        try:
            with path.open("rb") as file:
                self._content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is damaged: {error}") from None
        self.bytes = len(self._content)
        self._asked, self._index = None, None

    def asked(self, parameters: str = ""):
        """The index, asked by these parameters and by faiss's own defaults beside them.

        Raises:
          UsageError: it has no such parameters.
          DataError: it cannot be read.
        """
        with self._lock:
            if self._asked != parameters:
                # It keeps what it was told: its defaults are back when it is read again.
                self._content.seek(0)
                try:
                    index = faiss().read_index(faiss().PyCallbackIOReader(self._content.read))
                except RuntimeError:
                    raise DataError(f"{self._path} is damaged: faiss cannot read it") from None
                _ask(index, parameters)
                self._asked, self._index = parameters, index
            return self._index
