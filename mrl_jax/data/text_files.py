"""Rows of jsonl, tsv and Parquet files, one at a time, each with the place it came from."""

import gzip
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from mrl_jax.errors import DataError, UsageError

SUFFIXES = (".jsonl", ".jsonl.gz", ".tsv", ".tsv.gz", ".parquet")
SPLITS = ("train", "val", "test")
# What texts of a row are for; how their columns are called unless `columns` says otherwise.
ROLES = {
    "anchor": ("anchor", "query", "question", "sentence1", "text1"),
    "positive": ("positive", "document", "answer", "sentence2", "text2"),
    "negative": ("negative", "negatives"),
    "score": ("score",),
    "texts": ("texts", "captions", "sentences"),
}
FALSE = ("", "0", "false", "False")


class Row(NamedTuple):
    """Values by column, and where they stand: "FILE line 7"."""

    where: str
    values: dict[str, Any]


def read_rows(path: pathlib.Path) -> Iterator[Row]:
    """The rows of a file, in order.

    jsonl holds one object per line; tsv a line of column names and then lines of as many fields,
    without quotes. Both are UTF-8 and may be gzipped.

    Raises:
      UsageError: another kind of file, or Parquet without pyarrow.
      DataError: it cannot be read, or a line is damaged; names the line.
    """
    name = path.name.removesuffix(".gz")
    try:
        if name.endswith(".jsonl"):
            yield from _jsonl(path)
        elif name.endswith(".tsv"):
            yield from _tsv(path)
        elif name.endswith(".parquet"):
            yield from _parquet(path)
        else:
            raise UsageError(f"{path}: must end in one of {', '.join(SUFFIXES)}")
    except (OSError, EOFError) as error:  # a damaged gzip file is one or the other
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read {path}: {reason}") from error


def _lines(path: pathlib.Path) -> Iterator[tuple[str, str]]:
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path} line {number}"
            try:
                yield where, line.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise DataError(f"{where}: not UTF-8 ({error.reason})") from error


def _jsonl(path: pathlib.Path) -> Iterator[Row]:
    for where, line in _lines(path):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where}: not JSON ({error})") from error
        if not isinstance(values, dict):
            raise DataError(f"{where}: must be a JSON object, got {type(values).__name__}")
        yield Row(where, values)


def _tsv(path: pathlib.Path) -> Iterator[Row]:
    lines = _lines(path)
    columns = next(lines, ("", ""))[1].split("\t")
    if len(set(columns)) < len(columns):
        raise DataError(f"{path} line 1: two columns of the same name in {columns}")
    for where, line in lines:
        if not line:
            continue
        fields = line.split("\t")
        if len(fields) != len(columns):
            raise DataError(
                f"{where}: {len(fields)} fields, but the first line names {len(columns)} columns "
                "(fields stand between tabs; quotes have no meaning)"
            )
        yield Row(where, dict(zip(columns, fields, strict=True)))


def _parquet(path: pathlib.Path) -> Iterator[Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UsageError(f'{path} needs pip install "mrl_jax[text]" (pyarrow)') from error
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for part in file.iter_batches():
                for values in part.to_pylist():
                    number += 1
                    yield Row(f"{path} row {number}", values)
    except pyarrow.ArrowException as error:
        raise DataError(f"cannot read {path}: {' '.join(str(error).split())}") from error


def find_files(path: str, files: Sequence[str]) -> dict[str, list[pathlib.Path]]:
    """The files of each split: those that are listed, or what lies in a folder.

    Args:
      path: folder with train.*, val.* (or dev.*, validation.*) and test.*; "" with `files`.
      files: "SPLIT=FILE" strings; a split may have several.

    Raises:
      UsageError: neither or both, or a string that is none.
      DataError: no train split, or two files that claim to be one.
    """
    if bool(path) == bool(files):
        raise UsageError("sentence_pairs needs data.path=FOLDER or data.files=train=FILE,...")
    found: dict[str, list[pathlib.Path]] = {}
    for entry in files:
        split, equals, file = entry.partition("=")
        if not equals or split not in SPLITS or not file:
            raise UsageError(
                f"data.files must be SPLIT=FILE, SPLIT one of {', '.join(SPLITS)}; got {entry!r}"
            )
        found.setdefault(split, []).append(pathlib.Path(file))
    if path:
        folder = pathlib.Path(path)
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder")
        for split in SPLITS:
            names = (split, "dev", "validation") if split == "val" else (split,)
            here = [folder / f"{name}{suffix}" for name in names for suffix in SUFFIXES]
            here = [file for file in here if file.is_file()]
            if len(here) > 1:
                raise DataError(f"{here[0]} and {here[1]}: which is the {split} split?")
            if here:
                found[split] = here
    if "train" not in found:
        raise DataError(f"{path or 'data.files'} has no train split (train{SUFFIXES[0]} or so)")
    return found


def parse_columns(entries: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The columns of every role, from "ROLE=COLUMN" strings and for the others `ROLES`.

    Raises:
      UsageError: a string that is none.
    """
    given: dict[str, tuple[str, ...]] = {}
    for entry in entries:
        role, equals, column = entry.partition("=")
        if not equals or role not in ROLES or not column:
            raise UsageError(
                f"data.columns must be ROLE=COLUMN, ROLE one of {', '.join(ROLES)}; got {entry!r}"
            )
        given[role] = (*given.get(role, ()), column)
    return {**ROLES, **given}


class Filter:
    """Which rows are left out: "flag" where it is true, "split=dev" where it is that.

    Attributes:
      dropped: how many were.
    """

    def __init__(self, conditions: Sequence[str]):
        self._conditions = [condition.partition("=") for condition in conditions]
        self._seen: set[str] = set()
        self.dropped = 0

    def __call__(self, row: Row) -> bool:
        """Whether the row stays."""
        for column, equals, value in self._conditions:
            if column not in row.values:
                continue
            self._seen.add(column)
            found = row.values[column]
            if str(found) == value if equals else found and str(found) not in FALSE:
                self.dropped += 1
                return False
        return True

    def check(self) -> None:
        """Refuses conditions on columns that no row had.

        Raises:
          UsageError: names the first.
        """
        for column, _, _ in self._conditions:
            if column not in self._seen:
                raise UsageError(f"data.drop: no row has a column {column!r}")
