import numpy as np
import pytest
from brute_force import best, check, draw, funnel, similar, stage_scores, store

from mrl_jax.search.index import NO_ID, Index, clusters
from mrl_jax.search.plan import Plan
from mrl_jax.search.schedule import Schedule

METRICS = ("cosine", "inner", "l2")
CODES = ("float32", "bfloat16", "float16", "int8", "binary")
N, D, FINAL = 1500, 48, 40
FUNNEL = Schedule.parse(f"8:400 > 24:60 > {FINAL}")
LISTS = {"flat": {}, "lists": {"lists": 16, "list_dim": 12, "probes": 3}}
FACTORIES = {  # to parameters by which they look at all rows
    **{("Flat", metric): "" for metric in METRICS},
    **{("HNSW16", metric): f"efSearch={N}" for metric in METRICS},
    **{("IVF16,PQ8x4fs", metric): "nprobe=16" for metric in METRICS},
    ("OPQ4,IVF8,PQ4x4", "cosine"): "nprobe=8",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Rows with ids of their own, on disk, and queries that are wider than rows."""
    z_nd, ids = draw(N, D), np.random.default_rng(2).permutation(N) + 2**41
    z_nd[100], z_nd[200] = 0, z_nd[300]
    query_bd = draw(40, D + 2, seed=1)
    query_bd[3], query_bd[4, :D] = 0, z_nd[17]
    return store(tmp_path_factory.mktemp("data"), z_nd, ids), z_nd, ids, query_bd


@pytest.fixture(scope="module")
def build(data, tmp_path_factory):
    """Builds an index of these rows by a plan, once for all tests."""
    built = {}

    def build(plan):
        if plan not in built:
            folder = tmp_path_factory.mktemp("indexes") / "index"
            built[plan] = Index.build(folder, data[0], plan=plan)
        return built[plan]

    return build


# Of metrics, codes and lists every two meet.
@pytest.mark.parametrize(
    ("metric", "code", "lists"),
    [
        (metric, code, list(LISTS)[(m + c) % 2])
        for m, metric in enumerate(METRICS)
        for c, code in enumerate(CODES)
    ],
)
def test_equal_to_brute_force_when_all_is_kept(data, build, metric, code, lists):
    _, z_nd, ids, query_bd = data
    index = build(Plan(FUNNEL, metric=metric, code=code, **LISTS[lists]))
    probes = LISTS[lists].get("lists", 1)
    found = index.search(query_bd, 30, keeps=(N, N), probes=probes)
    check(found, similar(z_nd[:, :FINAL], query_bd[:, :FINAL], metric), ids)


@pytest.mark.parametrize("metric", METRICS)
def test_without_stages(data, build, metric):
    _, z_nd, ids, query_bd = data
    index = build(Plan(Schedule.exact(FINAL), metric=metric))
    found = index.search(query_bd, 30)
    check(found, similar(z_nd[:, :FINAL], query_bd[:, :FINAL], metric), ids)


@pytest.mark.parametrize(
    ("factory", "metric"),
    [
        pytest.param(*case, marks=pytest.mark.slow if case[0].startswith("OPQ") else ())
        for case in FACTORIES
    ],
)
def test_faiss_finds_all_when_all_is_kept(data, build, factory, metric):
    _, z_nd, ids, query_bd = data
    query_bd = np.delete(query_bd, 3, axis=0)  # for a zero query some indexes find nothing
    schedule, parameters = Schedule.parse(f"16:200 > {FINAL}"), FACTORIES[factory, metric]
    index = build(Plan(schedule, metric, factory=factory, parameters=parameters))
    truth_bn = similar(z_nd[:, :FINAL], query_bd[:, :FINAL], metric)
    ids_bk, scores_bk = index.search(query_bd, 30, keeps=(N,))
    if factory == "HNSW16" and metric == "inner":  # not all rows can be reached in such a graph
        assert (ids_bk == ids[best(truth_bn, 30)]).mean() > 0.98
    else:
        check((ids_bk, scores_bk), truth_bn, ids)
    # And most of it by a shortlist, ranked by whole vectors.
    ids_bk, scores_bk = index.search(query_bd, 10)
    hits = [len(set(a) & set(b)) for a, b in zip(ids_bk, ids[best(truth_bn, 10)], strict=True)]
    assert np.mean(hits) > 7
    assert (np.diff(scores_bk, axis=1) <= 0).all()


def kept(index, query_bd, k, ids, **arguments):
    """Which rows [B, N] an index finds when it gives all that the last stage keeps."""
    ids_bk, _ = index.search(query_bd, k, **arguments)
    assert (ids_bk != NO_ID).all()
    return np.stack([np.isin(ids, found) for found in ids_bk])


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("metric", METRICS)
def test_stages_compare_what_codes_stand_for(data, build, metric, code):
    _, z_nd, ids, query_bd = data
    stages = stage_scores(z_nd, query_bd, (8, 24), code, metric)
    wanted_bn, clear_b = funnel(stages, (400, 60))
    clear_b[3] = False  # the zero query
    assert clear_b.sum() > 30
    index = build(Plan(FUNNEL, metric=metric, code=code, **LISTS["flat"]))
    np.testing.assert_array_equal(kept(index, query_bd, 60, ids)[clear_b], wanted_bn[clear_b])
    clustered = build(Plan(FUNNEL, metric=metric, code=code, **LISTS["lists"]))
    found_bn = kept(clustered, query_bd, 60, ids, probes=16)
    np.testing.assert_array_equal(found_bn[clear_b], wanted_bn[clear_b])
    # Other numbers, and one stage less in effect.
    wanted_bn, clear_b = funnel(stages, (50, 50))
    clear_b[3] = False
    found_bn = kept(index, query_bd, 50, ids, keeps=(50, 50))
    np.testing.assert_array_equal(found_bn[clear_b], wanted_bn[clear_b])


@pytest.mark.parametrize("metric", METRICS)
def test_faiss_compares_by_the_metric(data, build, metric):
    """Lengths of rows count for products: the shortlist is not one by angles."""
    _, z_nd, ids, query_bd = data
    schedule = Schedule.parse(f"16:200 > {FINAL}")
    index = build(Plan(schedule, metric, factory="Flat"))
    wanted_bn, clear_b = funnel(stage_scores(z_nd, query_bd, (16,), "float32", metric), (50,))
    clear_b[3] = False
    assert clear_b.sum() > 30
    found_bn = kept(index, query_bd, 50, ids, keeps=(50,))
    np.testing.assert_array_equal(found_bn[clear_b], wanted_bn[clear_b])


@pytest.mark.parametrize("list_dim", [4, 12, 40])  # smaller than, as, and wider than the scan
@pytest.mark.parametrize("metric", METRICS)
def test_lists_and_scan_have_dims_of_their_own(data, build, metric, list_dim):
    """AdANNS-IVF: what is found is the best of the rows in the lists that are nearest."""
    _, z_nd, ids, query_bd = data
    schedule = Schedule.parse(f"12:30 > {FINAL}")
    index = build(Plan(schedule, metric, "int8", lists=12, list_dim=list_dim, probes=3))
    centroid_ld = clusters.fit(z_nd[:, :list_dim], 12, metric, seed=0)
    list_n = clusters.nearest(z_nd[:, :list_dim], centroid_ld, 1, metric)[:, 0]
    for probes in (None, 1):
        list_bp = clusters.nearest(query_bd[:, :list_dim], centroid_ld, probes or 3, metric)
        allowed_bn = (list_n == list_bp[:, :, None]).any(1)
        stages = stage_scores(z_nd, query_bd, (12,), "int8", metric)
        wanted_bn, clear_b = funnel(stages, (30,), allowed_bn)
        clear_b[3] = False
        assert clear_b.sum() > 30
        found_bn = kept(index, query_bd, 30, ids, probes=probes)
        np.testing.assert_array_equal(found_bn[clear_b], wanted_bn[clear_b])


def test_more_rows_than_fit_a_tile_or_a_chunk(tmp_path):
    z_nd, query_bd = draw(20000, 16), draw(64, 16, seed=1)
    vectors = store(tmp_path, z_nd)
    truth_bn = similar(z_nd, query_bd, "l2")
    exact = Index.build(tmp_path / "exact", vectors, plan=Plan(Schedule.exact(16), "l2"))
    check(exact.search(query_bd, 10), truth_bn)
    for name, lists in (("flat", {}), ("lists", {"lists": 50, "list_dim": 4, "probes": 50})):
        plan = Plan(Schedule.parse("8:2000 > 16"), "l2", "int8", **lists)
        index = Index.build(tmp_path / name, vectors, plan=plan)
        check(index.search(query_bd, 10, keeps=(20000,)), truth_bn)
        wanted_bn, clear_b = funnel(stage_scores(z_nd, query_bd, (8,), "int8", "l2"), (2000,))
        assert clear_b.sum() > 20
        # One thread has all queries, enough for matrix products; two threads have too few each.
        for threads in (1, 2):
            found_bn = kept(index, query_bd, 2000, np.arange(20000), threads=threads)
            np.testing.assert_array_equal(found_bn[clear_b], wanted_bn[clear_b])


STRUCTURES = {
    "exact": Plan(Schedule.exact(16), "l2"),
    "flat": Plan(Schedule.parse("8:20 > 16"), "l2", "int8"),
    "funnel": Plan(Schedule.parse("8:30 > 12:20 > 16"), "l2"),
    "lists": Plan(Schedule.parse("8:20 > 16"), "l2", "binary", lists=4, list_dim=8, probes=4),
}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_ties_go_to_the_smaller_row(structure, metric, tmp_path):
    """More equal rows than are kept: the first of them are found, and in order."""
    plan = STRUCTURES[structure]
    generator = np.random.default_rng(0)
    # Of one length, and different in the first 8 dims: each is the best of all for itself.
    bits_nw = generator.choice(256, 25, replace=False).astype(np.uint8)[:, None]
    distinct_nd = np.tile(2 * np.unpackbits(bits_nw, axis=1).astype(np.float32) - 1, 2)
    which_n = generator.integers(0, 25, 1900)
    ids = generator.permutation(1900)
    vectors = store(tmp_path, distinct_nd[which_n], ids)
    plan = Plan(plan.schedule, metric, plan.code, plan.lists, plan.list_dim, plan.probes)
    index = Index.build(tmp_path / "index", vectors, plan=plan)
    for k in (20, 7):
        ids_bk, scores_bk = index.search(distinct_nd, k)
        for b in range(25):
            rows = np.flatnonzero(which_n == b)[:k]
            np.testing.assert_array_equal(ids_bk[b], ids[rows])
            assert len(set(scores_bk[b])) == 1


@pytest.mark.parametrize("structure", STRUCTURES)
def test_one_row_many_times(structure, tmp_path):
    vectors = store(tmp_path, np.repeat(draw(1, 16), 1100, 0))
    index = Index.build(tmp_path / "index", vectors, plan=STRUCTURES[structure])
    ids_bk, scores_bk = index.search(draw(70, 16, seed=1), 9)
    np.testing.assert_array_equal(ids_bk, np.tile(np.arange(9), (70, 1)))
    assert (scores_bk == scores_bk[:, :1]).all()


@pytest.mark.parametrize("metric", METRICS)
def test_equal_rows_of_an_exact_search_in_a_batch_and_alone(metric, tmp_path):
    """Which of them are found does not depend on how a matrix product rounds each."""
    generator = np.random.default_rng(0)
    distinct_nd = generator.standard_normal((20, 96)).astype(np.float32)
    z_nd = distinct_nd[generator.integers(0, 20, 3000)]
    query_bd = distinct_nd + generator.normal(0, 0.1, (20, 96)).astype(np.float32)
    plan = Plan(Schedule.exact(96), metric)
    index = Index.build(tmp_path / "index", store(tmp_path, z_nd), plan=plan)
    wanted_bk = best(similar(z_nd, query_bd, metric), 10)
    np.testing.assert_array_equal(index.search(query_bd, 10)[0], wanted_bk)
    alone = [index.search(query_bd[b : b + 1], 10)[0] for b in range(20)]
    np.testing.assert_array_equal(np.concatenate(alone), wanted_bk)


def test_exact_search_far_from_the_origin(tmp_path):
    """Products are rounded by more than distances differ: what is near is compared by itself."""
    generator = np.random.default_rng(0)
    z_nd, query_bd = (
        (1000 + generator.standard_normal((n, 64))).astype(np.float32) for n in (2000, 30)
    )
    index = Index.build(
        tmp_path / "index", store(tmp_path, z_nd), plan=Plan(Schedule.exact(64), "l2")
    )
    check(index.search(query_bd, 10), similar(z_nd, query_bd, "l2"))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_zeros(structure, metric, tmp_path):
    plan = STRUCTURES[structure]
    plan = Plan(plan.schedule, metric, plan.code, plan.lists, plan.list_dim, plan.probes)
    z_nd = draw(60, 16)
    z_nd[::2] = 0
    index = Index.build(tmp_path / "index", store(tmp_path, z_nd), plan=plan)
    query_bd = np.concatenate([np.zeros((2, 16), np.float32), z_nd[1:4]])
    ids_bk, scores_bk = index.search(query_bd, 5, keeps=(60,) * len(plan.schedule.stages))
    truth_bn = similar(z_nd, query_bd, metric)
    check((ids_bk, scores_bk), truth_bn)
    rows = np.arange(60) if metric != "l2" else np.arange(0, 60, 2)
    np.testing.assert_array_equal(ids_bk[0], rows[:5])
    np.testing.assert_array_equal(scores_bk[:2], 0)


@pytest.mark.parametrize("structure", [*STRUCTURES, "faiss"])
def test_fewer_rows_than_asked_for(structure, tmp_path):
    faiss = Plan(Schedule.parse("8:20 > 16"), "l2", factory="HNSW4")
    z_nd, query_bd = draw(6, 16), draw(3, 16, seed=1)
    vectors = store(tmp_path, z_nd, np.arange(6) + 7)
    index = Index.build(tmp_path / "index", vectors, plan=STRUCTURES.get(structure, faiss))
    ids_bk, scores_bk = index.search(query_bd, 15)
    assert (ids_bk[:, 6:] == NO_ID).all()
    assert (scores_bk[:, 6:] == -np.inf).all()
    check((ids_bk[:, :6], scores_bk[:, :6]), similar(z_nd, query_bd, "l2"), np.arange(6) + 7)
    one = store(tmp_path, z_nd[:1], name="one")
    if structure != "lists":
        ids_bk, _ = Index.build(
            tmp_path / "one", one, plan=STRUCTURES.get(structure, faiss)
        ).search(query_bd, 2)
        np.testing.assert_array_equal(ids_bk, [[0, NO_ID]] * 3)


def test_few_rows_in_the_lists_looked_into(data, build):
    """Lists may hold fewer rows than are asked for: further ones are looked into, nearest first."""
    _, z_nd, ids, query_bd = data
    index = build(Plan(Schedule.parse(f"12:400 > {FINAL}"), lists=300, list_dim=12))
    ids_bk, _ = index.search(query_bd, 100)
    assert (ids_bk != NO_ID).all()
    assert all(len(set(found)) == 100 for found in ids_bk.tolist())
    wanted_bk = ids[best(similar(z_nd[:, :FINAL], query_bd[:, :FINAL], "cosine"), 100)]
    hits = [len(set(a) & set(b)) for a, b in zip(ids_bk, wanted_bk, strict=True)]
    assert np.mean(hits) > 60


EVERY = {
    "exact": Plan(Schedule.exact(FINAL)),
    "binary": Plan(FUNNEL, code="binary"),
    "int8": Plan(FUNNEL, code="int8"),
    "lists": Plan(FUNNEL, code="int8", **LISTS["lists"]),
    "l2": Plan(FUNNEL, metric="l2", code="float16", **LISTS["lists"]),
    "HNSW": Plan(Schedule.parse(f"16:50 > {FINAL}"), factory="HNSW16"),
    "PQ": Plan(Schedule.parse(f"16:50 > {FINAL}"), factory="IVF16,PQ8x4fs"),
}


@pytest.mark.parametrize("name", EVERY)
def test_batches_threads_and_kinds_of_queries(data, build, name):
    """The same ids and scores, bit for bit, however queries come."""
    query_bd, index = data[3], build(EVERY[name])
    ids_bk, scores_bk = index.search(query_bd, 10, threads=1)
    others = [index.search(query_bd, 10, threads=3), index.search(query_bd, 10)]
    others.append(index.search(query_bd.astype(np.float64), 10))
    others.append(index.search(np.asfortranarray(query_bd), 10))
    others.append(index.search(query_bd[:, :FINAL], 10))
    single = [index.search(query_bd[b : b + 1], 10) for b in range(len(query_bd))]
    others.append(tuple(map(np.concatenate, zip(*single, strict=True))))
    for ids, scores in others:
        np.testing.assert_array_equal(ids, ids_bk)
        np.testing.assert_array_equal(scores, scores_bk)
    half = index.search(query_bd.astype(np.float16), 10)
    wide = index.search(query_bd.astype(np.float16).astype(np.float32), 10)
    np.testing.assert_array_equal(half[0], wide[0])
    # Fewer results are the first of more.
    np.testing.assert_array_equal(index.search(query_bd, 4)[0], ids_bk[:, :4])
    many = index.search(np.tile(query_bd, (30, 1)), 10)
    np.testing.assert_array_equal(many[0], np.tile(ids_bk, (30, 1)))


@pytest.mark.parametrize("name", EVERY)
def test_no_queries(build, name):
    ids_bk, scores_bk = build(EVERY[name]).search(np.empty((0, D), np.float32), 7)
    assert (ids_bk.shape, ids_bk.dtype) == ((0, 7), np.int64)
    assert (scores_bk.shape, scores_bk.dtype) == ((0, 7), np.float32)


def test_faiss_forgets_other_parameters(data, build):
    query_bd, index = data[3], build(EVERY["PQ"])
    before = index.search(query_bd, 20)
    more = index.search(query_bd, 20, parameters="nprobe=16")
    assert (more[0] != before[0]).any()
    after = index.search(query_bd, 20)
    np.testing.assert_array_equal(after[0], before[0])


def change(query_bd, row, value):
    query_bd = query_bd.copy()
    query_bd[row, 1] = value
    return query_bd


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 61}, "k must be 1 to 60, which 8:400 > 24:60 > 40 keeps; got 61"),
        ({"k": 0}, "k must be 1 to 60"),
        ({"k": -3}, "k must be 1 to 60"),
        ({"keeps": (100, 9)}, "k must be 1 to 9"),
        ({"keeps": (100,)}, r"keeps must be 2 numbers, got \(100,\)"),
        ({"keeps": (100, 200)}, "never more again"),
        ({"keeps": (100, 0)}, "keep at least 1"),
        ({"probes": 0}, "probes must be 1 to 16, got 0"),
        ({"probes": 17}, "probes must be 1 to 16, got 17"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"threads": -1}, "threads must be at least 1"),
        ({"parameters": "nprobe=3"}, "parameters are of a factory, the plan has none"),
        ({"query_bd": lambda q: q[:, :39]}, r"queries must be \[B, >= 40\], got \(40, 39\)"),
        ({"query_bd": lambda q: q[0, :39]}, r"queries must be \[B, >= 40\], got \(39,\)"),
        ({"query_bd": lambda q: q[None]}, r"queries must be \[B, >= 40\]"),
        ({"query_bd": lambda q: q.astype(int)}, "queries must be floating point, got int64"),
        ({"query_bd": lambda q: q.astype(complex)}, "floating point, got complex128"),
        ({"query_bd": lambda q: q.astype(str)}, "floating point, got <U"),
        ({"query_bd": lambda q: np.ma.masked_less(q, 0)}, "some are masked"),
        ({"query_bd": lambda q: change(q, 39, np.nan)}, "a query holds NaN or infinity"),
        ({"query_bd": lambda q: change(q, 0, -np.inf)}, "a query holds NaN or infinity"),
        ({"query_bd": lambda q: change(q, 0, 1e19)}, "or is longer than 4e18"),
        ({"query_bd": lambda q: change(q.astype(float), 0, 1e200)}, "longer than 4e18"),
    ],
)
def test_questions_that_cannot_be(data, build, arguments, message):
    index = build(EVERY["lists"])
    changed = arguments.get("query_bd", lambda q: q)
    with pytest.raises(ValueError, match=message) as raised:
        index.search(**{"k": 10, **arguments, "query_bd": changed(data[3])})
    assert "\n" not in str(raised.value)


def test_parameters_that_faiss_does_not_have(data, build):
    for parameters in ("efSearch=7", "nprobe", "nprobe=many"):
        with pytest.raises(ValueError, match=rf"^faiss cannot use the parameters '{parameters}': "):
            build(EVERY["PQ"]).search(data[3], 5, parameters=parameters)
    message = "^faiss cannot search by the parameters 'nprobe=0': "
    with pytest.raises(ValueError, match=message):  # which it takes, and cannot search by
        build(EVERY["PQ"]).search(data[3], 5, parameters="nprobe=0")


def test_facts(data, build):
    ids = data[2]
    plan = EVERY["lists"]
    index = build(plan)
    assert (index.plan, index.width, index.rows) == (plan, D, N)
    np.testing.assert_array_equal(index.ids, ids)
    assert index.bytes()["vectors"] == N * D * 4
    resident = {code: build(Plan(FUNNEL, code=code)).bytes()["resident"] for code in CODES}
    assert resident["float32"] - resident["float16"] == N * 24 * 2
    assert resident["bfloat16"] == resident["float16"]
    assert resident["float16"] - resident["int8"] == N * 24
    assert resident["int8"] - resident["binary"] == N * (24 - 2 * 8)
    for factory in ("HNSW16", "IVF16,PQ8x4fs"):
        faiss = build(Plan(Schedule.parse(f"16:200 > {FINAL}"), factory=factory)).bytes()
        assert faiss["resident"] > N * 4
    again = Index.open(str(index.folder))
    assert (again.plan, again.rows, again.bytes()) == (plan, N, index.bytes())


def test_the_same_vectors_make_the_same_index(data, build, tmp_path):
    for name in ("lists", "PQ"):
        again = Index.build(tmp_path / name, data[0], plan=EVERY[name])
        for a, b in zip(
            again.search(data[3], 10), build(EVERY[name]).search(data[3], 10), strict=True
        ):
            np.testing.assert_array_equal(a, b)


def test_progress(data, tmp_path, capfd):
    Index.build(tmp_path / "silent", data[0], plan=EVERY["lists"])
    assert capfd.readouterr() == ("", "")
    Index.build(tmp_path / "index", data[0], plan=EVERY["lists"], progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "lists: 100%" in err
    assert "codes: 100%" in err
