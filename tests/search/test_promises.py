"""What the planner promises of vectors of many kinds is found: the benchmark of it, in small."""

import json
import pathlib
import sys

import pytest
from by_work import seconds

ROOT = pathlib.Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import promises  # noqa: E402  (not installed with the package)
from mrl_jax.search.planner import trial  # noqa: E402

KINDS = ("tiny", "hubs", "far mean, l2")


@pytest.fixture(autouse=True)
def _by_work(monkeypatch):
    monkeypatch.setattr(trial, "_seconds", seconds)


def test_of_three_kinds(tmp_path, monkeypatch, capsys):
    for name in KINDS:
        monkeypatch.setitem(promises.KINDS, name, promises.KINDS[name]._replace(rows=300))
    monkeypatch.setattr(promises, "ROUNDS", 3)
    out = tmp_path / "promises.md"
    promises.main(["--kinds", *KINDS, "--targets", "0.9", "--seeds", "1", "--out", str(out)])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["kind"] for line in lines] == list(KINDS)
    for line in lines:
        assert 0.9 <= line["low"] <= line["found"]
        assert line["kept"] == 1
    text = out.read_text()
    assert "the others kept 100.00% of their promises" in text
    assert "| hubs | 300 x 48, l2 | 0.9 |" in text


@pytest.mark.slow  # plans of all kinds of few rows
def test_of_many_kinds():
    kinds = {name: kind for name, kind in promises.KINDS.items() if kind.rows < 10_000}
    found = [one for *_, one in promises.all_tried(kinds, [0.9], 1) if one]
    assert len(found) > 15
    assert promises.broken_too_often(found) > 0.01
    assert sum(one.found < one.target for one in found) == 0
