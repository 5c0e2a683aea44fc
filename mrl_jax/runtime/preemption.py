"""Stopping a command, and its whole group, on a signal or a failure, from its first lines on.

While a command starts, measures or embeds, nothing would be lost, and a signal ends it immediately
with exit code 75. In training the command holds the signal, saves and then exits with 75 itself.
Schedulers may signal before JAX is even imported, so this module imports only the standard library
and modules that do the same. They may also signal a process that waits inside a library for
minutes, where Python does not run handlers: a thread acts instead.
"""

import atexit
import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from mrl_jax.errors import EXIT_HUNG, EXIT_INTERRUPTED, EXIT_PREEMPTED

SIGNALS = [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT]
if "OMPI_COMM_WORLD_SIZE" in os.environ:
    # Open MPI's mpirun announces with SIGCONT that it will end this process: it sends SIGTERM a
    # second later and SIGKILL another second later. SIGTERM alone would leave no time to save.
    SIGNALS.append(signal.SIGCONT)
_LEAVING = "mrl_jax/leaving"  # names the key and the barrier by which a group ends together
_OVER_S = 3600  # how long a process that has finished waits for others that have not
_LEAVE_S = 15  # how long a process that leaves waits for the coordinator
_FAILED_S = 20  # how long a process that has failed waits for the others to fail as well

_lock = threading.RLock()
_came: set[int] = set()  # signals received so far
_held: Callable[[], None] | None = None  # called on a signal; None: the signal ends the process
_group: tuple[Any, int] | None = None  # client of the group's coordinator, and our index in it


def listen() -> None:
    """Takes over the signals of this process, which runs a command; call it first.

    SIGHUP stays ignored where it is ignored already, as under `nohup`. SIGTERM may come repeatedly
    (launchers do that); a second SIGINT ends the process.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: None)
            signal.siginterrupt(number, False)  # libraries need not expect interrupted calls
    # Each signal is written here on arrival, whatever the main thread is doing.
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=_forget)
    threading.Thread(target=_watch, args=(reader,), name="signals", daemon=True).start()


def hold(call: Callable[[], None] = lambda: None) -> None:
    """From now on a signal does not end the process: it calls this, in another thread."""
    global _held
    with _lock:
        _held = call


def release() -> None:
    """From now on nothing would be lost: a signal, even one already received, ends the process."""
    global _held
    with _lock:
        _held = None
        if _came:
            _leave()


def wanted() -> bool:
    """Whether this process was asked to stop."""
    return bool(_came)


def ignore() -> None:
    """Ignores signals from now on, as the exit code of this process is settled.

    Launchers send one to all processes as soon as the first has ended.
    """
    hold()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def fail(code: int) -> None:
    """Ends the whole group with this exit code, unless all of its processes are ending anyway.

    Otherwise the others would wait for this process in their next exchange, and this one for them
    in JAX's own shutdown, which aborts all of them after minutes.
    """
    if _group is None:
        return
    client, _ = _group
    try:
        client.wait_at_barrier(f"{_LEAVING}/failed", 1000 * _FAILED_S)
    except Exception:  # at least one process has not failed
        with _lock:
            _leave(code)


def share(client: Any, index: int) -> None:
    """Binds the processes of a group together: when one of them is stopped or fails, all end.

    The others could not go on without it: they would wait for it for ever, or be aborted. `client`
    is that of the group's coordinator (JAX's DistributedRuntimeClient), `index` our process's.
    """
    global _group
    _group = client, index
    over = threading.Event()
    thread = threading.Thread(target=_watch_group, args=(over,), name="group", daemon=True)
    thread.start()

    def end() -> None:
        with contextlib.suppress(Exception):  # the group is gone
            client.wait_at_barrier(f"{_LEAVING}/over", 1000 * _OVER_S)
        over.set()
        thread.join()

    # JAX also waits for the others, but only for minutes, and without noticing that one has failed.
    # If the thread were still inside the client when Python ends its threads, C++ would abort the
    # process.
    atexit.register(end)


def _watch(reader: int) -> None:
    while True:
        for number in os.read(reader, 64):
            if number in SIGNALS:
                _on_signal(number)


def _on_signal(number: int) -> None:
    with _lock:
        if number == signal.SIGINT and number in _came:
            os._exit(EXIT_INTERRUPTED)
        _came.add(number)
        if _held is None:
            _leave()
        _held()


def _watch_group(over: threading.Event) -> None:
    client, _ = _group
    while not over.wait(1):
        try:
            code = int(client.key_value_try_get(_LEAVING))
        except Exception:  # no process is leaving, or the group is gone
            continue
        with _lock:
            if code != EXIT_PREEMPTED:
                _say(f"error: another process has failed with exit code {code}")
            if code == EXIT_HUNG:
                # Whoever looks for the cause needs to know where each process was.
                faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
            _leave(code)


def leave(code: int) -> None:
    """Ends this process and its group with this exit code, whatever the main thread is doing."""
    # The coordinator may be out of reach.
    limit = threading.Timer(_LEAVE_S, os._exit, (code,))
    limit.daemon = True
    limit.start()
    with _lock:
        _end_all(code)


def _leave(code: int = EXIT_PREEMPTED) -> None:
    """As `leave`, and says so. The caller holds the lock, so that this happens once."""
    if code == EXIT_PREEMPTED:
        _say("error: stopped by a signal; the same command continues")
    _end_all(code)


def _end_all(code: int) -> None:
    if _group is not None:
        client, index = _group
        try:
            client.key_value_set(_LEAVING, str(code), allow_overwrite=True)
            client.wait_at_barrier(_LEAVING, 5000)
        except Exception:  # a process is gone already, or too busy to answer
            pass
        if index == 0:
            # The coordinator goes last: JAX aborts a process that loses it.
            time.sleep(0.5)
    os._exit(code)


def _say(line: str) -> None:
    # Not with print(): the main thread may hold the stream's lock.
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())


def _forget() -> None:
    """Makes signals act in a forked child, which runs no command, as in any other process."""
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)
