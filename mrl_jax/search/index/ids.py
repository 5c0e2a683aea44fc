"""Ids of rows: whole numbers (int64) or texts, one of both in an index, and each occurs once."""

import pathlib
from typing import Any

import numpy as np

from mrl_jax import extras
from mrl_jax.errors import DataError, shown
from mrl_jax.search.index import files, pages
from mrl_jax.store.ids import Kind

with extras.needed("search", "an index"):
    import pyarrow as pa
    import pyarrow.compute as pc

NO_ID = -1  # where there are fewer results than asked for
NO_TEXT = ""  # the same among texts
_TYPES = {"int64": pa.int64(), "texts": pa.large_string()}
_NUMBERS, _TEXTS, _ENDS = "ids.npy", "id_texts.bin", "id_ends.npy"


class UnknownIdError(DataError):
    """An id that is not in the index."""


class KnownIdError(DataError):
    """An id of a vector to be added that is in the index already."""


def kind_of(ids: pa.Array) -> Kind:
    """What these ids are."""
    return "int64" if ids.type == _TYPES["int64"] else "texts"


def nothing(kind: Kind) -> int | str:
    """What stands for "none found" among ids of this kind."""
    return NO_ID if kind == "int64" else NO_TEXT


def taken(values: Any, kind: Kind | None = None) -> pa.Array:
    """Ids as they are given: one or [n] whole numbers, or texts, in any array or list.

    Args:
      values: of numpy, JAX, Arrow or Python.
      kind: that they must have; None: either.

    Raises:
      ValueError: they are of another kind or shape, missing, or no Unicode.
    """
    wanted = kind or "int64 or texts"
    given_n = np.asarray(values)
    if given_n.ndim > 1:
        raise ValueError(f"ids must be {wanted}, one for each row; their shape is {given_n.shape}")
    given_n = np.atleast_1d(given_n)
    if not given_n.size:
        return pa.array([], _TYPES[kind or "int64"])
    if given_n.dtype.kind in "UTO" and kind != "int64":
        # numpy makes texts of numbers that stand beside texts in a list.
        ids_n = given_n if isinstance(values, np.ndarray | str) else np.asarray(values, object)
        return _texts(np.atleast_1d(ids_n), wanted)
    whole = given_n.dtype.kind in "iu" and np.can_cast(given_n.dtype, np.int64)
    if not whole or kind == "texts":
        raise ValueError(f"ids must be {wanted}, got {given_n.dtype}")
    return pa.array(np.asarray(given_n, np.int64))


def _texts(ids_n: np.ndarray, wanted: str) -> pa.Array:
    if ids_n.dtype.kind != "U":
        ids_n = ids_n.astype(object)
        other = next((value for value in ids_n if not isinstance(value, str)), None)
        if other is not None or None in ids_n:
            raise ValueError(f"ids must be {wanted}, got {shown(other)} among them")
    try:
        return pa.array(ids_n, _TYPES["texts"])
    except UnicodeEncodeError as error:
        raise ValueError(f"ids must be Unicode, got {shown(error.object)}") from None


def check_new(ids: pa.Array, kind: Kind | None) -> None:
    """Refuses ids that rows cannot have; `kind` is that of an index which they are added to.

    Raises:
      DataError: another kind, an id that stands for "none found" or ends with NUL, or one that
        occurs twice.
    """
    found = kind_of(ids)
    if kind is not None and found != kind:
        raise DataError(f"the index has {kind} for ids, got {found}")
    if pc.index(ids, nothing(found)).as_py() >= 0:
        raise DataError(f"no vector can have the id {nothing(found)!r}: it stands for none found")
    if found == "texts" and (cut := pc.index(pc.ends_with(ids, "\0"), True).as_py()) >= 0:
        # numpy's own texts drop it, in which ids are written to files and sent.
        raise DataError(f"no id can end with the character NUL, {ids[cut].as_py()!r} does")
    code_n = ids.dictionary_encode().indices.to_numpy()
    twice_n = code_n != np.arange(len(ids))  # from the first repetition on
    if twice_n.any():
        row = int(twice_n.argmax())
        raise DataError(f"rows {code_n[row]} and {row} have the same id, {ids[row].as_py()!r}")


def places(asked: pa.Array, ids: pa.Array) -> np.ndarray:
    """For each of [N] ids its place among those `asked`, which are unique; -1 where it is not."""
    return pc.index_in(ids, value_set=asked).fill_null(-1).to_numpy()


def among(asked: pa.Array, ids: pa.Array) -> np.ndarray:
    """Which of [N] ids are among those `asked`, [N] bool."""
    return pc.is_in(ids, value_set=asked).to_numpy(zero_copy_only=False)


def as_numpy(ids: pa.Array) -> np.ndarray:
    """Ids [n] as an index gives them: int64, or an array of Python's `str`."""
    return ids.to_numpy(zero_copy_only=kind_of(ids) == "int64")


def write(folder: pathlib.Path, ids: pa.Array) -> None:
    """Writes them: numbers as an array, texts as UTF-8 one after another, and where each ends."""
    if kind_of(ids) == "int64":
        files.save(folder / _NUMBERS, ids.to_numpy())
        return
    _, ends, content = ids.buffers()
    end_n = np.frombuffer(ends, np.int64)[ids.offset : ids.offset + len(ids) + 1]
    (folder / _TEXTS).write_bytes(content[end_n[0] : end_n[-1]])
    files.save(folder / _ENDS, end_n - end_n[0])


class Stored:
    """The ids of a segment, which are read when they are asked for.

    Attributes:
      kind: of them.
    """

    def __init__(self, folder: pages.Folder, rows: int):
        self.kind: Kind = "texts" if folder.has(_TEXTS) else "int64"
        self._read: pa.Array | None = None
        if self.kind == "int64":
            self._numbers = folder.array(_NUMBERS, np.int64, (rows,))
        else:
            self._texts = folder.file(_TEXTS)
            self._ends = folder.array(_ENDS, np.int64, (rows + 1,))

    def all(self) -> pa.Array:
        """[N]; DataError if they are damaged."""
        if self.kind == "int64":
            return pa.array(self._numbers.whole())
        if self._read is None:
            ends, content = self._ends.whole(), self._texts.content()
            buffers = [None, pa.py_buffer(ends), pa.py_buffer(content)]
            try:
                read = pa.Array.from_buffers(_TYPES["texts"], len(ends) - 1, buffers)
                if ends[-1] != len(content):
                    raise ValueError(f"texts end at {ends[-1]} of {len(content)}")
                read.validate(full=True)
            except ValueError as error:
                raise DataError(f"{self._ends.path} is damaged: {error}") from None
            self._read = read
        return self._read

    def at(self, row_bk: np.ndarray) -> np.ndarray:
        """The ids of these rows, `nothing` where a row is negative; DataError as `all`."""
        if self.kind == "int64" and row_bk.size and row_bk.min() >= 0:
            return self._numbers.at(row_bk.ravel())[row_bk]
        there_bk = row_bk >= 0
        if self.kind == "int64":
            return np.where(there_bk, self._numbers.at(row_bk[there_bk])[row_bk], NO_ID)
        ids_bk = np.full(row_bk.shape, NO_TEXT, object)
        ids_bk[there_bk] = as_numpy(self.all().take(pa.array(row_bk[there_bk])))
        return ids_bk
