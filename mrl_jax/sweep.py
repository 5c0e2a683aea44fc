"""Runs every run of a config's sweep(): `python -m mrl_jax.sweep --config FILE.py --root DIR`.

`sweep()` yields (arg, overrides) pairs: the argument of get_config and a dict of dotted keys,
e.g. ("mrl", {"seed": 1}). All runs are listed and checked before the first starts. Each run is the
training command in a process of its own, in a folder named after what it computes; the same command
does what is left. One failure does not stop the others. --config.key=value on the command line,
e.g. --config.data.path=..., holds for every run, in place of what sweep() sets.
"""

from mrl_jax import cli

if __name__ == "__main__":
    cli.start(preemptible=True)  # before the imports below, which take seconds

import concurrent.futures
import contextlib
import dataclasses
import os
import pathlib
import queue
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from mrl_jax import config as configs
from mrl_jax import experiment
from mrl_jax.config import tasks
from mrl_jax.errors import EXIT_PREEMPTED, DataError, Preempted, UsageError, shown
from mrl_jax.record import folder as workdir
from mrl_jax.record.names import SWEEP
from mrl_jax.record.runs import is_run, read_sweep, write_sweep
from mrl_jax.runtime import preemption
from mrl_jax.runtime.phases import clock
from mrl_jax.runtime.slots import Slot, slots


class RunsFailed(UsageError):
    """Some runs of the sweep ended with an error; the exit code is the first one's."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        # A process that died of signal n reports -n; shells call that 128 + n.
        self.exit_code = code if code > 0 else 128 - code


@dataclasses.dataclass(frozen=True)
class Job:
    """A run that the sweep asks for; `overrides` are those that the command line does not set."""

    arg: str | None
    overrides: dict[str, Any]
    folder: str
    argv: list[str]
    config: ConfigDict

    @property
    def label(self) -> str:
        """The name of the run in progress lines."""
        return " ".join([self.arg or "run", *(f"{k}={v}" for k, v in self.overrides.items())])


def expand(
    config: str, root: pathlib.Path, common: Sequence[str] = (), devices: int | None = None
) -> list[Job]:
    """All runs of the sweep, each checked as far as possible without its data.

    A run that already has a folder in `root` keeps it, even if config keys were added since.

    Args:
      config: file with a sweep() function.
      root: folder of all runs.
      common: "--config.key=value" strings for every run, in place of what sweep() sets.
      devices: how many devices each run will have; None if that is not known.

    Raises:
      UsageError: sweep() is missing or yields something else than (arg, overrides), a run has a
        bad key or value or cannot run, or two runs are the same.
      DataError: a damaged model folder or tokenizer.
    """
    path, given = configs.split_config_arg(config)
    if given is not None:
        raise UsageError(f"--config {config}: a sweep chooses the argument itself; give {path}")
    fixed = configs.given(common)
    there = _configs_in(root)
    runs: dict[str, Job] = {}
    checked: set[str] = set()
    for number, (arg, overrides) in enumerate(configs.sweep_of(path)):
        where = f"run {number} of the sweep ({arg}, {' '.join(f'{overrides}'.split()):.300})"
        with_arg = path if arg is None else f"{path}:{arg}"
        try:
            own = _plain(overrides, configs.task_of(with_arg))
            own = {key: value for key, value in own.items() if key not in fixed}
            flags = [*(f"--config.{key}={_as_text(own[key])}" for key in own), *common]
            resolved = configs.load(with_arg, flags)
            _check(resolved, devices, checked)
        except (UsageError, DataError) as error:
            raise type(error)(f"{where}: {error}") from error
        folder = _folder_of(arg, resolved, own, there, root)
        if folder in runs:
            replaced = [key for key in overrides if key in fixed]
            said = f": --config.{replaced[0]} holds for every run" if replaced else ""
            raise UsageError(f"{where} repeats an earlier one{said}")
        argv = ["--config", with_arg, "--workdir", str(root / folder), *flags]
        runs[folder] = Job(arg, own, folder, argv, resolved)
    if not runs:
        raise UsageError(f"{path}: sweep() yields no run")
    return list(runs.values())


def _plain(overrides: dict[Any, Any], task: str) -> dict[str, Any]:
    """The overrides as plain Python values, with keys and types checked."""
    values = {}
    for key, value in overrides.items():
        configs.check_key(str(key), task)
        values[key] = configs.plain(value)
        configs.check_type(key, tasks.keys(task)[key], values[key], "sweep()")
    return values


def _as_text(value: Any) -> str:
    """A value as text for a command line."""
    text = value if isinstance(value, str) else repr(value)
    if "\0" in text or (isinstance(value, tuple) and {"nan", "inf"} & {*re.findall(r"\w+", text)}):
        raise UsageError(f"{shown(text)} cannot be written on a command line")
    return text


def _check(config: ConfigDict, devices: int | None, checked: set[str]) -> None:
    """Refuses a run that cannot work; runs that differ only in their seed share a model check."""
    experiment.check_config(config, devices)
    values = {k: v for k, v in configs.flatten(config).items() if k not in ("seed", "name")}
    if repr(values) not in checked:
        experiment.check(config, devices)
        checked.add(repr(values))


def _check_paths(root: pathlib.Path, runs: Sequence[Job]) -> None:
    """Refuses the sweep if a run that has not begun would not find a file or folder.

    Raises:
      UsageError, DataError: names the run, the config key and the path.
    """
    for run in runs:
        if not (root / run.folder / workdir.CHECKPOINTS).exists():
            try:
                experiment.check_paths(run.config)
            except (UsageError, DataError) as error:
                raise type(error)(f"{run.label}: {error}") from error


def _configs_in(root: pathlib.Path) -> dict[str, ConfigDict]:
    """The configs of the runs in `root`, by folder name; damaged ones are left out."""
    found = {}
    for file in sorted(root.glob(f"*/{workdir.CONFIG}")):
        with contextlib.suppress(UsageError):
            found[file.parent.name] = workdir.read_config(file.parent)
    return found


def _folder_of(
    arg: str | None,
    config: ConfigDict,
    own: Collection[str],
    there: dict[str, ConfigDict],
    root: pathlib.Path,
) -> str:
    """The folder that the run has or will have, named after what it computes and sweep() sets.

    Operational keys, which change no result, count only if sweep() sets them.
    """
    readable = re.sub(r"[^A-Za-z0-9_=.-]+", "_", arg or "run")
    name = f"{readable}-{configs.digest(config, own)}"
    same = [
        folder
        for folder, config_there in there.items()
        if folder.startswith(f"{readable}-") and not configs.differences(config_there, config, own)
    ]
    if name in there or not same:
        return name
    return max(same, key=lambda folder: workdir.is_done(root / folder))


def _write_index(root: pathlib.Path, config: str, runs: Sequence[Job]) -> None:
    """Writes sweep.json; runs that it listed before stay listed while their folders exist."""
    path = root / SWEEP
    earlier = read_sweep(path) if path.exists() else {}
    entries = {r.folder: {"dir": r.folder, "arg": r.arg, "overrides": r.overrides} for r in runs}
    kept = [e for dir, e in earlier.items() if dir not in entries and is_run(root / dir)]
    write_sweep(path, config, [*kept, *entries.values()])


def _pin(child: subprocess.Popen, cores: Collection[int]) -> None:
    """Binds a process that has just started to these cores.

    Two runs that keep to one core each do 1.2 to 2 times as much as two runs whose threads all
    compete for both cores.
    """
    if cores:
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            os.sched_setaffinity(child.pid, cores)


class Pool:
    """Runs training processes on this machine, as many at a time as there are slots."""

    def __init__(self, root: pathlib.Path, places: Sequence[Slot]):
        self._root, self._jobs = root, len(places)
        self._children: set[subprocess.Popen] = set()
        self._lock = threading.Lock()
        self._stopped = False
        self._environment = self._share_compilations()
        self._slots: queue.SimpleQueue[Slot] = queue.SimpleQueue()
        for slot in places:
            self._slots.put(slot)

    def _share_compilations(self) -> dict[str, str]:
        environment = dict(os.environ)
        # Runs that differ in their seed alone are the same program: compile it once.
        environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(self._root.absolute() / ".cache"))
        environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        environment.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
        return environment

    def run(self, runs: Sequence[Job]) -> dict[str, int]:
        """Runs all of them; returns exit codes by folder. Prints a line as each run ends.

        On a signal, those in progress save their state and no others start.
        """
        codes: dict[str, int] = {}
        begin = time.monotonic()
        preemption.hold(self._stop)
        with concurrent.futures.ThreadPoolExecutor(self._jobs) as pool:
            futures = {pool.submit(self._run_one, run): run for run in runs}
            for future in concurrent.futures.as_completed(futures):
                run = futures[future]
                codes[run.folder] = code = future.result()
                spent = time.monotonic() - begin
                left = spent / len(codes) * (len(runs) - len(codes))
                ends = {0: "done", EXIT_PREEMPTED: "stopped"}
                outcome = ends.get(code, f"FAILED with exit code {code}")
                print(
                    f"[{len(codes):>3}/{len(runs)}] {run.label}: {outcome}  "
                    f"(elapsed {clock(spent)}, ETA {clock(left)})",
                    flush=True,
                )
        return codes

    def _run_one(self, run: Job) -> int:
        slot = self._slots.get()
        try:
            return self._run_in(slot, run)
        finally:
            self._slots.put(slot)

    def _run_in(self, slot: Slot, run: Job) -> int:
        folder = self._root / run.folder
        if not self._is_free(folder, run):
            return EXIT_PREEMPTED
        command = [sys.executable, "-m", "mrl_jax.train", *run.argv]
        # If this process is killed, the run saves its state and ends as well.
        attached = [sys.executable, "-m", "mrl_jax.runtime.attached", *command[2:]]
        with (folder / "log.txt").open("a") as log:
            log.write(f"$ {shlex.join(command)}\n")
            log.flush()
            with self._lock:
                if self._stopped:
                    return EXIT_PREEMPTED
                child = subprocess.Popen(
                    attached,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**self._environment, **slot.variables},
                )
                self._children.add(child)
            if self._stopped:  # `_stop` may have come before the child was among `_children`
                child.send_signal(signal.SIGTERM)
            with child.stdin:
                _pin(child, slot.cores)
                code = child.wait()
            with self._lock:
                self._children.discard(child)
        # SIGTERM ends a child that has not begun to listen for it.
        return EXIT_PREEMPTED if self._stopped and code == -signal.SIGTERM else code

    def _is_free(self, folder: pathlib.Path, run: Job) -> bool:
        """Waits until no other process uses the folder; False if this one is stopped first.

        A run of an earlier sweep that was killed may still be saving its state.
        """
        said = False
        while not self._stopped:
            try:
                with workdir.locked(folder):
                    return True
            except workdir.InUse:
                if not said:
                    print(f"{run.label}: waiting while another process uses {folder}", flush=True)
                said = True
                time.sleep(0.2)
        return False

    def _stop(self) -> None:
        """Passes a signal on: trainings in progress save their state and exit with 75."""
        self._stopped = True
        for child in list(self._children):
            child.send_signal(signal.SIGTERM)


def _say_kept(runs: Sequence[Job], there: dict[str, ConfigDict]) -> None:
    """Names the keys in which finished runs differ from what is now asked for, without effect."""
    changed = {
        key
        for run in runs
        for key, value in configs.flatten(there.get(run.folder, run.config)).items()
        if value != configs.flatten(run.config)[key]
    }
    if changed:
        print(
            f"runs that are done keep their own {', '.join(sorted(changed))}: this does not affect "
            "training (python -m mrl_jax.evaluate measures a run again)",
            flush=True,
        )


def main(argv: Sequence[str]) -> None:
    """Runs the command line; see the module's docstring."""
    parser = cli.ArgumentParser("python -m mrl_jax.sweep", description=__doc__)
    parser.add_argument("--config", required=True, help="config file with a sweep() function")
    parser.add_argument("--root", required=True, type=pathlib.Path, help="folder of all runs")
    parser.add_argument(
        "--jobs", type=int, help="runs at a time (default: one per GPU or TPU chip, else per core)"
    )
    arguments, common = parser.parse_known_args(argv)
    if arguments.jobs is not None and arguments.jobs < 1:
        raise UsageError(f"--jobs must be >= 1, got {arguments.jobs}")
    root = arguments.root
    places = slots(arguments.jobs)
    jax.config.update("jax_platforms", "cpu")  # other devices are for the runs
    runs = expand(arguments.config, root, common, places[0].devices)
    with workdir.locked(root):
        done = [run for run in runs if workdir.is_done(root / run.folder)]
        todo = [run for run in runs if not workdir.is_done(root / run.folder)]
        _check_paths(root, todo)
        _write_index(root, arguments.config, runs)
        print(
            f"{arguments.config}: {len(runs)} runs, {len(done)} done already, "
            f"{len(todo)} to do, {len(places)} at a time",
            flush=True,
        )
        _say_kept(done, _configs_in(root))
        if not todo:
            return
        codes = Pool(root, places).run(todo)
    failed = [run for run in todo if codes[run.folder] not in (0, EXIT_PREEMPTED)]
    for run in failed:
        log = (root / run.folder / "log.txt").read_text(errors="replace").strip().splitlines()
        print(f"{run.label}: {log[-1] if log else 'no output'}", file=sys.stderr)
    if failed:
        raise RunsFailed(
            f"{len(failed)} of {len(runs)} runs failed; logs are {root}/RUN/log.txt; "
            "the same command tries them again",
            codes[failed[0].folder],
        )
    if any(codes.values()):
        raise Preempted("stopped by a signal; the same command continues")


if __name__ == "__main__":
    cli.run(main)
