"""Runs one command as N processes of one JAX job on this machine.

python launch/local.py --processes 2 -- python -m mrl_jax.train --config FILE --workdir DIR

Every process gets JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID; its output lines
start with "[i] ". The first process that fails ends the job: the others get SIGTERM, and SIGKILL
when the grace is over. SIGTERM, SIGHUP and SIGINT are passed on; a second SIGINT kills at once.
The job continues when nobody reads its output any more (`| head`, a closed terminal). The exit
code is that of the process that failed first (128 + n for signal n); 75, preempted with the state
saved, only if no process failed in another way.
"""

import argparse
import contextlib
import ctypes
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import NoReturn

_PR_SET_PDEATHSIG = 1
_PREEMPTED = 75
_DIED_OF_SIGTERM = 128 + signal.SIGTERM


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def _at_least(smallest: int, kind: type):
    def convert(text: str):
        value = kind(text)
        if value < smallest:
            raise argparse.ArgumentTypeError(f"must be >= {smallest}, got {text}")
        return value

    convert.__name__ = kind.__name__  # argparse names it in "invalid int value"
    return convert


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser("launch/local.py", usage="%(prog)s --processes N [options] -- COMMAND ...")
    parser.add_argument("--processes", type=_at_least(1, int), required=True)
    parser.add_argument(
        "--devices_per_process", type=_at_least(1, int), help="CPU devices of each process"
    )
    parser.add_argument(
        "--grace", type=_at_least(0, float), default=10.0, help="seconds from SIGTERM to SIGKILL"
    )
    cut = argv.index("--") if "--" in argv else len(argv)
    arguments = parser.parse_args(argv[:cut])
    arguments.command = argv[cut + 1 :]
    if not arguments.command:
        parser.error("give the command after --")
    return arguments


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _die_with_parent() -> None:
    # Runs in the child: should the launcher itself be killed, Linux sends SIGTERM.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _start(arguments: argparse.Namespace, index: int, port: int) -> subprocess.Popen:
    environment = dict(os.environ)
    environment.setdefault("PYTHONUNBUFFERED", "1")
    environment["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{port}"
    environment["JAX_NUM_PROCESSES"] = str(arguments.processes)
    environment["JAX_PROCESS_ID"] = str(index)
    if arguments.devices_per_process:
        environment["JAX_NUM_CPU_DEVICES"] = str(arguments.devices_per_process)
    # A session of its own: Ctrl-C reaches it once, from us, and its helpers can be found later.
    return subprocess.Popen(
        arguments.command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_die_with_parent,
    )


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def _kill_group(child: subprocess.Popen) -> None:
    # macOS answers PermissionError for a group of which only a zombie is left.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


def _copy_output(child: subprocess.Popen, index: int, lock: threading.Lock) -> None:
    prefix, out = f"[{index}] ".encode(), sys.stdout.buffer
    with child.stdout:
        for line in child.stdout:
            # Nobody may read any more; the child must be able to write all the same.
            with lock, contextlib.suppress(OSError):
                out.write(prefix + line.removesuffix(b"\n") + b"\n")
                out.flush()


def _wait(child: subprocess.Popen, index: int, events: queue.SimpleQueue) -> None:
    code = child.wait()
    _kill_group(child)  # data workers that outlived their process
    events.put((index, code if code >= 0 else 128 - code))


def _supervise(children: list[subprocess.Popen], events: queue.SimpleQueue, grace: float) -> int:
    """Exit code of the job (see the module's docstring), once all processes have ended."""
    running, code, deadline, interrupts = len(children), 0, None, 0
    while running:
        try:
            index, number = events.get(
                timeout=None if deadline is None else max(0.0, deadline - time.monotonic())
            )
        except queue.Empty:
            index, number, deadline = None, signal.SIGKILL, None
        if index is None:
            interrupts += number == signal.SIGINT
            for child in children:
                if child.poll() is None:
                    if number == signal.SIGKILL or interrupts > 1:
                        _kill_group(child)
                    else:
                        child.send_signal(number)
            continue
        running -= 1
        if number and not code:
            deadline = time.monotonic() + grace
            for child in children:
                child.terminate()
        # 75 promises that all have saved their part, so a failure that comes later outranks it.
        # SIGTERM does not: Python stops listening while it exits, and dies of the one sent here.
        if not code or (code == _PREEMPTED and number not in (0, _PREEMPTED, _DIED_OF_SIGTERM)):
            code = number
            if code:
                _say(f"process {index} ended with exit code {code}")
    return code


def main(argv: Sequence[str]) -> int:
    """Runs the command line; see the module's docstring. Returns the exit code."""
    arguments = _parse(argv)
    events: queue.SimpleQueue = queue.SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        # SimpleQueue.put is safe in a handler. Events are acted on once all have started.
        # SIGHUP stays ignored under nohup.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: events.put((None, number)))
    try:
        port = _free_port()
    except OSError as error:
        _say(f"error: the processes cannot meet at 127.0.0.1: {error}")
        return 2
    children: list[subprocess.Popen] = []
    try:
        # All start before the first thread does: forking with threads is not safe.
        for index in range(arguments.processes):
            children.append(_start(arguments, index, port))
        lock = threading.Lock()
        threads = []
        for index, child in enumerate(children):
            threads += [
                threading.Thread(target=_copy_output, args=(child, index, lock)),
                threading.Thread(target=_wait, args=(child, index, events)),
            ]
        for thread in threads:
            thread.start()
        code = _supervise(children, events, arguments.grace)
        for thread in threads:
            thread.join()
        return code
    except OSError as error:
        _say(f"error: cannot start {arguments.command[0]}: {error}")
        return 2
    finally:
        for child in children:
            if child.poll() is None:
                _kill_group(child)


if __name__ == "__main__":
    # Not sys.exit: Python would exit with 120 if it cannot flush the last output.
    os._exit(main(sys.argv[1:]))
