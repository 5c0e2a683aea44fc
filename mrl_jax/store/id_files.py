"""Files of ids: .npy, .ivecs, .txt, or a column of Parquet or Arrow."""

import pathlib
import re

import numpy as np

from mrl_jax.errors import DataError, UsageError, shown
from mrl_jax.store import arrow_files, ids, inputs, tables, vecs

_COLUMNS = {
    ".parquet": tables.read_column,
    ".arrow": arrow_files.read_column,
    ".feather": arrow_files.read_column,
}
LEGAL = f".npy, .txt, {vecs.IDS}, or FILE:COLUMN of {', '.join(_COLUMNS)}"
_NUMBER = re.compile("-?[0-9]{1,19}")


def read(path: pathlib.Path | str, kind: ids.Kind | None = None) -> np.ndarray:
    """The ids [N] of a file, int64 or an array of `str`, in memory.

    Args:
      path: one of
        - .npy of whole numbers or of texts (numpy's `U`; Python objects are refused);
        - .txt, UTF-8, an id on each line;
        - .ivecs;
        - .parquet, .arrow or .feather: the column called NAME in PATH:NAME, or `id`, or the only
          one.
      kind: that they must have; None: either. Lines of .txt are texts unless all are numbers.

    Raises:
      UsageError: pyarrow is not installed, or a NAME where there are none.
      DataError: the file is missing or damaged, or holds something else; names it.
    """
    path, name = inputs.place(path, _COLUMNS)
    if name is not None and path.suffix not in _COLUMNS:
        raise UsageError(f"{path} has no columns, there is no {shown(name)} to name in it")
    if path.suffix in _COLUMNS:
        found_n = _COLUMNS[path.suffix](path, name)
    elif path.suffix == ".txt":
        found_n = _lines(path, kind)
    elif path.suffix == vecs.IDS:
        found_n = vecs.read_ids(path)
    else:
        found_n = inputs.open_npy(path)
    found_n = np.array(ids.checked(found_n, path))
    found = ids.kind_of(found_n)
    if kind is not None and found != kind:
        holds, wanted = (_NOUNS[which] for which in (found, kind))
        raise DataError(f"{path} holds {holds}, the ids of the index are {wanted}")
    return found_n


_NOUNS = {"int64": "whole numbers", "texts": "texts"}


def _lines(path: pathlib.Path, kind: ids.Kind | None) -> np.ndarray:
    try:
        text = inputs.mapped_file(path).tobytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text in UTF-8: {error.reason}") from None
    lines = text.removesuffix("\n").split("\n") if text else []
    lines = [line.removesuffix("\r") for line in lines]
    if "" in lines:
        raise DataError(f"{path}: line {lines.index('') + 1} is empty, there must be an id")
    if kind == "texts":
        return np.array(lines, object)
    other = next((n for n, line in enumerate(lines) if not _is_number(line)), None)
    if other is None:
        return np.array(lines, object).astype(np.int64)
    if kind == "int64":
        raise DataError(
            f"{path}: line {other + 1} holds {shown(lines[other])}; the ids of the index are whole "
            "numbers (int64)"
        )
    return np.array(lines, object)


def _is_number(line: str) -> bool:
    """Whether a line is an int64 as Python writes it: 007 is a text."""
    if not _NUMBER.fullmatch(line):
        return False
    number = int(line)
    return str(number) == line and -(2**63) <= number <= ids.LARGEST
