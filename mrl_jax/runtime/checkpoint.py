"""Checkpoints by Orbax, plus what Orbax leaves out. The only importer of Orbax.

Orbax writes asynchronously, commits by rename and restores onto any mesh. It does not notice a
flipped bit in array data, never falls back to an older step, and saves NaNs without complaint.
So every checkpoint carries a checksum of each array (see `checksum`) inside the same commit;
what is restored must reproduce it.
"""

import contextlib
import logging
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from mrl_jax.errors import CheckpointError, NonFiniteError
from mrl_jax.runtime.checksum import describe
from mrl_jax.runtime.mesh import path_name


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


def _everywhere(ok: bool) -> bool:
    # Each process reads its own part of the files: all must agree on what is damaged.
    if jax.process_count() == 1:
        return ok
    return bool(np.all(multihost_utils.process_allgather(np.array(ok))))


class Checkpoints:
    """The checkpoints of one run in `directory`, newest `keep` kept."""

    def __init__(self, directory: pathlib.Path, keep: int, read_only: bool = False):
        self._directory = pathlib.Path(directory).absolute()
        self._read_only = read_only
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
            self._manager = ocp.CheckpointManager(
                self._directory, options=options, item_names=("state", "meta")
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
        meta = {"schema": 1, "step": step, "facts": facts, "arrays": arrays}
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
        """Waits and lets go of the background threads."""
        self.wait()
        self._manager.close()

    def restore(
        self, state: Any, check_facts: Callable[[dict[str, Any]], None] = lambda facts: None
    ) -> tuple[Any, dict[str, Any]] | None:
        """The newest intact checkpoint as (state, facts), or None where there is none at all.

        Args:
          state: abstract state (shapes, dtypes, shardings); sets where arrays are put, which may
            be another mesh than the one they were saved from.
          check_facts: raises where the facts are not those of this run. It comes first: what
            changed with them, such as the size of a vocabulary, then needs no explanation.

        Raises:
          CheckpointError: what `check_facts` raises; the checkpoint belongs to another model (up
            to five differing arrays are named), or every checkpoint is damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            problem = None
            restored, meta = None, self._read_meta(step)
            if meta is None:
                problem = "its description is unreadable"
            else:
                check_facts(meta["facts"])
                wrong = _mismatches(meta["arrays"], state)
                if wrong:
                    more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
                    raise CheckpointError(
                        f"checkpoint {self._directory / str(step)} does not fit the model: "
                        f"{'; '.join(wrong[:5])}{more}"
                    )
                restored, problem = self._read_state(step, state, meta["arrays"])
            if _everywhere(problem is None):
                return restored, meta["facts"]
            del restored
            self._set_aside(step, problem or "damaged on another process")
        if steps:
            raise CheckpointError(
                f"every checkpoint in {self._directory} is damaged "
                f"(steps {', '.join(map(str, steps))}); remove the folder to start over"
            )
        return None

    def _read_meta(self, step: int) -> dict[str, Any] | None:
        try:
            args = ocp.args.Composite(meta=ocp.args.JsonRestore())
            meta = self._manager.restore(step, args=args)["meta"]
            intact = meta["schema"] == 1 and meta["step"] == step
            return meta if intact and {"arrays", "facts"} <= meta.keys() else None
        except Exception:  # whatever is wrong with the files, the step is of no use
            return None

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

    def _set_aside(self, step: int, problem: str) -> None:
        path = self._directory / str(step)
        if jax.process_index() == 0:
            print(f"warning: checkpoint {path} is damaged ({problem}); trying the one before")
            if not self._read_only:
                # Out of Orbax's sight, so that the step can be saved again; kept for inspection.
                target = self._directory.with_name(f"{self._directory.name}.damaged") / str(step)
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
