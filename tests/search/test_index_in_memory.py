"""Indexes that nobody gave a folder or a plan: made, copied, gone; and what others change."""

import gc
import os
import subprocess
import sys

import numpy as np
import pytest
from brute_force import check, draw, similar, store
from class_vectors import vectors
from commands import ROOT

from mrl_jax.errors import DataError, UsageError
from mrl_jax.search import Index
from mrl_jax.search.plan import Plan
from mrl_jax.search.planner import choice, promises, propose
from mrl_jax.search.schedule import Schedule

D = 16


def test_it_goes_with_the_object():
    z_nd = draw(50, D)
    index = Index.build(None, z_nd)
    folder = index.folder
    index.add(z_nd[:3], [60, 61, 62])
    assert folder.is_dir()
    vectors = index.vectors
    del index
    gc.collect()
    assert not folder.parent.exists()
    np.testing.assert_array_equal(vectors.read(48, 53), z_nd[[48, 49, 0, 1, 2]])


@pytest.mark.slow
def test_it_goes_with_the_process_but_not_with_a_fork(tmp_path):
    code = """
import os, sys
import numpy as np
from mrl_jax.search import Index
index = Index.build(None, np.eye(4, dtype=np.float32))
if os.fork() == 0:
    sys.exit()  # which runs what is left to do at exit
os.wait()
assert index.folder.is_dir()
print(index.folder.parent)
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.stdout.startswith(f"{tmp_path}/mrl_jax_index_"), done.stderr
    assert list(tmp_path.glob("mrl_jax_index_*")) == []


def test_nothing_is_left_of_what_cannot_be_built(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    z_nd = draw(50, D)
    z_nd[7, 3] = np.nan
    for plan in (None, Plan(Schedule.exact(D + 1))):
        with pytest.raises(DataError):
            Index.build(None, z_nd, plan=plan)
    assert list(tmp_path.iterdir()) == []


def test_saved(tmp_path):
    z_nd, query_bd = draw(90, D), draw(4, D, seed=1)
    plan = Plan(Schedule.parse(f"8:50 > {D}"), lists=4, list_dim=8, probes=2)
    index = Index.build(None, z_nd[:60], plan=plan)
    index.add(z_nd[60:], np.arange(60, 90))
    index.delete([3, 70])
    wanted = index.search(query_bd, 5)
    index.save(tmp_path / "copy")
    with pytest.raises(UsageError, match="copy exists already; remove it or give another folder"):
        index.save(tmp_path / "copy")
    del index
    copy = Index.open(str(tmp_path / "copy"))
    copy.verify()
    for a, b in zip(copy.search(query_bd, 5), wanted, strict=True):
        np.testing.assert_array_equal(a, b)
    copy.delete([5])
    copy.save(tmp_path / "second")
    assert (5 in copy, len(Index.open(tmp_path / "second"))) == (False, 87)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write .*file/x: Not a directory"):
        copy.save(tmp_path / "file" / "x")


def test_refreshed(tmp_path):
    z_nd = draw(40, D)
    writer = Index.build(tmp_path / "index", z_nd[:30])
    reader = Index.open(tmp_path / "index")
    before = reader._now
    reader.refresh()
    assert reader._now is before
    writer.add(z_nd[30:], np.arange(30, 40))
    writer.delete([0])
    writer.compact()
    assert (len(reader), 35 in reader) == (30, False)
    reader.refresh()
    assert (len(reader), 35 in reader, 0 in reader) == (39, True, False)
    check(reader.search(z_nd[:5], 3), similar(z_nd[1:], z_nd[:5], "cosine"), np.arange(1, 40))
    for path in (tmp_path / "index").iterdir():
        path.rename(tmp_path / path.name)
    with pytest.raises(DataError, match="holds no index"):
        reader.refresh()
    assert len(reader) == 39  # what it had is still read


@pytest.mark.parametrize("metric", ["cosine", "inner", "l2"])
def test_few_vectors_need_no_plan(metric, tmp_path):
    z_nd, query_bd = draw(300, D), draw(9, D, seed=1)
    for source in (z_nd, store(tmp_path, z_nd)):
        index = Index.build(None, source, metric=metric, queries=query_bd, target_recall=0.9, k=500)
        assert index.plan == Plan(Schedule.exact(D), metric)
        check(index.search(query_bd, 10), similar(z_nd, query_bd, metric))


def test_a_plan_or_what_it_should_reach():
    z_nd, plan = draw(30, D), Plan(Schedule.exact(D))
    for name, value in (
        ("target_recall", 0.9), ("k", 3), ("metric", "l2"), ("memory", 10**9), ("dims", (4, 8)),
        ("latency_ms", 1), ("queries", z_nd),
    ):  # fmt: skip
        message = f"a plan is given, which says what {name} would say: give one of both"
        with pytest.raises(UsageError, match=message):
            Index.build(None, z_nd, plan=plan, **{name: value})
    with pytest.raises(UsageError, match="target recall must be above 0, at most 1; got 2"):
        Index.build(None, z_nd, target_recall=2)
    with pytest.raises(ValueError, match="metric must be one of cosine, inner, l2; got 'hamming'"):
        Index.build(None, z_nd, metric="hamming")
    with pytest.raises(UsageError, match="a plan of 30 vectors needs queries: give 40 or more"):
        Index.build(None, z_nd, memory=100)


def test_rows_that_are_drawn_as_queries_are_not_searched(monkeypatch, caplog):
    """Each would find itself, so that any plan would seem better than it is."""
    monkeypatch.setattr(choice, "FEWEST_ROWS", 400)
    z_nd, seen = draw(450, D), []

    class Found:
        plan = Plan(Schedule.exact(D), "l2")
        chosen = property(lambda self: self)

    def watched(source, queries, wanted, *, progress):
        drawn, others = queries.read(0, queries.rows), source.read(0, source.rows)
        seen.append((drawn, others, wanted))
        parts = [source.read(a, min(a + 7, source.rows)) for a in range(0, source.rows, 7)]
        np.testing.assert_array_equal(np.concatenate(parts), others)
        return Found()

    monkeypatch.setattr(propose, "propose", watched)
    wanted = {"target_recall": 0.8, "k": 7, "metric": "l2", "memory": 10**6, "dims": (4, 8)}
    index = Index.build(None, z_nd, **wanted, seed=5)
    assert index.plan is Found.plan or index.plan == Found.plan
    assert "made for queries like the vectors themselves" in caplog.text
    (drawn, others, told), *_ = seen
    assert (len(drawn), len(others)) == (45, 405)
    rows = {row.tobytes() for row in z_nd}
    assert {row.tobytes() for row in drawn} | {row.tobytes() for row in others} == rows
    assert told == promises.Wanted(**wanted, seed=5)
    caplog.clear()
    query_bd = draw(60, D, seed=1)
    Index.build(None, z_nd, queries=query_bd)
    assert caplog.text == ""
    drawn, others, told = seen[1]
    np.testing.assert_array_equal(drawn, query_bd)
    np.testing.assert_array_equal(others, z_nd)
    assert told == promises.Wanted(0.99)


@pytest.mark.slow
def test_the_promise_of_a_plan_that_was_made(monkeypatch):
    monkeypatch.setattr(choice, "FEWEST_ROWS", 400)
    z_nd, query_bd = vectors(4000, 32, 0), vectors(400, 32, 1)
    index = Index.build(None, z_nd, target_recall=0.9, dims=(8, 16))
    found_bk, _ = index.search(query_bd, 10)
    wanted_bk = np.argsort(-similar(z_nd, query_bd, "cosine"), 1)[:, :10]
    assert (found_bk[:, :, None] == wanted_bk[:, None, :]).any(2).mean() >= 0.9
