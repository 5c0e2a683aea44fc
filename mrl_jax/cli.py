"""What every command shares: one-line errors, the documented exit codes, clean log lines."""

import argparse
import errno
import os
import pathlib
import re
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from mrl_jax import errors


def _path(text: str) -> pathlib.Path:
    if not text:
        raise argparse.ArgumentTypeError("the path is empty (is a variable of the shell unset?)")
    return pathlib.Path(text)


def _with_home(word: str) -> str:
    """A word of a command line with a home folder for every "~" or "~user" that begins a path.

    Shells do so at the start of a word only: to them --out=~/x begins with "--out".
    """
    return re.sub(r"(?:^|(?<=[=,]))~[\w.-]*(?=/|$)", lambda home: os.path.expanduser(home[0]), word)


LONGEST = 2000  # letters of an error: what is quoted may be a file


class ArgumentParser(argparse.ArgumentParser):
    """argparse whose errors are one `UsageError` line instead of a usage page.

    In all arguments "~" is the home folder; those of `type=pathlib.Path` are never empty.
    """

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.register("type", pathlib.Path, _path)

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As of argparse, with the home folder for "~"."""
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args([_with_home(word) for word in words], namespace)

    def error(self, message: str) -> NoReturn:
        """Raises `UsageError`; `--help` is where the usage page belongs."""
        raise errors.UsageError(f"{message} (see {self.prog} --help)")


def _drop_orbax_echoes(unraisable) -> None:
    # When a read or write fails, Orbax closes its event loop under the others in flight, which
    # then complain. The failure itself reaches the user as one line.
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def run(main: Callable[[Sequence[str]], None]) -> NoReturn:
    """Calls `main(argv)` and exits with the code of the error it raised, or 0.

    Errors of `mrl_jax.errors` become one line on stderr. MRL_JAX_TRACEBACK=1 shows the traceback
    as well, for those who debug the stack itself.
    """
    sys.unraisablehook = _drop_orbax_echoes
    if sys.stdout is not None:
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be Unicode
    try:
        main(sys.argv[1:])
    except errors.USER_ERRORS as error:
        if os.environ.get("MRL_JAX_TRACEBACK") == "1":
            raise
        # The exit code stands. A SIGTERM that comes while Python shuts down must not change it:
        # launchers send one to all processes as soon as the first has ended.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        line = errors.cut(str(error), LONGEST)
        print(f"error: {line}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            raise
        where = error.filename or "a file"
        print(f"error: cannot write {where}: {error.strerror}", file=sys.stderr, flush=True)
        sys.exit(errors.EXIT_CHECKPOINT)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr, flush=True)
        sys.exit(130)
    sys.exit(errors.EXIT_DONE)
