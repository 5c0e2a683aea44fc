"""Ends a process that no longer makes progress: its loader hangs, or another process is lost.

A thread watches when the main thread last made progress. A main thread that is blocked inside a
library cannot handle signals either, so this thread also ends a process that was asked to stop and
cannot.
"""

import contextlib
import faulthandler
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

from mrl_jax.errors import EXIT_HUNG, EXIT_PREEMPTED
from mrl_jax.runtime import preemption
from mrl_jax.runtime.phases import Phases

# A step may take this many times as long as the longest step of this process so far.
_TIMES_LONGEST = 20
# Starting, compiling, measuring and saving may take this many times the limit, and so may a step
# that waits for other processes that are still doing so.
_TIMES_SLOW = 60
# A process that waits for others in a step gives them this much longer, so that the one that hangs
# is the one that says so.
_LATER_S = 10
_STOP_S, _STOP_TIMES_LONGEST, _STOP_SLOW_S = 5, 3, 60
_LOSE_NOTHING = ("start", "compile", "data", "step")  # phases that can be cut short, unlike saving

_last_beat = 0.0


def beat() -> None:
    """Reports progress inside a phase: a batch was read. Changes of phase are noticed anyway."""
    global _last_beat
    _last_beat = time.monotonic()


@contextlib.contextmanager
def watching(phases: Phases, minutes: float, wanted: Callable[[], bool]) -> Iterator[None]:
    """If the with-block hangs, ends the process with stack traces and exit code 76.

    Args:
      phases: what the main thread is doing.
      minutes: a process hangs if it finishes no step or batch for so long, and for twenty times its
        longest step so far; in phases in which no step is expected it has sixty times as long.
        0 = no limit.
      wanted: whether the process was asked to stop. It is then ended with code 75 if it finishes no
        step for five seconds plus three times the longest step, or for a minute while it starts,
        compiles or has just done so; saving is never interrupted.
    """
    beat()
    over = threading.Event()
    arguments = (phases, 60 * minutes, wanted, over)
    thread = threading.Thread(target=_watch, args=arguments, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _watch(
    phases: Phases, limit_s: float, wanted: Callable[[], bool], over: threading.Event
) -> None:
    interval_s = min(1.0, limit_s / 4 or 1.0)
    before, seen, idle, waited = time.monotonic(), None, 0.0, 0.0
    while not over.wait(interval_s):
        now = time.monotonic()
        # Time during which the whole process was suspended does not count.
        passed, before = min(now - before, 2 * interval_s), now
        last = max(_last_beat, phases.changed)
        if last != seen:
            seen, idle, waited = last, 0.0, 0.0
        idle += passed
        doing = phases.current or "between two phases"
        allowed = max(limit_s, _TIMES_LONGEST * phases.longest_s)
        if not phases.steady:
            allowed = _TIMES_SLOW * limit_s
        if phases.current != "data":
            allowed += _LATER_S
        if limit_s and idle > allowed:
            _end(f"no progress for {idle:.0f} s (phase: {doing})", EXIT_HUNG)
        if not wanted():
            continue
        waited += passed
        patience = math.inf
        if phases.steady:
            patience = _STOP_S + _STOP_TIMES_LONGEST * phases.longest_s
        elif phases.current in _LOSE_NOTHING:
            patience = _STOP_SLOW_S
        if waited > patience:
            _end(
                f"asked to stop, but made no progress for {waited:.0f} s (phase: {doing}); "
                "the last checkpoint is kept",
                EXIT_PREEMPTED,
            )


def _end(line: str, code: int) -> None:
    # Not with print, as the main thread may hold the lock of the stream.
    os.write(2, f"error: {line}; all threads:\n".encode())
    faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
    preemption.leave(code)
