"""Texts to learn from: pairs, triplets, scored pairs, or groups of texts about the same thing."""

import dataclasses
import functools
import hashlib
import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from mrl_jax.data.array_cache import Parts, Stored, stored
from mrl_jax.data.strings import Strings
from mrl_jax.data.text_columns import Columns, Roles, parse_columns
from mrl_jax.data.text_files import Filter, Reading, Row, find_files, read_rows, sha256
from mrl_jax.data.text_rows import TextRows, utf8
from mrl_jax.errors import DataError, listed, shown

_LARGEST_SCORE = float(np.finfo(np.float32).max)  # what is larger would be kept as infinity


@dataclasses.dataclass(frozen=True)
class TextSplit:
    """One split. Each different text is kept once, and referred to by its number.

    Attributes:
      texts: the T different texts.
      sides: "anchor", "positive", "negative_0", ... [N] int32, numbers of texts; {} of groups.
      members: of groups, the numbers of their texts, one group after another.
      starts: [N + 1] int64, where each group starts in `members`.
      score_n: [N] float32, how alike the two are, in any unit; None if unknown.
      same_t: [T] int32, equal for texts that are never told apart: a text and itself, all texts of
        a group, and all of groups that share a text.
      repeated: rows that are the same as an earlier one.
      unread: columns that are not read.
      source: identifies what this was made from, if it comes from a cache.
    """

    texts: Strings
    sides: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    members: np.ndarray | None = None
    starts: np.ndarray | None = None
    score_n: np.ndarray | None = None
    same_t: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
    repeated: int = 0
    unread: tuple[str, ...] = ()
    source: str = ""

    @property
    def examples(self) -> int:
        """How many rows, or groups, there are."""
        return len(self.starts) - 1 if self.starts is not None else len(self.sides["anchor"])

    @property
    def negatives(self) -> int:
        """Hard negatives of each row."""
        return sum(side.startswith("negative") for side in self.sides)

    @property
    def kind(self) -> str:
        """groups, scored, triplets or pairs."""
        if self.starts is not None:
            return "groups"
        if self.score_n is not None:
            return "scored"
        return "triplets" if self.negatives else "pairs"

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """The two texts of every row, as numbers [N]; of a group its first two."""
        if self.starts is not None:
            return self.members[self.starts[:-1]], self.members[self.starts[:-1] + 1]
        return self.sides["anchor"], self.sides["positive"]

    @functools.cached_property
    def digest(self) -> str:
        """Sixteen hex digits over all texts and what joins them."""
        digest = hashlib.sha256()
        self.update(digest)
        return digest.hexdigest()[:16]

    def update(self, digest: Any) -> None:
        """Adds the content to a hash."""
        digest.update(np.ascontiguousarray(self.texts.flat))
        arrays = {**self.sides, "members": self.members, "starts": self.starts}
        for name, array in {**arrays, "score": self.score_n}.items():
            if array is not None:
                digest.update(f"{name} {array.shape}".encode())
                digest.update(np.ascontiguousarray(array))


@dataclasses.dataclass(frozen=True)
class TextData:
    """All splits, called `name` in messages; `dropped` rows were left out on request."""

    name: str
    splits: dict[str, TextSplit]
    dropped: int = 0

    @functools.cached_property
    def digest(self) -> str:
        """Sixteen hex digits over all texts and what joins them."""
        digest = hashlib.sha256()
        for name, split in sorted(self.splits.items()):
            digest.update(name.encode())
            split.update(digest)
        return digest.hexdigest()[:16]

    def summary(self) -> str:
        """One line on what there is."""
        parts = [
            f"{name} {split.examples:,} {split.kind} of {len(split.texts):,} texts"
            + (f" ({split.repeated:,} rows repeat another)" if split.repeated else "")
            for name, split in self.splits.items()
        ]
        dropped = f"; {self.dropped:,} rows dropped" if self.dropped else ""
        unread = dict.fromkeys(name for split in self.splits.values() for name in split.unread)
        not_read = f"; columns that are not read: {listed(unread)}" if unread else ""
        return f"{self.name}: {', '.join(parts)}{dropped}{not_read}"


def load(
    path: str = "",
    *,
    files: Sequence[str] = (),
    columns: Sequence[str] = (),
    drop: Sequence[str] = (),
    cache: str = "",
    train: bool = True,
) -> TextData:
    """Reads and checks a data set.

    Args:
      path, files, train: see `text_files.find_files`.
      columns: "ROLE=COLUMN" strings.
      drop: conditions of `text_files.Filter`.
      cache: folder that the train split is kept in, and mapped into memory from; "" = in memory.
        Batches then take 4 bytes of memory per text, and 8 per row for the order of an epoch, of
        which up to four are kept.

    Raises:
      UsageError: arguments that contradict each other, or of the wrong form.
      DataError: a file is missing, damaged or inconsistent; names file and line.
    """
    found, keep = find_files(path, files, train=train), Filter(drop)
    called, splits = parse_columns(columns, drop), {}
    for name, paths in found.items():
        is_train = name == "train"
        of_split = dataclasses.replace(called, required=is_train)
        splits[name] = _stored_split(paths, of_split, keep, drop, cache if is_train else "")
    if "train" in found:  # without it, nobody knows what columns it has
        keep.check()
    name = path or ", ".join(file.name for file in next(iter(found.values())))
    return TextData(name, splits, keep.dropped)


def _stored_split(
    paths: Sequence[pathlib.Path],
    columns: Columns,
    keep: Filter,
    drop: Sequence[str],
    cache: str,
) -> TextSplit:
    """A split from the cache or into it; `keep` counts what was dropped when it was made."""
    follows = {"columns": columns.follows(), "drop": list(drop)}

    def facts():
        return {**follows, "files": [sha256(path) for path in paths]}

    kept = Filter(drop)

    def write(parts: Parts):
        options = {"unit": "B", "unit_scale": True, "disable": None, "delay": 2}
        with tqdm(desc="reading texts", total=_bytes(paths), **options) as bar:
            reading = Reading(bar.update)
            rows = (row for path in paths for row in read_rows(path, reading) if kept(row))
            values = _write(parts, rows, columns)
        if values is None:
            where = ", ".join(map(str, paths))
            raise DataError(f"{where} has no rows" + " left" * bool(kept.dropped))
        return {**follows, "files": reading.digests}, {**values, "kept": kept.counts()}

    found = stored(cache, "texts", facts, write)
    keep.add(found.values["kept"])
    return _split(found)


def _bytes(paths: Sequence[pathlib.Path]) -> int:
    """The size of the files that exist; reading reports the others."""
    return sum(path.stat().st_size for path in paths if path.exists())


def read_split(rows: Iterable[Row], columns: Columns) -> TextSplit | None:
    """The rows as one split in memory, of the kind of the first; None if there are none.

    Raises:
      DataError: names the line and what is wrong with it.
    """
    parts = Parts()
    values = _write(parts, rows, columns)
    return None if values is None else _split(Stored("", parts.arrays(), values))


def _split(found: Stored) -> TextSplit:
    arrays, values = found.arrays, found.values
    return TextSplit(
        Strings(arrays["texts"], arrays["text_starts"]),
        {side: arrays[side] for side in values["sides"]},
        members=arrays.get("members"),
        starts=arrays.get("starts"),
        score_n=arrays.get("score"),
        same_t=arrays["same"],
        repeated=values["repeated"],
        unread=tuple(values["unread"]),
        source=found.name,
    )


def _write(parts: Parts, rows: Iterable[Row], columns: Columns) -> dict[str, Any] | None:
    """The arrays and values of a split; None if there are no rows.

    Raises:
      DataError: a row is wrong, or the rows do not all have the same columns.
    """
    reader: _Groups | _Pairs | None = None
    seen: set[tuple[str, ...]] = set()
    unread: dict[str, None] = {}
    for row in rows:
        if reader is None:
            first, roles = row.where, columns.roles(tuple(row.values), row.where)
            reader = _Groups(roles, parts) if roles.texts is not None else _Pairs(roles, parts)
        names = tuple(row.values)
        if names not in seen:
            seen.add(names)
            _check_same(row, columns, roles, first)
            unread |= dict.fromkeys(columns.unread(names, roles))
        reader.add(row)
    return {**reader.finish(), "unread": list(unread)} if reader else None


def _check_same(row: Row, columns: Columns, roles: Roles, first: str) -> None:
    """Refuses a row whose read columns are not those of the row at `first`; none is dropped."""
    for column in roles.columns:
        if column not in row.values:
            raise DataError(f"{row.where}: column {listed([column])} is missing; {first} has it")
    for column in columns.roles(tuple(row.values), row.where).columns:
        if column not in roles.columns:
            raise DataError(
                f"{row.where}: has column {listed([column])}, which {first} does not have; all "
                "rows of a split must have the same columns"
            )


class _Pairs:
    def __init__(self, roles: Roles, parts: Parts):
        self._roles = roles
        self._rows = TextRows(parts, ordered=True)
        self._width = 0

    def add(self, row: Row) -> None:
        roles, values = self._roles, []
        for column in (roles.anchor, roles.positive, *roles.negatives):
            value = row.values[column]
            listed_too = column in roles.negatives and isinstance(value, list)
            values += [(column, v) for v in (value if listed_too else [value])]
        texts = [utf8(value, column, row.where) for column, value in values]
        self._width = self._width or len(texts)
        if len(texts) != self._width:
            raise DataError(
                f"{row.where}: {len(texts) - 2} negatives, the first row has {self._width - 2}; "
                "every row must have as many"
            )
        score = None
        if roles.score is not None:
            score = _finite(row.values[roles.score], roles.score, row.where)
        self._rows.add(texts, score)

    def finish(self) -> dict[str, Any]:
        names = ["anchor", "positive", *(f"negative_{i}" for i in range(self._width - 2))]
        return {"sides": names, "repeated": self._rows.finish(names)}


def _finite(value: Any, column: str, where: str) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) <= _LARGEST_SCORE:
        raise DataError(f"{where}: {column} must be a finite number, got {shown(value)}")
    return number


class _Groups:
    def __init__(self, roles: Roles, parts: Parts):
        self._column = roles.texts
        self._rows = TextRows(parts, ordered=False)

    def add(self, row: Row) -> None:
        values = row.values[self._column]
        if not isinstance(values, list):
            raise DataError(
                f"{row.where}: {self._column} must be a list of texts, got {shown(values)}"
            )
        texts = [utf8(value, self._column, row.where) for value in values]
        group = list(dict.fromkeys(texts))
        if len(group) < 2:
            raise DataError(
                f"{row.where}: {self._column} must hold at least 2 different texts, got "
                f"{len(group)}"
            )
        self._rows.add(group)

    def finish(self) -> dict[str, Any]:
        return {"sides": [], "repeated": self._rows.finish([])}
