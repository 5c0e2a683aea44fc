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
from mrl_jax.store import inputs, json_files
from mrl_jax.store.json_files import field

SCHEMA = 1
EXAMPLES = "examples.npz"
_DAMAGED = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)
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


def check_schema(values: Any, path: pathlib.Path) -> None:
    """Raises a DataError unless this is the content of a file of our schema."""
    schema = values.get("schema") if isinstance(values, dict) else None
    if schema != SCHEMA or isinstance(schema, bool):
        raise DataError(f"{path}: schema must be {SCHEMA}, got {shown(schema)}")


class Units(NamedTuple):
    """What a result is the mean of, so that two runs can be compared unit by unit.

    Attributes:
      value_n: [N] of each unit: bool where it is right or wrong, else a fraction.
      noun: what the units are: "examples", "episodes" or "streams".
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
    except (*_DAMAGED, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged, {name} cannot be read ({error})") from error
    if not (right_gn.dtype == bool and right_gn.ndim == 2 and dims.shape == right_gn.shape[:1]):
        raise DataError(
            f"{path}: {name} must be [G, N] bool with G dims, got {right_gn.shape} "
            f"{right_gn.dtype} with dims {dims.shape}"
        )
    return {int(dim): right_n for dim, right_n in zip(dims, right_gn, strict=True)}


@functools.lru_cache(maxsize=64)
def _read_table(path: pathlib.Path, modified: int) -> dict[str, Any]:
    del modified
    values = json_files.read(path)
    check_schema(values, path)
    return values


# Files that hold the accuracy of every draw, by the beginning of the metrics' names.
DRAWS = {"ncm_": ("few_shot", "episodes"), "tail_": ("long_tail", "streams")}


@dataclasses.dataclass(frozen=True)
class Artefacts:
    """The files in the evaluation folder of a run, read when asked for; None has no files."""

    folder: pathlib.Path | None

    def _path(self, name: str) -> pathlib.Path | None:
        path = self.folder / name if self.folder else None
        return path if path and path.is_file() else None

    def table(self, name: str) -> dict[str, Any] | None:
        """The content of the JSON file `name`; None without it.

        Raises:
          DataError: the file is damaged or of another schema.
        """
        path = self._path(name)
        return _read_table(path, path.stat().st_mtime_ns) if path else None

    def where(self, name: str) -> str:
        """How to call the file `name` in errors."""
        return str(self.folder / name) if self.folder else name

    def units(self, split: str, metric: str, dim: int) -> Units | None:
        """What the result "{split}/{metric}" is the mean of at `dim`; None where that is not known.

        Raises:
          DataError: a file is damaged.
        """
        for start, (kind, noun) in DRAWS.items():
            if metric.startswith(start):
                return self._draws(f"{split}_{kind}.json", noun, metric, dim)
        path = self._path(EXAMPLES)
        if not path:
            return None
        right_n = _read_right(path, f"{split}/{metric}", path.stat().st_mtime_ns).get(dim)
        return None if right_n is None else Units(right_n, "examples", self._asked(split, metric))

    def _draws(self, name: str, noun: str, metric: str, dim: int) -> Units | None:
        values = self.table(name)
        if values is None:
            return None
        by_dim = field(values, "accuracy", dict, self.where(name)).get(metric)
        if not isinstance(by_dim, dict) or str(dim) not in by_dim:
            return None
        value_n = fractions(by_dim[str(dim)], self.where(name))
        return Units(value_n, noun, field(values, "draws", str, self.where(name)))

    def shift(self, name: str) -> tuple[dict[str, Any], str] | None:
        """What was noted of a shifted test set, and how to call its file; None where nothing was.

        Raises:
          DataError: the file is damaged.
        """
        for file in ("test_robustness.json", "val_robustness.json"):
            values, where = self.table(file), self.where(file)
            if values is not None and name in field(values, "shifts", dict, where):
                return values["shifts"][name], where
        return None

    def _asked(self, split: str, metric: str) -> str:
        """What was asked of which examples, beyond the data set itself: shifts and hierarchies."""
        if self.shift(split):
            about, where = self.shift(split)
            asked = [field(about, "data", str, where), field(about, "classes", list, where)]
            return json.dumps(asked)
        return self.superclasses(split) if metric.startswith("superclass") else ""

    def superclasses(self, split: str) -> str:
        """What the files say about the superclasses of a split, as JSON; "" if there is no file.

        Raises:
          DataError: the file is damaged.
        """
        name = f"{split}_superclass.json"
        values = self.table(name)
        if values is None:
            return ""
        groups = field(values, "superclasses", list, self.where(name))
        keys = (("name", (str, NoneType)), ("classes", int), ("n", int))
        return json.dumps([[field(g, *key, self.where(name)) for key in keys] for g in groups])

    def image(self, name: str) -> bytes | None:
        """The PNG file `name`; None without it.

        Raises:
          DataError: it cannot be read or is no PNG.
        """
        path = self._path(name)
        if not path:
            return None
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        if not content.startswith(PNG):
            raise DataError(f"{path}: not a PNG file")
        return content
