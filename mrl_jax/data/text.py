"""Texts to learn from: pairs, triplets, scored pairs, or groups of texts about the same thing."""

import dataclasses
import functools
import hashlib
import math
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mrl_jax.data.text_files import Filter, Row, find_files, parse_columns, read_rows
from mrl_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class TextSplit:
    """One part of the data. Every different text is kept once, and referred to by its number.

    Attributes:
      texts: all different texts, T.
      sides: "anchor", "positive", "negative_0", ... [N] int32, numbers of texts; {} of groups.
      members: of groups, the numbers of their texts, one group after another.
      starts: [N + 1] int64, where each group starts in `members`.
      score_n: [N] float32, how alike the two are, in any unit; None where it is not known.
      same_t: [T] int32, equal for texts that are never told apart: a text and itself, all texts of
        a group, and groups that share a text.
      repeated: rows that are the same as an earlier one.
    """

    texts: tuple[str, ...]
    sides: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    members: np.ndarray | None = None
    starts: np.ndarray | None = None
    score_n: np.ndarray | None = None
    same_t: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
    repeated: int = 0

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

    def update(self, digest: Any) -> None:
        """Adds the content to a hash."""
        for text in self.texts:
            digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
        arrays = {**self.sides, "members": self.members, "starts": self.starts}
        for name, array in {**arrays, "score": self.score_n}.items():
            if array is not None:
                digest.update(f"{name} {array.shape}".encode())
                digest.update(np.ascontiguousarray(array))


@dataclasses.dataclass(frozen=True)
class TextData:
    """All splits.

    Attributes:
      name: what they are called in messages.
      splits: "train", and those of "val" and "test" that there are.
      dropped: rows that were left out on request.
    """

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
        return f"{self.name}: {', '.join(parts)}{dropped}"


def load(
    path: str = "",
    *,
    files: Sequence[str] = (),
    columns: Sequence[str] = (),
    drop: Sequence[str] = (),
) -> TextData:
    """Reads and checks a data set; see `text_files` for the files and the arguments.

    Raises:
      UsageError: arguments that cannot be meant.
      DataError: a file is missing, damaged or inconsistent; names file and line.
    """
    found, roles, keep = find_files(path, files), parse_columns(columns), Filter(drop)
    splits = {
        name: read_split((row for file in paths for row in read_rows(file) if keep(row)), roles)
        for name, paths in found.items()
    }
    for name, split in splits.items():
        where = ", ".join(str(file) for file in found[name])
        if split is None:
            raise DataError(f"{where} has no rows" + " left" * bool(keep.dropped))
    keep.check()
    name = path or ", ".join(pathlib.Path(file).name for file in found["train"])
    return TextData(name, splits, keep.dropped)


def read_split(rows: Iterable[Row], roles: dict[str, tuple[str, ...]]) -> TextSplit | None:
    """The rows as one split, or None if there is none; the first says what kind they are.

    Raises:
      DataError: names the line and what is wrong with it.
    """
    reader: _Groups | _Pairs | None = None
    for row in rows:
        if reader is None:
            reader = _reader(row, roles)
        reader.add(row)
    return reader.split() if reader else None


def _reader(row: Row, roles: dict[str, tuple[str, ...]]) -> "_Groups | _Pairs":
    there = {role: [c for c in names if c in row.values] for role, names in roles.items()}
    # negative_0, negative_1, ... need not be listed.
    numbered = [c for c in row.values if re.fullmatch(r"negative_?\d+", c)]
    negatives = there["negative"] or sorted(numbered, key=lambda c: int(re.sub(r"\D", "", c)))
    if there["texts"]:
        return _Groups(there["texts"][0])
    if not (there["anchor"] and there["positive"]):
        raise DataError(
            f"{row.where}: needs a column texts (a list), or columns anchor and positive; found "
            f"{', '.join(map(str, row.values))}: data.columns=anchor=NAME,positive=NAME says what "
            "they are called"
        )
    score = there["score"][0] if there["score"] else None
    return _Pairs(there["anchor"][0], there["positive"][0], negatives, score)


class _Texts:
    """Numbers for different texts."""

    def __init__(self):
        self.numbers: dict[str, int] = {}

    def __call__(self, value: Any, column: str, where: str) -> int:
        if not isinstance(value, str):
            raise DataError(f"{where}: {column} must be a text, got {value!r}")
        if not value.strip():
            raise DataError(f"{where}: {column} is empty")
        return self.numbers.setdefault(value, len(self.numbers))


def _value(row: Row, column: str) -> Any:
    if column not in row.values:
        raise DataError(f"{row.where}: column {column} is missing")
    return row.values[column]


class _Pairs:
    def __init__(self, anchor: str, positive: str, negatives: list[str], score: str | None):
        self._columns = {"anchor": anchor, "positive": positive}
        self._negatives, self._score = negatives, score
        self._texts = _Texts()
        self._rows: list[tuple[int, ...]] = []
        self._scores: list[float] = []
        self._seen: set[tuple[int, ...]] = set()

    def add(self, row: Row) -> None:
        values = [(column, _value(row, column)) for column in self._columns.values()]
        for column in self._negatives:
            value = _value(row, column)
            values += [(column, v) for v in (value if isinstance(value, list) else [value])]
        numbers = tuple(self._texts(value, column, row.where) for column, value in values)
        if self._rows and len(numbers) != len(self._rows[0]):
            raise DataError(
                f"{row.where}: {len(numbers) - 2} negatives, the first row has "
                f"{len(self._rows[0]) - 2}; every row must have as many"
            )
        self._rows.append(numbers)
        self._seen.add(numbers)
        if self._score:
            self._scores.append(_finite(_value(row, self._score), self._score, row.where))

    def split(self) -> TextSplit:
        names = ["anchor", "positive", *(f"negative_{i}" for i in range(len(self._rows[0]) - 2))]
        columns = np.array(self._rows, np.int32).T
        texts = tuple(self._texts.numbers)
        return TextSplit(
            texts,
            {name: np.ascontiguousarray(c) for name, c in zip(names, columns, strict=True)},
            score_n=np.array(self._scores, np.float32) if self._score else None,
            same_t=np.arange(len(texts), dtype=np.int32),
            repeated=len(self._rows) - len(self._seen),
        )


def _finite(value: Any, column: str, where: str) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{where}: {column} must be a finite number, got {value!r}")
    return number


class _Groups:
    def __init__(self, column: str):
        self._column = column
        self._texts = _Texts()
        self._groups: list[list[int]] = []
        self._seen: set[tuple[int, ...]] = set()

    def add(self, row: Row) -> None:
        values = _value(row, self._column)
        if not isinstance(values, list):
            raise DataError(f"{row.where}: {self._column} must be a list of texts, got {values!r}")
        numbers = [self._texts(value, self._column, row.where) for value in values]
        group = list(dict.fromkeys(numbers))
        if len(group) < 2:
            raise DataError(
                f"{row.where}: {self._column} must hold at least 2 different texts, got "
                f"{len(group)}"
            )
        self._groups.append(group)
        self._seen.add(tuple(sorted(group)))

    def split(self) -> TextSplit:
        sizes = [len(group) for group in self._groups]
        members = np.concatenate(self._groups).astype(np.int32)
        starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        texts = tuple(self._texts.numbers)
        return TextSplit(
            texts,
            members=members,
            starts=starts,
            same_t=_connected(members, np.repeat(np.arange(len(sizes)), sizes), len(texts)),
            repeated=len(self._groups) - len(self._seen),
        )


def _connected(members: np.ndarray, group_m: np.ndarray, texts: int) -> np.ndarray:
    """One number for all texts of a group, and of the groups that share one of them; [texts]."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    nodes = texts + int(group_m[-1]) + 1
    edges = coo_array((np.ones(len(members)), (members, texts + group_m)), shape=(nodes, nodes))
    _, component = connected_components(edges, directed=False)
    return component[:texts].astype(np.int32)
