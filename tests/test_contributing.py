"""The code of CONTRIBUTING.md is what it says: it is run here, and its lines are counted."""

import json
import re

import commands
import pytest
import test_train_text

TEXT = (commands.ROOT / "CONTRIBUTING.md").read_text()
CODE = dict(re.findall(r"```python\n# my_lab/(\w+)\.py\n(.*?)```", TEXT, re.DOTALL))


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """The page's modules, under a name that no other test has imported."""
    for name, code in CODE.items():
        (tmp_path / f"contributed_{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def metrics(workdir):
    content = json.loads((workdir / "results.json").read_text())
    return {result["metric"] for result in content["results"]}, content["metrics"]


def test_lines_are_counted():
    titles = ("A pair loss", "A backbone", "A measure of images", "A measure of texts")
    for title, (name, code) in zip(titles, CODE.items(), strict=True):
        count = sum(bool(line) for line in code.splitlines())
        said = re.search(rf"## {title}: (\d+) lines", TEXT)
        assert said, title
        assert count == int(said[1]), name


def test_paths_exist():
    for place in re.findall(r"`((?:\w+/)+\w+\.py)`", TEXT):
        if not place.startswith("tasks/TASK"):
            assert (commands.ROOT / "mrl_jax" / place).exists(), place


def test_an_own_backbone_and_an_own_measure(lab):
    own = ("--config.model.name=contributed_nets:make", "--config.model.width=0")
    own += ("--config.model.depth=0", "--config.steps=6", "--config.eval.measures=accuracy,")
    own = (*own[:-1], f"{own[-1]}contributed_measures:lengths")
    commands.here(commands.train(lab / "run", *own))
    found, rows = metrics(lab / "run")
    assert {"top1", "mean_length"} <= found
    assert rows["mean_length"]["title"] == "Mean length"


def test_an_own_loss_and_own_sets_of_texts(lab):
    lines = "".join(json.dumps(row) + "\n" for row in test_train_text.groups()[:12])
    (lab / "data").mkdir()
    for split in ("train", "val"):
        (lab / "data" / f"{split}.jsonl").write_text(lines)
    (lab / "lines.txt").write_text("a man waits\na bird sleeps\n")
    own = ("--config.pairs.loss=contributed_losses:far", "--config.steps=6", "--config.eval.sts=()")
    own += (f"--config.eval.sets=mine=contributed_sets:{lab / 'lines.txt'}",)
    argv = test_train_text.train(lab / "run", lab / "data", *own)
    commands.here([word for word in argv if "eval.sts=again" not in str(word)])
    found, _ = metrics(lab / "run")
    assert {"match", "spread"} <= found
