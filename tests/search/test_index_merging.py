"""Small segments are merged by themselves, large ones are left alone, and readers keep reading."""

import itertools
import math
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from brute_force import check, draw, similar
from commands import ROOT

from mrl_jax.errors import DataError
from mrl_jax.search.index import Index, changes, files, merging, pages
from mrl_jax.search.plan import Plan
from mrl_jax.search.schedule import Schedule

D = 8
EXACT = Plan(Schedule.exact(D), "l2")


def sizes(index):
    """Rows that are found, and all rows, of every segment."""
    return [(part.alive_rows, part.rows) for part in index._now.segments]


@pytest.mark.parametrize("kind", ["one by one", "of any size", "ever fewer", "ever more"])
def test_few_segments_and_little_rewriting(kind):
    generator = np.random.default_rng(0)
    added = {
        "one by one": [1] * 2000,
        "of any size": np.exp(generator.uniform(0, 9, 2000)).astype(int).tolist(),
        "ever fewer": list(range(2000, 0, -1)),
        "ever more": list(range(1, 2000)),
    }[kind]
    alive_s, written = [], 0
    for rows in added:
        alive_s.append(rows)
        first = merging.first_merged(alive_s, 10**9)
        alive_s[first:] = [sum(alive_s[first:])]
        written += alive_s[-1]
        assert all(a > 2 * b for a, b in itertools.pairwise(alive_s))
    assert sum(alive_s) == sum(added)
    assert len(alive_s) <= math.log2(sum(added)) + 1
    assert written <= sum(added) * (math.log(sum(added), 1.5) + 1)


def test_no_more_than_one_change_may_write():
    assert merging.first_merged([100, 90, 50, 30], 10**9) == 0
    assert merging.first_merged([100, 90, 50, 30], 200) == 1
    assert merging.first_merged([100, 90, 50, 30], 79) == 3
    plan = Plan(Schedule.parse(f"4:10 > {D}"), factory="HNSW8")
    assert merging.most_rows(plan, D, 1) < merging.most_rows(EXACT, D, 1) == 2**28 // (4 * D)
    assert merging.most_rows(plan, D, 10**8) == 4 * 10**8


def test_large_segments_are_left_alone(tmp_path, monkeypatch):
    """Files of them are not touched by small changes; a large change may merge them."""
    monkeypatch.setattr(merging, "_BYTES", 60 * 4 * D)  # 60 rows
    z_nd = draw(600, D)
    index = Index.build(tmp_path / "index", z_nd[:100], plan=EXACT)
    for n in range(100, 190, 3):
        index.add(z_nd[n : n + 3], [n, n + 1, n + 2])
    assert sizes(index)[0] == (100, 100)
    assert max(rows for _, rows in sizes(index)[1:]) <= 60
    index.delete(np.arange(80))  # which may write 320 rows
    alive, rows = sizes(index)[0]
    assert alive == rows > 60
    index.delete(np.arange(80, 190))
    assert len(index) == 0
    index.add(z_nd[190:490], np.arange(190, 490))
    for n in range(190, 430, 8):
        index.delete(np.arange(n, n + 8))
    alive, rows = sizes(index)[0]
    assert (alive, rows) == (60, 60)  # merged as soon as it was small enough
    check(index.search(z_nd[:5], 3), similar(z_nd[430:490], z_nd[:5], "l2"), np.arange(430, 490))


def test_segments_of_deleted_rows_are_merged(tmp_path):
    z_nd = draw(130, D)
    index = Index.build(tmp_path / "index", z_nd[:100], plan=EXACT)
    index.add(z_nd[100:], np.arange(100, 130))
    index.delete(np.arange(39))
    assert sizes(index) == [(61, 100), (30, 30)]
    index.delete([39])  # 60 are twice 30
    assert sizes(index) == [(90, 90)]
    index.delete(np.arange(40, 85))
    assert sizes(index) == [(45, 90)]
    index.delete([85])
    assert sizes(index) == [(44, 44)]
    left = np.arange(86, 130)
    np.testing.assert_array_equal(index.ids, left)
    check(index.search(z_nd[:5], 9), similar(z_nd[left], z_nd[:5], "l2"), left)
    assert len(list((tmp_path / "index").iterdir())) == 4  # a segment, what all share, ...
    index.verify()
    for _ in range(3):  # what replaces all rows of a segment leaves nothing of it
        index.upsert(z_nd[left], left)
        assert sizes(index) == [(44, 44)]
    index.delete(left)
    assert (len(index), len(sizes(index))) == (0, 1)  # an index has one segment at least
    index.add(z_nd[:2], [0, 1])
    assert sizes(Index.open(tmp_path / "index")) == [(2, 2)]


def test_a_change_is_made_though_merging_fails(tmp_path, monkeypatch, caplog):
    z_nd = draw(20, D)
    index = Index.build(tmp_path / "index", z_nd, plan=EXACT)

    def fail(*_):
        raise DataError("cannot write: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(changes, "_added", fail)
        index.delete(np.arange(15))
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{tmp_path / 'index'} was changed, but its segments cannot be merged: "
        "cannot write: No space left on device"
    )
    assert sizes(index) == sizes(Index.open(tmp_path / "index")) == [(5, 20)]
    index.delete([])  # the next change makes up for it
    assert sizes(index) == [(5, 5)]


def test_what_was_merged_keeps_names_and_attributes(tmp_path):
    import pyarrow.compute as pc

    z_nd, year_n = draw(30, D), np.arange(30) + 1960
    names_n = np.array([f"row {n}" for n in range(30)])
    tags = [None if n % 3 == 0 else f"tag {n % 4}" for n in range(30)]

    def columns(n):
        return {"year": year_n[n : n + 1], "tag": tags[n : n + 1]}

    index = Index.build(
        tmp_path / "index", z_nd[:1], names_n[:1], plan=EXACT,
        attributes={"year": year_n[:1], "tag": ["tag 0"]},
    )  # fmt: skip
    tags[0] = "tag 0"
    for n in range(1, 30):
        index.add(z_nd[n : n + 1], names_n[n : n + 1], attributes=columns(n))
    assert len(sizes(index)) < 6
    np.testing.assert_array_equal(index.ids, names_n)
    np.testing.assert_array_equal(index.get(names_n[::-1]), z_nd[::-1])
    for predicate, wanted_n in (
        (pc.field("year") >= 1975, year_n >= 1975),
        (pc.field("tag") == "tag 2", np.array(tags) == "tag 2"),
        (pc.field("tag").is_null(), np.array([tag is None for tag in tags])),
    ):
        found = index.search(z_nd[0], 30, allow=predicate)[0]
        assert set(found[found != ""].tolist()) == set(names_n[wanted_n].tolist())


# A process that may hold few descriptors, in which one thread adds and another reads what was
# there before, and what is there now.
ONE_BY_ONE = """
import pathlib, resource, sys, threading
import numpy as np
from mrl_jax.search.index import Index
from mrl_jax.search.plan import Plan
from mrl_jax.search.schedule import Schedule

folder, adds = pathlib.Path(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
D = 16
z_nd = np.random.default_rng(0).standard_normal((600 + adds, D)).astype(np.float32)
plan = Plan(Schedule.parse(f"8:50 > {D}"), "l2", "int8", lists=4, list_dim=8, probes=4)
index = Index.build(folder, z_nd[:600], plan=plan)
old, new, errors, stop = Index.open(folder), Index.open(folder), [], threading.Event()
wanted = old.search(z_nd[:3], 5)

def read():
    try:
        rows = 0
        while not stop.wait(0.005):
            for a, b in zip(old.search(z_nd[:3], 5, threads=1), wanted):
                np.testing.assert_array_equal(a, b)
            new.refresh()
            assert len(new) >= rows
            rows = len(new)
            np.testing.assert_array_equal(new.search(z_nd[rows - 1], 1)[0], [rows - 1])
            assert len(Index.open(folder)) >= rows
    except BaseException as error:
        errors.append(repr(error))

reader = threading.Thread(target=read)
reader.start()
for n in range(600, 600 + adds):
    index.add(z_nd[n : n + 1], [n])
stop.set()
reader.join()
found = index.search(z_nd[::7], 1)[0][:, 0]
np.testing.assert_array_equal(found, np.arange(len(z_nd))[::7])
print(len(index._now.segments), len(list(folder.glob("segment-*"))), len(old), errors)
"""


@pytest.mark.parametrize("adds", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_one_by_one_with_few_descriptors(adds, tmp_path):
    script = [sys.executable, "-c", ONE_BY_ONE, tmp_path / "index", str(adds)]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    segments, folders, old, errors = done.stdout.split(maxsplit=3)
    assert (int(old), errors) == (600, "[]\n")
    assert int(segments) == int(folders) <= math.log2(600 + adds)


@pytest.fixture
def index(tmp_path):
    return Index.build(tmp_path / "index", draw(20, D), plan=EXACT)


def test_a_change_waits_for_another(index, monkeypatch):
    """With or without time to wait, and for all kinds of changes."""
    z_nd, slept = draw(2, D), []
    for n, change in enumerate((
        lambda: index.add(z_nd, [100, 101]), lambda: index.upsert(z_nd, [0, 102]),
        lambda: index.delete([1]), index.compact, lambda: index.save(f"{index.folder}-copy"),
    )):  # fmt: skip
        index.wait = 0.05
        with (
            files.writing(index.folder),
            pytest.raises(
                files.UsageError,
                match=r"index is being changed by another command, also 0.05 s later$",
            ),
        ):
            change()
        index.wait = 0
        with (
            files.writing(index.folder),
            pytest.raises(files.UsageError, match=r"index is being changed by another command$"),
        ):
            change()
        index.wait = 1000
        other = files.writing(index.folder)
        other.__enter__()

        def sleep(seconds, other=other):
            slept.append(seconds)
            if len(slept) % 3 == 0:
                other.__exit__(None, None, None)

        with monkeypatch.context() as patch:
            patch.setattr(files.time, "sleep", sleep)
            change()
        assert len(slept) == 3 * (n + 1)
    assert 0 < max(slept) <= 0.1
    assert len(index) == 22
    assert {100, 101, 102} < set(index.ids.tolist())
    assert 1 not in index


def test_how_long_a_change_may_wait(index):
    assert Index.open(index.folder).wait == 0
    assert Index.open(index.folder, wait=3).wait == 3
    for seconds in (-1, math.nan):
        with pytest.raises(ValueError, match="wait must be a number of seconds, 0 or more; got"):
            index.wait = seconds
        with pytest.raises(ValueError, match="wait must be a number of seconds, 0 or more; got"):
            Index.open(index.folder, wait=seconds)


def test_writers_take_turns(tmp_path):
    """Objects of their own, and one for two threads: all is there in the end."""
    z_nd = draw(48, D)
    index = Index.build(tmp_path / "index", z_nd[:8], plan=EXACT)
    index.wait = 100
    objects = [index, index, Index.open(index.folder, wait=100), Index.open(index.folder, wait=100)]
    errors = []

    def write(which):
        try:
            for n in range(8 + 10 * which, 18 + 10 * which):
                objects[which].add(z_nd[n : n + 1], [n])
                assert n in objects[which]
        except BaseException as error:
            errors.append(repr(error))

    threads = [threading.Thread(target=write, args=(which,)) for which in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for each in objects:
        each.refresh()
        assert sorted(each.ids.tolist()) == list(range(48))
        np.testing.assert_array_equal(each.get(np.arange(48)), z_nd)
    assert len(sizes(index)) <= 6


def test_a_refreshed_object_opens_only_what_is_new(tmp_path, monkeypatch):
    """Also if another index was built in the same folder, whose files have the same names."""
    z_nd = draw(60, D)
    index = Index.build(tmp_path / "index", z_nd[:50], plan=EXACT)
    reader, opened, folder = Index.open(index.folder), [], pages.Folder

    def watched(path, about):
        opened.append(path.name)
        return folder(path, about)

    monkeypatch.setattr(pages, "Folder", watched)
    index.add(z_nd[50:], np.arange(50, 60))
    opened.clear()
    reader.refresh()
    assert opened == ["segment-00002"]
    index.delete([7, 55])
    opened.clear()
    reader.refresh()
    assert opened == []
    np.testing.assert_array_equal(reader.ids, np.delete(np.arange(60), [7, 55]))
    shutil.rmtree(index.folder)
    Index.build(tmp_path / "index", -z_nd[:50], plan=EXACT)
    reader.refresh()
    np.testing.assert_array_equal(reader.get(np.arange(50)), -z_nd[:50])
