"""Checkpoints by Orbax, plus what Orbax leaves out. The only importer of Orbax.

Orbax writes asynchronously, commits by rename and restores onto any mesh. It does not notice a
flipped bit in array data, never falls back to an older step, and saves NaNs without complaint.
So every checkpoint carries a checksum of each array (see `checksum`) in the same commit, which the
restored array must reproduce. The description that holds them has a checksum of its own: a
checkpoint whose description is intact but does not fit belongs to another model, and one whose
description is not intact is damaged.
"""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from mrl_jax.errors import CheckpointError, NonFiniteError
from mrl_jax.runtime.checksum import describe
from mrl_jax.runtime.distributed import of_first_process
from mrl_jax.runtime.mesh import path_name

# While a trainer replaces its only checkpoint, a listing may show neither the old nor the new one.
LOOKS, PAUSE_S = 5, 0.2

UseFacts = Callable[[dict[str, Any]], None]

SCHEMA = 2  # 1 had no checksum of the description


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"


def _mismatches(saved: dict[str, Any], state: Any) -> list[str]:
    """How the arrays of a checkpoint differ from those the model needs, by path."""
    needed = {
        path_name(path): (list(leaf.shape), str(leaf.dtype))
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    lines = [f"{name} is missing" for name in needed if name not in saved]
    lines += [f"{name} is not in the model" for name in saved if name not in needed]
    for name in needed.keys() & saved.keys():
        old = (saved[name]["shape"], saved[name]["dtype"])
        if old != needed[name]:
            lines.append(
                f"{name} is {old[1]}{old[0]}, the model has {needed[name][1]}{needed[name][0]}"
            )
    # The optimiser's state repeats the parameters: name those first.
    return sorted(lines, key=lambda line: (not line.startswith("params/"), line))


def _checksum(description: dict[str, Any]) -> str:
    """SHA-256 of all of a description but its own checksum."""
    rest = {name: value for name, value in description.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _intact(description: dict[str, Any], step: int) -> bool:
    schema = description["schema"]
    if schema != 1 and description["checksum"] != _checksum(description):
        return False
    arrays = description["arrays"].values()
    return (
        description["step"] == step
        and isinstance(description["facts"], dict)
        and all({"shape", "dtype", "checksum"} <= array.keys() for array in arrays)
    )


def _everywhere(ok: bool) -> bool:
    # Each process reads its own part of the files: all must agree on what is damaged.
    if jax.process_count() == 1:
        return ok
    return bool(np.all(multihost_utils.process_allgather(np.array(ok))))


def _look(read: Callable[[], Any]) -> Any:
    """Returns `read()`, repeated if a step vanishes while Orbax is looking at it."""
    for _ in range(LOOKS - 1):
        try:
            return read()
        except (FileNotFoundError, NotADirectoryError):
            time.sleep(PAUSE_S)
    return read()


class Checkpoints:
    """The checkpoints of one run in `directory`, newest `keep` kept."""

    def __init__(self, directory: pathlib.Path, keep: int, read_only: bool = False):
        self._directory = pathlib.Path(directory).absolute()
        # Orbax logs pages of tracebacks from its threads for what is raised below as one line.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        options = ocp.CheckpointManagerOptions(
            create=not read_only,
            read_only=read_only,
            cleanup_tmp_directories=not read_only,
            preservation_policy=ocp.checkpoint_managers.LatestN(keep),
        )
        try:
            self._manager = _look(
                lambda: ocp.CheckpointManager(
                    self._directory, options=options, item_names=("state", "meta")
                )
            )
        except Exception as error:
            raise CheckpointError(
                f"cannot open checkpoints in {self._directory}: {_first_line(error)}"
            ) from error

    def steps(self) -> list[int]:
        """Steps on disk that Orbax has committed, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, facts: dict[str, Any]) -> None:
        """Starts writing `state`; returns once it is copied from the devices.

        Args:
          step: optimiser steps done.
          state: pytree of arrays.
          facts: small JSON values the run must find unchanged when it resumes.

        Raises:
          NonFiniteError: a parameter or other array holds NaN or infinity; nothing is written.
          CheckpointError: this or the save before failed, e.g. the disk is full.
        """
        arrays = describe(state)
        bad = [
            f"{name} ({a['non_finite']} values)" for name, a in arrays.items() if a["non_finite"]
        ]
        if bad:
            raise NonFiniteError(f"step {step}: not saving non-finite {', '.join(bad[:5])}")
        meta = {"schema": SCHEMA, "step": step, "facts": facts, "arrays": arrays}
        meta["checksum"] = _checksum(meta)
        with self._write_errors():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
                ),
                force=True,
            )

    def wait(self) -> None:
        """Blocks until what was saved is on disk.

        Raises:
          CheckpointError: it could not be written.
        """
        with self._write_errors():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def close(self) -> None:
        """Waits, and ends the background threads."""
        self.wait()
        self._manager.close()

    def restore(self, state: Any, use_facts: UseFacts) -> tuple[Any, dict[str, Any]] | None:
        """The newest intact checkpoint as (state, facts), or None if there are no checkpoints.

        Newer ones that are damaged are moved out of the way, so that their steps can be saved
        again. If all are damaged they stay: a run never starts over by itself.

        Args:
          state: abstract state (shapes, dtypes, shardings); sets where arrays are put, which may
            be another mesh than the one they were saved from.
          use_facts: raises if the facts are not those of this run. It is called before the arrays
            are read, so that an error names the cause and not its consequences, such as arrays
            of another size after a change of vocabulary.

        Raises:
          CheckpointError: what `use_facts` raises; the checkpoint belongs to another model (up
            to five differing arrays are named), or every checkpoint is damaged.
        """
        step, found, damaged = self._newest_intact(state, use_facts)
        if step is None:
            aside = self._steps_aside()
            if aside:
                raise CheckpointError(
                    f"{self._directory} is empty, and the checkpoints in {self._aside} are damaged "
                    f"(steps {', '.join(aside)}); {self._start_over}"
                )
            return None
        for newer, problem in damaged.items():
            self._set_aside(newer, problem, step)
        return found

    def read(
        self, state: Any, use_facts: UseFacts, step: int | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """The newest checkpoint, or that of `step`, as (state, facts), even while a trainer runs.

        A trainer deletes checkpoints once it has written newer ones, which are then read instead.

        Raises:
          CheckpointError: as for `restore`; or there is no checkpoint, or the one to be read is
            damaged (the message names an older one that is intact).
        """
        if step is not None:
            if step not in self.steps():
                there = ", ".join(map(str, self.steps())) or "none"
                raise CheckpointError(f"{self._directory} holds no step {step} (there: {there})")
            found, problem = self._read(step, state, use_facts)
            if found is None:
                raise CheckpointError(f"checkpoint {self._directory / str(step)}: {problem}")
            return found
        step, found, damaged = self._newest_intact(state, use_facts, looks=LOOKS)
        if step is None:
            raise CheckpointError(f"{self._directory.parent} holds no checkpoint")
        if damaged:
            newest, problem = max(damaged.items())
            raise CheckpointError(
                f"checkpoint {self._directory / str(newest)} is damaged ({problem}); step {step} "
                f"is intact and can be used with --step {step}"
            )
        return found

    def _newest_intact(
        self, state: Any, use_facts: UseFacts, looks: int = 1
    ) -> tuple[int | None, Any, dict[int, str]]:
        """The newest step that can be read, what it holds, and what is wrong with newer ones.

        It takes `looks` listings without another step to conclude that there is none.
        """
        problems: dict[int, str] = {}
        while True:
            # Listed again every time: steps come and go while a trainer runs.
            _look(self._manager.reload)
            steps = self.steps()
            step = of_first_process(max((s for s in steps if s not in problems), default=-1))
            if step < 0:
                looks -= 1
                if not looks:
                    break
                time.sleep(PAUSE_S)
                continue
            found, problem = self._read(step, state, use_facts)
            if found is not None:
                break
            problems[step] = problem
        # All processes must set the same steps aside, whatever each file system shows.
        damaged = {s: p for s, p in problems.items() if s > step and of_first_process(s in steps)}
        if step < 0 and damaged:
            raise CheckpointError(
                f"every checkpoint in {self._directory} is damaged "
                f"(steps {', '.join(map(str, sorted(damaged)))}); {self._start_over}"
            )
        return (step, found, damaged) if step >= 0 else (None, None, {})

    def _read(
        self, step: int, state: Any, use_facts: UseFacts
    ) -> tuple[tuple[Any, dict[str, Any]] | None, str]:
        """(state, facts) of a step, or None and what is wrong with it, on all processes alike."""
        restored, meta, problem = None, self._read_meta(step), None
        if meta is None:
            problem = "its description is unreadable"
        else:
            use_facts(meta["facts"])
            wrong = _mismatches(meta["arrays"], state)
            if wrong:
                more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
                raise CheckpointError(
                    f"checkpoint {self._directory / str(step)} does not fit the model: "
                    f"{'; '.join(wrong[:5])}{more}"
                )
            restored, problem = self._read_state(step, state, meta["arrays"])
        if _everywhere(problem is None):
            return (restored, meta["facts"]), ""
        return None, problem or "damaged on another process"

    def _read_meta(self, step: int) -> dict[str, Any] | None:
        try:
            args = ocp.args.Composite(meta=ocp.args.JsonRestore())
            meta = self._manager.restore(step, args=args)["meta"]
            if not _intact(meta, step):
                return None
        except Exception:  # whatever is wrong with the files, the step cannot be used
            return None
        if meta["schema"] not in (1, SCHEMA):
            raise CheckpointError(
                f"checkpoint {self._directory / str(step)} was written by a newer release "
                f"(schema {meta['schema']}; this one reads up to {SCHEMA})"
            )
        return meta

    def _read_state(self, step: int, state: Any, expected: dict) -> tuple[Any, str | None]:
        try:
            args = ocp.args.Composite(state=ocp.args.StandardRestore(state))
            restored = self._manager.restore(step, args=args)["state"]
        except Exception as error:
            return None, _first_line(error)
        found = describe(restored)
        changed = [
            name for name in expected if found[name]["checksum"] != expected[name]["checksum"]
        ]
        if changed:
            return None, f"checksum of {', '.join(changed[:3])} differs"
        return restored, None

    @property
    def _aside(self) -> pathlib.Path:
        return self._directory.with_name(f"{self._directory.name}.damaged")

    def _steps_aside(self) -> list[str]:
        return sorted((path.name for path in self._aside.glob("[0-9]*")), key=int)

    @property
    def _start_over(self) -> str:
        return f"to start over, remove {self._directory.parent}"

    def _set_aside(self, step: int, problem: str, used: int) -> None:
        path, target = self._directory / str(step), self._aside / str(step)
        if jax.process_index() == 0:
            print(
                f"warning: checkpoint {path} is damaged ({problem}); it is moved to {target}, and "
                f"step {used} is used instead"
            )
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(exist_ok=True)
            os.replace(path, target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"set aside {step}")
        self._manager.reload()

    @contextlib.contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            free = shutil.disk_usage(self._directory).free / 2**20
            raise CheckpointError(
                f"cannot write a checkpoint to {self._directory} ({free:.0f} MiB free): "
                f"{_first_line(error)}"
            ) from error
