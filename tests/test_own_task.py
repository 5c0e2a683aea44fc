"""A task that is written outside the package does all that a task of the package does."""

import json
import shutil

import commands
import numpy as np
import pytest

import mrl_jax
from mrl_jax import config as configs

CONFIG = commands.ROOT / "tests/my_lab/toy_config.py"


def train(workdir, *overrides, arg="mrl"):
    where = ("--config", f"{CONFIG}:{arg}", "--workdir", workdir)
    return commands.command("mrl_jax.train", *where, *overrides)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("toys")
    for name, arg in (("nested", "mrl"), ("fixed", "fixed=8")):
        commands.here(train(root / name, arg=arg))
    return root


def results(folder):
    content = json.loads((folder / "results.json").read_text())
    return {(r["split"], r["metric"], r["dim"]): r["value"] for r in content["results"]}


def test_it_is_short():
    assert len((commands.ROOT / "tests/my_lab/toy.py").read_text().splitlines()) < 150


def test_it_is_trained_and_measured(runs):
    found = results(runs / "nested")
    assert {dim for split, _, dim in found if split == "test"} == {2, 4, 8}
    assert found["test", "explained", 8] > 0.05
    lines = (runs / "nested/metrics.jsonl").read_text().splitlines()
    assert any("val/explained/0002" in line for line in lines)


def test_it_resumes_bit_for_bit(runs, tmp_path):
    again = tmp_path / "run"
    shutil.copytree(runs / "nested", again)
    for place in ("DONE", "results.json"):
        (again / place).unlink()
    shutil.rmtree(again / "ckpt/60")
    assert "resuming from step 40" in commands.here(train(again))
    assert results(again) == results(runs / "nested")


def test_it_is_evaluated_again(runs, tmp_path):
    again = tmp_path / "run"
    shutil.copytree(runs / "nested", again)
    (again / "results.json").unlink()
    printed = commands.here(commands.command("mrl_jax.evaluate", "--workdir", again))
    assert "test/explained" in printed
    assert results(again) == results(runs / "nested")


def test_it_is_reported(runs, tmp_path):
    commands.here(commands.command("mrl_jax.report", runs, "--out", tmp_path))
    text = (tmp_path / "report.md").read_text()
    assert "Explained variance" in text
    assert "FF-8" in text


def test_it_is_opened_and_embeds(runs):
    model = mrl_jax.load(runs / "nested")
    x_nd = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    z_nd = model.embed(x_nd, dim=4)
    assert z_nd.shape == (5, 4)
    np.testing.assert_allclose(np.linalg.norm(z_nd, axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("form", ["safetensors", "stablehlo"])
def test_it_is_exported(runs, tmp_path, form):
    place = ("--workdir", runs / "nested", "--out", tmp_path / form, "--format", form)
    commands.here(commands.command("mrl_jax.export", *place))
    x_nd = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    expected = mrl_jax.load(runs / "nested").embed(x_nd)
    np.testing.assert_allclose(mrl_jax.load(tmp_path / form).embed(x_nd), expected, atol=1e-6)


def test_its_keys_are_checked_like_all_others():
    assert configs.load(f"{CONFIG}:mrl", ["--config.toy.rows=9"]).toy.rows == 9
    with pytest.raises(ValueError, match=r"did you mean 'toy\.rows'"):
        configs.load(f"{CONFIG}:mrl", ["--config.toy.row=9"])
    assert "toy.rows" in commands.here(
        commands.command("mrl_jax.train", "--config", CONFIG, "--help_config")
    )
