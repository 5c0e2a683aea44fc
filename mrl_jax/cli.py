"""What every command shares: one-line errors, the documented exit codes, clean log lines."""

import argparse
import contextlib
import errno
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from mrl_jax import errors
from mrl_jax.runtime import interrupts, preemption, streams


def _path(text: str) -> pathlib.Path:
    if not text:
        raise argparse.ArgumentTypeError("the path is empty (is a shell variable unset?)")
    return pathlib.Path(text)


def _with_home(word: str) -> str:
    """A command-line word with the home folder in place of each "~" or "~user" that begins a path.

    Shells expand these only at the start of a word, and not in --out=~/x.
    """
    return re.sub(r"(?:^|(?<=[=,]))~[\w.-]*(?=/|$)", lambda home: os.path.expanduser(home[0]), word)


LONGEST = 2000  # characters of an error message, which may quote a whole file


class ArgumentParser(argparse.ArgumentParser):
    """argparse whose errors are one `UsageError` line instead of a usage page.

    "~" stands for the home folder in every argument; those of `type=pathlib.Path` are never empty.
    """

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.register("type", pathlib.Path, _path)

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As in argparse, with the home folder in place of "~"."""
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args([_with_home(word) for word in words], namespace)

    def error(self, message: str) -> NoReturn:
        """Raises `UsageError`; `--help` is where the usage page belongs."""
        raise errors.UsageError(f"{message} (see {self.prog} --help)")


def _check_jax() -> None:
    """Refuses an environment in which JAX cannot be imported.

    Raises:
      UsageError: with JAX's own reason, such as a variable that it does not understand.
    """
    try:
        import jax  # noqa: F401
    except (ValueError, RuntimeError) as error:  # a bad variable; a jaxlib that does not fit
        raise errors.UsageError(f"JAX cannot be started: {error}") from error


def start(preemptible: bool = False, uses_jax: bool = True) -> None:
    """Makes this process ready to run a command; call it before the imports that take seconds.

    Args:
      preemptible: the command continues when it is called again, so a signal ends it with exit
        code 75, see `preemption`. Its results are files; what it prints is only a log.
      uses_jax: the command needs JAX, which takes long to import.
    """
    streams.keep(log=preemptible)
    if preemptible:
        preemption.listen()
    else:
        interrupts.end()
    sys.excepthook = _uncaught
    if uses_jax:
        with _errors_as_one_line():
            _check_jax()


def _uncaught(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Handles what ends the imports of a command, such as a missing library."""
    try:
        with _errors_as_one_line():
            raise error
    except SystemExit:
        raise
    except BaseException:
        sys.__excepthook__(kind, error, trace)


def _unraisable(unraisable) -> None:
    # When a read or write fails, Orbax closes its event loop under the others in flight, which
    # then complain. The failure itself reaches the user as one line.
    if not interrupts.again(unraisable) and str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _end(line: str, code: int) -> NoReturn:
    print(f"error: {errors.cut(line, LONGEST)}", file=sys.stderr, flush=True)
    preemption.fail(code)
    sys.exit(code)


@contextlib.contextmanager
def _errors_as_one_line() -> Iterator[None]:
    try:
        yield
    except errors.USER_ERRORS as error:
        if os.environ.get("MRL_JAX_TRACEBACK") == "1":
            raise
        _end(str(error), error.exit_code)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            where = error.filename or "a file"
            _end(f"cannot write {where}: {error.strerror}", errors.EXIT_CHECKPOINT)
        of_path = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP)
        if error.filename is None or error.errno not in of_path:
            raise
        _end(f"{error.filename}: {error.strerror}", errors.EXIT_DATA)
    except (RuntimeError, AssertionError):
        # What JAX raises when it has no device depends on the call that first needs one.
        reason = _no_device()
        if reason is None:
            raise
        _end(reason, errors.EXIT_USAGE)
    except KeyboardInterrupt:
        _end("interrupted", errors.EXIT_INTERRUPTED)


def _no_device() -> str | None:
    """Why JAX has no device to compute on; None if it has one."""
    if "jax" not in sys.modules:
        return None
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        platforms = os.environ.get("JAX_PLATFORMS")
        where = f"for JAX_PLATFORMS={platforms}" if platforms else "to compute on"
        return f"JAX finds no device {where}: {str(error) or 'no plugin'}"
    return None


def run(main: Callable[[Sequence[str]], None]) -> NoReturn:
    """Calls `main(argv)` and exits with the code of the error it raised, or 0.

    Errors of `mrl_jax.errors` become one line on stderr. MRL_JAX_TRACEBACK=1 shows the traceback
    as well, for those who debug the stack itself.
    """
    sys.unraisablehook = _unraisable
    interrupts.reach()
    if sys.stdout is not None:
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be Unicode
    with _errors_as_one_line():
        try:
            main(sys.argv[1:])
        finally:
            preemption.ignore()
    sys.exit(errors.EXIT_DONE)
