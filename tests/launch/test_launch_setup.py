"""quickstart.sh and test.sh on copies: the ways they can fail, and what they do to .venv.

What they install is replaced by a package without dependencies, so that nothing needs a network.
"""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).parents[2]
LAUNCH = REPOSITORY / "launch"
TOOLS = ("bash", "dirname", "rm", "tail", "cat")
PYPROJECT = """\
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "mrl_jax"
version = "0"
[project.optional-dependencies]
dev = []
"""
# A build backend of the standard library's: an editable wheel with one .pth file.
BACKEND = """
import os, pathlib, zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    root, info = os.getcwd(), "mrl_jax-0.dist-info"
    metadata = "Metadata-Version: 2.1\\nName: mrl_jax\\nVersion: 0\\nProvides-Extra: dev\\n"
    wheel = "Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
    name = "mrl_jax-0-py3-none-any.whl"
    with zipfile.ZipFile(pathlib.Path(folder, name), "w") as archive:
        archive.writestr("mrl_jax.pth", root)
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", wheel)
        archive.writestr(f"{info}/RECORD", "")
    with open("installations", "a") as log:
        log.write("x")
    return name
"""
FULL_DISK = """
import errno, os

def build_editable(folder, config_settings=None, metadata_directory=None):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
"""
MODULE = "import sys\nprint(__name__, sys.argv, __spec__.name)\n"


@pytest.fixture
def copy(tmp_path):
    """A repository with our scripts and a package that only prints its arguments."""
    root = tmp_path / "a clone"
    (root / "mrl_jax").mkdir(parents=True)
    (root / ".ci").mkdir()
    shutil.copytree(LAUNCH, root / "launch")
    shutil.copy(REPOSITORY / ".ci" / "run", root / ".ci")
    for name, text in {
        "requirements.txt": "",
        "pyproject.toml": PYPROJECT,
        "backend.py": BACKEND,
        "full_disk.py": FULL_DISK,
        "mrl_jax/__init__.py": "",
        "mrl_jax/sweep.py": MODULE,
        "mrl_jax/report.py": MODULE,
        "ruff.py": MODULE,
        "pytest.py": MODULE,
    }.items():
        (root / name).write_text(text)
    return root


@pytest.fixture
def tools(tmp_path):
    """A folder for PATH with what the scripts need, except Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in TOOLS:
        (folder / name).symlink_to(shutil.which(name))
    return folder


def run(script, *arguments, cwd="/", **environment):
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "CI", "PYTHONPATH")}
    return subprocess.run(
        ["bash", script, *arguments],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        env=clean | {"PYTHON": sys.executable, "PIP_NO_INDEX": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def installations(copy):
    path = copy / "installations"
    return len(path.read_text()) if path.exists() else 0


@pytest.mark.slow
def test_venv_is_made_kept_extended_and_mended(copy):
    quickstart, test = copy / "launch" / "quickstart.sh", copy / "launch" / "test.sh"
    first = run(quickstart, cwd=copy.parent)
    assert first.returncode == 0, first.stderr
    assert f"open {copy}/runs/quickstart/report.html" in first.stdout
    sweep, report = (line for line in first.stdout.splitlines() if line.startswith("__main__"))
    assert "'--config', 'configs/digits.py', '--root', 'runs/quickstart'" in sweep
    assert sweep.endswith("mrl_jax.sweep")
    assert "'runs/quickstart']" in report
    assert installations(copy) == 1

    kept = copy / ".venv" / "kept"
    kept.touch()
    assert "using .venv as it is" in run(quickstart).stdout
    assert installations(copy) == 1

    tested = run(test, "-k", "two words")
    assert tested.returncode == 0, tested.stderr
    assert kept.exists()
    assert installations(copy) == 2
    assert "'-m', 'not slow', '-k', 'two words']" in tested.stdout
    assert "'check', '.'" in tested.stdout
    ci = run(copy / ".ci" / "run")
    assert ci.returncode == 0, ci.stderr
    assert "not slow" not in ci.stdout
    assert "using .venv as it is" in run(quickstart).stdout
    assert installations(copy) == 2

    (copy / "requirements.txt").write_text("# changed\n")
    assert run(quickstart).returncode == 0
    assert installations(copy) == 3

    # As a stop in the middle leaves it: no pip yet, no stamp.
    for path in [*(copy / ".venv").glob("lib/*/site-packages/pip*")]:
        shutil.rmtree(path)
    for stamp in (copy / ".venv").glob("installed*"):
        stamp.unlink()
    mended = run(quickstart)
    assert mended.returncode == 0, mended.stderr
    assert installations(copy) == 4
    assert kept.exists()

    pyproject = (copy / "pyproject.toml").read_text()
    (copy / "pyproject.toml").write_text(pyproject.replace('"backend"', '"full_disk"'))
    full = run(quickstart)
    assert full.returncode == 1
    assert full.stderr.splitlines()[-1].startswith("error: the installation filled the disk of")
    (copy / "pyproject.toml").write_text(pyproject)

    # What a machine without a network meets first: pip cannot get the build backend.
    needs = pyproject.replace("requires = []", 'requires = ["setuptools>=68"]')
    (copy / "pyproject.toml").write_text(needs)
    failed = run(test, PIP_FIND_LINKS="", PIP_CONFIG_FILE=os.devnull)
    assert failed.returncode == 1
    *log, line = failed.stderr.splitlines()
    assert line.startswith("error: the installation failed")
    assert "check the network" in line
    assert any("No matching distribution found for setuptools" in text for text in log)
    assert not list((copy / ".venv").glob("installed*"))


def one_line(done):
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    return line


def test_no_python(copy, tools):
    line = one_line(run(copy / "launch" / "quickstart.sh", PATH=str(tools), PYTHON=""))
    assert line.startswith("error: no Python >= 3.11")
    assert "none on PATH" in line


@pytest.mark.parametrize(
    ("fails_on", "words"),
    [("version_info", "python3 is older"), ("ensurepip", "lacks its venv module")],
)
def test_unsuitable_python(copy, tools, fails_on, words):
    fake = tools / "python3"
    fake.write_text(f'#!/usr/bin/env bash\n[[ "$*" != *{fails_on}* ]]\n')
    fake.chmod(0o755)
    (tools / "env").symlink_to(shutil.which("env"))
    assert words in one_line(run(copy / "launch" / "test.sh", PATH=str(tools), PYTHON=""))


def test_full_disk(copy, tmp_path):
    """The script asks shutil.disk_usage; this one answers for a disk that is nearly full."""
    (tmp_path / "sitecustomize.py").write_text(
        "import shutil\nshutil.disk_usage = lambda path: shutil._ntuple_diskusage(0, 0, 7 << 20)\n"
    )
    line = one_line(run(copy / "launch" / "quickstart.sh", PYTHONPATH=str(tmp_path)))
    assert "only 7 MiB of disk are free" in line
    assert not (copy / ".venv").exists()


def test_quickstart_has_no_options(copy):
    done = run(copy / "launch" / "quickstart.sh", "--fast")
    assert done.returncode == 2
    assert done.stderr == "error: quickstart.sh takes no arguments, got: --fast\n"
