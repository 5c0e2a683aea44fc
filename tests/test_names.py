"""Names that are no Unicode, as old archives leave them: printed, written, or refused in a line."""

import os

import commands
import pytest
from reporting.folders import make_results, write_run

from mrl_jax import report
from mrl_jax.errors import UsageError
from mrl_jax.record import folder

LATIN1 = os.fsdecode(b"th\xe9")


def test_a_report_writes_them_as_python_does(tmp_path, capsys):
    results = make_results("separate", (2, 4, 8), 0)
    results["config"]["data"] = {"path": f"/data/{LATIN1}"}
    write_run(tmp_path / "run", results)
    report.main([str(tmp_path / "run")])
    capsys.readouterr()
    assert r"/data/th\udce9" in (tmp_path / "run" / "report.md").read_text("utf-8")
    assert r"/data/th\udce9" in (tmp_path / "run" / "report.html").read_text("utf-8")


def test_a_run_folder_must_be_utf8(tmp_path):
    """The library that writes checkpoints takes no other."""
    message = r"th\\udce9/run' is not UTF-8: give another folder"
    with pytest.raises(UsageError, match=message), folder.locked(tmp_path / LATIN1 / "run"):
        pass
    assert not (tmp_path / LATIN1).exists()


def test_commands_print_them():
    code = rf"from mrl_jax import cli; cli.run(lambda argv: print({LATIN1!a}))"
    assert commands.succeed([commands.sys.executable, "-c", code]) == "th\\udce9\n"
