import json

import numpy as np
import pytest

from mrl_jax import config as configs
from mrl_jax.errors import DataError, UsageError
from mrl_jax.record import folder as workdir
from mrl_jax.record.finding import Finding
from mrl_jax.record.results import Series

CONFIG = configs.default_config()


def record(folder, step, **files):
    """What a measurement at this step leaves: in both places the number of the step."""
    finding = Finding(files={"step.txt": str(step).encode(), **files})
    finding.add_right(Series("", "test", "top1"), (8,), np.ones((1, step), bool))
    workdir.record_finding(
        folder, finding, config=CONFIG, command="here", step=step, data="0123456789abcdef"
    )


def recorded(folder):
    with np.load(folder / "evaluation" / "examples.npz") as examples:
        steps = examples["test/top1"].shape[1], int((folder / "evaluation/step.txt").read_text())
    return {json.loads((folder / "results.json").read_text())["step"], *steps}


def names(folder):
    return {path.name for path in folder.iterdir()} - {".lock"}


def test_results_and_evaluation_are_exchanged_together(tmp_path):
    for step in (3, 5):
        record(tmp_path, step)
        assert recorded(tmp_path) == {step}
    (tmp_path / "evaluation.old").mkdir()  # a copy that somebody keeps
    with pytest.raises(OSError, match="no_such_folder"):  # stands for a full disk
        record(tmp_path, 7, **{"no_such_folder/file": b""})
    assert recorded(tmp_path) == {5}
    with workdir.locked(tmp_path):
        assert names(tmp_path) == {"results.json", "evaluation", "evaluation.old"}


@pytest.mark.parametrize(
    ("moves", "left"),
    [
        ((), 3),
        ((("evaluation", ".evaluation.old"),), 3),
        ((("evaluation", ".evaluation.old"), (".evaluation.new", "evaluation")), 3),
        (
            (
                ("evaluation", ".evaluation.old"),
                (".evaluation.new", "evaluation"),
                (".results.json.new", "results.json"),
            ),
            5,
        ),
    ],
)
def test_a_kill_between_the_moves_leaves_one_or_the_other(tmp_path, moves, left):
    run, other = tmp_path / "run", tmp_path / "other"
    for folder, step in ((run, 3), (other, 5)):
        folder.mkdir()
        record(folder, step)
    # All is made, nothing has moved yet.
    (other / "evaluation").rename(run / ".evaluation.new")
    (other / "results.json").rename(run / ".results.json.new")
    for source, target in moves:
        (run / source).replace(run / target)
    with workdir.locked(run):
        assert recorded(run) == {left}
        assert names(run) == {"results.json", "evaluation"}


def test_done_is_what_has_results(tmp_path):
    assert not workdir.is_done(tmp_path)
    (tmp_path / "DONE").write_text("step 60\n")
    assert not workdir.is_done(tmp_path)
    workdir.check_same_run(tmp_path, CONFIG)
    for torn in ("", "{", "[]", '{"config": {}}', "\0\0"):
        (tmp_path / "results.json").write_text(torn)
        assert not workdir.is_done(tmp_path)
    record(tmp_path, 60)
    assert workdir.is_done(tmp_path)
    # The results say which run it is where config.json does not.
    workdir.check_same_run(tmp_path, CONFIG)
    other = configs.override(CONFIG, ["--config.seed=5"])
    with pytest.raises(UsageError, match="holds another run \\(seed: 0 -> 5\\)"):
        workdir.check_same_run(tmp_path, other)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "must be a JSON object"),
        ("null", "must be a JSON object"),
        ("\0", "not valid JSON"),
    ],
)
def test_a_damaged_config_is_one_line(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UsageError, match=f"config.json.*{message}"):
        workdir.read_config(tmp_path)


def written_by_hand(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("facts.json", lambda path: path.write_text(""), "facts.json is empty"),
        ("facts.json", lambda path: path.write_text("[]"), "schema must be 1"),
        ("facts.json", lambda path: written_by_hand(path, schema=2), "schema must be 1, got 2"),
        ("facts.json", lambda path: written_by_hand(path, facts=[]), "must be dict"),
        ("facts.json", lambda path: written_by_hand(path, data=3), "must be str or None"),
        (
            "facts.json",
            lambda path: written_by_hand(path, facts={"classes": ["b", "a"]}),
            "facts.json is damaged",
        ),
        ("tokenizer.json", lambda path: path.unlink(), "tokenizer.json is missing or not what"),
        ("tokenizer.json", lambda path: path.write_text("{}"), "tokenizer.json is missing or not"),
    ],
)
def test_facts_are_what_the_run_began_with_or_none(tmp_path, name, damage, message):
    assert workdir.read_facts(tmp_path) is None
    facts = {"classes": ["a", "b\udc80"]}
    workdir.record_facts(tmp_path, facts, "0123", {"tokenizer.json": "ü"})
    assert (workdir.read_facts(tmp_path), workdir.trained_on(tmp_path)) == (facts, "0123")
    damage(tmp_path / name)
    for read in (workdir.read_facts, workdir.trained_on):
        with pytest.raises(DataError, match=message):
            read(tmp_path)
