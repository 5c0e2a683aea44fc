"""Ends a process in which nothing gets done any more: a loader that waits for ever, a lost peer.

A thread looks at what the main thread did last. A main thread that waits inside a library is deaf
to signals as well, so that this thread also ends a process that was asked to stop and cannot.
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
from mrl_jax.runtime.phases import Phases

# What is allowed for is this many times as long as steps have ever taken in this process.
_TIMES_LONGEST = 20
# Starting, compiling, measuring and saving take as long as they take, and so does the step in
# which other processes are waited for that still do so.
_TIMES_SLOW = 60
# Who waits for others in a step gives them time to say where they hang: their traces are wanted,
# and JAX aborts them as soon as the first process is gone.
_LATER_S = 10
_STOP_S, _STOP_TIMES_LONGEST, _STOP_SLOW_S = 5, 3, 60
_LOSE_NOTHING = ("start", "compile", "data", "step")  # unlike saving

_last_beat = 0.0


def beat() -> None:
    """Something is done: a batch is read. Steps and other phases are noticed by themselves."""
    global _last_beat
    _last_beat = time.monotonic()


@contextlib.contextmanager
def watching(phases: Phases, minutes: float, wanted: Callable[[], bool]) -> Iterator[None]:
    """In the with-block the process ends with code 76, and stack traces, where it hangs.

    Args:
      phases: what the main thread is doing.
      minutes: without a finished step or batch, from which on it hangs, though never before twenty
        times the longest step so far; sixty times as long where no step is to be expected.
        0 = for ever.
      wanted: whether the process was asked to stop. It ends with code 75 where no step is finished
        for five seconds and three times the longest step, or for a minute where it starts, compiles
        or has just done so; saving is let finish.
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
        # Without the time for which the whole process was suspended.
        passed, before = min(now - before, 2 * interval_s), now
        last = max(_last_beat, phases.changed)
        if last != seen:
            seen, idle, waited = last, 0.0, 0.0
        idle += passed
        doing = phases.current or "what is between the phases"
        allowed = max(limit_s, _TIMES_LONGEST * phases.longest_s)
        if not phases.steady:
            allowed = _TIMES_SLOW * limit_s
        if phases.current != "data":
            allowed += _LATER_S
        if limit_s and idle > allowed:
            _end(f"nothing was done for {idle:.0f} s, in {doing}", EXIT_HUNG)
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
                f"asked to stop, and nothing was done for {waited:.0f} s, in {doing}; "
                "what was saved last stays",
                EXIT_PREEMPTED,
            )


def _end(line: str, code: int) -> None:
    # Not by print: the main thread may hold the stream.
    os.write(2, f"error: {line}; all threads:\n".encode())
    faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
    os._exit(code)
