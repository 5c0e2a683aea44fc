"""What hangs is ended with stack traces; what is slow is not."""

import pathlib
import signal
import subprocess
import sys
import time

import commands
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
        (0.5, 1000, EXIT_HUNG, "error: no progress for 1 s (phase: data); all threads:"),
        (0, 0, EXIT_PREEMPTED, "error: asked to stop, but made no progress for "),
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
    monkeypatch.setattr(watchdog, "_LATER_S", 0)
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


# A run whose loader waits for ever before step 15, in one process of the group.
HANGING = """
import os, pathlib, runpy, sys, time
import mrl_jax.data.loader as loader
rows = loader.train_rows

def train_rows(seed, step, *others):
    if step == 15 and os.environ.get("JAX_PROCESS_ID", "1") == "1":
        print("waiting", flush=True)
        time.sleep(600)
    return rows(seed, step, *others)

loader.train_rows = train_rows
sys.argv[0] = "train"
runpy.run_module("mrl_jax.train", run_name="__main__", alter_sys=True)
"""


def hanging(workdir, *overrides):
    return [sys.executable, "-c", HANGING, *commands.train(workdir, *overrides)[3:]]


@pytest.mark.slow
def test_a_loader_that_hangs_in_one_process_ends_them_all(tmp_path):
    command = hanging(tmp_path / "run", "--config.hang_minutes=0.05")
    local = [sys.executable, commands.ROOT / "launch/local.py", "--processes", "2"]
    local += ["--grace", "2", "--", *command]
    done = commands.run(list(map(str, local)))
    assert done.returncode == EXIT_HUNG, done.stderr[-3000:]
    assert "[1] error: no progress for" in done.stdout + done.stderr
    assert "in train_rows" in done.stdout + done.stderr
    assert "[0] error: another process has failed with exit code 76" in done.stdout + done.stderr
    assert "process 0 ended" not in done.stdout + done.stderr
    steps = [int(path.name) for path in pathlib.Path(tmp_path, "run/ckpt").iterdir()]
    assert steps == [10]


@pytest.mark.slow
def test_sigterm_is_heeded_where_nothing_goes_on(tmp_path):
    argv = hanging(tmp_path / "run", "--config.hang_minutes=0")
    process = subprocess.Popen(
        argv,
        cwd=commands.ROOT,
        env=commands.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line == "waiting\n":
            break
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == EXIT_PREEMPTED, errors[-3000:]
    assert "in train_rows" in errors
    # The same command goes on from what was saved, here without a loader that hangs.
    output = commands.succeed(commands.train(tmp_path / "run"))
    assert "resuming from step 10" in output
