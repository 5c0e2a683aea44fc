"""What hangs is ended with stack traces; what is slow is not."""

import subprocess
import sys
import time

import pytest

from mrl_jax.errors import EXIT_HUNG, EXIT_PREEMPTED
from mrl_jax.runtime import watchdog
from mrl_jax.runtime.phases import Phases

PROGRAM = """
import sys, time
from mrl_jax.runtime import watchdog
from mrl_jax.runtime.phases import Phases

def wait_for_ever():
    time.sleep(600)

asked = time.monotonic() + float(sys.argv[2])
phases = Phases()
with watchdog.watching(phases, float(sys.argv[1]) / 60, lambda: time.monotonic() > asked):
    for _ in range(2):
        with phases("step"):
            pass
    print("now", flush=True)
    with phases("data"):
        wait_for_ever()
"""


@pytest.mark.parametrize(
    ("limit_s", "asked_s", "code", "message"),
    [
        (0.5, 1000, EXIT_HUNG, "error: nothing was done for 1 s, in data; all threads:"),
        (0, 0, EXIT_PREEMPTED, "error: asked to stop, and nothing was done for "),
    ],
)
def test_a_hang_ends_with_stack_traces(limit_s, asked_s, code, message):
    argv = [sys.executable, "-c", PROGRAM, str(limit_s), str(asked_s)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (code, "now\n")
    assert done.stderr.startswith(message)
    assert "in wait_for_ever" in done.stderr


def test_what_goes_on_is_left_alone(monkeypatch):
    ended = []
    monkeypatch.setattr(watchdog, "_end", lambda *arguments: ended.append(arguments))
    phases = Phases()
    with watchdog.watching(phases, 0.4 / 60, lambda: False):
        # Longer than the limit: before steps follow each other, while batches are read, and in
        # what takes its time.
        with phases("start"):
            time.sleep(0.6)
        for _ in range(2):
            with phases("step"):
                pass
        with phases("data"):
            for _ in range(6):
                time.sleep(0.1)
                watchdog.beat()
        with phases("compile"):
            time.sleep(0.6)
    assert ended == []
