import errno
import fcntl
import os
import shutil
import threading

import numpy as np
import pytest
from brute_force import check, draw, similar, store

from mrl_jax.errors import DataError, UsageError
from mrl_jax.runtime import locks
from mrl_jax.search.index import NO_ID, Index, files
from mrl_jax.search.plan import Plan
from mrl_jax.search.schedule import Schedule

D = 24
FUNNEL = Schedule.parse(f"8:60 > 16:30 > {D}")
PLANS = {
    "exact": Plan(Schedule.exact(D), "l2"),
    "flat": Plan(FUNNEL, code="int8"),
    "binary": Plan(FUNNEL, "inner", "binary"),
    "lists": Plan(FUNNEL, "l2", "float16", lists=8, list_dim=12, probes=8),
    "Flat": Plan(Schedule.parse(f"8:60 > {D}"), factory="Flat"),
    "IVF": Plan(Schedule.parse(f"8:60 > {D}"), factory="IVF4,Flat", parameters="nprobe=4"),
}


@pytest.fixture(params=PLANS)
def plan(request):
    return PLANS[request.param]


@pytest.fixture(scope="module")
def query_bd():
    return draw(25, D, seed=9)


def everything(index, query_bd, k=20, **arguments):
    keeps = (10**6,) * len(index.plan.schedule.stages)
    return index.search(query_bd, k, keeps=keeps, **arguments)


def same(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a, b)


def content(folder):
    """Every file of an index but the lock, which says nothing."""
    paths = [p for p in folder.rglob("*") if p.is_file() and p.name != files.LOCK]
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


def test_added_deleted_compacted(plan, query_bd, tmp_path):
    """After every change it finds what an index of the same rows finds that is built anew."""
    folder = tmp_path / "index"
    z_nd, ids = draw(700, D), np.random.default_rng(0).permutation(700) * 3 + 2**40 + 5
    alive_n = np.zeros(700, bool)
    Index.build(folder, store(tmp_path, z_nd[:470], ids[:470]), plan=plan)
    alive_n[:470] = True

    def compare(index):
        assert index.rows == alive_n.sum()
        np.testing.assert_array_equal(index.ids, ids[alive_n])
        truth_bn = similar(z_nd[alive_n], query_bd, plan.metric)
        for threads in (1, 3):
            check(everything(index, query_bd, threads=threads), truth_bn, ids[alive_n])
        new = store(tmp_path, z_nd[alive_n], ids[alive_n], name="new")
        shutil.rmtree(tmp_path / "new", ignore_errors=True)
        anew = Index.build(tmp_path / "new", new, plan=plan)
        same(everything(index, query_bd), everything(anew, query_bd))
        return anew

    index = Index.open(folder)
    index.add(store(tmp_path, z_nd[470:650], ids[470:650], name="more"))
    index.add(store(tmp_path, z_nd[650:], ids[650:], name="few"))
    alive_n[470:] = True
    assert len(list(folder.glob("segment-*"))) == 3
    compare(index)
    gone_n = np.random.default_rng(1).permutation(700)[:300]
    index.delete(ids[gone_n[:200]])
    index.delete(ids[gone_n[200:]].tolist())
    alive_n[gone_n] = False
    compare(index)
    compare(Index.open(folder))
    before = index.bytes()
    index.compact()
    anew = compare(index)
    compare(Index.open(folder)).verify()
    index.verify()
    assert index.bytes()["vectors"] == 400 * D * 4 < before["vectors"]
    if plan.lists == 1 and "IVF" not in plan.factory:  # by its own numbers of candidates, too
        same(index.search(query_bd, 20), anew.search(query_bd, 20))
        assert index.bytes() == anew.bytes()
        assert len(content(folder)) == len(content(tmp_path / "new"))


def test_two_segments_keep_at_least_what_one_would(query_bd, tmp_path):
    """By the plan's own numbers: each segment keeps as many, so that no result becomes worse."""
    z_nd = draw(900, D)
    one = Index.build(tmp_path / "one", store(tmp_path, z_nd), plan=PLANS["flat"])
    two = Index.build(tmp_path / "two", store(tmp_path, z_nd[:650], name="a"), plan=PLANS["flat"])
    two.add(store(tmp_path, z_nd[650:], np.arange(650, 900), name="b"))
    assert len(list((tmp_path / "two").glob("segment-*"))) == 2
    assert (two.search(query_bd, 20)[1] >= one.search(query_bd, 20)[1]).all()


def test_ties_go_to_the_segment_that_was_first(tmp_path, plan):
    row_1d = draw(1, D)
    ids = np.arange(120)[::-1]
    vectors = store(tmp_path, np.repeat(row_1d, 85, 0), ids[:85])
    index = Index.build(tmp_path / "index", vectors, plan=plan)
    index.add(store(tmp_path, np.repeat(row_1d, 35, 0), ids[85:]))
    assert len(list((tmp_path / "index").glob("segment-*"))) == 2
    np.testing.assert_array_equal(everything(index, row_1d, 20)[0][0], ids[:20])
    index.delete(ids[5:45])
    wanted = np.delete(ids, np.arange(5, 45))[:20]
    np.testing.assert_array_equal(everything(index, row_1d, 20)[0][0], wanted)
    assert len(list((tmp_path / "index").glob("segment-*"))) == 1  # merged, in the same order


def test_an_id_may_come_back(plan, query_bd, tmp_path):
    z_nd, ids = draw(60, D), np.arange(60) - 200
    index = Index.build(tmp_path / "index", store(tmp_path, z_nd, ids), plan=plan)
    index.delete(ids[10:20])
    index.add(store(tmp_path, 2 * z_nd[10:20] + 1, ids[10:20]))
    z_nd[10:20] = 2 * z_nd[10:20] + 1
    check(everything(index, query_bd), similar(z_nd, query_bd, plan.metric), ids)
    index.delete(ids[15:16])
    z_nd, ids = np.delete(z_nd, 15, 0), np.delete(ids, 15)
    check(everything(index, query_bd), similar(z_nd, query_bd, plan.metric), ids)
    index.compact()
    check(everything(index, query_bd), similar(z_nd, query_bd, plan.metric), ids)


def test_until_nothing_is_left(plan, query_bd, tmp_path):
    index = Index.build(tmp_path / "index", store(tmp_path, draw(30, D)), plan=plan)
    index.delete(np.arange(28))
    ids_bk, scores_bk = everything(index, query_bd)
    assert set(ids_bk[:, :2].ravel()) == {28, 29}
    assert (ids_bk[:, 2:] == NO_ID).all()
    assert (scores_bk[:, 2:] == -np.inf).all()
    index.delete([28, 29])
    assert (index.rows, index.ids.tolist()) == (0, [])
    assert (everything(index, query_bd)[0] == NO_ID).all()
    before = content(tmp_path / "index")
    with pytest.raises(DataError, match="all vectors are deleted; build a new index"):
        index.compact()
    assert content(tmp_path / "index") == before
    index.add(store(tmp_path, draw(5, D)))
    assert set(everything(index, query_bd, 5)[0].ravel()) == set(range(5))
    index.compact()
    assert set(everything(index, query_bd, 5)[0].ravel()) == set(range(5))


def test_what_is_refused_changes_nothing(tmp_path, query_bd):
    z_nd = draw(80, D)
    index = Index.build(tmp_path / "index", store(tmp_path, z_nd), plan=PLANS["lists"])
    index.delete([7, 8])
    before, found = content(tmp_path / "index"), everything(index, query_bd)
    changes = [
        (
            lambda: index.add(store(tmp_path, z_nd[:, :9], name="w")),
            DataError,
            "have 9 dims, ",
        ),
        (lambda: index.add(store(tmp_path, z_nd[:2], [100, 9])), DataError, "id 9 is in the index"),
        (lambda: index.add(store(tmp_path, z_nd[:2], [100, -1])), DataError, "id -1: it stands"),
        (lambda: index.delete([1, 7]), DataError, "id 7 is not in the index"),
        (lambda: index.delete([1, 2**50]), DataError, f"id {2**50} is not in the index"),
        (lambda: index.delete([1.5]), ValueError, "ids must be int64, got float64"),
        (lambda: index.delete([True, False]), ValueError, "ids must be int64, got bool"),
        (lambda: index.delete(["1"]), ValueError, "ids must be int64, got <U1"),
    ]
    for value, message in ((np.nan, "NaN"), (np.inf, "infinity"), (1e19, "longer than 4e18")):
        other_nd = draw(10, D)
        other_nd[4, 1] = value
        vectors = store(tmp_path, other_nd, np.arange(10) + 90, name="illegal")
        changes.append((lambda v=vectors: index.add(v), DataError, f"row 4 holds .*{message}"))
    vectors = store(tmp_path, draw(10, D) * np.float32(1e6), np.arange(10) + 90, name="long")
    changes.append((lambda: index.add(vectors), UsageError, "float16 codes hold numbers up to"))
    for change, error, message in changes:
        with pytest.raises(error, match=message) as raised:
            change()
        assert "\n" not in str(raised.value)
        assert content(tmp_path / "index") == before
        same(everything(index, query_bd), found)
        same(everything(Index.open(tmp_path / "index"), query_bd), found)
    index.delete([1, 1, 2])
    index.delete([])
    assert index.rows == 76


def test_other_files_stay(tmp_path):
    index = Index.build(tmp_path / "index", store(tmp_path, draw(20, D)), plan=PLANS["flat"])
    for name in ("plan.json", "notes", "segmentation.md"):
        (tmp_path / "index" / name).write_text("mine")
    (tmp_path / "index" / "results").mkdir()
    index.delete([3])
    index.compact()
    assert {"plan.json", "notes", "segmentation.md", "results"} < {
        path.name for path in (tmp_path / "index").iterdir()
    }


def test_readers_see_what_they_opened(plan, query_bd, tmp_path):
    z_nd = draw(100, D)
    writer = Index.build(tmp_path / "index", store(tmp_path, z_nd), plan=plan)
    reader, asked = Index.open(tmp_path / "index"), Index.open(tmp_path / "index")
    found = everything(asked, query_bd)
    writer.delete(np.arange(50))
    writer.add(store(tmp_path, draw(10, D, seed=5), np.arange(10) + 500))
    writer.compact()
    for index in (asked, reader):
        same(everything(index, query_bd), found)
        assert index.rows == 100
    with pytest.raises(DataError, match="id 3 is not in the index"):
        asked.delete([3])  # a change is one of what is there now
    reader.delete([60])
    assert reader.rows == writer.rows - 1 == 59


def test_opened_while_it_changes(tmp_path, query_bd):
    """Whatever others do meanwhile, what is opened is whole."""
    writer = Index.build(tmp_path / "index", store(tmp_path, draw(60, D)), plan=PLANS["flat"])
    more = store(tmp_path, draw(5, D, seed=5), np.arange(5) + 500)
    errors, sizes = [], []
    stop = threading.Event()

    def read():
        try:
            while not stop.is_set():
                index = Index.open(tmp_path / "index")
                assert (everything(index, query_bd[:2])[0] != NO_ID).all()
                sizes.append(index.rows)
        except Exception as error:
            errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(15):
        writer.add(more)
        writer.delete(more.ids)
        writer.compact()
    stop.set()
    reader.join()
    assert not errors
    assert set(sizes) <= {60, 65}
    assert len(sizes) > 5


def test_one_change_at_a_time(tmp_path):
    folder = tmp_path / "index"
    index = Index.build(folder, store(tmp_path, draw(40, D)), plan=PLANS["flat"])
    more = store(tmp_path, draw(5, D), np.arange(5) + 500)
    before = content(folder)

    class Second:
        """Vectors that another command tries to change the index beside."""

        rows, width, ids = more.rows, more.width, more.ids

        def read(self, first, last):
            for change in (
                lambda: Index.open(folder).add(more),
                lambda: Index.open(folder).delete([3]),
                lambda: Index.open(folder).compact(),
            ):
                with pytest.raises(UsageError, match="index is being changed by another command"):
                    change()
            assert Index.open(folder).rows == 40  # reading is allowed
            return more.read(first, last)

    index.add(Second())
    assert index.rows == 45
    index.delete([0])
    assert len(content(folder)) > len(before)


def test_a_file_system_without_locks(tmp_path, monkeypatch, capsys):
    """All changes are made, after one line."""

    def flock(file, how):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(locks, "_said", set())
    index = Index.build(tmp_path / "index", store(tmp_path, draw(40, D)), plan=PLANS["flat"])
    index.add(store(tmp_path, draw(5, D), np.arange(5) + 500))
    index.delete([3])
    index.compact()
    assert index.rows == 44
    index.verify()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: ")
    assert line.endswith(
        ".lock cannot be locked (Function not implemented): nothing keeps another "
        "command out of the same folder"
    )


def test_one_build_at_a_time(tmp_path):
    vectors = store(tmp_path, draw(40, D))

    class Second:
        rows, width, ids = vectors.rows, vectors.width, vectors.ids

        def read(self, first, last):
            with pytest.raises(UsageError, match=r"index\S* is being changed by another command"):
                Index.build(tmp_path / "index", vectors, plan=PLANS["flat"])
            return vectors.read(first, last)

    Index.build(tmp_path / "index", Second(), plan=PLANS["flat"]).verify()
    assert not (tmp_path / "index.unfinished").exists()


@pytest.mark.parametrize(
    "plan", [Plan(Schedule.parse("8:20 > 16"), "l2", "int8"), Plan(Schedule.exact(16), "l2")]
)
def test_deleted_rows_are_not_found_by_many_queries_at_once(plan, tmp_path):
    """Which are compared with all rows by matrix products."""
    z_nd = draw(3000, 16)
    index = Index.build(tmp_path / "index", store(tmp_path, z_nd), plan=plan)
    index.delete(np.arange(0, 3000, 2))
    ids_bk, _ = index.search(z_nd[:200], 5, threads=1)
    assert (ids_bk % 2 == 1).all()
    np.testing.assert_array_equal(ids_bk[1::2, 0], np.arange(1, 200, 2))
    single = [index.search(z_nd[b : b + 1], 5) for b in range(50)]
    np.testing.assert_array_equal(ids_bk[:50], np.concatenate([ids for ids, _ in single]))


class _Swapped:
    """A source of vectors and ids in the other byte order."""

    def __init__(self, z_nd, ids_n):
        self._z_nd, self.ids = z_nd.astype(">f8"), ids_n.astype(">i8")
        self.rows, self.width = z_nd.shape

    def read(self, first, last):
        return self._z_nd[first:last]

    def sample(self, n, seed, width):
        return self._z_nd[:n, :width]


def test_a_source_of_the_other_byte_order(tmp_path):
    z_nd = np.random.default_rng(0).standard_normal((300, 16)).astype(np.float32)
    plan = Plan(Schedule.parse("8:50 > 16"), lists=4, list_dim=8, probes=4)
    index = Index.build(tmp_path / "index", _Swapped(z_nd[:200], np.arange(200)), plan=plan)
    index.add(_Swapped(z_nd[200:], np.arange(1000, 1100)))
    index.delete(np.array([1000], ">i8"))
    found, _ = index.search(z_nd[[7, 201]].astype(">f4"), 1)
    assert found[:, 0].tolist() == [7, 1001]
