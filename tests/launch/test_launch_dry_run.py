"""The cluster scripts: what they would run, that --dry_run runs nothing, and the requeueing."""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
ARGUMENTS = ["--config", "my configs/a.py:mrl", '--config.name=it\'s "x" $HOME `id` \\', "", "a  "]
TPU = {"TPU_NAME": "my tpu", "ZONE": "us-central2-b", "PROJECT": "p"}


@pytest.fixture
def fakes(tmp_path):
    """A PATH whose srun, scontrol, gcloud and python write down their arguments."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("srun", "scontrol", "gcloud", "python"):
        program = folder / name
        program.write_text(
            "#!/usr/bin/env bash\n"
            f'printf "%s\\0" {name} "$@" >> {shlex.quote(str(tmp_path / "calls"))}\n'
            f"[[ {name} != srun ]] || exit ${{SRUN_CODE:-0}}\n"
        )
        program.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def bash(script, *arguments, env):
    return subprocess.run(
        ["bash", LAUNCH / script, *arguments], env=env, capture_output=True, text=True, timeout=20
    )


def calls(tmp_path):
    path = tmp_path / "calls"
    return path.read_text().split("\0")[:-1] if path.exists() else []


def test_slurm_dry_run_prints_what_a_real_run_executes(tmp_path, fakes):
    dry = bash("slurm.sbatch", "--dry_run", *ARGUMENTS, env=fakes)
    assert (dry.returncode, dry.stderr) == (0, "")
    printed = shlex.split(dry.stdout)
    assert printed == [
        *("srun", "--kill-on-bad-exit=1", "python", "-m", "mrl_jax.train"),
        *ARGUMENTS,
    ]
    assert calls(tmp_path) == []
    assert bash("slurm.sbatch", *ARGUMENTS, env=fakes).returncode == 0
    assert calls(tmp_path) == printed


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (5, False), (75, True)])
def test_slurm_requeues_preempted_jobs_only(tmp_path, fakes, code, requeued):
    done = bash("slurm.sbatch", env=fakes | {"SRUN_CODE": str(code), "SLURM_JOB_ID": "42"})
    assert done.returncode == code
    assert (calls(tmp_path)[-3:] == ["scontrol", "requeue", "42"]) == requeued


@pytest.mark.parametrize("given", [{}, {"SLURM_CPUS_PER_TASK": "7"}])
def test_slurm_tasks_get_the_cpus_that_sbatch_was_asked_for(tmp_path, fakes, given):
    """srun reads its own variable only."""
    (tmp_path / "bin" / "srun").write_text(
        '#!/usr/bin/env bash\necho "${SRUN_CPUS_PER_TASK-as it likes}"\n'
    )
    done = bash("slurm.sbatch", env=fakes | given)
    assert done.stdout.strip() == given.get("SLURM_CPUS_PER_TASK", "as it likes")


def test_slurm_options_stand_before_the_first_command():
    """Slurm stops reading #SBATCH lines at the first line that is not a comment."""
    lines = (LAUNCH / "slurm.sbatch").read_text().splitlines()
    head = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    for option in ("--requeue", "--open-mode=append", "--signal=TERM@120"):
        assert f"#SBATCH {option}" in head


def test_tpu_dry_run_prints_what_a_real_run_executes(tmp_path, fakes):
    dry = bash("tpu_vm.sh", "--dry_run", *ARGUMENTS, env=fakes | TPU)
    assert (dry.returncode, dry.stderr) == (0, "")
    printed = shlex.split(dry.stdout)
    assert printed[:-1] == [
        *("gcloud", "compute", "tpus", "tpu-vm", "ssh", "my tpu"),
        *("--zone=us-central2-b", "--project=p", "--worker=all"),
    ]
    assert calls(tmp_path) == []
    assert bash("tpu_vm.sh", *ARGUMENTS, env=fakes | TPU).returncode == 0
    assert calls(tmp_path) == printed


def test_tpu_workers_get_the_arguments_unchanged(tmp_path, fakes):
    """The command line survives the shell that reads it on the worker."""
    home = tmp_path / "home of worker"
    interpreter = home / "my code" / ".venv" / "bin" / "python"
    interpreter.parent.mkdir(parents=True)
    shutil.copy(tmp_path / "bin" / "python", interpreter)
    env = fakes | TPU | {"REPOSITORY": "my code"}
    remote = shlex.split(bash("tpu_vm.sh", "--dry_run", *ARGUMENTS, env=env).stdout)[-1]
    line = remote.removeprefix("--command=")
    subprocess.run(["bash", "-c", line], cwd=home, env=fakes, check=True, timeout=20)
    assert calls(tmp_path) == ["python", "-m", "mrl_jax.train", "--distributed", *ARGUMENTS]


@pytest.mark.parametrize("missing", TPU)
def test_tpu_asks_for_what_is_missing(fakes, missing):
    env = fakes | {name: value for name, value in TPU.items() if name != missing}
    done = bash("tpu_vm.sh", "--dry_run", env=env)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: set {missing};")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(shutil.which("dash") is None, reason="sh is bash where there is no dash")
@pytest.mark.parametrize("script", ["quickstart.sh", "test.sh", "tpu_vm.sh", "slurm.sbatch"])
def test_another_shell_gets_one_line(script):
    done = subprocess.run(["dash", LAUNCH / script], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: start this with bash: bash {LAUNCH / script}\n"


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    scripts = [*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch", LAUNCH.parent / ".ci" / "run"]
    done = subprocess.run(["shellcheck", "-x", *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_python_files_of_launch_use_the_standard_library_only():
    done = subprocess.run(
        [sys.executable, "-I", "-S", LAUNCH / "local.py", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
