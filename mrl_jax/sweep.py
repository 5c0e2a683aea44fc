"""Runs every run of a config's sweep(): `python -m mrl_jax.sweep --config FILE.py --root DIR`.

`sweep()` yields (arg, overrides) pairs: the argument of get_config and a dict of dotted keys,
e.g. ("mrl", {"seed": 1}). All runs are expanded and checked before the first starts. Each run is
the training command in a process of its own, in a folder named after what it computes; call the
same command again to do what is left. One failure does not stop the others. --config.key=value on
the command line, e.g. --config.data.path=..., holds for every run.
"""

import concurrent.futures
import contextlib
import dataclasses
import json
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
from collections.abc import Sequence
from typing import Any

from mrl_jax import cli, results, workdir
from mrl_jax import config as configs
from mrl_jax.errors import EXIT_PREEMPTED, Preempted, UsageError
from mrl_jax.runtime.phases import clock

SCHEMA = 1


class RunsFailed(UsageError):
    """Some runs of the sweep ended with an error; the exit code is the first one's."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        # A process that died of signal n reports -n; shells call that 128 + n.
        self.exit_code = code if code > 0 else 128 - code


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep."""

    arg: str | None
    overrides: dict[str, Any]
    folder: str
    argv: list[str]

    @property
    def label(self) -> str:
        """How the run is called in progress lines."""
        return " ".join([self.arg or "run", *(f"{k}={v}" for k, v in self.overrides.items())])


def expand(config: str, root: pathlib.Path, common: Sequence[str] = ()) -> list[Run]:
    """All runs of the sweep, each checked against a locked config.

    Args:
      config: file with a sweep() function.
      root: folder of all runs.
      common: "--config.key=value" strings for every run; what sweep() says goes before them.

    Raises:
      UsageError: sweep() is missing or yields something else than (arg, overrides), a run has a
        bad key or value, or two runs are the same.
    """
    path, given = configs.split_config_arg(config)
    if given is not None:
        raise UsageError(f"--config {config}: a sweep chooses the argument itself; give {path}")
    runs: dict[str, Run] = {}
    for number, entry in enumerate(configs.sweep_of(path)()):
        if not (
            isinstance(entry, tuple)
            and len(entry) == 2
            and isinstance(entry[0], str | None)
            and isinstance(entry[1], dict)
        ):
            raise UsageError(f"{path}: sweep() must yield (arg, overrides) pairs, got {entry!r}")
        arg, overrides = entry
        with_arg = path if arg is None else f"{path}:{arg}"
        own = [f"--config.{key}={_flag_value(value)}" for key, value in overrides.items()]
        flags = [*common, *own]
        try:
            resolved = configs.load(with_arg, flags)
        except UsageError as error:
            raise UsageError(f"run {number} of the sweep ({arg}, {overrides}): {error}") from error
        readable = re.sub(r"[^A-Za-z0-9_=.-]+", "_", arg or "run")
        folder = f"{readable}-{configs.digest(resolved)}"
        if folder in runs:
            raise UsageError(f"run {number} of the sweep ({arg}, {overrides}) repeats another one")
        argv = ["--config", with_arg, "--workdir", str(root / folder), *flags]
        runs[folder] = Run(arg, overrides, folder, argv)
    if not runs:
        raise UsageError(f"{path}: sweep() yields no run")
    return list(runs.values())


def _flag_value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"({','.join(map(repr, value))},)"
    return str(value)


def _write_index(root: pathlib.Path, config: str, runs: Sequence[Run]) -> None:
    entries = [{"dir": r.folder, "arg": r.arg, "overrides": r.overrides} for r in runs]
    index = {"schema": SCHEMA, "config": config, "runs": entries}
    results.write_text(root / "sweep.json", json.dumps(index, indent=1) + "\n")


def shares_of_cores(jobs: int) -> list[set[int]]:
    """A part of this process's cores for each of so many jobs; empty: no part of its own."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return [set(cores[index::jobs]) if len(cores) >= jobs else set() for index in range(jobs)]


def _pin(child: subprocess.Popen, cores: set[int]) -> None:
    """Keeps a process that has just started to these cores.

    Two runs with the threads of one core each get through 1.2 to 2 times as much as two runs whose
    threads all compete for both cores.
    """
    if cores:
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            os.sched_setaffinity(child.pid, cores)


class LocalBackend:
    """Runs training processes on this machine, `jobs` at a time."""

    def __init__(self, root: pathlib.Path, jobs: int):
        self._root, self._jobs = root, jobs
        self._children: set[subprocess.Popen] = set()
        self._lock = threading.Lock()
        self._stopped = False
        self._environment = self._share_compilations()
        self._shares: queue.SimpleQueue[set[int]] = queue.SimpleQueue()
        for share in shares_of_cores(jobs):
            self._shares.put(share)

    def _share_compilations(self) -> dict[str, str]:
        environment = dict(os.environ)
        # Runs that differ in their seed alone are the same program: compile it once.
        environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(self._root.absolute() / ".cache"))
        environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        environment.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
        return environment

    def run(self, runs: Sequence[Run]) -> dict[str, int]:
        """Runs all of them; exit code by folder. Prints a line with the time left per run."""
        codes: dict[str, int] = {}
        begin = time.monotonic()
        previous = signal.signal(signal.SIGTERM, self._on_signal)
        try:
            with concurrent.futures.ThreadPoolExecutor(self._jobs) as pool:
                futures = {pool.submit(self._run_one, run): run for run in runs}
                for future in concurrent.futures.as_completed(futures):
                    run = futures[future]
                    codes[run.folder] = code = future.result()
                    spent = time.monotonic() - begin
                    left = spent / len(codes) * (len(runs) - len(codes))
                    outcome = "done" if code == 0 else f"FAILED with exit code {code}"
                    print(
                        f"[{len(codes):>3}/{len(runs)}] {run.label}: {outcome}  "
                        f"(elapsed {clock(spent)}, ETA {clock(left)})",
                        flush=True,
                    )
        except KeyboardInterrupt:
            self._stop()
            raise
        finally:
            signal.signal(signal.SIGTERM, previous)
        return codes

    def _run_one(self, run: Run) -> int:
        folder = self._root / run.folder
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "mrl_jax.train", *run.argv]
        with (folder / "log.txt").open("a") as log:
            log.write(f"$ {shlex.join(command)}\n")
            log.flush()
            with self._lock:
                if self._stopped:
                    return EXIT_PREEMPTED
                child = subprocess.Popen(
                    command, stdout=log, stderr=subprocess.STDOUT, env=self._environment
                )
                self._children.add(child)
            share = self._shares.get()
            try:
                _pin(child, share)
                return child.wait()
            finally:
                self._shares.put(share)
                with self._lock:
                    self._children.discard(child)

    def _on_signal(self, number, frame):
        del number, frame
        self._stop()

    def _stop(self) -> None:
        """Passes the wish to stop on: running trainings save their state and exit with 75."""
        self._stopped = True
        for child in list(self._children):
            child.send_signal(signal.SIGTERM)


BACKENDS = {"local": LocalBackend}


def main(argv: Sequence[str]) -> None:
    """Runs the command line; see the module's docstring."""
    parser = cli.ArgumentParser("python -m mrl_jax.sweep", description=__doc__)
    parser.add_argument("--config", required=True, help="config file with a sweep() function")
    parser.add_argument("--root", required=True, type=pathlib.Path, help="folder of all runs")
    parser.add_argument("--backend", choices=BACKENDS, default="local", help="where runs run")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time")
    arguments, common = parser.parse_known_args(argv)
    if arguments.jobs < 1:
        raise UsageError(f"--jobs must be >= 1, got {arguments.jobs}")
    root = arguments.root
    runs = expand(arguments.config, root, common)
    with workdir.locked(root):
        _write_index(root, arguments.config, runs)
        todo = [run for run in runs if not workdir.is_done(root / run.folder)]
        print(
            f"{arguments.config}: {len(runs)} runs, {len(runs) - len(todo)} done already, "
            f"{len(todo)} to do, {arguments.jobs} at a time",
            flush=True,
        )
        if not todo:
            return
        codes = BACKENDS[arguments.backend](root, arguments.jobs).run(todo)
    failed = [run for run in todo if codes[run.folder] not in (0, EXIT_PREEMPTED)]
    for run in failed:
        log = (root / run.folder / "log.txt").read_text().strip().splitlines()
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
