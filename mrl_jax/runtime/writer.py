"""Metrics on disk: metrics.jsonl, which scripts read, and TensorBoard event files."""

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Iterator, Mapping

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from mrl_jax.errors import CheckpointError


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

    Files are written by the first process only, the others write nothing. Both are written at
    once: tensorboardX's usual writer is a thread that dies of a full disk unheard, and then the
    training waits for it for ever.
    """

    def __init__(self, workdir: pathlib.Path, resumed_step: int, active: bool):
        """`resumed_step` is the step of the restored state, 0 for a fresh run."""
        self._lines = self._events = None
        self._workdir = workdir
        if not active:
            return
        with self._write_errors():
            path = workdir / "metrics.jsonl"
            _truncate(path, resumed_step)
            self._lines = path.open("a")
            folder = workdir / "tensorboard"
            folder.mkdir(exist_ok=True)
            self._events = EventsWriter(str(folder / "events"))
            # TensorBoard hides what earlier files hold from this step on.
            start = SessionLog(status=SessionLog.START)
            self._events.write_event(
                Event(wall_time=time.time(), step=resumed_step + 1, session_log=start)
            )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one record; it is on disk when this returns.

        Raises:
          CheckpointError: it cannot be written, e.g. the disk is full.
        """
        if self._lines is None:
            return
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        with self._write_errors():
            self._lines.write(json.dumps({"step": step, **values}) + "\n")
            self._lines.flush()
            self._events.write_event(
                Event(wall_time=time.time(), step=step, summary=Summary(value=scalars))
            )
            self._events.flush()

    def close(self) -> None:
        """Closes both files."""
        # What could not be written has been reported already.
        with contextlib.suppress(OSError):
            if self._lines is not None:
                self._lines.close()
        with contextlib.suppress(OSError):
            if self._events is not None:
                self._events.close()

    @contextlib.contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"cannot write metrics to {self._workdir}: {error.strerror}"
            ) from error
