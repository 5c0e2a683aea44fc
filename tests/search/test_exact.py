"""Exact search against brute force in float64. Run by itself, a program of several processes."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrl_jax.runtime import distributed
from mrl_jax.runtime.mesh import make_mesh
from mrl_jax.search import top_k
from mrl_jax.search.device import exact, placement

DIMS = (2, 20, 40, 72)  # 40 and 72 are added to the running product
# Several chunks of queries, spans, tiles and blocks even of a small database.
SMALL = exact.Sizes(queries=16, tile=512, maxima=16 * len(DIMS) * 300, candidates=2**14)
MESHES = [None, (8, 1, 1), (2, 2, 2)]


def mesh_of(sizes):
    return None if sizes is None else make_mesh(*sizes)


def all_scores(database, query, m, metric):
    """[B, N] in float64."""
    a, b = (np.asarray(x, np.float64)[:, :m] for x in (query, database))
    if metric == "l2":
        return -np.square(a[:, None] - b[None]).sum(-1)
    if metric == "cosine":
        a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (a, b))
    return a @ b.T


def check(found, database, query, dims, k, metric):
    """Right up to rounding: which of two nearly equal rows comes first may differ."""
    rows_gbk, scores_gbk = found
    assert rows_gbk.shape == scores_gbk.shape == (len(dims), len(query), k)
    assert rows_gbk.dtype == np.int32
    assert scores_gbk.dtype == np.float32
    for m, rows_bk, scores_bk in zip(dims, rows_gbk, scores_gbk, strict=True):
        expected_bn = all_scores(database, query, m, metric)
        tolerance = 3e-6 * np.abs(expected_bn).max()
        best_bk = -np.sort(-expected_bn, 1)[:, :k]
        np.testing.assert_allclose(scores_bk, best_bk, rtol=0, atol=tolerance)
        of_rows_bk = np.take_along_axis(expected_bn, rows_bk, 1)
        np.testing.assert_allclose(of_rows_bk, best_bk, rtol=0, atol=tolerance)
        assert all(len(set(row_k)) == k for row_k in rows_bk.tolist())
        assert (np.diff(scores_bk) <= 0).all()


def split_of(rows, metric="cosine"):
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    return placement.Split(DIMS, metric, rows, rows, mesh)


def vectors(n, width=75, seed=0):
    return np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)


@pytest.mark.parametrize(("metric", "k"), [("cosine", 20), ("inner", 1), ("l2", 9)])
def test_equals_brute_force(metric, k, monkeypatch):
    monkeypatch.setattr(exact, "_CPU", SMALL)
    database, query = vectors(2701), vectors(29, seed=1)
    scan = exact.make_scan(split_of(2701, metric), DIMS, k, 16)
    assert scan.spans > 1
    assert scan.tiles > 1
    check(top_k(database, query, DIMS, k, metric=metric), database, query, DIMS, k, metric)


@pytest.mark.parametrize("sizes", [None, (4, 1, 2)])
def test_equals_brute_force_at_usual_sizes_on_any_mesh(sizes):
    database, query = vectors(4301), vectors(21, seed=1)
    found = top_k(database, query, DIMS, 7, mesh=mesh_of(sizes))
    check(found, database, query, DIMS, 7, "cosine")


@pytest.mark.parametrize(
    ("sizes", "small"),
    [
        (None, False),
        pytest.param(None, True, marks=pytest.mark.slow),
        pytest.param((8, 1, 1), False, marks=pytest.mark.slow),
        ((2, 2, 2), True),
    ],
)
def test_of_equal_scores_the_first_rows_win(sizes, small, monkeypatch):
    if small:
        monkeypatch.setattr(exact, "_CPU", SMALL)
    # Products of small whole numbers are exact: many rows tie, also where k cuts.
    rng = np.random.default_rng(2)
    database = rng.integers(-1, 2, (331, 40)).astype(np.float32)
    query = rng.integers(-1, 2, (19, 40)).astype(np.float32)
    dims, k = (1, 3, 40), 30
    rows_gbk, scores_gbk = top_k(database, query, dims, k, metric="inner", mesh=mesh_of(sizes))
    for m, rows_bk, scores_bk in zip(dims, rows_gbk, scores_gbk, strict=True):
        expected_bn = all_scores(database, query, m, "inner")
        order_bk = np.argsort(-expected_bn, 1, kind="stable")[:, :k]
        np.testing.assert_array_equal(rows_bk, order_bk)
        np.testing.assert_array_equal(scores_bk, np.take_along_axis(expected_bn, order_bk, 1))


def test_equal_rows_get_equal_scores_wherever_they_are():
    kinds, k = 150, 12
    which_n = np.random.default_rng(3).integers(0, kinds, 2003)
    which_n[::3] = 0  # more copies than are looked into
    database, query = vectors(kinds)[which_n], vectors(9, seed=4)
    query[0] += 2 * database[0]
    rows_gbk, scores_gbk = top_k(database, query, DIMS, k, mesh=make_mesh(4, 2, 1))
    for rows_k, scores_k in zip(rows_gbk.reshape(-1, k), scores_gbk.reshape(-1, k), strict=True):
        for kind in set(which_n[rows_k]):
            mine = which_n[rows_k] == kind
            copies = np.flatnonzero(which_n == kind)
            np.testing.assert_array_equal(rows_k[mine], copies[: mine.sum()])
            assert len(set(scores_k[mine].tolist())) == 1
    assert (which_n[rows_gbk[-1, 0]] == 0).all()


def test_one_dim_is_alike_on_any_mesh():
    # All cosines are 1 or -1, so that rounding decides: it must not depend on places.
    database, query = vectors(600), vectors(8, seed=1)
    found = [top_k(database, query, (1,), 5, mesh=mesh_of(sizes))[0] for sizes in MESHES]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


@pytest.mark.parametrize("sizes", [None, (8, 1, 1)])
def test_all_of_a_database_with_few_rows(sizes):
    # On the mesh most devices have fewer rows than k, and one has none.
    database, query = vectors(10), vectors(3, seed=1)
    dims = (2, 75)
    check(
        top_k(database, query, dims, 10, mesh=mesh_of(sizes)), database, query, dims, 10, "cosine"
    )


def test_close_neighbours_in_l2_are_told_apart_far_from_zero():
    # Expanding the square in float32 would leave nothing of such distances.
    query = 1000 + vectors(6)
    step_n = 1e-2 * np.arange(30, dtype=np.float32)
    database = (query[:, None] + step_n[None, :, None]).reshape(-1, 75)
    rows_gbk, scores_gbk = top_k(database, query, (75,), 1, metric="l2")
    np.testing.assert_array_equal(rows_gbk[0, :, 0], 30 * np.arange(6))
    np.testing.assert_array_equal(scores_gbk, 0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float64])
def test_precisions(dtype):
    database, query = vectors(99).astype(dtype), vectors(5, seed=1).astype(dtype)
    check(top_k(database, query, (40,), 4), database, query, (40,), 4, "cosine")


def test_arrays_on_devices():
    mesh = make_mesh(8)
    database, query = vectors(96), vectors(5, seed=1)
    placed = jax.device_put(database, jax.NamedSharding(mesh, jax.P(("data", "fsdp", "tensor"))))
    expected = top_k(database, query, (40,), 4, mesh=mesh)
    for given in (placed, jnp.asarray(database)):
        found = top_k(given, jnp.asarray(query), (40,), 4, mesh=mesh)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])


def test_a_vector_of_length_zero_has_cosine_zero():
    database, query = vectors(6), vectors(3, seed=1)
    database[4], query[1] = 0, 0
    rows_gbk, scores_gbk = top_k(database, query, (2, 75), 6)
    assert (scores_gbk[rows_gbk == 4] == 0).all()
    assert (scores_gbk[:, 1] == 0).all()
    np.testing.assert_array_equal(rows_gbk[:, 1], [range(6)] * 2)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_database(monkeypatch):
    monkeypatch.setattr(exact, "_CPU", SMALL)

    def temporary_bytes(rows):
        split = split_of(rows)
        scan = exact.make_scan(split, DIMS, 10, 16)
        arrays = ((rows, 72), (len(DIMS), rows), (16, 72))
        database_nd, norm_gn, query_bd = (jax.ShapeDtypeStruct(x, jnp.float32) for x in arrays)
        placed = placement.Sharded(database_nd, norm_gn)
        with jax.enable_x64(True):
            compiled = exact._search.lower(placed, query_bd, split, scan, 10).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few, many = temporary_bytes(4_000_000), temporary_bytes(64_000_000)
    assert many < 1.1 * few
    assert many < 5_000_000


LEGAL = {"database_nd": np.ones((5, 4), np.float32), "query_bd": np.ones((2, 4), np.float32)}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"k": 0}, "k must be 1 to 5, the rows there are; got 0"),
        ({"k": 6}, "k must be 1 to 5, the rows there are; got 6"),
        ({"database_nd": np.ones((5, 3), "f4")}, r"database must be \[>= 1, >= 4\], got \(5, 3\)"),
        ({"dims": (4, 2)}, "dims must be strictly increasing"),
        ({"dims": ()}, "dims must name at least one"),
        ({"query_bd": np.ones((2, 3), "f4")}, r"queries must be \[>= 1, >= 4\], got \(2, 3\)"),
        ({"query_bd": np.ones(4, "f4")}, r"queries must be .*, got \(4,\)"),
        ({"query_bd": np.ones((0, 4), "f4")}, r"queries must be .*, got \(0, 4\)"),
        ({"database_nd": np.ones((0, 4), "f4")}, r"database must be .*, got \(0, 4\)"),
        ({"database_nd": np.ones((5, 4), int)}, "database must be floating point, got int64"),
        ({"metric": "dot"}, "metric must be one of cosine, inner, l2; got 'dot'"),
    ],
)
def test_what_cannot_be_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        top_k(**{**LEGAL, "dims": (2, 4), "k": 2, **changed})


@pytest.mark.parametrize("bad", [np.nan, -np.inf, 1e19])
def test_numbers_that_cannot_be_compared_are_refused(bad):
    for name, words in (("database_nd", "the database"), ("query_bd", "a query")):
        spoiled = LEGAL[name].copy()
        spoiled[1, 3] = bad
        arguments = {**LEGAL, name: spoiled, "mesh": make_mesh(8)}
        with pytest.raises(ValueError, match=f"{words} holds NaN or infinity, or is a vector long"):
            top_k(**arguments, dims=(2, 4), k=2)
        # Beyond the longest prefix nothing is read.
        assert (top_k(**arguments, dims=(2, 3), k=1)[0] == 0).all()


@pytest.mark.slow
def test_two_processes_both_get_the_result(tmp_path):
    import commands

    program = [sys.executable, __file__, tmp_path]
    launcher = [sys.executable, "launch/local.py", "--processes", "2", "--devices_per_process", "2"]
    commands.succeed([*launcher, "--", *program])
    database, query = vectors(203), vectors(9, seed=1)
    for process in range(2):
        for given in ("host", "global"):
            found = np.load(tmp_path / f"{given}{process}.npz")
            found = found["rows"], found["scores"]
            n = 203 if given == "host" else 200
            check(found, database[:n], query, (3, 72), 5, "cosine")


def main(folder: str) -> None:
    distributed.initialize()
    mesh = make_mesh()
    database, query = vectors(203), vectors(9, seed=1)
    sharding = jax.NamedSharding(mesh, jax.P(mesh.axis_names))
    global_nd = jax.make_array_from_callback((200, 75), sharding, lambda index: database[index])
    for given, array in (("host", database), ("global", global_nd)):
        rows, scores = top_k(array, query, (3, 72), 5, mesh=mesh)
        np.savez(f"{folder}/{given}{jax.process_index()}.npz", rows=rows, scores=scores)


if __name__ == "__main__":
    main(sys.argv[1])
