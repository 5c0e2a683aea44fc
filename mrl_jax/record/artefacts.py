"""What evaluators left beside results.json: which examples were right, and files by name."""

import dataclasses
import functools
import json
import pathlib
import zipfile
import zlib
from types import NoneType
from typing import Any, NamedTuple

import numpy as np

from mrl_jax.errors import DataError, shown
from mrl_jax.record import metrics
from mrl_jax.record.finding import FILES_SCHEMA
from mrl_jax.record.names import EXAMPLES, evaluation_file
from mrl_jax.record.results import Series
from mrl_jax.store import inputs, json_files
from mrl_jax.store.json_files import field

_DAMAGED = (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile, zlib.error)
PNG = b"\x89PNG\r\n\x1a\n"


def fractions(values: Any, where: str) -> np.ndarray:
    """A list of numbers in [0, 1] as float64, at least one.

    Raises:
      DataError: it is something else; names `where`.
    """
    good = isinstance(values, list) and values and all(type(v) in (int, float) for v in values)
    if not good or not all(0 <= v <= 1 for v in values):
        raise DataError(f"{where}: a list of fractions in [0, 1] is damaged: {shown(values)}")
    return np.array(values, np.float64)


class Units(NamedTuple):
    """What a result is the mean of, so that two runs can be compared unit by unit.

    Attributes:
      value_n: [N] of each unit: bool where it is right or wrong, else a number.
      noun: what the units are: "examples", "photos", "episodes" or "streams".
      key: the same in runs that measured the same units.
    """

    value_n: np.ndarray
    noun: str
    key: str


# A comparison per dim reads the same file again; keeping all of a large study would fill memory.
@functools.lru_cache(maxsize=64)
def _read_right(path: pathlib.Path, name: str, modified: int) -> dict[int, np.ndarray]:
    del modified
    try:
        with inputs.opened_npz(path) as arrays:
            if name not in arrays:
                return {}
            right_gn, dims = arrays[name], arrays[f"{name}/dims"]
    except _DAMAGED as error:
        raise DataError(f"{path}: damaged, {name} cannot be read ({error})") from error
    legal = right_gn.dtype == bool or right_gn.dtype == np.float32
    if not (legal and right_gn.ndim == 2 and dims.shape == right_gn.shape[:1]):
        raise DataError(
            f"{path}: {name} must be [G, N] bool or float32 with G dims, got {right_gn.shape} "
            f"{right_gn.dtype} with dims {dims.shape}"
        )
    if not np.isfinite(right_gn).all():
        raise DataError(f"{path}: {name} holds NaN or an infinity")
    return {int(dim): right_n for dim, right_n in zip(dims, right_gn, strict=True)}


@functools.lru_cache(maxsize=64)
def _read_table(path: pathlib.Path, modified: int) -> dict[str, Any]:
    del modified
    values = json_files.read(path)
    json_files.check_schema(values, (FILES_SCHEMA,), str(path))
    return values


# Files that hold the accuracy of every draw, by the unit of the metric.
DRAWS = {"episodes": "few_shot", "streams": "long_tail"}


@dataclasses.dataclass(frozen=True)
class Artefacts:
    """The files in the evaluation folder of a run, read when asked for; None has no files."""

    folder: pathlib.Path | None

    def _path(self, name: str) -> pathlib.Path | None:
        path = self.folder / name if self.folder else None
        return path if path and path.is_file() else None

    def table(self, kind: str, place: str) -> dict[str, Any] | None:
        """The JSON file of a kind about a split or set, see `Finding.add_file`; None without it.

        Raises:
          DataError: the file is damaged or of another schema.
        """
        path = self._path(evaluation_file(kind, place))
        return _read_table(path, path.stat().st_mtime_ns) if path else None

    def where(self, kind: str, place: str) -> str:
        """How errors call that file."""
        name = evaluation_file(kind, place)
        return str(self.folder / name) if self.folder else name

    def units(self, series: Series, dim: int) -> Units | None:
        """What a result is the mean of at `dim`; None where that is not known.

        Raises:
          DataError: a file is damaged.
        """
        unit = metrics.describe(series.metric).unit
        if unit in DRAWS:
            return self._draws(DRAWS[unit], unit, series, dim)
        path = self._path(EXAMPLES)
        if not path:
            return None
        right_n = _read_right(path, series.name, path.stat().st_mtime_ns).get(dim)
        return None if right_n is None else Units(right_n, unit, self._asked(series))

    def _draws(self, kind: str, unit: str, series: Series, dim: int) -> Units | None:
        values, where = self.table(kind, series.place), self.where(kind, series.place)
        if values is None:
            return None
        by_dim = field(values, "accuracy", dict, where).get(series.label)
        if not isinstance(by_dim, dict) or str(dim) not in by_dim:
            return None
        return Units(fractions(by_dim[str(dim)], where), unit, field(values, "draws", str, where))

    def shift(self, name: str) -> tuple[dict[str, Any], str] | None:
        """What was noted of a shifted test set, and how errors call its file; None without it.

        Raises:
          DataError: the file is damaged.
        """
        for split in ("test", "val"):
            values, where = self.table("robustness", split), self.where("robustness", split)
            if values is not None and name in field(values, "shifts", dict, where):
                return values["shifts"][name], where
        return None

    def _asked(self, series: Series) -> str:
        """What was asked of which examples, beyond the data set itself: shifts and hierarchies."""
        if found := self.shift(series.place):
            about, where = found
            asked = [field(about, "data", str, where), field(about, "classes", list, where)]
            return json.dumps(asked)
        of_groups = metrics.describe(series.metric).family == "superclass"
        return self.superclasses(series.place) if of_groups else ""

    def superclasses(self, split: str) -> str:
        """What the files say about the superclasses of a split, as JSON; "" if there is no file.

        Raises:
          DataError: the file is damaged.
        """
        values, where = self.table("superclass", split), self.where("superclass", split)
        if values is None:
            return ""
        groups = field(values, "superclasses", list, where)
        keys = (("name", (str, NoneType)), ("classes", int), ("n", int))
        return json.dumps([[field(g, *key, where) for key in keys] for g in groups])

    def image(self, kind: str, place: str) -> bytes | None:
        """The picture of a kind about a split or set, see `Finding.add_picture`; None without it.

        Raises:
          DataError: it cannot be read or is no PNG.
        """
        path = self._path(evaluation_file(kind, place, ".png"))
        if not path:
            return None
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        if not content.startswith(PNG):
            raise DataError(f"{path}: not a PNG file")
        return content
