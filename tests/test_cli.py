import errno
import os
import pathlib

import pytest

from mrl_jax import cli, errors


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
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


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
