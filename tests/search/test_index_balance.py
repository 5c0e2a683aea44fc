"""Rows that crowd in few lists are noticed, and clusters that are made anew mend it."""

import re

import numpy as np
import pyarrow.compute as pc
import pytest
from brute_force import store

from mrl_jax.errors import DataError
from mrl_jax.search.__main__ import main
from mrl_jax.search.index import Index, balance, changes, clusters, files
from mrl_jax.search.plan import Plan
from mrl_jax.search.schedule import Schedule

D, K = 16, 5
LISTS = {"code": "int8", "lists": 32, "list_dim": 8, "probes": 2}


def plan_of(metric):
    return Plan(Schedule.parse(f"8:80 > {D}"), metric, **LISTS)


def draw(rows, seed=0):
    """Vectors of the kind that the clusters are made of."""
    z_nd = np.random.default_rng(seed).standard_normal((rows, D)) * 0.95 ** np.arange(D)
    return z_nd.astype(np.float32)


def others(rows, seed):
    """Vectors that are near one another, where there are none of the first."""
    return 0.5 * draw(rows, seed) + np.float32(6) * (np.arange(D) < 4)


def read(index, query_bd):
    """The share of all rows in the lists that these queries look into."""
    now = index._now
    rows_l = sum(part.rows_of_lists() for part in now.segments)
    prefix_bd = query_bd[:, : now.plan.list_dim]
    near = clusters.nearest(prefix_bd, now.shared.centroid_ld, now.plan.probes, now.plan.metric)
    return rows_l[near].sum(1).mean() / rows_l.sum()


@pytest.fixture(params=["cosine", "l2"])
def index(request, tmp_path):
    return Index.build(tmp_path / "index", draw(3000), plan=plan_of(request.param))


def test_rows_of_the_same_kind_are_no_reason(index, caplog):
    assert index.slowdown == 1
    for n in range(1, 4):
        index.add(draw(1500, n), np.arange(1500) + 10_000 * n)
        assert 0.9 < index.slowdown < 1.1
    assert caplog.text == ""


def test_how_much_slower(index, caplog):
    """It is what queries like the rows really read, and is said again when it has grown by half."""
    query_bd = draw(200, 1)
    first = read(index, query_bd)
    factors, lines = [], []
    for n in range(1, 7):
        index.add(others(1000, n), np.arange(1000) + 10_000 * n)
        factors.append(index.slowdown)
        rows = 200 * 1000 * n // 3000
        like_bd = np.concatenate([query_bd, others(rows, 99)])
        assert factors[-1] == pytest.approx(read(index, like_bd) / first, rel=0.2)
        lines.append([record.getMessage() for record in caplog.records])
        caplog.clear()
    assert factors == sorted(factors)
    said = 1
    for factor, line in zip(factors, lines, strict=True):
        if factor < 1.5 * said:
            assert line == []
        else:
            said = factor
            assert line[0].startswith(f"{index.folder}: vectors are of another kind than those")
            assert (
                f" reads {factor:.1f} times as many as then. `compact(recluster=True)`" in line[0]
            )
    assert len([line for line in lines if line]) in (2, 3)
    # Another object says nothing again, and measures the same.
    again = Index.open(index.folder)
    again.upsert(others(10, 6), np.arange(10) + 60_000)
    assert again.slowdown == pytest.approx(factors[-1], rel=0.02)
    assert caplog.text == ""


def test_clusters_are_made_anew(index, caplog):
    index.add(others(3000, 1), np.arange(3000) + 10_000)
    index.delete(np.arange(100))
    like_bd = np.concatenate([draw(30, 5), others(30, 6)])
    ids, z_nd = index.ids, index.get(index.ids)
    old, slow = Index.open(index.folder), read(index, like_bd)
    wanted = old.search(like_bd, K, probes=20)
    index.compact()
    assert index.slowdown > 2
    old_shared = index._now.manifest["shared"]["name"]
    index.compact(recluster=True)
    assert index.slowdown == 1
    assert read(index, like_bd) < 0.6 * slow
    assert not (index.folder / old_shared).exists()
    np.testing.assert_array_equal(index.ids, ids)
    index.verify()
    anew = Index.build(None, z_nd, ids, plan=index.plan)
    for a, b in zip(index.search(like_bd, K), anew.search(like_bd, K), strict=True):
        np.testing.assert_array_equal(a, b)
    # Who had it open searches what was there, by the clusters of then, and changes what is there.
    for a, b in zip(old.search(like_bd, K, probes=20), wanted, strict=True):
        np.testing.assert_array_equal(a, b)
    reader = Index.open(index.folder)
    old.refresh()
    for a, b in zip(old.search(like_bd, K), reader.search(like_bd, K), strict=True):
        np.testing.assert_array_equal(a, b)
    caplog.clear()
    old.add(others(300, 2), np.arange(300) + 20_000)
    index.add(draw(300, 3), np.arange(300) + 30_000)
    assert (len(old), len(index)) == (6200, 6500)
    assert caplog.text == ""
    assert Index.open(index.folder).slowdown < 1.1


def test_an_object_that_was_opened_before_searches_though_all_is_replaced(tmp_path):
    """Also what it had not read until then: what faiss was trained on, clusters and vectors."""
    plans = {
        "lists": plan_of("l2"),
        "IVF": Plan(
            Schedule.parse(f"8:80 > {D}"), "l2", factory="IVF8,Flat", parameters="nprobe=8"
        ),
    }
    for name, plan in plans.items():
        z_nd, query_bd = draw(3000), draw(4, 1)
        Index.build(tmp_path / name, z_nd, plan=plan)
        old, unread = Index.open(tmp_path / name), Index.open(tmp_path / name)
        wanted = old.search(query_bd, K)
        writer = Index.open(tmp_path / name)
        writer.delete(np.arange(1000))
        writer.compact(recluster=True)
        writer.upsert(-z_nd[1000:2000], np.arange(1000, 2000))
        writer.compact(recluster=True)
        for index in (old, unread):
            for a, b in zip(index.search(query_bd, K), wanted, strict=True):
                np.testing.assert_array_equal(a, b)
            np.testing.assert_array_equal(index.get([1500]), z_nd[1500:1501])
            index.refresh()
            assert len(index) == 2000
            np.testing.assert_array_equal(index.get([1500]), -z_nd[1500:1501])
            np.testing.assert_array_equal(index.search(-z_nd[1500], 1)[0], [1500])


def test_what_cannot_be_clustered_stays(tmp_path, monkeypatch):
    index = Index.build(tmp_path / "index", draw(60), plan=plan_of("l2"))
    index.delete(np.arange(30))
    with pytest.raises(DataError, match=r"index: the plan has 32 lists, there are 30 vectors: bu"):
        index.compact(recluster=True)
    large = Index.build(tmp_path / "large", draw(60), plan=plan_of("l2"))
    large.delete([7])
    before = sorted(path for path in large.folder.rglob("*"))

    def fail(*_, **__):
        raise DataError("cannot write: No space left on device")

    for name in ("_write_segment", "_write_shared"):
        with monkeypatch.context() as patch:
            patch.setattr(changes, name, fail)
            with pytest.raises(DataError, match="No space left"):
                large.compact(recluster=True)
    assert sorted(path for path in large.folder.rglob("*")) == before
    large.verify()
    index.delete(np.arange(30, 60))
    with pytest.raises(DataError, match="all vectors are deleted; build a new index"):
        index.compact(recluster=True)
    # Without clusters there is nothing to be made anew.
    exact = Index.build(None, draw(60))
    exact.add(others(60, 1), np.arange(60) + 100)
    exact.compact(recluster=True)
    assert (len(exact), exact.slowdown) == (120, 1)


def test_few_first_rows(tmp_path, caplog):
    """Clusters of as many rows as lists, and then a hundred times as many of two kinds."""
    index = Index.build(tmp_path / "index", draw(32), plan=plan_of("l2"))
    index.add(np.concatenate([draw(1500, 1), others(1500, 2)]), np.arange(3000) + 100)
    assert index.slowdown > 1.5
    assert len(caplog.records) == 1
    index.compact(recluster=True)
    assert read(index, others(100, 3)) < 0.3


def test_small_changes_are_not_looked_at_each(tmp_path, monkeypatch, caplog):
    index = Index.build(tmp_path / "index", draw(3000), plan=plan_of("l2"))
    monkeypatch.setattr(changes, "_FEW", 4)
    looked, share_read = [], changes.balance.share_read

    def watched(*arguments):
        looked.append(index._now.manifest["version"])
        return share_read(*arguments)

    monkeypatch.setattr(changes.balance, "share_read", watched)
    for n in range(8):
        index.add(others(10, n), np.arange(10) + 10_000 * (n + 1))
    assert looked == [4, 8]
    index.add(others(1000, 9), np.arange(1000) + 10**6)
    assert looked == [4, 8, 9]
    assert "times as many as then" in caplog.text


def test_all_are_compared_though_they_are_many(tmp_path, monkeypatch, caplog):
    """It is said once, and another plan can be made of what the index holds."""
    monkeypatch.setattr(balance, "FEWEST_ROWS", 500)
    names, year_n = [f"row {n}" for n in range(520)], np.arange(520)
    index = Index.build(
        tmp_path / "index", draw(480), names[:480], attributes={"year": year_n[:480]}
    )
    for n in range(480, 520, 10):
        some = slice(n, n + 10)
        index.add(others(10, n), names[some], attributes={"year": year_n[some]})
    index.compact(recluster=True)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{index.folder}: all of its 500 vectors are compared, ")
    vectors = index.vectors
    new = Index.build(None, vectors, attributes=vectors.attributes, plan=plan_of("l2"))
    assert new.ids.tolist() == names
    np.testing.assert_array_equal(new.get(names), index.get(names))
    found, _ = new.search(draw(3, 5), 20, allow=pc.field("year") >= 500)
    assert {int(name.split()[1]) for name in found.ravel()} == set(range(500, 520))


def test_damage_elsewhere_does_not_hinder_adding(tmp_path):
    index = Index.build(tmp_path / "index", draw(3000), plan=plan_of("l2"))
    path = index.folder / "segment-00001" / "vectors.npy"
    path.write_bytes(path.read_bytes()[:-100_000] + bytes(100_000))
    index = Index.open(index.folder)
    index.add(others(100, 1), np.arange(100) + 5000)
    with pytest.raises(DataError, match=r"vectors.npy is damaged: its checksum differs"):
        _ = index.slowdown
    assert len(index) == 3100


def test_by_command(tmp_path, capsys):
    def run(*arguments):
        main([str(argument) for argument in arguments])
        return capsys.readouterr().out

    folder = tmp_path / "index"
    Index.build(folder, draw(1000), plan=plan_of("cosine"))
    vectors = store(tmp_path, others(1000, 1), np.arange(1000) + 5000)
    Index.open(folder).add(vectors)
    queries = ("--queries", tmp_path / "z.npy")
    said = run("evaluate", "--index", folder, *queries)
    factor = float(re.search(r"a query like the vectors reads (\S+) times as many", said)[1])
    assert factor > 1.5
    said = run("compact", "--index", folder, "--recluster")
    assert said.startswith("2,000 vectors, ")
    said = run("evaluate", "--index", folder, *queries)
    assert "a query like the vectors reads 1.0 times as many as at first" in said
    assert files.read_manifest(folder)["shared"]["name"] != "shared-00001"
