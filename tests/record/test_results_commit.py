import pathlib
import shutil
import subprocess

from mrl_jax.record import results


def test_only_a_repository_that_holds_the_package_is_named(tmp_path, monkeypatch):
    """A copy of the package inside somebody's repository: not named until it is tracked there."""
    package = tmp_path / "mrl_jax"
    package.mkdir()
    copy = shutil.copy(pathlib.Path(results.__file__), package)
    monkeypatch.setattr(results, "__file__", str(copy))

    def git(*arguments):
        settings = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *settings, *arguments], cwd=tmp_path, check=True)

    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--message", "theirs")
    assert results.commit() == "unknown"
    git("add", "mrl_jax")
    git("commit", "--quiet", "--message", "ours")
    found = results.commit()
    assert len(found) == 12
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    assert results.commit() == found
