"""Metrics on disk: metrics.jsonl, which scripts read, and TensorBoard event files."""

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from mrl_jax.errors import CheckpointError, DataError
from mrl_jax.store import json_files

TRAINING = ("train/", "time/")  # prefixes of the numbers that training itself writes


def _record(line: bytes) -> dict[str, Any] | None:
    """The record in a line, or None if the line is not a record."""
    try:
        record = json_files.parse(line, "a line", strict=False)  # a loss may have been NaN
    except DataError:
        return None
    whole = isinstance(record, dict) and type(record.get("step")) is int
    return record if whole else None


def _measures(record: dict[str, Any]) -> bool:
    return any(name != "step" and not name.startswith(TRAINING) for name in record)


def _resume(path: pathlib.Path, done: int, *, measured_anew: bool) -> bool:
    """Keeps the records of the first `done` steps; returns whether the last has a measurement.

    Lines that are not records (torn by a crash, or written by something else) are moved to a file
    beside it, with a warning.

    Args:
      path: of the file.
      done: steps that the restored state has seen.
      measured_anew: the measurement after these steps will be repeated, so its record is dropped.
    """
    if not path.exists():
        return False
    kept, foreign, measured = [], [], False
    for line in path.read_bytes().split(b"\n"):
        record = _record(line)
        if record is None:
            foreign += [line] if line.strip() else []
        elif record["step"] < done or (record["step"] == done and not _measures(record)):
            kept.append(line)
        elif record["step"] == done and not measured_anew:
            # Older releases, killed at the wrong moment, measured the same step twice.
            kept += [] if measured else [line]
            measured = True
    if foreign:
        aside = path.with_suffix(".damaged")
        with aside.open("ab") as file:
            file.writelines(line + b"\n" for line in foreign)
        lines = "line that is not a record" if len(foreign) == 1 else "lines that are not records"
        print(f"warning: {path} holds {len(foreign)} {lines}, moved to {aside}")
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(b"".join(line + b"\n" for line in kept))
    os.replace(temporary, path)
    return measured


class MetricWriter:
    """Writes records of named scalars by step; both files continue where the run resumes.

    Only the first process writes. Both files are written at once: tensorboardX's usual writer is a
    thread that dies silently of a full disk, and then the training waits for it for ever.

    Attributes:
      measured: whether the step that the run resumes from has a measurement already; known to
        the first process only.
    """

    def __init__(
        self, path: pathlib.Path, resumed_step: int, *, active: bool, measured_anew: bool = False
    ):
        """Opens the files: metrics.jsonl at `path`, and the folder tensorboard beside it.

        Args:
          path: of metrics.jsonl.
          resumed_step: of the restored state, 0 for a fresh run.
          active: this is the first process.
          measured_anew: the measurement after `resumed_step` will be repeated.
        """
        self.measured = False
        self._lines = self._events = None
        self._folder = path.parent
        if not active:
            return
        with self._write_errors():
            self.measured = _resume(path, resumed_step, measured_anew=measured_anew)
            self._lines = path.open("a")
            folder = path.parent / "tensorboard"
            folder.mkdir(exist_ok=True)
            self._events = EventsWriter(str(folder / "events"))
            # TensorBoard hides what earlier files hold from this step on.
            start = SessionLog(status=SessionLog.START)
            self._events.write_event(
                Event(wall_time=time.time(), step=resumed_step + 1, session_log=start)
            )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one record, if there are any numbers; it is on disk when this returns.

        Raises:
          CheckpointError: it cannot be written, e.g. the disk is full.
        """
        if self._lines is None or not values:
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
        for file in (self._lines, self._events):
            if file is not None:
                with contextlib.suppress(OSError):  # reported already
                    file.close()

    @contextlib.contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"cannot write metrics to {self._folder}: {error.strerror}"
            ) from error
