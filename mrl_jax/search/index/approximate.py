"""The first stage of a search where a plan leaves it to an index of faiss or rabitqlib."""

import abc
import os
import threading
from typing import Any

import numpy as np

from mrl_jax.errors import DataError
from mrl_jax.search.index import loops, pages
from mrl_jax.search.index.clusters import directions
from mrl_jax.search.schedule import Metric

_MORE = 8  # times as much effort is made if an index finds too few rows
_SLOWER = 8  # times as long a graph takes to find a row, at least, as a comparison of one takes


def compared(z_nd: np.ndarray, metric: Metric) -> np.ndarray:
    """What is compared, by product or distance: for cosine directions, else the vectors."""
    z_nd = np.ascontiguousarray(z_nd, np.float32)
    return directions(z_nd, metric) if metric == "cosine" else z_nd


# One for all indexes, and a new one in a fork, where a thread that held it would be gone.
_reading = threading.Lock()


def _start_anew() -> None:
    global _reading
    _reading = threading.Lock()


os.register_at_fork(after_in_child=_start_anew)


class Stored(abc.ABC):
    """An index in a file, which is read when it is needed, even if its name is gone then.

    It must have so many rows of `width` dims.
    """

    library: str

    def __init__(self, file: pages.File, rows: int, width: int):
        self._file, self._rows, self._width = file, rows, width
        self._asked: tuple[str | None, Any] = None, None

    @property
    def bytes(self) -> int:
        """Of the file."""
        return self._file.size

    def damaged(self, reason: str) -> DataError:
        """The error that says so."""
        return DataError(f"{self._file.path} is damaged: {reason}")

    def asked(self, parameters: str = ""):
        """The index, asked by these parameters and otherwise by the library's own defaults.

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
                index = self._told(index, parameters)
                self._asked = parameters, index
            return index

    def _checked(self, rows: int, width: int) -> None:
        """Refuses an index of other rows than were written."""
        if (rows, width) != (self._rows, self._width):
            raise self.damaged(
                f"it holds {rows} rows of {width} dims instead of {self._rows} of {self._width}"
            )

    @abc.abstractmethod
    def _told(self, index: Any, parameters: str) -> Any:
        """The index, told these parameters; it is read if it is None. Raises as `asked`."""

    @abc.abstractmethod
    def _takes_mask(self, index: Any) -> bool:
        """Whether it can be told which rows it may find, and finds the best of them."""

    @abc.abstractmethod
    def _has_lists(self, index: Any) -> bool:
        """Whether it finds fewer rows than it is asked for where its lists hold no more."""

    @abc.abstractmethod
    def _found(
        self,
        index: Any,
        query_bd: np.ndarray,
        asked: int,
        parameters: str,
        allowed_n: np.ndarray | None,
        effort: float,
    ) -> np.ndarray:
        """The rows [B, asked] that it finds, then -1.

        Args:
          index: told `parameters`.
          query_bd: [B, d], as `compared`.
          asked: how many, fewer than there are.
          parameters: how it is asked.
          allowed_n: [N] which rows it may find, if it takes a mask; None: all.
          effort: so many times the lists that it looks into by itself.
        """

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
        takes_mask, dead = self._takes_mask(index), self._rows - rows
        wanted = least if self._has_lists(index) else keep
        # The fewer rows may be found, the more lists hold as many of them as were planned for.
        least_effort = self._rows / rows if takes_mask else 1
        row_bk, lacking_m = None, np.arange(len(query_bd))
        for effort in (least_effort, _MORE * least_effort):
            asked = keep
            if not takes_mask:
                # Some of what it finds is not allowed: assume twice the share that it has of all.
                asked = effort * (keep + (2 * keep * dead // rows + 8 if dead else 0))
                if asked * (_SLOWER if dead > rows else 1) > rows:
                    break
            mask_n = allowed_n if takes_mask and dead else None
            asking_md = query_bd if row_bk is None else query_bd[lacking_m]
            found_mk = self._found(index, asking_md, asked, parameters, mask_n, effort)
            largest, fewest = loops.found(found_mk)
            if largest >= self._rows:
                raise self.damaged(f"it finds row {largest} of {self._rows}")
            if not takes_mask and asked > keep:
                found_mk = np.where(allowed_n[found_mk], found_mk, -1)
                first_mk = np.argsort(found_mk < 0, 1, kind="stable")[:, :keep]
                found_mk = np.take_along_axis(found_mk, first_mk, 1)
                _, fewest = loops.found(found_mk)
            if row_bk is None:
                row_bk = found_mk
            else:
                row_bk[lacking_m] = found_mk
            if fewest >= wanted:
                return row_bk, lacking_m[:0]
            lacking_m = lacking_m[(found_mk >= 0).sum(1) < wanted]
            wanted = keep
        if row_bk is None:
            row_bk = np.full((len(query_bd), keep), -1)
        return row_bk, lacking_m
