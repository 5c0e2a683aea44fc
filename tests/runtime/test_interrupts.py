import sys

import commands

BEGIN = """
import gc, signal, time
from mrl_jax import cli

def interrupted(*arguments):
    signal.raise_signal(signal.SIGINT)
    print("inside", flush=True)
"""
END = """
    for _ in range(500):
        time.sleep(0.01)
    print("went on")

cli.run(main)
"""


def outcome(program):
    done = commands.run([sys.executable, "-c", BEGIN + program + END])
    return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()


def test_python_itself_is_interrupted_at_once():
    program = "\ndef main(argv):\n    interrupted()"
    assert outcome(program) == (130, [], ["error: interrupted"])


def test_an_interrupt_that_a_callback_would_lose_comes_again():
    # What a callback of the garbage collector raises is dropped, and JAX has such a callback.
    program = """
def main(argv):
    gc.callbacks.append(interrupted)
    gc.collect()
    gc.callbacks.clear()
"""
    assert outcome(program) == (130, [], ["error: interrupted"])


def test_a_compiler_is_not_interrupted_but_what_comes_after_it():
    # An exception inside may crash it.
    program = """
def main(argv):
    exec("interrupted()", {"__name__": "numba.core", "interrupted": interrupted})
"""
    assert outcome(program) == (130, ["inside"], ["error: interrupted"])


def test_while_it_imports_a_command_ends_at_once():
    program = "import os, signal\nfrom mrl_jax import cli\ncli.start()\nos.kill(os.getpid(), 2)\n"
    done = commands.run([sys.executable, "-c", program + "print('went on')"])
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")
