import json
import shutil

import commands
import numpy as np
import pytest


@pytest.fixture(scope="module")
def shared_head(tmp_path_factory):
    """A short run of MRL-E."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    commands.here(commands.train(workdir, "--config.steps=20", arg="mrl_e"))
    return workdir


def evaluate(workdir, *overrides):
    return commands.command("mrl_jax.evaluate", "--workdir", workdir, *overrides)


def read(workdir):
    return json.loads((workdir / "results.json").read_text())


def test_numbers_are_those_of_training(digits_run, tmp_path):
    workdir = shutil.copytree(digits_run[0], tmp_path / "run")
    (workdir / "results.json").unlink()
    output = commands.succeed(evaluate(workdir))
    assert "step 60; results in" in output
    offline, inline = read(workdir), read(digits_run[0])
    assert offline.pop("command").startswith("python -m mrl_jax.evaluate")
    assert inline.pop("command").startswith("python -m mrl_jax.train")
    assert offline == inline


def test_shared_head_is_measured_at_other_dims_on_request(shared_head, tmp_path):
    workdir = shutil.copytree(shared_head, tmp_path / "run")
    commands.here(evaluate(workdir, "--config.eval.dims=1,5,8"))
    found = commands.values(workdir)
    assert {dim for name, dim in found if name == "test/top1"} == {1, 5, 8}
    before = commands.values(shared_head)
    assert found["test/top1", 8] == before["test/top1", 8]


def test_refusals(digits_run, tmp_path):
    assert "holds no run" in commands.fail(evaluate(tmp_path / "nowhere"), 2)
    line = commands.refused(evaluate(digits_run[0], "--config.model.width=8"), 2)
    assert "model.width: 16 -> 8: the run in" in line
    assert "holds no step 7" in commands.refused(evaluate(digits_run[0], "--step=7"), 4)
    workdir = shutil.copytree(digits_run[0], tmp_path / "run")
    shutil.rmtree(workdir / "ckpt")
    assert "holds no checkpoint" in commands.refused(evaluate(workdir), 4)
    (workdir / "config.json").write_text("{")
    assert "config.json: not valid JSON" in commands.refused(evaluate(workdir), 2)


@pytest.mark.slow  # all measures, twice
def test_everything_is_measured_on_request(digits_run, tmp_path):
    hierarchy = tmp_path / "parity.json"
    hierarchy.write_text(json.dumps({str(k): ("even", "odd")[k % 2] for k in range(10)}))
    found = []
    # In two processes, too, where what is drawn at random must be the same in both.
    launcher = (commands.sys.executable, "launch/local.py", "--processes", "2", "--")
    keys = ("measures=all", f"hierarchy={hierarchy}", "dims=2,8")
    for name in ("one", "two"):
        workdir = shutil.copytree(digits_run[0], tmp_path / name)
        argv = evaluate(workdir, *(f"--config.eval.{key}" for key in keys))
        commands.here(argv) if name == "one" else commands.succeed([*launcher, *argv])
        found.append(commands.values(workdir))
    assert found[0] == pytest.approx(found[1], abs=0.02)
    names = {name for name, _ in found[0]}
    for metric in ("top5_flip", "1nn", "map10_pca", "probe_svd", "ece", "oracle", "superclass"):
        assert f"test/{metric}" in names
    assert {"test/ncm_10way_5shot", "test/tail_novel_tail"} <= names
    files = {path.name for path in (tmp_path / "one" / "evaluation").iterdir()}
    assert {"examples.npz", "test_cascade.json", "test_retrieval.json"} <= files
    examples = np.load(tmp_path / "one" / "evaluation" / "examples.npz")
    for row, dim in zip(examples["test/top1"], examples["test/top1/dims"], strict=True):
        assert row.mean() == pytest.approx(found[0]["test/top1", int(dim)])
    commands.here(commands.command("mrl_jax.report", tmp_path / "one"))
    assert (tmp_path / "one" / "report.html").stat().st_size > 50_000
