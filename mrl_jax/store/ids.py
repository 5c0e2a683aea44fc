"""Ids of vectors: int64 numbers that occur once."""

import pathlib

import numpy as np

from mrl_jax.errors import DataError
from mrl_jax.store import inputs, vecs

LARGEST = 2**63 - 1


def as_int64(ids_n: np.ndarray, where: object) -> np.ndarray:
    """The same ids [N] as int64.

    Args:
      ids_n: [N] of any type of whole numbers and any byte order.
      where: what holds them, for messages.

    Raises:
      DataError: they are of another type or shape, or one exceeds `LARGEST` (names its row).
    """
    if ids_n.ndim != 1 or ids_n.dtype.kind not in "iu":
        raise DataError(
            f"{where} must hold ids as whole numbers, one for each row (int64, or another type of "
            f"integers); it holds {ids_n.dtype} of shape {ids_n.shape}"
        )
    if ids_n.dtype.kind == "u" and ids_n.size and (large_n := ids_n > LARGEST).any():
        row = large_n.argmax()
        raise DataError(f"{where}: row {row} has the id {ids_n[row]}, above 2^63 - 1, the largest")
    return np.asarray(ids_n, np.int64)


def read(path: pathlib.Path) -> np.ndarray:
    """The ids [N] int64 of an .npy or .ivecs file, in memory.

    Raises:
      DataError: it is missing or damaged, or see `as_int64`.
    """
    found_n = vecs.read_ids(path) if path.suffix == vecs.IDS else inputs.open_npy(path)
    return np.array(as_int64(found_n, path))


def check_unique(ids_n: np.ndarray, where: object) -> None:
    """Refuses ids of which two are the same.

    Raises:
      DataError: names their rows.
    """
    if (ids_n[1:] > ids_n[:-1]).all():
        return
    order_n = np.argsort(ids_n, kind="stable")
    same_n = np.flatnonzero(np.diff(ids_n[order_n]) == 0)
    if len(same_n):
        a, b = order_n[same_n[0]], order_n[same_n[0] + 1]
        raise DataError(f"{where}: rows {a} and {b} have the same id, {ids_n[a]}")
