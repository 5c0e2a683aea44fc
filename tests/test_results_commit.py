import os
import pathlib
import shutil
import subprocess
import sys

from mrl_jax import results

PROGRAM = "from mrl_jax import results; print(results.commit())"


def commit(folder, **variables):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), **variables},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def test_only_a_repository_that_holds_the_package_is_named(tmp_path):
    """A copy of the package inside somebody's repository: not named until it is tracked there."""
    package = pathlib.Path(results.__file__).parent
    shutil.copytree(package, tmp_path / "mrl_jax", ignore=shutil.ignore_patterns("__pycache__"))

    def git(*arguments):
        settings = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *settings, *arguments], cwd=tmp_path, check=True)

    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--message", "theirs")
    assert commit(tmp_path) == "unknown"
    git("add", "mrl_jax")
    git("commit", "--quiet", "--message", "ours")
    assert len(commit(tmp_path)) == 12
    assert commit(tmp_path, GIT_DIR="/nowhere") == commit(tmp_path)
