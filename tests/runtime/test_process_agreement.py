import pathlib

import commands
import pytest

from mrl_jax import config as configs
from mrl_jax.record import folder
from mrl_jax.runtime import agreement
from mrl_jax.runtime.agreement import differences, of_program


def test_what_differs_is_named_once_with_both_values():
    first = {"rate": 0.03, "seed": 0, "version of jax": "1"}
    others = [first, {**first, "rate": 0.001}, {**first, "rate": 0.1, "new": "x"}, {"seed": 0}]
    assert differences([first, *others]) == [
        "rate: 0.03 in process 0, 0.001 in process 2",
        "new: nothing in process 0, x in process 3",
        "version of jax: 1 in process 0, nothing in process 4",
    ]


def test_data_may_lie_elsewhere_on_another_machine():
    one, other = configs.default_config(), configs.default_config()
    other.data.path = "elsewhere"
    assert of_program(one) == of_program(other)
    other.seed = 1
    assert differences([of_program(one), of_program(other)]) == [
        "config.seed: 0 in process 0, 1 in process 1"
    ]


def test_other_code_in_any_folder_is_a_difference(tmp_path: pathlib.Path, monkeypatch):
    (tmp_path / "runtime").mkdir()
    monkeypatch.setattr(agreement, "__file__", str(tmp_path / "runtime" / "agreement.py"))
    config, said = configs.default_config(), []
    for text in ("a = 1", "a = 1", "a = 2"):
        (tmp_path / "runtime" / "step.py").write_text(text)
        said.append(of_program(config))
    (line,) = differences(said)
    assert line.startswith("code (digest): ")
    assert line.endswith(" in process 2")


@pytest.mark.slow
def test_processes_with_different_configs_are_refused(tmp_path: pathlib.Path):
    argv = commands.train(tmp_path / "run")
    rates = '$([ "$JAX_PROCESS_ID" = 1 ] && echo 0.001 || echo 0.03)'
    script = f'exec "$@" --config.optimizer.learning_rate={rates}'
    launcher = (commands.sys.executable, "launch/local.py", "--processes", "2", "--")
    done = commands.run([*launcher, "bash", "-c", script, "bash", *argv])
    assert done.returncode == 2, done.stdout + done.stderr
    line = "config.optimizer.learning_rate: 0.03 in process 0, 0.001 in process 1"
    assert f"error: the processes of this run disagree: {line}" in done.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_process_that_fails_alone_ends_all_with_its_exit_code(tmp_path: pathlib.Path):
    """Only the first process asks for the lock. The other one waits for it in an exchange."""
    launcher = (commands.sys.executable, "launch/local.py", "--processes", "2", "--")
    with folder.locked(tmp_path / "run"):
        done = commands.run([*launcher, *commands.impatient(commands.train(tmp_path / "run"))])
    assert done.returncode == 2, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert f"[0] error: {tmp_path / 'run'} is in use by another run" in lines
    assert "[1] error: another process has failed with exit code 2" in lines
