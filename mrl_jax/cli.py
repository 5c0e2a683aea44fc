"""What every command shares: one-line errors, the documented exit codes, clean log lines."""

import argparse
import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from mrl_jax import errors


class ArgumentParser(argparse.ArgumentParser):
    """argparse whose errors are one `UsageError` line instead of a usage page."""

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
    try:
        main(sys.argv[1:])
    except errors.USER_ERRORS as error:
        if os.environ.get("MRL_JAX_TRACEBACK") == "1":
            raise
        # The exit code stands. A SIGTERM that comes while Python shuts down must not change it:
        # launchers send one to all processes as soon as the first has ended.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        line = " ".join(str(error).split())
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
