"""Vectors of one file, as `store.vectors` puts them together: mapped, or in blocks of rows."""

import pathlib
import threading
from collections.abc import Callable, Mapping, Sequence

import ml_dtypes
import numpy as np

from mrl_jax.errors import DataError, listed, shown

BLOCK = 2**22  # numbers, about, that are decoded at a time where a file leaves the choice


class Mapped:
    """The vectors [rows, width] of a file, which the system reads as they are looked at.

    Attributes:
      ids_n: [rows], see `ids.checked`; None where the file holds none.
      at_hand: whether any rows are read quickly in any order.
    """

    at_hand = True

    def __init__(self, path: pathlib.Path, z_nd: np.ndarray, ids_n: np.ndarray | None = None):
        self.path, self._z_nd, self.ids_n = path, z_nd, ids_n
        (self.rows, self.width), self.dtype = z_nd.shape, z_nd.dtype

    def read(self, rows: slice | np.ndarray) -> np.ndarray:
        """These rows, in rising order."""
        return self._z_nd[rows]


class Last:
    """Of blocks of any number of files, the one that was read last: who reads in order asks again.

    Threads take turns.
    """

    def __init__(self):
        self._lock, self._key, self._rows_nd = threading.Lock(), None, None

    def block(self, path: pathlib.Path, g: int, load: Callable[[int], np.ndarray]) -> np.ndarray:
        """Block g of a file, which `load` gives."""
        with self._lock:
            if self._key != (path, g):
                self._key, self._rows_nd = None, None  # before the next one takes memory
                self._rows_nd = load(g)
                self._key = (path, g)
            return self._rows_nd


class Blocks:
    """The vectors of a file that lie in blocks of rows, each given by a function.

    Attributes:
      ids_n, at_hand: as of `Mapped`.
    """

    def __init__(
        self,
        path: pathlib.Path,
        sizes: Sequence[int],
        width: int,
        dtype: np.dtype,
        load: Callable[[int], np.ndarray],
        last: Last | None,
        ids_n: np.ndarray | None = None,
    ):
        """See the class.

        Args:
          path: of the file.
          sizes: rows of every block.
          width: dims.
          dtype: as stored.
          load: gives block g as [sizes[g], width].
          last: keeps the block that was read last; None where all are mapped.
          ids_n: if the file holds any.
        """
        self.path, self.width, self.dtype, self.ids_n = path, width, np.dtype(dtype), ids_n
        self._start_g = np.cumsum([0, *sizes])
        self.rows, self.at_hand = int(self._start_g[-1]), last is None
        self._load, self._last = load, last

    def read(self, rows: slice | np.ndarray) -> np.ndarray:
        """These rows, at least one and in rising order."""
        found = []
        if isinstance(rows, slice):
            first, last, _ = rows.indices(self.rows)
            edges = np.clip(self._start_g, first, last)
        else:
            edges = np.searchsorted(rows, self._start_g)
        for g in np.flatnonzero(np.diff(edges)).tolist():
            a, b, start = edges[g], edges[g + 1], self._start_g[g]
            here = slice(a - start, b - start) if isinstance(rows, slice) else rows[a:b] - start
            found.append(self._block(g)[here])
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _block(self, g: int) -> np.ndarray:
        if self._last is None:
            return self._load(g)
        return self._last.block(self.path, g, self._load)


Part = Mapped | Blocks


def chosen(
    path: pathlib.Path, name: str | None, matrices: Sequence[str], kinds: Mapping[str, str]
) -> str:
    """Which of the arrays of a file is meant.

    Args:
      path: of the file.
      name: what the user calls for, if anything.
      matrices: names of those that may be vectors.
      kinds: of all arrays by name, for the message.

    Raises:
      DataError: there is none of this name; or, without a name, no matrix or several.
    """
    has = f"it has {listed(f'{key} ({kind})' for key, kind in kinds.items()) or 'nothing'}"
    if name is not None:
        if name not in kinds:
            raise DataError(f"{path} has no {shown(name)}; {has}")
        return name
    if len(matrices) > 1:
        raise DataError(f"{path}: say which are the vectors, such as {path}:{matrices[0]}; {has}")
    if not matrices:
        raise DataError(f"{path} must hold [rows, dims] of floating point numbers; {has}")
    return matrices[0]


def check_matrix(path: pathlib.Path | str, shape: Sequence[int], dtype: np.dtype | str) -> None:
    """Refuses what is no [rows, dims] of floating point numbers, or holds none.

    Args:
      path: of the file, perhaps with the name of what it holds, for the message.
      shape: of the array.
      dtype: of numpy or ml_dtypes; the name of any that these do not have.

    Raises:
      DataError: names the path.
    """
    if len(shape) != 2:
        raise DataError(f"{path} must hold [rows, dims], its shape is {tuple(shape)}")
    known = isinstance(dtype, np.dtype)
    if not known or not (dtype.kind == "f" or dtype == ml_dtypes.bfloat16):
        raise DataError(f"{path} must hold floating point numbers, it holds {dtype}")
    if not all(shape):
        raise DataError(f"{path} is empty: {shape[0]} rows of {shape[1]} dims")
