"""Schedules on devices against float64. Run by itself, a program of several processes."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrl_jax.runtime import distributed
from mrl_jax.runtime.mesh import make_mesh
from mrl_jax.search import top_k
from mrl_jax.search.device import exact, funnel, placement
from mrl_jax.search.schedule import Schedule

Index, search = funnel.DeviceIndex, funnel.funnel
# The paper's funnel, at a quarter of its last dim to be quick.
PAPER = "8:200 > 16:100 > 32:50 > 64:25 > 128:10 > 512"


def mesh_of(sizes):
    return None if sizes is None else make_mesh(*sizes)


def score(database, query, m, metric):
    """[B, N] in float64."""
    a, b = (np.asarray(x, np.float64)[:, :m] for x in (query, database))
    if metric == "l2":
        return -np.square(a[:, None] - b[None]).sum(-1)
    if metric == "cosine":
        a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (a, b))
    return a @ b.T


def reference(database, query, schedule, k, metric):
    """What every stage keeps, and the result: the best rows, of equal ones the smaller."""
    alive_bn = np.ones((len(query), len(database)), bool)
    stages = [*schedule.stages, (schedule.final, k)]
    for dim, keep in stages:
        score_bn = np.where(alive_bn, score(database, query, dim, metric), -np.inf)
        rows_bk = np.argsort(-score_bn, 1, kind="stable")[:, :keep]
        alive_bn = np.zeros_like(alive_bn)
        np.put_along_axis(alive_bn, rows_bk, True, 1)
    rows_bk = rows_bk[:, :k]
    return rows_bk, np.take_along_axis(score_bn, rows_bk, 1)


def vectors(n, width=75, seed=0):
    return np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)


def check(found, database, query, text, k, metric="cosine"):
    rows_bk, scores_bk = found
    assert (rows_bk.dtype, scores_bk.dtype) == (np.int32, np.float32)
    expected_rows, expected = reference(database, query, Schedule.parse(text), k, metric)
    np.testing.assert_array_equal(rows_bk, expected_rows)
    np.testing.assert_allclose(scores_bk, expected, rtol=0, atol=3e-6 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("metric", "sizes"),
    [
        pytest.param("cosine", None, marks=pytest.mark.slow),
        ("cosine", (2, 2, 2)),
        pytest.param("cosine", (4, 1, 2), marks=pytest.mark.slow),
        ("inner", (8, 1, 1)),
        ("l2", None),
    ],
)
def test_equals_the_reference(metric, sizes):
    database, query = vectors(1301), vectors(16, seed=1)
    text = "5:120 > 20:31 > 72"
    found = search(database, query, Schedule.parse(text), 7, metric=metric, mesh=mesh_of(sizes))
    check(found, database, query, text, 7, metric)


def test_the_papers_funnel():
    # Later dims carry less, as in a trained embedding, so that a short prefix finds something.
    scale_d = (1 + np.arange(512)) ** -0.5
    centre = vectors(40, 512)
    database = ((centre[np.arange(1500) % 40] + vectors(1500, 512, 1)) * scale_d).astype("f4")
    query = ((centre[:20] + vectors(20, 512, 2)) * scale_d).astype("f4")
    check(
        search(database, query, Schedule.parse(PAPER), 10, mesh=make_mesh(4, 2, 1)),
        database,
        query,
        PAPER,
        10,
    )


@pytest.mark.parametrize(("metric", "sizes"), [("inner", (8, 1, 1)), ("l2", None)])
def test_of_equal_scores_the_first_rows_go_on(metric, sizes):
    # Sums of small whole numbers are exact: many rows tie, also where a stage cuts.
    rng = np.random.default_rng(2)
    database = rng.integers(-1, 2, (731, 40)).astype(np.float32)
    query = rng.integers(-1, 2, (11, 40)).astype(np.float32)
    text = "1:90 > 3:40 > 40"
    rows_bk, scores_bk = search(
        database, query, Schedule.parse(text), 30, metric=metric, mesh=mesh_of(sizes)
    )
    expected = reference(database, query, Schedule.parse(text), 30, metric)
    np.testing.assert_array_equal(rows_bk, expected[0])
    np.testing.assert_array_equal(scores_bk, expected[1])


def test_all_candidates_may_be_of_one_device():
    database, query = vectors(1600), vectors(5, seed=1)
    database[:200] += 9 * query[0]
    text = "3:150 > 9:40 > 75"
    found = search(database, query[:1], Schedule.parse(text), 5, mesh=make_mesh(8, 1, 1))
    assert (found[0] < 200).all()
    check(found, database, query[:1], text, 5)


@pytest.mark.parametrize(("rows", "text"), [(10, "2:500 > 75"), (1100, "2:700 > 75")])
def test_stages_may_keep_more_than_there_is(rows, text):
    # Most devices have fewer rows than are kept, and some have none; or all have fewer.
    database, query = vectors(rows), vectors(3, seed=1)
    found = search(database, query, Schedule.parse(text), 10, mesh=make_mesh(8, 1, 1))
    check(found, database, query, text, 10)


@pytest.mark.parametrize("sizes", [None, (4, 1, 2)])
def test_the_last_stage_may_have_all_dims(sizes):
    database, query = vectors(300), vectors(3, seed=1)
    schedule = Schedule.parse("5:80 > 75:20 > 75")
    found = search(database, query, schedule, 10, mesh=mesh_of(sizes))
    check(found, database, query, str(schedule), 10)


def test_an_index_serves_schedules_and_batches_of_any_size():
    database, query = vectors(300), vectors(300, seed=1)
    index = Index(database, (4, 16, 72), "cosine", make_mesh(4, 1, 2))
    found = index.top_k(query[:8], 6)
    expected = top_k(database, query[:8], (4, 16, 72), 6, mesh=make_mesh(4, 1, 2))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    before = funnel._search._cache_size()
    for batch in (1, 5, 7, 8, 257, 261, 263):
        found = index.search(query[:batch], Schedule.parse("4:50 > 72"), 6)
        check(found, database, query[:batch], "4:50 > 72", 6)
    # Of 1, 8 and 256 queries; none for each batch.
    assert funnel._search._cache_size() - before == 3
    found = index.search(query[:8], Schedule.parse("4:80 > 16:20 > 72"), 6)
    check(found, database, query[:8], "4:80 > 16:20 > 72", 6)


def test_without_stages_it_is_top_k():
    database, query = vectors(600), vectors(8, seed=1)
    found = search(database, query, Schedule.exact(40), 5, mesh=make_mesh(2, 2, 2))
    expected = top_k(database, query, (40,), 5, mesh=make_mesh(2, 2, 2))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other[0])


def test_equal_rows_get_equal_scores_wherever_they_are():
    database = vectors(40)[np.random.default_rng(3).integers(0, 40, 1200)]
    query = vectors(6, seed=4)
    text = "3:400 > 75"
    rows_bk, scores_bk = search(database, query, Schedule.parse(text), 60, mesh=make_mesh(8, 1, 1))
    for row_k, score_k in zip(rows_bk, scores_bk, strict=True):
        same = (database[row_k][:, None] == database[row_k][None]).all(-1)
        assert (score_k[:, None] == score_k[None])[same].all()
    check((rows_bk, scores_bk), database, query, text, 60)


def test_precisions_and_vectors_of_length_zero():
    database, query = vectors(99).astype(jnp.bfloat16), vectors(5, seed=1)
    database[7], query[2] = 0, 0
    rows_bk, scores_bk = search(database, query, Schedule.parse("4:99 > 75"), 99)
    check((rows_bk, scores_bk), database.astype(np.float32), query, "4:99 > 75", 99)
    assert (scores_bk[rows_bk == 7] == 0).all()
    assert (scores_bk[2] == 0).all()


@pytest.mark.parametrize("dtype", [">f4", ">f8"])
def test_arrays_of_the_other_byte_order(dtype):
    database, query = vectors(99), vectors(5, seed=1)
    found = search(database.astype(dtype), query.astype(dtype), Schedule.parse("4:99 > 75"), 9)
    check(found, database, query, "4:99 > 75", 9)


def test_memory_does_not_grow_with_the_database(monkeypatch):
    sizes = exact.Sizes(queries=16, tile=512, maxima=2**18, candidates=2**14)
    monkeypatch.setattr(exact, "_CPU", sizes)
    schedule = Schedule.parse("8:200 > 512")
    rows = 64_000_000
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    split = placement.Split(schedule.dims, "cosine", rows, rows, mesh)
    arrays = ((rows, 512), (2, rows), (16, 512))
    database_nd, norm_gn, query_bd = (jax.ShapeDtypeStruct(x, jnp.float32) for x in arrays)
    stages = funnel._stages(split, schedule, 16)
    placed = placement.Sharded(database_nd, norm_gn)
    with jax.enable_x64(True):
        compiled = funnel._search.lower(placed, query_bd, split, stages, 10).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 6_000_000


LEGAL = {"database_nd": np.ones((9, 8), np.float32), "query_bd": np.ones((2, 8), np.float32)}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"k": 0}, "k must be 1 to 9, the rows there are; got 0"),
        ({"k": 10}, "k must be 1 to 9, the rows there are; got 10"),
        ({"k": 4}, "k must be 1 to 3, which 2:3 > 4 keeps; got 4"),
        ({"schedule": "2:3 > 16"}, r"queries must be \[>= 1, >= 16\], got \(2, 8\)"),
        ({"database_nd": np.ones((9, 3), "f4")}, r"database must be \[>= 1, >= 4\], got \(9, 3\)"),
        ({"query_bd": np.ones(8, "f4")}, r"queries must be .*, got \(8,\)"),
        ({"database_nd": np.ones((9, 8), int)}, "database must be floating point, got int64"),
        ({"metric": "dot"}, "metric must be one of cosine, inner, l2; got 'dot'"),
    ],
)
def test_what_cannot_be_is_refused(changed, message):
    arguments = {**LEGAL, "schedule": "2:3 > 4", "k": 2, **changed}
    arguments["schedule"] = Schedule.parse(arguments["schedule"])
    with pytest.raises(ValueError, match=message):
        search(**arguments)


def test_an_index_refuses_dims_that_it_has_no_norms_of():
    index = Index(LEGAL["database_nd"], (2, 8))
    with pytest.raises(ValueError, match=r"4:3 > 8 needs dims .* none of the index's \(2, 8\)"):
        index.search(LEGAL["query_bd"], Schedule.parse("4:3 > 8"), 1)


@pytest.mark.parametrize("bad", [np.nan, -np.inf, 1e19])
def test_numbers_that_cannot_be_compared_are_refused(bad):
    for name, words in (("database_nd", "the database"), ("query_bd", "a query")):
        spoiled = LEGAL[name].copy()
        spoiled[1, 3] = bad
        arguments = {**LEGAL, name: spoiled, "mesh": make_mesh(8)}
        with pytest.raises(ValueError, match=f"{words} holds NaN or infinity, or is a vector long"):
            search(**arguments, schedule=Schedule.parse("2:3 > 4"), k=2)
        # Beyond the longest prefix nothing is read.
        assert (search(**arguments, schedule=Schedule.parse("2:3 > 3"), k=1)[0] == 0).all()


@pytest.mark.slow
def test_two_processes_both_get_the_result(tmp_path):
    import commands

    program = [sys.executable, __file__, tmp_path]
    launcher = [sys.executable, "launch/local.py", "--processes", "2", "--devices_per_process", "2"]
    commands.succeed([*launcher, "--", *program])
    for process in range(2):
        with np.load(tmp_path / f"{process}.npz") as found:
            check((found["rows"], found["scores"]), vectors(2303), vectors(8, seed=1), TEXT, 5)


TEXT = "3:200 > 72"


def main(folder: str) -> None:
    distributed.initialize()
    found = search(vectors(2303), vectors(8, seed=1), Schedule.parse(TEXT), 5, mesh=make_mesh())
    np.savez(f"{folder}/{jax.process_index()}.npz", rows=found[0], scores=found[1])


if __name__ == "__main__":
    main(sys.argv[1])
