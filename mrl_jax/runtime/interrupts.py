"""Ctrl-C in commands that have nothing to save: it ends them whatever code is running."""

import os
import signal
import threading
from types import FrameType
from typing import Any

from mrl_jax.errors import EXIT_INTERRUPTED

# The compiled code of these libraries calls back into Python and does not expect an exception
# there: the exception is lost, or the process crashes.
_NOT_INSIDE = ("numba", "llvmlite")
_LATER_S = 0.05


def end() -> None:
    """From now on Ctrl-C ends the process immediately; for imports, which leave nothing behind."""
    _handle(_end)


def reach() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt, a moment later where it would get lost."""
    _handle(_interrupt)


def again(unraisable: Any) -> bool:
    """Whether Python dropped a KeyboardInterrupt (of `sys.unraisablehook`), now raised again."""
    if unraisable.exc_type is not KeyboardInterrupt:
        return False
    _later()
    return True


def _handle(handler: Any) -> None:
    # A handler that is neither Python's own nor of this module stays as it is.
    if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, _end):
        signal.signal(signal.SIGINT, handler)


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"error: interrupted\n")
    os._exit(EXIT_INTERRUPTED)


def _interrupt(number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] in _NOT_INSIDE:
            _later()
            return
        frame = frame.f_back
    raise KeyboardInterrupt


def _later() -> None:
    timer = threading.Timer(_LATER_S, signal.raise_signal, (signal.SIGINT,))
    timer.daemon = True
    timer.start()
