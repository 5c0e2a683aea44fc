"""Reading finished runs: one run folder, a sweep, or any folder that holds run folders."""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

from mrl_jax import config as config_lib
from mrl_jax.errors import DataError, UsageError, shown
from mrl_jax.record import metrics
from mrl_jax.record.artefacts import Artefacts, check_schema
from mrl_jax.store import json_files
from mrl_jax.store.json_files import field

KINDS = ("separate", "shared", "fixed")
NO_ARTEFACTS = Artefacts(None)


@dataclasses.dataclass(frozen=True)
class Result:
    """One measured number: `metric` of the first `dim` dims on `n` examples of `split`."""

    split: str
    metric: str
    dim: int
    value: float
    stderr: float
    n: int


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished run, as its results.json tells it.

    Attributes:
      folder: unique within a study.
      config: leaves by dotted key.
      data: fingerprint of what was measured; "" in files that are older than it.
      artefacts: what its evaluators left beside results.json.
      skipped: why measures are missing, by name.
      read: known digests of the files that were read in addition to the data, by their role.
      places: paths of these files and of the data, by role.
    """

    folder: str
    name: str
    kind: str
    dims: tuple[int, ...]
    seed: int
    config: dict[str, Any]
    commit: str
    versions: dict[str, str]
    command: str
    device: str
    results: tuple[Result, ...]
    data: str = ""
    artefacts: Artefacts = NO_ARTEFACTS
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    read: dict[str, str] = dataclasses.field(default_factory=dict)
    places: dict[str, str] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def _by_name(self) -> dict[tuple[str, str], list[Result]]:
        by_name = {}
        for result in self.results:
            by_name.setdefault((result.split, result.metric), []).append(result)
        return by_name

    def measured(self, split: str, metric: str) -> list[Result]:
        """The results of this name."""
        return self._by_name.get((split, metric), [])


@dataclasses.dataclass(frozen=True)
class Study:
    """The runs that one report joins, and the folders of those that have not finished."""

    title: str
    runs: tuple[Run, ...]
    unfinished: tuple[str, ...]


def _read_result(values: Any, where: str) -> Result:
    name = field(values, "name", str, where)
    split, slash, metric = name.partition("/")
    if not (split and slash and metric):
        raise DataError(f"{where}: name must be split/metric such as test/top1, got {shown(name)}")
    dim, n = (field(values, key, int, where) for key in ("dim", "n"))
    value, stderr = (field(values, key, (int, float), where) for key in ("value", "stderr"))
    if dim < 1 or n < 1:
        raise DataError(f"{where}: dim and n must be >= 1, got dim={dim}, n={n}")
    low, high = metrics.legal_range(metric)
    if not low <= value <= high:
        legal = "a fraction in [0, 1]" if (low, high) == (0, 1) else f"in [{low}, {high}]"
        raise DataError(f"{where}: {name} must be {legal}, got {value}")
    return Result(split, metric, dim, float(value), float(stderr), n)


# Config keys below `eval` that list further test sets as "NAME=PATH".
_SETS = ("shifts", "sts", "retrieval", "classification", "clustering")


def _places(config: dict[str, Any], results: Sequence[Result]) -> dict[str, str]:
    """Paths of what was measured, by role."""
    measured = {result.split for result in results}
    places = {"data": str(config.get("data.path") or "")}
    if any(result.metric.startswith("superclass") for result in results):
        places["hierarchy"] = str(config.get("eval.hierarchy") or "")
    for kind in _SETS:
        for entry in config.get(f"eval.{kind}") or ():
            name, _, path = str(entry).partition("=")
            if name in measured:
                places[f"{kind}.{name}"] = path
    return places


def _read(
    values: dict[str, Any], artefacts: Artefacts, results: Sequence[Result], where: str
) -> dict[str, str]:
    """Digests of what was read; for older runs, those that evaluators left among their files."""
    read = dict(field(values, "read", dict, where)) if "read" in values else {}
    if not all(isinstance(digest, str) for digest in read.values()):
        raise DataError(f"{where}: field 'read' must hold texts, got {shown(read)}")
    for name in sorted({result.split for result in results}):
        if about := artefacts.shift(name):
            read.setdefault(f"shifts.{name}", field(about[0], "data", str, about[1]))
        if "hierarchy" not in read and (groups := artefacts.superclasses(name)):
            read[f"superclasses.{name}"] = hashlib.sha256(groups.encode()).hexdigest()[:16]
    return read


def read_run(folder: pathlib.Path, name: str) -> Run:
    """The finished run in `folder`, called `name` in the study.

    Raises:
      DataError: results.json is missing, no JSON, of another schema or lacks a field.
    """
    path = folder / "results.json"
    values = json_files.read(path)
    check_schema(values, path)
    where = str(path)
    kind = field(values, "config.head.kind", str, where)
    if kind not in KINDS:
        legal = ", ".join(KINDS)
        raise DataError(f"{path}: config.head.kind must be one of {legal}; got {shown(kind)}")
    dims = field(values, "config.nesting.dims", list, where)
    if not dims or any(type(m) is not int or m < 1 for m in dims) or sorted({*dims}) != dims:
        raise DataError(f"{path}: config.nesting.dims must be increasing integers, got {dims}")
    results, seen = [], set()
    for i, item in enumerate(field(values, "results", list, where)):
        result = _read_result(item, f"{path}: results[{i}]")
        key = (result.split, result.metric, result.dim)
        if key in seen:
            raise DataError(f"{path}: {key[0]}/{key[1]} at dim {key[2]} is listed twice")
        seen.add(key)
        results.append(result)
    versions = field(values, "versions", dict, where)
    # So that runs of different releases are compared by the same keys.
    config = config_lib.flatten(config_lib.with_defaults(values["config"]))
    artefacts = Artefacts(folder / "evaluation")
    return Run(
        folder=name,
        name=field(values, "run", str, where),
        kind=kind,
        dims=tuple(dims),
        seed=field(values, "config.seed", int, where),
        config=config,
        commit=field(values, "commit", str, where),
        versions={key: str(version) for key, version in versions.items()},
        command=field(values, "command", str, where),
        device=field(values, "device", str, where),
        results=tuple(results),
        data=field(values, "data", str, where) if "data" in values else "",
        artefacts=artefacts,
        read=_read(values, artefacts, results, where),
        places=_places(config, results),
        skipped=field(values, "skipped", dict, where) if "skipped" in values else {},
    )


def _finished(folder: pathlib.Path) -> bool:
    return (folder / "DONE").is_file() and (folder / "results.json").is_file()


def is_run(folder: pathlib.Path) -> bool:
    """Whether the folder holds a run, finished or not."""
    return any((folder / name).is_file() for name in ("config.json", "results.json", "DONE"))


def read_sweep(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The runs that a sweep.json lists, by folder.

    Raises:
      DataError: it is damaged, or lists a folder that lies elsewhere.
    """
    values = json_files.read(path)
    check_schema(values, path)
    runs = {}
    for i, entry in enumerate(field(values, "runs", list, str(path))):
        name = field(entry, "dir", str, f"{path}: runs[{i}]")
        relative = pathlib.PurePath(name)
        if not name or relative.is_absolute() or ".." in relative.parts:
            raise DataError(f"{path}: runs[{i}]: dir must lie inside the sweep, got {shown(name)}")
        if name in runs:
            raise DataError(f"{path}: runs[{i}]: dir {shown(name)} is listed twice")
        runs[name] = entry
    if not runs:
        raise DataError(f"{path}: lists no runs")
    return runs


def read_study(root: pathlib.Path) -> Study:
    """The finished runs of `root`: a run folder, a sweep root, or a folder of run folders.

    If `root` holds a sweep.json, exactly the runs that it lists are read.

    Raises:
      UsageError: `root` is not a folder.
      DataError: it holds no finished run, or a file of a run cannot be used; names the file.
    """
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder")
    title = root.resolve().name
    if (root / "sweep.json").exists():
        names = list(read_sweep(root / "sweep.json"))
        missing = f"{root / 'sweep.json'}: none of the {len(names)} runs it lists has finished"
    elif is_run(root):
        if not _finished(root):
            raise DataError(f"{root}: this run has not finished: it lacks results.json or DONE")
        return Study(title, (read_run(root, title),), ())
    else:
        names = sorted(folder.name for folder in root.iterdir() if is_run(folder))
        missing = f"{root}: holds no finished run (a folder with results.json and DONE)"
    done = [name for name in names if _finished(root / name)]
    if not done:
        raise DataError(missing)
    runs = tuple(read_run(root / name, name) for name in done)
    return Study(title, runs, tuple(name for name in names if name not in done))
