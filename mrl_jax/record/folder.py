"""The folder of one run: who may use it, what it holds, whether it is finished."""

import contextlib
import hashlib
import json
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mrl_jax import config as configs
from mrl_jax.errors import DataError, UsageError
from mrl_jax.record import results
from mrl_jax.record.finding import Finding
from mrl_jax.record.names import (
    CHECKPOINTS,
    CONFIG,
    DONE,
    EVALUATION,
    EXAMPLES,
    FACTS,
    METRICS,
    RESULTS,
    TOKENIZER,
)
from mrl_jax.runtime import locks
from mrl_jax.store import json_files
from mrl_jax.store.files import write_text

FACTS_SCHEMA = 1
# What a new run must not replace. DONE alone does not count: it may be left over from a run.
_WRITTEN = (RESULTS, EVALUATION, TOKENIZER, METRICS)


class InUse(UsageError):
    """Another command is using the folder."""


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Creates the folder and keeps other processes of this machine out of it.

    Raises:
      UsageError: the folder cannot be created or written, or its name is not Unicode, as
        checkpoints need it to be.
      InUse: another command is using it.
    """
    if folder.parts and folder.parts[0].endswith(":"):
        raise UsageError(
            f"{folder} looks like a bucket's address: mount the bucket and give the folder"
        )
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise UsageError(f"{str(folder)!a} is not UTF-8: give another folder") from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a")
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}") from error
    with lock:
        if not locks.taken(lock):
            raise InUse(f"{folder} is in use by another run")
        _take_back(folder)
        yield


def read_config(folder: pathlib.Path, name: str = CONFIG) -> ConfigDict:
    """The config of the run in `folder`, with defaults for keys that were added since.

    `name` is that of the file. Keys that this release does not know are left out, see
    `unknown_keys`.

    Raises:
      UsageError: there is no run, or its config is damaged.
    """
    return configs.from_run(_read_config(folder, name), where=str(folder / name))


def unknown_keys(folder: pathlib.Path) -> str:
    """A line that names the keys of a run's config that this release does not know, and what wrote
    them; "" if it knows all. Raises as `read_config`."""
    unknown = configs.unknown_keys(_read_config(folder, CONFIG), where=str(folder / CONFIG))
    if not unknown:
        return ""
    return (
        f"{folder / CONFIG} has keys that this release does not know ({', '.join(unknown)}): "
        f"written by {_writer(folder)}"
    )


def _writer(folder: pathlib.Path) -> str:
    """The release that wrote a run, as far as its files say."""
    for name in (FACTS, RESULTS):
        with contextlib.suppress(DataError, KeyError, TypeError):
            content = json_files.read(folder / name)
            release = f"mrl_jax {content['release']}, " if "release" in content else ""
            return f"{release}commit {content['commit']}"
    return "an unknown release"


def _read_config(folder: pathlib.Path, name: str) -> dict[str, Any]:
    path = folder / name
    try:
        values = json_files.read_object(path)
    except json_files.MissingError:
        raise UsageError(f"{folder} holds no run ({name} is missing)") from None
    except DataError as error:
        raise UsageError(str(error)) from error
    return values


def check_same_run(folder: pathlib.Path, config: ConfigDict) -> None:
    """Refuses a folder that holds another run than `config` describes.

    Keys that only say how a run is carried out (mesh, logging, checkpoints) may differ.

    Raises:
      UsageError: names up to three keys that differ, or a file that the run would replace and
        that no run wrote.
    """
    if (folder / CONFIG).exists():
        old = read_config(folder)
        if unknown := unknown_keys(folder):
            raise UsageError(f"{unknown}; train on with that release, or use another --workdir")
    elif is_done(folder):
        old = configs.from_run(read_results(folder)["config"], where=str(folder / RESULTS))
    elif _is_run(folder):
        return  # the config is compared with the checkpoint's facts when it is read
    else:
        others = [name for name in _WRITTEN if (folder / name).exists()]
        if others:
            raise UsageError(
                f"{folder} holds {others[0]} but no run: give another folder as --workdir"
            )
        return
    changed = configs.differences(old, config)
    if changed:
        raise UsageError(
            f"{folder} holds another run ({'; '.join(changed[:3])}): "
            "use another --workdir or remove this one"
        )


def _is_run(folder: pathlib.Path) -> bool:
    """Whether a run has begun here; the folder of checkpoints is the first thing it makes."""
    return (folder / CONFIG).exists() or (folder / CHECKPOINTS).exists()


def record_config(folder: pathlib.Path, config: ConfigDict) -> None:
    """Writes config.json, which makes the folder this run's own."""
    write_text(folder / CONFIG, configs.to_json(config) + "\n")


def record_facts(
    folder: pathlib.Path, facts: dict[str, Any], data: str | None, kept: dict[str, str]
) -> None:
    """Writes facts.json and the files that are kept beside it, which every command reads from now
    on; does nothing if they are there already.

    Args:
      folder: of the run.
      facts: of the run.
      data: fingerprint of what it trains on.
      kept: content of further files by name.
    """
    if (folder / FACTS).exists():
        return
    for name, content in kept.items():
        write_text(folder / name, content)
    write_text(folder / FACTS, facts_text(facts, data, kept))


def facts_text(facts: dict[str, Any], data: str | None, kept: Mapping[str, str]) -> str:
    """The content of facts.json; arguments as of `record_facts`."""
    begun = {"data": data, "facts": facts}
    begun["kept"] = {name: _digest(content.encode()) for name, content in kept.items()}
    written_by = {"release": results.release(), "commit": results.commit()}
    content = {"schema": FACTS_SCHEMA, **written_by, **begun, "digest": digest_of(begun)}
    return json.dumps(content, indent=1) + "\n"


def digest_of(facts: dict[str, Any]) -> str:
    """Sixteen hex digits over values that JSON holds."""
    return _digest(json.dumps(facts, sort_keys=True).encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def read_facts(folder: pathlib.Path) -> dict[str, Any] | None:
    """What `record_facts` wrote as facts; None if the run has none yet, or is of an older release.

    Raises:
      DataError: the file is damaged, or one that is kept beside it is missing or another one.
    """
    return _read_begun(folder).get("facts")


def trained_on(folder: pathlib.Path) -> str | None:
    """The fingerprint of what a run trains on; None and errors as of `read_facts`."""
    return _read_begun(folder).get("data")


def _read_begun(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / FACTS
    try:
        content = json_files.read(path)
    except json_files.MissingError:
        return {}
    json_files.check_schema(content, (FACTS_SCHEMA,), str(path))
    kinds = {"data": (str, type(None)), "facts": dict, "kept": dict}
    begun = {name: json_files.field(content, name, kinds[name], str(path)) for name in kinds}
    # Other names of classes or another length of texts would fit the weights just as well.
    if content.get("digest") != digest_of(begun):
        raise DataError(f"{path} is damaged: it does not have the digest that it names")
    for name, digest in begun["kept"].items():
        file = folder / name
        if not file.is_file() or _digest(file.read_bytes()) != digest:
            raise DataError(f"{file} is missing or not what the run began with")
    return begun


def record_finding(
    folder: pathlib.Path,
    finding: Finding,
    *,
    config: ConfigDict,
    command: str,
    step: int,
    data: str,
) -> None:
    """Writes results.json and, beside it, the folder `evaluation`, in place of earlier ones.

    The folder holds the files of the finding and examples.npz: for every name of a result whether
    each example was right, [G, N] bool, and under NAME/dims the G prefixes. Both are whole before
    either is moved into place; if the process is killed between the two moves, `locked` undoes the
    first. `data` is the fingerprint of the data set that was measured.
    """
    import jax  # here, because readers of a run need not wait for it

    from mrl_jax.runtime import numerics

    _take_back(folder)
    place, part, old, new_results = _places(folder)
    part.mkdir()
    arrays = {}
    for name, (dims, right_gn) in finding.examples.items():
        arrays[name], arrays[f"{name}/dims"] = right_gn, np.array(dims, np.int32)
    np.savez_compressed(part / EXAMPLES, **arrays)
    for name, content in finding.files.items():
        (part / name).write_bytes(content)
    content = {
        "schema": results.SCHEMA,
        "run": config.name,
        "config": config.to_dict(),
        "commit": results.commit(),
        "versions": results.versions(),
        "command": command,
        "step": step,
        "data": data,
        "read": finding.read,
        "prompts": finding.prompts,
        "environment": numerics.environment(),
        "settings": numerics.settings(),
        "device": f"{jax.devices()[0].device_kind} x{jax.device_count()}",
        "results": [result._asdict() for result in finding.results],
        "metrics": {name: row._asdict() for name, row in finding.rows.items()},
        "skipped": finding.skipped,
    }
    write_text(new_results, json.dumps(content, indent=1) + "\n")
    place.mkdir(exist_ok=True)
    place.rename(old)
    part.rename(place)
    new_results.replace(folder / RESULTS)
    shutil.rmtree(old)


def _places(folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
    """Paths of the evaluation, of its next version, of its previous one, and of new results."""
    # With a dot: "evaluation.old" may be a copy that a user keeps.
    names = (EVALUATION, f".{EVALUATION}.new", f".{EVALUATION}.old", f".{RESULTS}.new")
    return tuple(folder / name for name in names)


def _take_back(folder: pathlib.Path) -> None:
    """Undoes a `record_finding` that was interrupted, and touches nothing else."""
    place, part, old, new_results = _places(folder)
    if not (_is_run(folder) or new_results.exists() or (folder / RESULTS).exists()):
        return
    if old.exists() and new_results.exists():
        shutil.rmtree(place, ignore_errors=True)
        old.rename(place)
    new_results.unlink(missing_ok=True)
    for rest in (part, old):
        shutil.rmtree(rest, ignore_errors=True)


def read_results(folder: pathlib.Path) -> dict[str, Any] | None:
    """The content of results.json; None if it is missing or damaged."""
    try:
        content = json_files.read(folder / RESULTS)
        json_files.field(content, "config", dict, RESULTS)
        json_files.field(content, "results", list, RESULTS)
    except DataError:
        return None
    return content


def is_done(folder: pathlib.Path) -> bool:
    """Whether the run in `folder` went through to its results."""
    return (folder / DONE).exists() and read_results(folder) is not None
