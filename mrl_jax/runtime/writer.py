"""Metrics on disk: metrics.jsonl, which scripts read, and TensorBoard event files."""

import json
import os
import pathlib
from collections.abc import Mapping

import tensorboardX


def _truncate(path: pathlib.Path, last_step: int) -> None:
    """Drops records after `last_step`, and a last line that was cut off by a crash."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            step = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            break
        if step <= last_step:
            kept.append(line + "\n")
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    os.replace(temporary, path)


class MetricWriter:
    """Writes records of named scalars by step; both files continue where the run resumes.

    Files are written by the first process only, the others write nothing.
    """

    def __init__(self, workdir: pathlib.Path, resumed_step: int, active: bool):
        """`resumed_step` is the step of the restored state, 0 for a fresh run."""
        self._lines = self._events = None
        if not active:
            return
        path = workdir / "metrics.jsonl"
        _truncate(path, resumed_step)
        self._lines = path.open("a")
        # TensorBoard hides what an earlier attempt wrote from purge_step on.
        self._events = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"), purge_step=resumed_step + 1, write_to_disk=True
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one record; it is on disk when this returns."""
        if self._lines is None:
            return
        self._lines.write(json.dumps({"step": step, **values}) + "\n")
        self._lines.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes and closes both files."""
        if self._lines is not None:
            self._lines.close()
            self._events.close()
