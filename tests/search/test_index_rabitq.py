"""Graphs of rabitqlib as the first stage, over first dims or principal directions."""

import dataclasses
import pathlib
import shutil

import numpy as np
import pytest
from brute_force import best, check, draw, similar
from class_vectors import nearest, recall, vectors

from mrl_jax.errors import DataError, UsageError
from mrl_jax.search import Index
from mrl_jax.search.index import NO_ID, rabitq
from mrl_jax.search.plan import Plan
from mrl_jax.search.schedule import Schedule

N, D, K = 2000, 96, 10
METRICS = ("cosine", "inner", "l2")
GRAPH = {"factory": "SymphonyQG32,8", "parameters": "ef=100"}
LISTS = {"factory": "IVFRaBitQ16,4", "parameters": "nprobe=10"}
ALL = Plan(Schedule.parse(f"{D}:30 > {D}"), **GRAPH)
FIRST = Plan(Schedule.parse(f"64:60 > {D}"), **GRAPH)
OF_LISTS = Plan(Schedule.parse(f"64:60 > {D}"), **LISTS)


@pytest.fixture(scope="module")
def data():
    """Vectors whose first dims tell most, and as many whose dims tell alike."""
    z_nd, query_bd = vectors(N, D, 0), vectors(50, D, 1)
    turn_dd = np.linalg.qr(np.random.default_rng(0).standard_normal((D, D)))[0].astype("f4")
    return {False: (z_nd, query_bd), True: (z_nd @ turn_dd, query_bd @ turn_dd)}


@pytest.fixture(scope="module", params=[ALL, OF_LISTS], ids=["graph", "lists"])
def index(request, data):
    return Index.build(None, data[False][0], plan=request.param)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("plan", [ALL, FIRST, OF_LISTS], ids=["all dims", "first dims", "lists"])
def test_most_is_found_whatever_the_metric(data, metric, plan):
    z_nd, query_bd = data[False]
    z_nd = z_nd * np.random.default_rng(1).uniform(0.9, 1.1, (N, 1)).astype("f4")
    if metric == "l2":  # far from the origin
        z_nd, query_bd = z_nd + 2, query_bd + 2
    index = Index.build(None, z_nd, plan=dataclasses.replace(plan, metric=metric))
    ids_bk, scores_bk = index.search(query_bd, K)
    true_bn = similar(z_nd, query_bd, metric)
    assert recall(ids_bk, best(true_bn, K)) > 0.95
    true_bk = np.take_along_axis(true_bn, ids_bk, 1)
    np.testing.assert_allclose(scores_bk, true_bk, rtol=1e-4, atol=1e-5)
    assert (np.diff(scores_bk, axis=1) <= 0).all()


@pytest.mark.parametrize("bits", [0, 4])
def test_other_codes(data, bits):
    z_nd, query_bd = data[False]
    plan = Plan(ALL.schedule, factory=f"SymphonyQG32,{bits}", parameters="ef=100")
    index = Index.build(None, z_nd, plan=plan)
    assert recall(index.search(query_bd, K)[0], nearest(z_nd, query_bd, K)) > 0.9
    beside = index.rows * (4 + 1)  # norms, whether they may be found
    a_row = (index.bytes()["resident"] - beside) / N
    assert a_row == pytest.approx(rabitq.form(plan.factory).row_bytes(D), rel=0.02)


def test_batches_threads_and_single_queries_find_the_same(data, index):
    query_bd = data[False][1]
    ids_bk, scores_bk = index.search(query_bd, K, threads=1)
    single = [index.search(query_d, K) for query_d in query_bd]
    for ids, scores in (
        index.search(query_bd, K, threads=3),
        index.search(query_bd.astype(np.float64), K),
        map(np.stack, zip(*single, strict=True)),
    ):
        np.testing.assert_array_equal(ids, ids_bk)
        np.testing.assert_array_equal(scores, scores_bk)
    less, more = ("ef=10", "ef=60") if index.plan == ALL else ("nprobe=1", "nprobe=8")
    narrow = recall(index.search(query_bd, K, keeps=(30,), parameters=less)[0], ids_bk)
    assert narrow < recall(index.search(query_bd, K, keeps=(30,), parameters=more)[0], ids_bk)
    np.testing.assert_array_equal(index.search(query_bd, K)[0], ids_bk)


def test_few_rows_are_compared_all(data, tmp_path):
    z_nd, query_bd = data[False]
    few = rabitq.FEWEST_ROWS - 1
    index = Index.build(tmp_path / "index", z_nd[:few], plan=FIRST)
    assert not list(tmp_path.rglob("rabitq.bin"))
    check(index.search(query_bd, 30), similar(z_nd[:few], query_bd, "cosine"), np.arange(few))
    index.add(z_nd[few:], np.arange(few, N))
    index.compact()
    assert list(tmp_path.rglob("rabitq.bin"))
    assert recall(index.search(query_bd, K)[0], nearest(z_nd, query_bd, K)) > 0.95


@pytest.mark.parametrize("plan", [ALL, OF_LISTS], ids=["graph", "lists"])
def test_what_is_deleted_or_not_allowed_is_no_hindrance(data, plan):
    z_nd, query_bd = data[False]
    index = Index.build(None, z_nd, plan=plan)
    near = np.unique(nearest(z_nd, query_bd, 5))
    left = np.setdiff1d(np.arange(N), near)
    kept = index.search(query_bd, K, allow=left)[0]
    index.delete(near)
    for ids_bk in (kept, index.search(query_bd, K)[0]):
        assert not np.isin(ids_bk, near).any()
        assert recall(ids_bk, left[nearest(z_nd[left], query_bd, K)]) > 0.95
    few = left[:15]
    check(index.search(query_bd, K, allow=few), similar(z_nd[few], query_bd, "cosine"), few)
    assert (index.search(query_bd, K, allow=few[:3])[0][:, 3:] == NO_ID).all()


def test_principal_directions_stand_for_dims_that_tell_alike(data):
    """Vectors of a model that was not trained to be cut, beside the same vectors unturned."""
    found = {}
    for turned, (z_nd, query_bd) in data.items():
        true_bk = nearest(z_nd, query_bd, K)
        for rotated in (False, True):
            plan = Plan(Schedule.parse(f"16:40 > {D}"), code="int8", rotated=rotated)
            index = Index.build(None, z_nd, plan=plan)
            found[turned, rotated] = recall(index.search(query_bd, K)[0], true_bk)
    assert found[True, False] < 0.7
    assert found[True, True] > found[True, False] + 0.25
    assert found[True, True] == pytest.approx(found[False, True], abs=0.05)


@pytest.mark.parametrize("metric", METRICS)
def test_rotated_stages_find_all_when_all_is_kept(data, metric, tmp_path):
    z_nd, query_bd = data[True]
    z_nd = z_nd + 30 if metric == "l2" else z_nd
    query_bd = query_bd + 30 if metric == "l2" else query_bd
    own = {"lists": 8, "list_dim": 8, "probes": 8, "code": "int8"}
    for i, more in enumerate((own, GRAPH, {**LISTS, "parameters": "nprobe=16"})):
        plan = Plan(Schedule.parse(f"64:{N} > {D}"), metric, rotated=True, **more)
        folder = tmp_path / str(i)
        Index.build(folder, z_nd[:1500], plan=plan).add(z_nd[1500:], np.arange(1500, N))
        index = Index.open(folder)
        found = index.search(query_bd, 30)
        true_bn = similar(z_nd, query_bd, metric)
        assert recall(found[0], best(true_bn, 30)) == 1
        index.verify()
        index.compact()
        assert recall(index.search(query_bd, 30)[0], best(true_bn, 30)) == 1


def test_a_rotation_keeps_what_it_can_of_distances():
    """Far from the origin the direction of the mean would be the first, and useless."""
    rng, spread_d = np.random.default_rng(0), np.where(np.arange(D) < 3, 1, 0.001)
    z_nd, query_bd = (
        (rng.standard_normal((n, D)) * spread_d + 100).astype("f4") for n in (3000, 40)
    )
    true_bk = best(similar(z_nd, query_bd, "l2"), K)
    plan = Plan(Schedule.parse(f"3:30 > {D}"), "l2", rotated=True)
    assert recall(Index.build(None, z_nd, plan=plan).search(query_bd, K)[0], true_bk) > 0.95


def test_a_graph_whose_name_is_gone_is_still_read(data, tmp_path):
    z_nd, query_bd = data[False]
    index = Index.build(tmp_path / "index", z_nd, plan=FIRST)
    expected = index.search(query_bd, K)
    old = Index.open(tmp_path / "index")
    index.upsert(z_nd[:1] + 1, [0])
    index.compact()
    for found, wanted in zip(old.search(query_bd, K), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    index.save(tmp_path / "copy")
    shutil.rmtree(tmp_path / "index")
    assert len(Index.open(tmp_path / "copy").search(query_bd, K)[0]) == len(query_bd)


@pytest.mark.parametrize("at", [0.0, 0.3, 0.99])
def test_a_damaged_graph_is_named(data, tmp_path, at):
    folder = tmp_path / "index"
    Index.build(folder, data[False][0], plan=FIRST)
    (path,) = pathlib.Path(folder).rglob("rabitq.bin")
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 4
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"rabitq\.bin is damaged: its checksum differs"):
        Index.open(folder).search(data[False][1], K)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (
            Plan(ALL.schedule, factory="SymphonyQG31,8"),
            "rabitqlib is SymphonyQGLINKS,BITS",
        ),
        (Plan(ALL.schedule, factory="SymphonyQG32,5"), "got 'SymphonyQG32,5'"),
        (Plan(ALL.schedule, factory="SymphonyQG"), "got 'SymphonyQG'"),
        (Plan(ALL.schedule, factory="IVFRaBitQ16,0"), "got 'IVFRaBitQ16,0'"),
        (Plan(ALL.schedule, factory="IVFRaBitQ16,3", parameters="ef=3"), "nprobe=16; got 'ef=3'"),
        (Plan(Schedule.parse(f"63:30 > {D}"), **GRAPH), "SymphonyQG32,8 needs 64 dims or more"),
        (Plan(ALL.schedule, factory="SymphonyQG32,8", parameters="ef=0"), "such an index is ef"),
        (Plan(ALL.schedule, factory="SymphonyQG32,8", parameters="efSearch=3"), "got 'efSearch=3'"),
    ],
)
def test_graphs_that_cannot_be(data, plan, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        Index.build(tmp_path / "index", data[False][0], plan=plan)
    assert not list(tmp_path.iterdir())


def test_rows_without_length_are_found_by_nobody_first(data):
    """A zero vector has no direction; nor has a query of zeros."""
    z_nd, query_bd = data[False][0].copy(), data[False][1].copy()
    z_nd[7], query_bd[3] = 0, 0
    index = Index.build(None, z_nd, plan=ALL)
    ids_bk, scores_bk = index.search(query_bd, K)
    assert 7 not in np.delete(ids_bk, 3, 0)
    assert np.isfinite(scores_bk).all()
    assert (scores_bk[3] == 0).all()
    zeros_nd = np.vstack([draw(N, D), np.zeros((300, D), "f4")])
    assert (Index.build(None, zeros_nd, plan=ALL).search(query_bd, K)[0] >= 0).all()
