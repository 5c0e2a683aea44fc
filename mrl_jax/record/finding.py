"""What a measurement gives: numbers, which examples they rest on, and files for people."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mrl_jax.errors import DataError, UsageError, shown
from mrl_jax.record import metrics
from mrl_jax.record.metrics import Metric
from mrl_jax.record.names import evaluation_file
from mrl_jax.record.results import Result, Series

NO_TRAIN = "needs the train split, which is not there"
FILES_SCHEMA = 1  # of the JSON files beside results.json


class Unmeasurable(DataError):
    """The data are sound, but a measure is undefined for them: one class, equal scores, ..."""


def refusals(checks: Mapping[str, Callable[[], None]]) -> dict[str, str]:
    """The reasons of those checks that raise `Unmeasurable`, by name."""
    found = {}
    for name, check in checks.items():
        try:
            check()
        except Unmeasurable as error:
            found[name] = str(error)
    return found


class Examples(NamedTuple):
    """Which examples counted as right: `right_gn` [G, N] at each of the G `dims`.

    bool, or float32 where an example counts in part: a photo with five captions of which two are
    answered.
    """

    dims: tuple[int, ...]
    right_gn: np.ndarray


def digest_of(content: Any) -> str:
    """Sixteen hex digits over an array, a text, a number, or nested sequences of these."""
    digest = hashlib.sha256()
    _add(digest, content)
    return digest.hexdigest()[:16]


def _add(digest: Any, content: Any) -> None:
    if isinstance(content, np.ndarray):
        digest.update(f"array {content.dtype} {content.shape} ".encode())
        digest.update(np.ascontiguousarray(content))
    elif isinstance(content, Sequence) and not isinstance(content, str):
        digest.update(f"sequence {len(content)} ".encode())
        for item in content:
            _add(digest, item)
    else:
        text = str(content).encode("utf-8", "surrogatepass")
        digest.update(f"text {len(text)} ".encode() + text)


@dataclasses.dataclass(frozen=True)
class Finding:
    """Attributes:
    results: numbers at prefixes.
    examples: what some of them are the mean of, by their names; runs that measured the same
      examples can be compared in pairs.
    files: content by the name of the file, see `add_file`.
    rows: what metrics are that `metrics` has no row for, by name.
    read: digests of what was read besides the run's data, by the config key below `eval` and the
      name of the set, if any: "hierarchy", "sts.stsb". Runs with equal digests measured the same.
    prompts: what was put before texts, by `prompts.Role`; {} if nothing was.
    skipped: why something could not be measured, by "{split}/{measure}" or the name of a set.
    unread: errors that a person has to mend: data that could not be read, a name that was taken.
    """

    results: list[Result] = dataclasses.field(default_factory=list)
    examples: dict[str, Examples] = dataclasses.field(default_factory=dict)
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    rows: dict[str, Metric] = dataclasses.field(default_factory=dict)
    read: dict[str, str] = dataclasses.field(default_factory=dict)
    prompts: dict[str, str] = dataclasses.field(default_factory=dict)
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    unread: list[DataError | UsageError] = dataclasses.field(default_factory=list)

    def add(self, other: "Finding") -> None:
        """Takes in what another measurement found.

        Raises:
          UsageError: it describes a metric anew, measures again what has been measured, or holds a
            number outside the range of its metric, which nobody could read.
        """
        if not isinstance(other, Finding):
            raise UsageError(f"a measure must give a Finding, got {shown(other)}")
        for name, row in other.rows.items():
            if metrics.row(name) or self.rows.get(name, row) != row:
                raise UsageError(
                    f"there is a metric {shown(name)} already: give yours another name"
                )
        measured = {(result.series, result.dim) for result in self.results}
        for result in other.results:
            if (result.series, result.dim) in measured:
                raise UsageError(
                    f"{result.name} at dim {result.dim} is measured already: give your metric "
                    "another name"
                )
            row = metrics.describe(result.metric, other.rows)
            if not (math.isfinite(result.value) and row.allows(result.value)):
                raise UsageError(
                    f"{result.name} at dim {result.dim} must be {row.legal}, got {result.value}"
                )
        for field in dataclasses.fields(self):
            mine, new = getattr(self, field.name), getattr(other, field.name)
            mine.extend(new) if isinstance(mine, list) else mine.update(new)

    def add_right(self, series: Series, dims: Sequence[int], right_gn: np.ndarray) -> None:
        """Adds results that are means of right examples, see `Examples`, and the examples."""
        in_part = np.issubdtype(right_gn.dtype, np.floating)
        kept_gn = right_gn.astype(np.float32 if in_part else bool)
        self.examples[series.name] = Examples(tuple(dims), kept_gn)
        for dim, right_n in zip(dims, right_gn, strict=True):
            if in_part:
                mean = series.mean(dim, right_n)
                self.results.append(mean._replace(value=min(mean.value, 1.0)))  # of rounding
            else:
                self.results.append(series.proportion(dim, int(right_n.sum()), len(right_n)))

    def add_file(self, kind: str, place: str, content: Mapping[str, Any]) -> None:
        """Adds a JSON file about a split or set; `Artefacts.table` reads it by the same names."""
        text = json.dumps({"schema": FILES_SCHEMA, **content}, indent=1) + "\n"
        self.files[evaluation_file(kind, place)] = text.encode()

    def add_picture(self, kind: str, place: str, png: bytes) -> None:
        """Adds a picture of a split or set; `Artefacts.image` reads it by the same names."""
        self.files[evaluation_file(kind, place, ".png")] = png
