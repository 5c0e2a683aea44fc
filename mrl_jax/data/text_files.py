"""Rows of jsonl, tsv, txt and Parquet files, one at a time, each with the place it came from."""

import codecs
import contextlib
import gzip
import hashlib
import io
import os
import pathlib
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from mrl_jax import extras
from mrl_jax.data import named
from mrl_jax.data.named import SPLITS
from mrl_jax.errors import DataError, UsageError, listed, shown
from mrl_jax.store import files as stored
from mrl_jax.store import inputs, json_files

SUFFIXES = (".jsonl", ".jsonl.gz", ".tsv", ".tsv.gz", ".txt", ".txt.gz", ".parquet")
VALIDATION = ("dev", "validation", "valid")  # other names of the val split
FALSE = ("", "0", "false", "False")
_BUFFER = 1 << 20  # bytes that are read at a time
_ROWS = 1 << 7  # rows of Parquet that are unpacked at a time; equal ones are stored once
# For files that unpack to far more than their size: bytes of a line, consecutive blank lines.
MOST_BYTES, MOST_BLANK = 1 << 26, 10**6


class Row(NamedTuple):
    """Values by column, and where they stand: "FILE line 7"."""

    where: str
    values: dict[str, Any]


class _Told(io.RawIOBase):
    """A file that reports what is read from it."""

    def __init__(self, file: BinaryIO, tell: Callable[[memoryview], Any]):
        self._file, self._tell = file, tell

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)
        self._tell(memoryview(buffer)[:count])
        return count


class Reading:
    """What is learned about files while their rows are read.

    `progress` is called with the number of bytes whenever some are read; `digests` has the sha256
    of each file that was read to its end, in order.
    """

    def __init__(self, progress: Callable[[int], Any] = lambda count: None):
        self.progress = progress
        self.digests: list[str] = []


def sha256(path: pathlib.Path) -> str:
    """Hex digits over the content of a file.

    Raises:
      DataError: it cannot be read.
    """
    inputs.check_file(path)
    try:
        return stored.sha256(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def read_rows(path: pathlib.Path, reading: Reading | None = None) -> Iterator[Row]:
    """The rows of a file, in order.

    jsonl holds one object per line; tsv a line of column names and then lines of as many fields,
    without quotes; txt a text per line, column "text". All are UTF-8, with a byte order mark or
    without, and may be gzipped. `reading` collects what is learned about the file.

    Raises:
      UsageError: another kind of file, or Parquet without pyarrow.
      DataError: it cannot be read, or a line is damaged; names the line.
    """
    if not path.name.endswith(SUFFIXES):
        raise UsageError(f"{path}: must end in one of {', '.join(SUFFIXES)}")
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    inputs.check_file(path)
    try:
        with path.open("rb", buffering=0) as raw:
            # Parquet is not read in order, so its checksum is taken before.
            before = reading is not None and kind == "parquet"
            written = os.fstat(raw.fileno()).st_mtime_ns
            digest = hashlib.file_digest(raw, "sha256") if before else hashlib.sha256()
            raw.seek(0)

            def tell(content: memoryview) -> None:
                if reading is not None:
                    reading.progress(len(content))
                    if not before:
                        digest.update(content)

            file = io.BufferedReader(_Told(raw, tell), _BUFFER)
            yield from _KINDS[kind](path, file)
            if before and os.fstat(raw.fileno()).st_mtime_ns != written:
                raise DataError(f"{path} was changed while it was read")
        if reading is not None:
            reading.digests.append(digest.hexdigest())
    except (OSError, EOFError, zlib.error) as error:  # a damaged gzip file is one of these
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read {path}: {reason}") from error


def first_columns(path: pathlib.Path) -> list[str]:
    """The columns of a file's first row; [] if it has no rows.

    Raises:
      UsageError, DataError: as `read_rows`.
    """
    with contextlib.closing(read_rows(path)) as rows:
        return list(next(rows, Row("", {})).values)


def columns_besides(read: Collection[str], files: Iterable[pathlib.Path]) -> list[str]:
    """The columns in the first rows of files other than those that are read."""
    columns = dict.fromkeys(column for file in files for column in first_columns(file))
    return [column for column in columns if column not in read]


def _lines(path: pathlib.Path, file: BinaryIO) -> Iterator[tuple[str, str]]:
    if path.suffix == ".gz":
        file = io.BufferedReader(gzip.GzipFile(fileobj=file), _BUFFER)
    blank = 0
    for number, line in enumerate(iter(lambda: file.readline(MOST_BYTES + 1), b""), 1):
        where = f"{path} line {number}"
        if len(line) > MOST_BYTES:
            raise DataError(f"{where} is longer than {MOST_BYTES:,} bytes")
        blank = 0 if line.strip() else blank + 1
        if blank > MOST_BLANK:
            raise DataError(f"{where}: more than {MOST_BLANK:,} blank lines one after another")
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
            if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise DataError(f"{path} is UTF-16 text; it must be UTF-8")
        if b"\0" in line:
            raise DataError(f"{where} holds a zero byte: this is not a UTF-8 text file")
        try:
            yield where, line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: not UTF-8 ({error.reason})") from error


def _jsonl(path: pathlib.Path, file: BinaryIO) -> Iterator[Row]:
    for where, line in _lines(path, file):
        if not line.strip():
            continue
        values = json_files.parse(line, where, strict=False)
        if not isinstance(values, dict):
            raise DataError(f"{where}: must be a JSON object, got {type(values).__name__}")
        yield Row(where, values)


def _tsv(path: pathlib.Path, file: BinaryIO) -> Iterator[Row]:
    lines = _lines(path, file)
    header = next(lines, ("", ""))[1]
    columns = header.split("\t")
    if "\r" in header:
        raise DataError(f"{path}: lines end in carriage returns; they must end in line feeds")
    if len(set(columns)) < len(columns):
        raise DataError(f"{path} line 1: two columns of the same name in {listed(columns)}")
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


def _txt(path: pathlib.Path, file: BinaryIO) -> Iterator[Row]:
    for where, line in _lines(path, file):
        if line.strip():
            yield Row(where, {"text": line})


def _parquet(path: pathlib.Path, file: BinaryIO) -> Iterator[Row]:
    with extras.needed("text", str(path)):
        import pyarrow
        from pyarrow import parquet
    number = 0
    try:
        table = parquet.ParquetFile(file)
        columns = table.schema_arrow.names
        if len(set(columns)) < len(columns):
            raise DataError(f"{path}: two columns of the same name in {listed(columns)}")
        for part in table.iter_batches(_ROWS):
            for values in part.to_pylist():
                number += 1
                yield Row(f"{path} row {number}", values)
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:  # a date of year 10,000
        raise DataError(f"cannot read {path}: {' '.join(str(error).split())}") from error


_KINDS = {"jsonl": _jsonl, "tsv": _tsv, "txt": _txt, "parquet": _parquet}


def find_files(
    path: str, files: Sequence[str], *, train: bool = True
) -> dict[str, list[pathlib.Path]]:
    """The files of each split: those that are listed, or what lies in a folder.

    Args:
      path: folder with train.*, val.* (or a name in `VALIDATION`) and test.*; "" with `files`.
      files: "SPLIT=FILE" strings; a split may have several.
      train: whether training texts are needed. If not, files of that split may be missing.

    Raises:
      UsageError: neither or both, or a string of another form.
      DataError: no train split although it is needed, no split at all, or two files that claim to
        be one split.
    """
    if bool(path) == bool(files):
        given = "both" if path else "neither"
        raise UsageError(
            f"config.data needs data.path=FOLDER or data.files=train=FILE,..., got {given}"
        )
    found: dict[str, list[pathlib.Path]] = {}
    for split, file in named.pairs("data.files", files, SPLITS, "SPLIT=FILE"):
        found.setdefault(split, []).append(pathlib.Path(file))
    if not train and not all(file.exists() for file in found.get("train", ())):
        del found["train"]
    if path:
        folder = pathlib.Path(path)
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder")
        for split in SPLITS:
            names = (split, *VALIDATION) if split == "val" else (split,)
            here = [folder / f"{name}{suffix}" for name in names for suffix in SUFFIXES]
            here = [file for file in here if file.is_file()]
            if len(here) > 1:
                raise DataError(f"{here[0]} and {here[1]}: which is the {split} split?")
            if here:
                found[split] = here
    needed = ("train",) if train else SPLITS
    if not found.keys() & {*needed}:
        names = " or ".join(needed)
        raise DataError(f"{path or 'data.files'} has no {names} split ({needed[-1]}.jsonl or so)")
    return found


class Filter:
    """Leaves rows out: by "flag" those where it is true, by "split=dev" those where it is dev.

    `dropped` counts the rows left out; `seen` has the columns of the conditions that a row had.
    """

    def __init__(self, conditions: Sequence[str]):
        self._conditions = [condition.partition("=") for condition in conditions]
        self.seen: set[str] = set()
        self.dropped = 0

    def __call__(self, row: Row) -> bool:
        """Whether the row stays."""
        for column, equals, value in self._conditions:
            if column not in row.values:
                continue
            self.seen.add(column)
            found = row.values[column]
            if str(found) == value if equals else found and str(found) not in FALSE:
                self.dropped += 1
                return False
        return True

    def counts(self) -> dict[str, Any]:
        """The counts as JSON."""
        return {"dropped": self.dropped, "seen": sorted(self.seen)}

    def add(self, counts: dict[str, Any]) -> None:
        """Adds the counts that another filter made of other rows."""
        self.dropped += counts["dropped"]
        self.seen |= set(counts["seen"])

    def check(self) -> None:
        """Raises a UsageError that names the first condition on a column that no row had."""
        for column, _, _ in self._conditions:
            if column not in self.seen:
                raise UsageError(f"data.drop: no row has a column {shown(column)}")
