"""launch/local.py with real child processes: small Python programs instead of a training."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

LAUNCHER = pathlib.Path(__file__).parents[2] / "launch" / "local.py"
SAVES_ON_SIGTERM = (
    "import signal, sys, time\n"
    "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
    "print('ready', flush=True)\n"
    "time.sleep(60)\n"
)
DEAF = SAVES_ON_SIGTERM.replace("lambda *_: sys.exit(75)", "signal.SIG_IGN")


def command(program, *options, processes=2):
    start = [sys.executable, str(LAUNCHER), "--processes", str(processes), *options]
    return [*start, "--", sys.executable, "-c", program]


def run(program, *options, processes=2):
    return subprocess.run(
        command(program, *options, processes=processes), capture_output=True, text=True, timeout=30
    )


def start_and_await_ready(program, *options, processes=2):
    launcher = subprocess.Popen(
        command(program, *options, processes=processes), stdout=subprocess.PIPE, text=True
    )
    lines = {launcher.stdout.readline() for _ in range(processes)}
    assert lines == {f"[{i}] ready\n" for i in range(processes)}
    return launcher


def gone(pid, within_s=5.0):
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        # An orphan that has ended waits for init to collect it: that is no running process.
        stat = pathlib.Path(f"/proc/{pid}/stat")
        if stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.02)
    return False


def test_every_process_learns_its_place_and_has_its_lines_marked():
    program = (
        "import os\n"
        "names = ('COORDINATOR_ADDRESS', 'NUM_PROCESSES', 'PROCESS_ID', 'NUM_CPU_DEVICES')\n"
        "print(*(os.environ.get('JAX_' + n, '-') for n in names))\n"
        "print('no newline', end='')"
    )
    done = run(program, "--devices_per_process", "4", processes=3)
    assert done.returncode == 0, done.stderr
    lines = sorted(done.stdout.splitlines())
    assert len(lines) == 6
    addresses = set()
    for index in range(3):
        prefix, address, *rest = lines[2 * index].split()
        assert (prefix, rest) == (f"[{index}]", ["3", str(index), "4"])
        assert lines[2 * index + 1] == f"[{index}] no newline"
        addresses.add(address)
    (address,) = addresses
    host, port = address.split(":")
    assert host == "127.0.0.1"
    assert 1024 <= int(port) <= 65535


def test_jax_reads_the_number_of_devices():
    program = "import jax\njax.config.update('jax_platforms', 'cpu')\nprint(jax.device_count())"
    done = run(program, "--devices_per_process", "3", processes=1)
    assert done.stdout == "[0] 3\n", done.stderr


@pytest.mark.parametrize(
    ("end", "code"), [("sys.exit(3)", 3), ("os.kill(os.getpid(), signal.SIGKILL)", 137)]
)
def test_first_failure_stops_the_others_and_gives_the_exit_code(end, code):
    program = (
        "import os, signal, sys, time\n"
        "if os.environ['JAX_PROCESS_ID'] == '1':\n"
        f"    time.sleep(0.3); {end}\n" + SAVES_ON_SIGTERM
    )
    begin = time.monotonic()
    done = run(program)
    assert done.returncode == code
    assert f"process 1 ended with exit code {code}" in done.stderr
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize(("other", "code"), [("75", 75), ("0", 75), ("-15", 75), ("4", 4)])
def test_preempted_means_that_no_process_failed_otherwise(tmp_path, other, code):
    """Process 0 is preempted first; process 1 ends as `other` says when it is told to stop."""
    stop = "signal.SIG_DFL" if other == "-15" else f"lambda *_: sys.exit({other})"
    program = SAVES_ON_SIGTERM.replace("lambda *_: sys.exit(75)", stop).replace(
        "time.sleep(60)",
        "import os, pathlib\n"
        f"listens = pathlib.Path({str(tmp_path / 'listens')!r})\n"
        "if os.environ['JAX_PROCESS_ID'] == '1': listens.touch(); time.sleep(60)\n"
        "while not listens.exists(): time.sleep(0.01)\n"
        "sys.exit(75)",
    )
    done = run(program)
    assert done.returncode == code, done.stderr


def test_a_process_that_ignores_sigterm_is_killed_after_the_grace():
    # Process 1 fails after a second; by then process 0 ignores SIGTERM.
    program = "import os, sys, time\n" + DEAF.replace(
        "time.sleep(60)",
        "time.sleep(1 if os.environ['JAX_PROCESS_ID'] == '1' else 60); sys.exit(4)",
    )
    begin = time.monotonic()
    done = run(program, "--grace", "0.5")
    assert done.returncode == 4
    assert 1.4 < time.monotonic() - begin < 10


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_are_passed_on_and_preemption_keeps_its_code(number):
    launcher = start_and_await_ready(SAVES_ON_SIGTERM.replace("SIGTERM", number.name))
    launcher.send_signal(number)
    assert launcher.communicate(timeout=20)[0] == ""
    assert launcher.returncode == 75


def test_sigterm_gives_time_to_save():
    """No grace runs between a passed-on SIGTERM and the first process that ends."""
    program = SAVES_ON_SIGTERM.replace("sys.exit(75)", "(time.sleep(1), sys.exit(75))")
    launcher = start_and_await_ready(program, "--grace", "0.1")
    launcher.send_signal(signal.SIGTERM)
    launcher.communicate(timeout=20)
    assert launcher.returncode == 75


def test_second_interrupt_kills_at_once():
    launcher = start_and_await_ready(DEAF.replace("SIGTERM", "SIGINT"))
    launcher.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert launcher.poll() is None
    launcher.send_signal(signal.SIGINT)
    launcher.communicate(timeout=10)
    assert launcher.returncode == 137


def test_no_process_outlives_the_job(tmp_path):
    """Neither the other process nor a helper that one of them had started."""
    program = (
        "import os, pathlib, subprocess, sys, time\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "index = os.environ['JAX_PROCESS_ID']\n"
        "helper = subprocess.Popen(['sleep', '60'])\n"
        "(folder / index).write_text(f'{os.getpid()} {helper.pid}')\n"
        "while len(list(folder.iterdir())) < 2: time.sleep(0.01)\n"
        "time.sleep(0.2)\n"
        "if index == '1': sys.exit(5)\n"
        "time.sleep(60)"
    )
    assert run(program).returncode == 5
    pids = [int(pid) for path in tmp_path.iterdir() for pid in path.read_text().split()]
    assert len(pids) == 4
    assert all(map(gone, pids))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
def test_children_end_when_the_launcher_is_killed(tmp_path):
    program = (
        "import os, pathlib\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "(folder / os.environ['JAX_PROCESS_ID']).write_text(str(os.getpid()))\n"
    ) + SAVES_ON_SIGTERM
    launcher = start_and_await_ready(program)
    launcher.kill()
    launcher.communicate(timeout=10)
    pids = [int(path.read_text()) for path in tmp_path.iterdir()]
    assert len(pids) == 2
    assert all(map(gone, pids))


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_closed_pipe_is_no_reason_to_end(tmp_path, stream):
    """More lines than a pipe holds, and still the exit code of the command."""
    program = (
        "import pathlib, sys\nprint('ready', flush=True)\nsys.stdin.read()\n"
        "for _ in range(1000): print('x' * 1000, flush=True)\n"
        f"pathlib.Path({str(tmp_path / 'done')!r}).touch(); sys.exit(3)"
    )
    launcher = subprocess.Popen(
        command(program, processes=1), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    getattr(launcher, stream).close()
    launcher.communicate(timeout=20)
    assert launcher.returncode == 3
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--processes", "2"], "give the command after --"),
        (["--processes", "0", "--", "true"], "must be >= 1, got 0"),
        (["--processes", "x", "--", "true"], "invalid int value: 'x'"),
        (["--", "true"], "--processes"),
        (["--processes", "2", "--", "/no/such/program"], "cannot start /no/such/program"),
    ],
)
def test_usage_errors_are_one_line(arguments, words):
    done = subprocess.run(
        [sys.executable, LAUNCHER, *arguments], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
