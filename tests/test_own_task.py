"""A task that is written outside the package does all that a task of the package does."""

import json
import re
import shutil

import commands
import numpy as np
import pytest

import mrl_jax
from mrl_jax import config as configs
from mrl_jax import experiment
from mrl_jax.errors import UsageError
from mrl_jax.nesting import Nesting
from mrl_jax.record.metrics import Metric

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


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("None", "must be a dict of config.keys.Key"),
        ("{'a.b': 3}", "must be a dict of config.keys.Key"),
        ("{3: Key(1, '')}", "declares 3; a key is one or several names"),
        ("{'a b': Key(1, '')}", "declares 'a b'; a key is one or several names"),
        ("{'a.items': Key(1, '')}", "none of them a method of ConfigDict"),
        ("{'steps': Key(1, '')}", "declares steps, which all tasks have"),
        ("{'steps.x': Key(1, '')}", "declares steps.x, and there is steps: one is a group"),
        ("{'optimizer': Key(1, '')}", "declares optimizer, and there is optimizer.name"),
        ("{'a': Key(1, ''), 'a.b': Key(1, '')}", "declares a, and there is a.b: one is a group"),
        ("{'a.b': Key([1], '')}", r"the default of a.b of \w+.own must be a bool"),
    ],
)
def test_keys_that_no_config_can_hold_are_refused(tmp_path, monkeypatch, keys, message):
    lab = tmp_path / f"keys_{re.sub(r'[^a-z]', '_', keys)}"
    lab.mkdir()
    (lab / "own.py").write_text(f"from mrl_jax.config.keys import Key\nKEYS = {keys}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=message):
        configs.default_config(f"{lab.name}.own")


def test_a_task_is_a_module():
    with pytest.raises(UsageError, match=r"config\.task must be one of"):
        configs.default_config("my_lab.toy:Data")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("facts", lambda *_: {"width": np.int64(6)}, "facts of my_lab.toy must be a dict that"),
        ("facts", lambda *_: None, "facts of my_lab.toy must be a dict that JSON can hold"),
        ("make_task", lambda *_: Nesting((3, 2)), "config.toy: nesting dims must"),
    ],
)
def test_what_its_module_gives_is_checked(monkeypatch, name, value, message):
    from my_lab import toy

    monkeypatch.setattr(toy, name, value)
    with pytest.raises(UsageError, match=message):
        experiment.from_config(configs.load(f"{CONFIG}:mrl"))


def test_a_taken_name_and_a_number_out_of_range_are_refused(monkeypatch):
    from my_lab import toy

    setup = experiment.from_config(configs.load(f"{CONFIG}:mrl"))
    state = setup.program.init_state(setup.program.run_key(0))
    for row, message in (
        ({"spearman": Metric("Mine")}, "there is a metric 'spearman' already"),
        (
            {"explained": Metric("Mine", low=2.0, high=3.0)},
            r"explained at dim 2 must be in \[2, 3\]",
        ),
    ):
        monkeypatch.setattr(toy, "ROWS", row)
        with pytest.raises(UsageError, match=message):
            setup.evaluate(state)
