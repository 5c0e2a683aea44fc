"""Texts with a class each, from jsonl, tsv or Parquet files with columns text and label."""

import pathlib
from typing import Any, NamedTuple

from mrl_jax.data.text_files import read_rows
from mrl_jax.errors import DataError, listed, shown

LABELLED = ("text", "label")


class LabelledTexts(NamedTuple):
    """N texts and their N labels, which are words or numbers written as words."""

    texts: list[str]
    labels: list[str]


def _label(value: Any, where: str) -> str:
    """The name of a class as a string: 3, 3.0 and "3" are the same class."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, (str, int)) or not str(value).strip():
        raise DataError(f"{where} must be a word or a whole number, got {shown(value)}")
    return str(value)


def read_labelled(path: str | pathlib.Path) -> LabelledTexts:
    """The rows of a file.

    Raises:
      DataError: the file is damaged or empty, a column is missing, a text is not a string, or a
        label is neither a string nor a whole number (a list, an object, NaN); names the line.
    """
    found = LabelledTexts([], [])
    for row in read_rows(pathlib.Path(path)):
        for column, values in zip(LABELLED, found, strict=True):
            if row.values.get(column) is None:
                raise DataError(
                    f"{row.where}: column {column} is missing; found {listed(row.values)}"
                )
            values.append(row.values[column])
        if not isinstance(text := row.values["text"], str):
            raise DataError(f"{row.where}: text must be a text, got {shown(text)}")
        found.labels[-1] = _label(found.labels[-1], f"{row.where}: label")
    if not found.texts:
        raise DataError(f"{path} has no rows")
    return found
