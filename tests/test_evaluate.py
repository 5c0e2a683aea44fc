import json
import shutil

import commands
import pytest


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained") / "run"
    commands.succeed(commands.train(workdir, arg="mrl_e"))
    return workdir


def evaluate(workdir, *overrides):
    return commands.command("mrl_jax.evaluate", "--workdir", workdir, *overrides)


def read(workdir):
    return json.loads((workdir / "results.json").read_text())


def test_numbers_are_those_of_training(trained, tmp_path):
    workdir = shutil.copytree(trained, tmp_path / "run")
    (workdir / "results.json").unlink()
    output = commands.succeed(evaluate(workdir))
    assert "step 60; results in" in output
    offline, inline = read(workdir), read(trained)
    assert offline.pop("command").startswith("python -m mrl_jax.evaluate")
    assert inline.pop("command").startswith("python -m mrl_jax.train")
    assert offline == inline


def test_shared_head_is_measured_at_other_dims_on_request(trained, tmp_path):
    workdir = shutil.copytree(trained, tmp_path / "run")
    commands.succeed(evaluate(workdir, "--config.eval.dims=1,5,8"))
    found = {(r["name"], r["dim"]): r["value"] for r in read(workdir)["results"]}
    assert {dim for name, dim in found if name == "test/top1"} == {1, 5, 8}
    before = {(r["name"], r["dim"]): r["value"] for r in read(trained)["results"]}
    assert found["test/top1", 8] == before["test/top1", 8]


def test_refusals(trained, tmp_path):
    assert "holds no run" in commands.fail(evaluate(tmp_path / "nowhere"), 2)
    line = commands.fail(evaluate(trained, "--config.model.width=8"), 2)
    assert "model.width: 16 -> 8: the run in" in line
    workdir = shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(workdir / "ckpt")
    assert "holds no checkpoint" in commands.fail(evaluate(workdir), 4)
    (workdir / "config.json").write_text("{")
    assert "cannot read" in commands.fail(evaluate(workdir), 2)
