"""Reading finished runs: one run folder, a sweep, or any folder that holds run folders."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any

from mrl_jax import config as config_lib
from mrl_jax.errors import DataError, UsageError, shown
from mrl_jax.record import metrics, schema1
from mrl_jax.record.artefacts import Artefacts
from mrl_jax.record.metrics import Metric
from mrl_jax.record.names import CONFIG, DONE, EVALUATION, RESULTS, SWEEP
from mrl_jax.record.results import SCHEMA, Result
from mrl_jax.store import json_files
from mrl_jax.store.files import write_text
from mrl_jax.store.json_files import field

SWEEP_SCHEMA = 1
KINDS = ("separate", "shared", "fixed")
NO_ARTEFACTS = Artefacts(None)


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished run, as its results.json tells it.

    Attributes:
      folder: unique within a study.
      config: leaves by dotted key.
      data: fingerprint of what was measured; "" in files that are older than it.
      artefacts: what its evaluators left beside results.json.
      skipped: why measures are missing, by name.
      rows: what metrics are that `metrics` has no row for, by name.
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
    rows: dict[str, Metric] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Study:
    """The runs that one report joins, and the folders of those that have not finished."""

    title: str
    runs: tuple[Run, ...]
    unfinished: tuple[str, ...]


def _read_result(values: Any, rows: Mapping[str, Metric], where: str) -> Result:
    kinds = {"layer": (int, NoneType), "dim": int, "n": int}
    kinds |= dict.fromkeys(("set", "split", "metric", "space"), str)
    kinds |= dict.fromkeys(("value", "stderr"), (int, float))
    found = Result(**{key: field(values, key, kinds[key], where) for key in Result._fields})
    if not (found.metric and found.series.place) or found.space not in metrics.SPACES:
        raise DataError(
            f"{where}: a result has a metric, a set or split, and a space of "
            f"{', '.join(metrics.SPACES)}; got {shown(found.series._asdict())}"
        )
    if found.dim < 1 or found.n < 1:
        raise DataError(f"{where}: dim and n must be >= 1, got dim={found.dim}, n={found.n}")
    row = metrics.describe(found.metric, rows)
    if not row.allows(found.value):
        raise DataError(f"{where}: {found.name} must be {row.legal}, got {found.value}")
    return found._replace(value=float(found.value), stderr=float(found.stderr))


def _places(config: dict[str, Any], results: Sequence[Result]) -> dict[str, str]:
    """Paths of what was measured, by role."""
    measured = {result.set for result in results}
    places = {"data": str(config.get("data.path") or "")}
    if any(metrics.describe(result.metric).family == "superclass" for result in results):
        places["hierarchy"] = str(config.get("eval.hierarchy") or "")
    for key, entries in config.items():
        # All keys that list further sets do so as "NAME=PATH".
        if not key.startswith("eval.") or not isinstance(entries, (list, tuple)):
            continue
        for entry in entries:
            name, equals, path = str(entry).partition("=")
            if equals and name in measured:
                places[f"{key.removeprefix('eval.')}.{name}"] = path
    return places


def _texts(values: dict[str, Any], key: str, where: str) -> dict[str, str]:
    texts = field(values, key, dict, where)
    if not all(isinstance(text, str) for text in texts.values()):
        raise DataError(f"{where}: field {shown(key)} must hold texts, got {shown(texts)}")
    return texts


def read_run(folder: pathlib.Path, name: str) -> Run:
    """The finished run in `folder`, called `name` in the study.

    Raises:
      DataError: results.json is missing, no JSON, of another schema or lacks a field.
    """
    path, artefacts = folder / RESULTS, Artefacts(folder / EVALUATION)
    where, values = str(path), json_files.read(path)
    if json_files.check_schema(values, (SCHEMA, schema1.SCHEMA), where) == schema1.SCHEMA:
        values = schema1.upgraded(values, artefacts, where)
    kind = field(values, "config.head.kind", str, where)
    if kind not in KINDS:
        legal = ", ".join(KINDS)
        raise DataError(f"{path}: config.head.kind must be one of {legal}; got {shown(kind)}")
    dims = field(values, "config.nesting.dims", list, where)
    if not dims or any(type(m) is not int or m < 1 for m in dims) or sorted({*dims}) != dims:
        raise DataError(f"{path}: config.nesting.dims must be increasing integers, got {dims}")
    rows = metrics.read_rows(field(values, "metrics", dict, where), where)
    results, seen = [], set()
    for i, item in enumerate(field(values, "results", list, where)):
        result = _read_result(item, rows, f"{path}: results[{i}]")
        key = (result.series, result.dim)
        if key in seen:
            raise DataError(f"{path}: {result.name} at dim {result.dim} is listed twice")
        seen.add(key)
        results.append(result)
    versions = field(values, "versions", dict, where)
    # So that runs of different releases are compared by the same keys.
    config = config_lib.flatten(config_lib.with_defaults(values["config"]))
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
        data=field(values, "data", str, where),
        artefacts=artefacts,
        read=_texts(values, "read", where),
        places=_places(config, results),
        skipped=field(values, "skipped", dict, where),
        rows=rows,
    )


def _finished(folder: pathlib.Path) -> bool:
    return (folder / DONE).is_file() and (folder / RESULTS).is_file()


def is_run(folder: pathlib.Path) -> bool:
    """Whether the folder holds a run, finished or not."""
    return any((folder / name).is_file() for name in (CONFIG, RESULTS, DONE))


def read_sweep(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The runs that a sweep.json lists, by folder.

    Raises:
      DataError: it is damaged, or lists a folder that lies elsewhere.
    """
    values = json_files.read(path)
    json_files.check_schema(values, (SWEEP_SCHEMA,), str(path))
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


def write_sweep(path: pathlib.Path, config: str, runs: Sequence[dict[str, Any]]) -> None:
    """Writes the sweep.json of runs of a config file; `dir` of a run is its folder."""
    values = {"schema": SWEEP_SCHEMA, "config": config, "runs": runs}
    write_text(path, json.dumps(values, indent=1) + "\n")


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
    if (root / SWEEP).exists():
        names = list(read_sweep(root / SWEEP))
        missing = f"{root / SWEEP}: none of the {len(names)} runs it lists has finished"
    elif is_run(root):
        if not _finished(root):
            raise DataError(f"{root}: this run has not finished: it lacks {RESULTS} or {DONE}")
        return Study(title, (read_run(root, title),), ())
    else:
        names = sorted(folder.name for folder in root.iterdir() if is_run(folder))
        missing = f"{root}: holds no finished run (a folder with {RESULTS} and {DONE})"
    done = [name for name in names if _finished(root / name)]
    if not done:
        raise DataError(missing)
    runs = tuple(read_run(root / name, name) for name in done)
    return Study(title, runs, tuple(name for name in names if name not in done))
