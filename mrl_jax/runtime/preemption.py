"""Noticing that a command should stop, by a signal, from its first lines to its last.

Where nothing would be lost, while a command starts, measures or embeds, a signal ends it at once
with exit code 75. Where something would be, in training, the command holds the signal, saves and
exits with 75 by itself. Schedulers signal before JAX is even imported, so this module and what it
imports is the standard library alone, and they signal processes that wait inside a library for
minutes, where Python's own handlers do not run: a thread acts instead.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from mrl_jax.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED

SIGNALS = [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT]
if "OMPI_COMM_WORLD_SIZE" in os.environ:
    # Open MPI's mpirun announces with SIGCONT that it will end us: a second later it sends
    # SIGTERM, another second later SIGKILL, which alone would leave no time to save.
    SIGNALS.append(signal.SIGCONT)
_LEAVING = "mrl_jax/leaving"  # key and barrier of a group that ends

_lock = threading.RLock()
_came: set[int] = set()  # signals
_held: Callable[[], None] | None = None  # called when one comes; None: it ends the process
_group: tuple[Any, int] | None = None  # JAX's client of the group's coordinator, our number in it


def listen() -> None:
    """Takes over the signals of this process, which is a command; call it first thing.

    SIGHUP stays ignored where it is, under `nohup`. SIGTERM may come again and again (launchers
    repeat it); a second SIGINT ends the process.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: None)
            signal.siginterrupt(number, False)  # libraries need not expect interrupted calls
    # Signals are written here as they come, whatever the main thread is doing.
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=_forget)
    threading.Thread(target=_watch, args=(reader,), name="signals", daemon=True).start()


def hold(call: Callable[[], None] = lambda: None) -> None:
    """From now on a signal only calls this, in another thread, and is `wanted`."""
    global _held
    with _lock:
        _held = call


def release() -> None:
    """From now on nothing would be lost: a signal, also one that has come, ends the process."""
    global _held
    with _lock:
        _held = None
        if _came:
            _leave()


def wanted() -> bool:
    """Whether this process was asked to stop."""
    return bool(_came)


def ignore() -> None:
    """The exit code of this process stands: signals no longer change it.

    Launchers send one to all processes as soon as the first has ended.
    """
    hold()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def share(client: Any, index: int) -> None:
    """Joins the processes of a group: when one of them leaves at once, so do all.

    They could not go on without it, and would wait for it for ever or die of its end.

    Args:
      client: of the group's coordinator, a JAX DistributedRuntimeClient.
      index: of this process.
    """
    global _group
    _group = client, index
    threading.Thread(target=_watch_group, name="group", daemon=True).start()


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


def _watch_group() -> None:
    client, _ = _group
    while True:
        time.sleep(1)
        try:
            client.key_value_try_get(_LEAVING)
        except Exception:  # nobody is leaving; or the group has come to its end
            continue
        with _lock:
            _leave()


def _leave() -> None:
    """Ends this process and its group. The lock is held, so that nothing else ends it before."""
    _say("error: stopped by a signal; the same command goes on")
    if _group is not None:
        client, index = _group
        try:
            client.key_value_set(_LEAVING, "", allow_overwrite=True)
            client.wait_at_barrier(_LEAVING, 5000)
        except Exception:  # a process that is gone already, or too busy to hear of it
            pass
        if index == 0:
            # The coordinator goes last: JAX aborts a process that loses it.
            time.sleep(0.5)
    os._exit(EXIT_PREEMPTED)


def _say(line: str) -> None:
    # Not by print(): the main thread may hold the stream.
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())


def _forget() -> None:
    """A forked child is no command: signals end it as they end any process."""
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)
