"""Signals to small commands in processes of their own: nothing of JAX is needed for them."""

import os
import signal
import subprocess
import sys
import time

import commands
import pytest

LISTENS = "import signal, sys, time\nfrom mrl_jax.runtime import preemption\npreemption.listen()\n"
# These tests may themselves run under nohup.
HANGS_UP = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
READY = "print('ready', flush=True)\n"


def start(program, *before):
    process = subprocess.Popen(
        [*before, sys.executable, "-c", ("" if before else HANGS_UP) + LISTENS + program],
        cwd=commands.ROOT,
        env={**os.environ, "PYTHONPATH": str(commands.ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def end(process, *numbers):
    for number in numbers:
        process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    return process.returncode, errors.splitlines()


@pytest.mark.parametrize("number", ["SIGTERM", "SIGHUP", "SIGUSR1", "SIGINT"])
def test_where_nothing_is_lost_a_signal_ends_at_once_with_75(number):
    process = start(READY + "time.sleep(60)")
    code, errors = end(process, getattr(signal, number))
    assert (code, errors) == (75, ["error: stopped by a signal; the same command continues"])


def test_a_main_thread_inside_a_library_is_no_hindrance():
    """Handlers of Python's own would wait until the call returns."""
    process = start("import ctypes\n" + READY + "while True: ctypes.CDLL(None).poll(None, 0, -1)")
    assert end(process, signal.SIGTERM)[0] == 75


def test_held_signals_wait_until_they_are_released():
    program = (
        "preemption.hold()\n"
        + READY
        + (
            "while not preemption.wanted(): time.sleep(.01)\n"
            "time.sleep(.3); print('saved', flush=True); preemption.release(); time.sleep(60)"
        )
    )
    process = start(program)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "saved\n"
    assert end(process, signal.SIGTERM)[0] == 75


def test_sigterm_may_repeat_and_a_second_interrupt_ends_at_once():
    program = "preemption.hold()\n" + READY + "time.sleep(60)"
    process = start(program)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    assert end(process, signal.SIGINT)[0] == 130


def test_nohup_is_heeded():
    process = start(READY + "time.sleep(.3); sys.exit(3)", "nohup")
    assert end(process, signal.SIGHUP)[0] == 3


def test_a_forked_child_does_not_end_its_parent():
    program = (
        "import os\nchild = os.fork()\nif not child: time.sleep(60)\n"
        "time.sleep(.1); os.kill(child, signal.SIGTERM)\n"
        "status = os.waitpid(child, 0)[1]\n"
        + READY
        + "time.sleep(.3); sys.exit(os.WTERMSIG(status))"
    )
    assert end(start(program)) == (signal.SIGTERM, [])


def test_an_exit_code_stands():
    program = "preemption.ignore()\n" + READY + "time.sleep(.3); sys.exit(3)"
    assert end(start(program), signal.SIGTERM, signal.SIGHUP, signal.SIGINT)[0] == 3


def test_a_group_is_watched_until_all_are_over_and_no_longer():
    program = """
import atexit, threading

class Client:
    def key_value_try_get(self, key):
        raise KeyError(key)

    def wait_at_barrier(self, name, milliseconds):
        print(name, "group" in {thread.name for thread in threading.enumerate()})

atexit.register(lambda: print([thread.name for thread in threading.enumerate()]))
preemption.share(Client(), 0)
"""
    # A thread inside the client when Python ends would abort the process.
    output = commands.succeed([sys.executable, "-c", LISTENS + program])
    assert output == "mrl_jax/leaving/over True\n['MainThread', 'signals']\n"


def test_a_process_ends_with_the_exit_code_of_the_one_that_has_failed():
    program = """
class Client:
    def key_value_try_get(self, key):
        return "4"

    def key_value_set(self, key, value, allow_overwrite):
        print(key, value, flush=True)

    def wait_at_barrier(self, name, milliseconds):
        print(name, flush=True)

preemption.share(Client(), 1)
time.sleep(60)
"""
    done = commands.run([sys.executable, "-c", LISTENS + program])
    assert done.returncode == 4
    assert done.stderr == "error: another process has failed with exit code 4\n"
    assert done.stdout == "mrl_jax/leaving 4\nmrl_jax/leaving\n"
