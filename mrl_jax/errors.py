"""The ways a command can fail, each with the exit code a scheduler acts on.

Every error a user can cause is one of these; a command prints it as one line and exits with its
code (see `cli.run`). Anything else is a bug and keeps its traceback.
"""

import reprlib
from collections.abc import Iterable

EXIT_DONE = 0
EXIT_USAGE = 2
EXIT_DATA = 3
EXIT_CHECKPOINT = 4
EXIT_NON_FINITE = 5
EXIT_HUNG = 76  # no more progress, see `runtime.watchdog`
EXIT_PREEMPTED = 75  # EX_TEMPFAIL: the state is saved, start the same command again
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as in shells


class UsageError(ValueError):
    """A command line or config that cannot be run as written."""

    exit_code = EXIT_USAGE


class DataError(Exception):
    """Data that is missing, unreadable or not what it says it is."""

    exit_code = EXIT_DATA


class CheckpointError(Exception):
    """A checkpoint that cannot be written, read, trusted or fitted to the model."""

    exit_code = EXIT_CHECKPOINT


class NonFiniteError(Exception):
    """A loss, gradient or parameter that is NaN or infinite."""

    exit_code = EXIT_NON_FINITE


class Preempted(Exception):
    """The process was asked to stop; its state is saved and the run can be started again."""

    exit_code = EXIT_PREEMPTED


_MOST = 10
_LONGEST = 60
_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = _LONGEST


def shown(value: object) -> str:
    """A user's value as an error message quotes it: its `repr`, shortened if it is long."""
    return _SHOWN.repr(value)


def cut(text: str, longest: int) -> str:
    """A text on one line; if it has more than `longest` characters, its beginning and "..."."""
    text = " ".join(text.split())
    return text if len(text) <= longest else text[: longest - 3] + "..."


def listed(values: Iterable[object]) -> str:
    """Names as an error message lists them: the first ten, each shortened if it is long."""
    values = list(values)
    names = [cut(str(value), _LONGEST) for value in values[:_MOST]]
    more = len(values) - _MOST
    return ", ".join(names) + (f" and {more:,} more" if more > 0 else "")


def check_choice(what: str, value: object, legal: Iterable[str]) -> None:
    """Refuses what is not one of the legal values.

    Raises:
      ValueError: lists them.
    """
    legal = tuple(legal)
    if value not in legal:
        raise ValueError(f"{what} must be one of {', '.join(legal)}; got {shown(value)}")


USER_ERRORS = (UsageError, DataError, CheckpointError, NonFiniteError, Preempted)
