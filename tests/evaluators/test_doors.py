"""Measures and kinds of sets that live outside the package, named by import path."""

import importlib
import json
import pathlib
import re

import numpy as np
import pytest
from evaluators.subjects import random_dataset, random_params, task_of

from mrl_jax import config as configs
from mrl_jax import experiment
from mrl_jax.errors import UsageError
from mrl_jax.evaluators import MEASURES, chosen, text_sets
from mrl_jax.record import folder as run_folder
from mrl_jax.record.metrics import Metric
from mrl_jax.record.runs import read_run
from mrl_jax.runtime.mesh import make_mesh
from mrl_jax.tasks.classification.measure import ClassificationEvaluation

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
NORMS = """
from mrl_jax.record.finding import Finding
from mrl_jax.record.metrics import Metric
from mrl_jax.record.results import Series

import numpy as np


def lengths(subject, split):
    found = Finding(rows={"mean_length": Metric("Mean length", "length", True, high=None)})
    z_nd, _ = subject.embedded(split)
    for dim in subject.dims:
        length_n = np.linalg.norm(z_nd[:, :dim], axis=1)
        found.results.append(Series("", split, "mean_length").mean(dim, length_n))
    return found


def renamed(found, metric):
    found.rows.clear()
    found.results[:] = [result._replace(metric=metric) for result in found.results]
    return found


def top1(subject, split):
    return renamed(lengths(subject, split), "top1")


def described(subject, split):
    return Finding(rows={"ndcg7": Metric("Mine", "length")})


def otherwise(subject, split):
    return Finding(rows={"mean_length": Metric("Mine", "length")})


def unbounded(subject, split):
    found = lengths(subject, split)
    found.results[:] = [result._replace(metric="p5", value=2.0) for result in found.results]
    return Finding(found.results)


def nothing(subject, split):
    pass


number = 3
"""
LETTERS = """
import json

from mrl_jax.record.finding import Finding, Unmeasurable
from mrl_jax.record.metrics import Metric
from mrl_jax.record.results import Series


def read(path, name, config):
    return json.loads(path.read_text())


def check(texts):
    if len(texts) < 2:
        raise Unmeasurable(f"needs 2 texts, got {len(texts)}")


def measure(subject, at, texts):
    found = Finding(rows={"spread": Metric("Spread", "spread", low=None, high=None)})
    z_nd = subject.embedded(texts, at.place)
    for dim in subject.dims:
        found.results.append(at.of("spread").mean(dim, z_nd[:, :dim].std(1)))
    return found
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes modules that can be imported."""
    monkeypatch.syspath_prepend(tmp_path)
    return lambda name, text: (tmp_path / f"{name}.py").write_text(text)


def test_a_measure_from_elsewhere_is_measured_recorded_and_read(module, tmp_path):
    module("norms_of_a_lab", NORMS)
    task = task_of("shared")
    names = ("accuracy", "norms_of_a_lab:lengths")
    options = {"dims": (3, 8), "batch_size": 8, "seed": 0, "measures": names}
    evaluation = ClassificationEvaluation(
        task, make_mesh(), random_dataset({"train": 9, "val": 5}), **options
    )
    assert evaluation.check(("val",)) == {}
    found = evaluation.run(*random_params(task), ("val",))
    assert [r.dim for r in found.results if r.metric == "mean_length"] == [3, 8]
    about = {"config": configs.default_config(), "command": "here", "step": 1, "data": "d"}
    run_folder.record_finding(tmp_path, found, **about)
    run = read_run(tmp_path, "run")
    assert run.rows == {"mean_length": Metric("Mean length", "length", True, high=None)}
    assert {r.value for r in run.results} == {r.value for r in found.results}
    assert max(r.value for r in run.results if r.metric == "mean_length") > 0


def test_what_nobody_could_read_is_refused_and_the_others_are_kept(module):
    module("takers_of_names", NORMS)
    task = task_of("shared")
    own = [
        f"takers_of_names:{name}"
        for name in ("lengths", "top1", "described", "otherwise", "unbounded", "nothing")
    ]
    options = {"dims": (3, 8), "batch_size": 8, "seed": 0, "measures": ("accuracy", *own)}
    dataset = random_dataset({"val": 5, "test": 5})
    evaluation = ClassificationEvaluation(task, make_mesh(), dataset, **options)
    found = evaluation.run(*random_params(task), ("val", "test"))
    taken = "there is a metric {!r} already: give yours another name"
    assert found.skipped == {
        f"{split}/{name}": reason
        for split in ("val", "test")
        for name, reason in (
            (own[1], f"{split}/top1 at dim 3 is measured already: give your metric another name"),
            (own[2], taken.format("ndcg7")),
            (own[3], taken.format("mean_length")),
            (own[4], f"{split}/p5 at dim 3 must be a fraction in [0, 1], got 2.0"),
            (own[5], "a measure must give a Finding, got None"),
        )
    }
    assert [str(error) for error in found.unread] == list(found.skipped.values())
    assert {r.metric for r in found.results} == {"top1", "top5", "mean_length"}
    assert max(r.value for r in found.results if r.metric == "top1") <= 1


def test_measures_come_in_the_order_of_the_table_and_own_ones_last(module):
    module("norms_of_a_lab", NORMS)
    asked = ("norms_of_a_lab:lengths", "retrieval", "accuracy")
    assert list(chosen(asked)) == ["accuracy", "retrieval", "norms_of_a_lab:lengths"]
    assert list(chosen(("all", asked[0]))) == [*MEASURES, asked[0]]
    for path, message in (
        ("no_lab:x", "there is no module no_lab"),
        ("norms_of_a_lab:absent", "has no 'absent'"),
        ("norms_of_a_lab:number", "must be a function"),
    ):
        with pytest.raises(ValueError, match=message):
            chosen((path,))


def small(tmp_path, *keys):
    """An experiment of texts with these config keys."""
    rows = "".join(f"a man {i}\tsome man {i}\n" for i in range(9))
    for name in ("train", "val"):
        (tmp_path / f"{name}.tsv").write_text("anchor\tpositive\n" + rows)
    keys = (
        *("text.width=4", "text.vocab_size=60", "nesting.dims=2,4", "eval.dims=2,4"),
        *("eval.batch_size=8", "batch_size=8", f"data.path={tmp_path}", *keys),
    )
    config = configs.load(str(CONFIGS / "static_sentence.py"), [f"--config.{key}" for key in keys])
    return experiment.from_config(config)


def test_a_kind_of_set_from_elsewhere(module, tmp_path):
    module("letters_of_a_lab", LETTERS)
    for name, texts in (("many", ["a", "b", "a man"]), ("one", ["a"])):
        (tmp_path / f"{name}.json").write_text(json.dumps(texts))
    sets = [f"{name}=letters_of_a_lab:{tmp_path / name}.json" for name in ("many", "one")]
    setup = small(tmp_path, f"eval.sets={','.join(sets)}")
    assert setup.check() == {"one": "needs 2 texts, got 1"}
    program = setup.program
    found = setup.evaluate(program.init_state(program.run_key(0)))
    own = {(r.set, r.dim) for r in found.results if r.metric == "spread"}
    assert {("many", 2), ("many", 4)} <= own
    assert {*found.read} == {"sets.many", "sets.one"}
    assert found.rows["spread"].title == "Spread"


def test_a_kind_with_a_row_needs_no_config_key(module, tmp_path, monkeypatch):
    module("letters_of_a_row", LETTERS)
    kinds = {**text_sets.KINDS, "letters": importlib.import_module("letters_of_a_row")}
    monkeypatch.setattr(text_sets, "KINDS", kinds)
    (tmp_path / "s.json").write_text('["a", "b"]')
    (one,) = text_sets.opened(
        small(tmp_path, f"eval.sets=mine=letters:{tmp_path / 's.json'}").config
    )
    assert (one.name, one.kind, one.data) == ("mine", kinds["letters"], ["a", "b"])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("x=no_lab:/a", "there is no module no_lab"),
        ("x=/a", "must be NAME=KIND:PATH"),
        ("x=json:/a", "the module has no function read"),
        ("test=sts:/a", "the name test is taken"),
    ],
)
def test_sets_that_cannot_be_meant_are_refused(entry, message):
    config = configs.default_config("sentence_pairs")
    config.eval.sets = (entry,)
    with pytest.raises(UsageError, match=re.escape(message)):
        text_sets.listed(config)


def test_a_measure_without_the_train_split_says_so():
    task = task_of("shared")
    names = ("accuracy", "neighbours", "probes")
    options = {"dims": (3, 8), "batch_size": 8, "seed": 0, "measures": names}
    evaluation = ClassificationEvaluation(task, make_mesh(), random_dataset({"val": 5}), **options)
    found = evaluation.run(*random_params(task), ("val",))
    reason = "needs the train split, which is not there"
    assert found.skipped == {"val/neighbours": reason, "val/probes": reason}
    assert {r.metric for r in found.results} == {"top1", "top5"}
    assert np.isfinite([r.value for r in found.results]).all()
