"""Ids of vectors: int64 numbers or texts, each of which occurs once."""

from typing import Literal

import numpy as np

from mrl_jax.errors import DataError, shown

Kind = Literal["int64", "texts"]
LARGEST = 2**63 - 1


def checked(ids_n: np.ndarray, where: object) -> np.ndarray:
    """The same ids [N] as int64, or as an array of Python's `str`.

    Args:
      ids_n: [N] whole numbers of any type and byte order, or texts.
      where: what holds them, for messages.

    Raises:
      DataError: they are of another type or shape, one is no Unicode, or see `as_int64`.
    """
    if ids_n.ndim != 1 or ids_n.dtype.kind not in "iuUO":
        raise DataError(
            f"{where} must hold ids, one for each row: whole numbers (int64, or another type of "
            f"integers) or texts; it holds {ids_n.dtype} of shape {ids_n.shape}"
        )
    if ids_n.dtype.kind in "iu":
        return as_int64(ids_n, where)
    try:
        texts_n = ids_n.astype(object)
    except (SystemError, ValueError):  # numpy has kept a number that no character has
        raise DataError(f"{where} holds texts that are no Unicode") from None
    try:
        "".join(texts_n).encode()
    except UnicodeEncodeError as error:
        row = int(np.cumsum([len(text) for text in texts_n]).searchsorted(error.start, "right"))
        raise DataError(f"{where}: row {row} has an id that is no Unicode") from None
    return texts_n


def as_int64(ids_n: np.ndarray, where: object) -> np.ndarray:
    """The same ids [N] as int64.

    Raises:
      DataError: they are no whole numbers or of another shape, or one exceeds `LARGEST` (names its
        row).
    """
    if ids_n.ndim != 1 or ids_n.dtype.kind not in "iu":
        holds = "texts" if ids_n.dtype.kind in "UO" else ids_n.dtype
        raise DataError(
            f"{where} must hold ids as whole numbers, one for each row (int64, or another type of "
            f"integers); it holds {holds} of shape {ids_n.shape}"
        )
    if ids_n.dtype.kind == "u" and ids_n.size and (large_n := ids_n > LARGEST).any():
        row = large_n.argmax()
        raise DataError(f"{where}: row {row} has the id {ids_n[row]}, above 2^63 - 1, the largest")
    return np.asarray(ids_n, np.int64)


def kind_of(ids: np.ndarray) -> Kind:
    """What these ids are, which were `checked`."""
    return "texts" if ids.dtype == object else "int64"


def check_unique(ids_n: np.ndarray, where: object) -> None:
    """Refuses ids of which two are the same; they were `checked`.

    Raises:
      DataError: names their rows.
    """
    if kind_of(ids_n) == "int64" and (ids_n[1:] > ids_n[:-1]).all():
        return
    first_row: dict[int | str, int] = {}
    for row, one in enumerate(ids_n.tolist()):
        if (before := first_row.setdefault(one, row)) != row:
            raise DataError(f"{where}: rows {before} and {row} have the same id, {shown(one)}")


def without_objects(ids: np.ndarray) -> np.ndarray:
    """The same ids, texts as numpy's own kind of text: a file of it is read without unpickling."""
    return ids.astype(str) if ids.dtype == object else ids
