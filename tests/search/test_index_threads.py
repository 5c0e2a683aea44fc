import threading

import numpy as np
import pytest
import threadpoolctl
from brute_force import draw, store

from mrl_jax.search.index import Index, segment, threads
from mrl_jax.search.plan import Plan
from mrl_jax.search.schedule import Schedule

D = 16
KINDS = ("blas", "openmp")
PLANS = {
    "exact": Plan(Schedule.exact(D)),
    "flat": Plan(Schedule.parse(f"8:40 > {D}"), code="int8"),
    "lists": Plan(Schedule.parse(f"8:40 > {D}"), code="int8", lists=8, list_dim=8, probes=8),
    "HNSW": Plan(Schedule.parse(f"8:40 > {D}"), factory="HNSW16"),
}


@pytest.fixture(params=PLANS)
def index(request, tmp_path):
    return Index.build(tmp_path / "index", store(tmp_path, draw(300, D)), plan=PLANS[request.param])


@pytest.mark.parametrize("change", ["add", "delete", "compact"])
def test_a_search_is_of_what_was_there_when_it_began(index, change, tmp_path, monkeypatch):
    query_bd, prepare = draw(20, D, seed=1), segment.prepare
    index.delete(np.arange(0, 300, 3))
    before = index.search(query_bd, 5)
    more = store(tmp_path, 2 * query_bd, np.arange(20) + 500, name="more")

    def meanwhile(*arguments):
        monkeypatch.setattr(segment, "prepare", prepare)
        if change == "add":
            index.add(more)
        else:
            index.delete(np.unique(before[0]))
        if change == "compact":
            index.compact()
        return prepare(*arguments)

    monkeypatch.setattr(segment, "prepare", meanwhile)
    found = index.search(query_bd, 5, threads=1)
    for a, b in zip(found, before, strict=True):
        np.testing.assert_array_equal(a, b)
    after = index.search(query_bd, 5)[0]
    if change == "add":
        np.testing.assert_array_equal(after[:, 0], more.ids)
    else:
        assert not np.isin(after, before[0]).any()


def test_deleted_rows_are_never_found_by_other_threads(tmp_path):
    index = Index.build(tmp_path / "index", store(tmp_path, draw(3000, D)), plan=PLANS["lists"])
    index.delete(np.arange(1000))
    query_bd, found, stop = draw(8, D, seed=1), [], threading.Event()

    def read():
        while not stop.is_set():
            found.append(index.search(query_bd, 1, threads=1)[0])

    reader = threading.Thread(target=read)
    reader.start()
    for row in range(1000, 1060):
        index.delete([row])
    index.compact()
    stop.set()
    reader.join()
    assert np.min(found) >= 1000


def numbers(*kinds):
    """Threads of the libraries that searches limit, as this thread sees them."""
    # Packages that bring the same library share the one that was loaded first, wherever it is from.
    limited = {x.filepath for kind in kinds or KINDS for x in threads._libraries(kind)}
    assert limited
    found = {x["filepath"]: x["num_threads"] for x in threadpoolctl.threadpool_info()}
    return {path: found[path] for path in limited}


def test_searches_side_by_side_leave_the_threads_of_libraries_as_they_were(index, monkeypatch):
    """Three begin before one ends, by an error; then the others end."""
    query_bd, search = draw(100, D, seed=1), segment.Segment.search
    index.search(query_bd, 5)
    before, together, inside, after, errors = numbers(), threading.Barrier(3), [], [], []

    def slow(*arguments):
        inside.extend(numbers("openmp").values())
        together.wait(60)
        if threading.current_thread().name == "second":
            raise RuntimeError("it fails")
        return search(*arguments)

    def ask():
        try:
            index.search(query_bd, 5, threads=1)
        except RuntimeError as error:
            errors.append(error)
        after.append(numbers("openmp"))

    monkeypatch.setattr(segment.Segment, "search", slow)
    askers = [threading.Thread(target=ask, name=name) for name in ("first", "second", "third")]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert len(errors) == 1
    assert set(inside) == {1}
    assert numbers() == before
    assert after == [numbers("openmp")] * 3  # which every thread has numbers of its own of


def test_threads_of_a_search_have_one_of_every_library(index, monkeypatch):
    query_bd, search, inside = draw(100, D, seed=1), segment.Segment.search, {}
    before = numbers()

    def watched(*arguments):
        inside[threading.current_thread().name] = set(numbers("openmp").values())
        return search(*arguments)

    monkeypatch.setattr(segment.Segment, "search", watched)
    for most in (1, 3):
        inside.clear()
        index.search(query_bd, 5, threads=most)
        assert 1 <= len(inside) <= most
        assert set().union(*inside.values()) == {1}
    assert numbers() == before


@pytest.mark.parametrize("first_out", [0, 1])
def test_a_limit_of_blas_never_outlives_the_thread_that_set_it(first_out):
    """Whoever leaves first, and whichever thread OpenBLAS listens to."""
    before = numbers()
    entered, leave = [threading.Event(), threading.Event()], [threading.Event(), threading.Event()]

    def hold(n):
        with threads.one_each():
            entered[n].set()
            leave[n].wait(60)

    holders = [threading.Thread(target=hold, args=(n,)) for n in (0, 1)]
    for n in (0, 1):
        holders[n].start()
        entered[n].wait(60)
    for n in (first_out, 1 - first_out):
        leave[n].set()
        holders[n].join()
    assert numbers() == before
