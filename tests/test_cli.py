import errno
import os
import pathlib
import re
import subprocess

import commands
import pytest

from mrl_jax import __main__, cli, errors
from mrl_jax.runtime import preemption


def raising(error):
    def main(argv):
        del argv
        raise error

    return main


@pytest.fixture(autouse=True)
def _restore(monkeypatch):
    """run() changes what holds for the whole process, which a command may and a test may not."""
    import signal
    import sys

    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    before = {number: signal.getsignal(number) for number in preemption.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (errors.UsageError("bad\n  key"), 2, "error: bad key"),
        (errors.DataError("no data"), 3, "error: no data"),
        (errors.DataError("word " * 10**6), 3, "error: " + "word " * 399 + "wo..."),
        (errors.CheckpointError("torn"), 4, "error: torn"),
        (errors.NonFiniteError("step 3"), 5, "error: step 3"),
        (errors.Preempted("stopped"), 75, "error: stopped"),
        (OSError(errno.ENOSPC, "No space left", "x"), 4, "error: cannot write x: No space left"),
        (
            OSError(errno.ENAMETOOLONG, "File name too long", "xx"),
            3,
            "error: xx: File name too long",
        ),
        (OSError(errno.EACCES, "Permission denied", "x"), 3, "error: x: Permission denied"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
    ],
)
def test_errors_are_one_line_and_a_code(capsys, error, code, line):
    with pytest.raises(SystemExit) as stop:
        cli.run(raising(error))
    assert stop.value.code == code
    assert capsys.readouterr().err == line + "\n"


def test_success_is_zero_and_bugs_keep_their_traceback():
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda argv: None)
    assert stop.value.code == 0
    with pytest.raises(ZeroDivisionError):
        cli.run(raising(ZeroDivisionError()))
    with pytest.raises(PermissionError):
        cli.run(raising(PermissionError(errno.EACCES, "denied")))


def test_usage_errors_of_arguments_are_one_line():
    parser = cli.ArgumentParser("prog")
    parser.add_argument("--needed", required=True)
    with pytest.raises(errors.UsageError, match=r"--needed \(see prog --help\)"):
        parser.parse_args([])


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("--out=~/x", "HOME/x"),
        ("--out=~", "HOME"),
        ("--out=a~/x", "a~/x"),
        ("--out=~root/x", os.path.expanduser("~root/x")),
        ("--out=~nobody-of-this-name/x", "~nobody-of-this-name/x"),
        ("--config.data.path=~/x", "HOME/x"),
        ("--config.eval.sts=a=~/x,b=~/y", "a=HOME/x,b=HOME/y"),
    ],
)
def test_the_home_folder_is_known_in_every_argument(monkeypatch, tmp_path, word, value):
    monkeypatch.setenv("HOME", str(tmp_path))
    parser = cli.ArgumentParser("prog")
    parser.add_argument("--out", type=pathlib.Path)
    known, rest = parser.parse_known_args([word])
    found = str(known.out) if known.out else rest[0].partition("=")[2]
    assert found == value.replace("HOME", str(tmp_path))


def test_an_empty_path_is_refused():
    parser = cli.ArgumentParser("prog")
    parser.add_argument("--workdir", type=pathlib.Path)
    with pytest.raises(errors.UsageError, match="--workdir: the path is empty"):
        parser.parse_args(["--workdir", ""])


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_the_package_lists_its_commands(arguments):
    lines = commands.succeed(commands.command("mrl_jax", *arguments)).splitlines()
    listed = [re.search(r"python -m mrl_jax\.(\w+)", line)[1] for line in lines[2:]]
    assert listed == list(__main__.COMMANDS)


def test_a_command_is_a_module():
    line = commands.fail(commands.command("mrl_jax", "train", "--config", "x"), 2)
    assert line.endswith("call a command as python -m mrl_jax.train")


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"JAX_PLATFORMS": "nosuch"}, "no device for JAX_PLATFORMS=nosuch: Unable to initialize"),
        ({"JAX_NUM_CPU_DEVICES": "abc"}, "JAX cannot be started: Invalid value"),
    ],
)
def test_what_the_environment_says_of_jax_is_refused_in_one_line(variables, words):
    program = (
        "from mrl_jax import cli\ncli.start()\nimport jax\ncli.run(lambda argv: jax.devices())"
    )
    assert words in commands.fail([commands.sys.executable, "-c", program], 2, **variables)


def started(program, log=False, **streams):
    start = f"from mrl_jax.runtime import streams\nstreams.keep(log={log})\nimport os, sys\n"
    return subprocess.run(
        [commands.sys.executable, "-c", start + program],
        env={**os.environ, "PYTHONPATH": str(commands.ROOT)},
        timeout=30,
        **streams,
    ).returncode


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_gone_ends_nothing(monkeypatch, unbuffered):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    reader, writer = os.pipe()
    os.close(reader)
    program = "print('x' * 100_000); print('x', file=sys.stderr); sys.exit(7)"
    assert started(program, stdout=writer, stderr=writer) == 7
    os.close(writer)


def test_closed_streams_do_not_become_files(tmp_path):
    program = (
        "os.close(1); os.close(2); sys.stdout = sys.stderr = None; streams.keep(log=True)\n"
        f"file = open({str(tmp_path / 'file')!r}, 'w')\n"
        "print('x'); os.write(2, b'x'); sys.exit(file.fileno() > 2)"
    )
    assert started(program) == 1
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="no /dev/full")
def test_a_log_may_be_lost_for_want_of_room_and_results_may_not():
    with open("/dev/full", "w") as full:
        assert started("print('x' * 100_000); sys.exit(7)", log=True, stdout=full) == 7
        program = "print('x' * 100_000); sys.exit(7)"
        assert started(program, stdout=full, stderr=subprocess.DEVNULL) == 1
