"""A run folder as an older release wrote it, before there were adaptors and masked models.

Whatever a release adds to configs, checkpoints and results, such a folder stays good: it is
measured as it was, handed on, and compared with runs of today. A test here that fails says that a
change would strand the runs that users have.
"""

import json
import pathlib
import shutil

import pytest

from mrl_jax import config as configs
from mrl_jax import evaluate, export
from mrl_jax.record import folder as workdir
from mrl_jax.record.runs import read_run

OLDER = pathlib.Path(__file__).parent / "older_run"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return shutil.copytree(OLDER, tmp_path_factory.mktemp("older") / "run")


def numbers(folder):
    return {(r.name, r.dim): r.value for r in read_run(folder, "older").results}


def test_its_config_says_what_it_said():
    written = configs.flatten(json.loads((OLDER / "config.json").read_text()))
    # What its task reads stays as it is; the keys of all tasks were in every config.
    read = configs.flatten(json.loads(configs.to_json(workdir.read_config(OLDER))))
    assert {key: written[key] for key in read if key in written}.items() <= read.items()
    assert workdir.unknown_keys(OLDER) == ""
    assert {"data.columns", "pairs.loss"} <= written.keys() - read.keys()


# By the cosine of two dims a tenth of the queries have several rows within the rounding of float32,
# which decided for the older release. These are the shares by NumPy's float64.
BY_FLOAT64 = {("val/1nn_random", 2): 108 / 359, ("test/1nn_random", 2): 136 / 360}


def test_it_is_measured_as_it_was(run):
    evaluate.main(["--workdir", str(run)])
    # Sums of another processor may decide single examples of the 359 and 360 otherwise.
    assert numbers(run) == pytest.approx({**numbers(OLDER), **BY_FLOAT64}, abs=0.01)
    assert numbers(run)["test/top1", 8] > 0.4


def test_it_is_exported(run, tmp_path):
    out = tmp_path / "out"
    export.main(["--workdir", str(run), "--out", str(out), "--format", "safetensors"])
    assert json.loads((out / "about.json").read_text())["step"] == 60


def test_it_is_compared_with_runs_of_today(run):
    before, now = read_run(OLDER, "older"), read_run(run, "measured again")
    assert before.config == now.config
