"""Only what is allowed is found: by ids, by a mask, by what is known of rows; and ranges."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from brute_force import best, check, draw, similar

from mrl_jax.errors import DataError, UsageError
from mrl_jax.search import Index
from mrl_jax.search.index import NO_ID, clusters
from mrl_jax.search.plan import Plan
from mrl_jax.search.schedule import Schedule

N, D, K = 1200, 16, 10
LISTS = {"lists": 24, "list_dim": 8, "probes": 2}
SHORT = Schedule.parse(f"8:60 > {D}")
# So few candidates that indexes of faiss are asked also where a third of the rows is allowed.
FEW = Schedule.parse(f"8:10 > {D}")
PLANS = {
    "exact": Plan(Schedule.exact(D), "inner"),
    "flat": Plan(Schedule.parse(f"8:60 > 12:30 > {D}"), "l2", "int8"),
    "lists": Plan(SHORT, code="int8", **LISTS),
    "HNSW": Plan(FEW, factory="HNSW8"),
    "IVF": Plan(FEW, "l2", factory="IVF24,Flat", parameters="nprobe=2"),
    "cannot be told": Plan(FEW, "l2", factory="PQ4x4fs"),
}


@pytest.fixture(scope="module")
def z_nd():
    return draw(N, D)


@pytest.fixture(scope="module")
def query_bd():
    return draw(40, D, seed=1)


@pytest.fixture(scope="module")
def attributes():
    rng = np.random.default_rng(3)
    return {
        "year": rng.integers(1990, 2026, N),
        "language": rng.choice(["de", "en", "ja"], N),
        "price": [None if n % 3 else float(n) for n in range(N)],
    }


@pytest.fixture(scope="module")
def build(z_nd, attributes):
    """Indexes of two segments with deleted rows, by name, each once for all tests."""
    built = {}

    def build(name):
        if name not in built:
            some = {column: values[:900] for column, values in attributes.items()}
            index = Index.build(None, z_nd[:900], plan=PLANS[name], attributes=some)
            # Columns in another order, and of a type that holds the same values.
            more = {"language": attributes["language"][900:], "price": attributes["price"][900:]}
            more["year"] = attributes["year"][900:].astype(np.int16)
            index.add(z_nd[900:], np.arange(900, N), attributes=pa.table(more))
            index.delete(np.arange(0, N, 10))
            built[name] = index
        return built[name]

    return build


def alive():
    return np.arange(N) % 10 != 0


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("share", [0, 1 / 200, 1 / 2, 4 / 5, 1])
def test_as_if_nothing_else_were_there(build, name, share, z_nd, query_bd):
    """All that is allowed if that is few, and never anything else."""
    index, metric = build(name), PLANS[name].metric
    index.search(query_bd[:1], K)  # what this looked up must not count below
    allowed_n = np.random.default_rng(0).random(N) < share
    left = np.flatnonzero(allowed_n & alive())
    ids_bk, scores_bk = index.search(query_bd, K, allow=np.flatnonzero(allowed_n))
    k = min(K, len(left))
    assert (ids_bk[:, k:] == NO_ID).all()
    assert np.isin(ids_bk[:, :k], left).all()
    assert all(len(set(ids)) == k for ids in ids_bk[:, :k].tolist())
    assert (np.diff(scores_bk[:, :k], axis=1) <= 0).all()
    if not k:
        return
    truth_bn = similar(z_nd[left], query_bd, metric)
    if name == "exact" or len(left) < 10:
        check((ids_bk[:, :k], scores_bk[:, :k]), truth_bn, left)
    # The same by a mask, from either list, and in other batches.
    for allow in (allowed_n[alive()], np.random.default_rng(1).permutation(left).tolist()):
        again = index.search(query_bd, K, allow=allow)
        np.testing.assert_array_equal(again[0], ids_bk)
        np.testing.assert_array_equal(again[1], scores_bk)
    alone = np.stack([index.search(query_d, K, allow=left)[0] for query_d in query_bd[:5]])
    np.testing.assert_array_equal(alone, ids_bk[:5])


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("share", [1 / 50, 1 / 3, 4 / 5])
def test_recall_is_no_less_than_without_a_filter(build, name, share, z_nd, query_bd):
    """Also if the allowed rows lie far from the queries: more is looked at, the fewer there are."""
    index, metric = build(name), PLANS[name].metric
    everything = np.flatnonzero(alive())

    def recall(allow):
        left = everything if allow is None else np.intersect1d(allow, everything)
        wanted_bk = left[best(similar(z_nd[left], query_bd, metric), K)]
        found_bk, _ = index.search(query_bd, K, allow=allow)
        return (found_bk[:, :, None] == wanted_bk[:, None, :]).any(2).mean()

    plain = recall(None)
    drawn = np.flatnonzero(np.random.default_rng(4).random(N) < share)
    farthest = np.argsort(similar(z_nd, query_bd[:1], metric)[0])[: len(drawn)]
    assert recall(drawn) >= plain - 0.02
    assert recall(farthest) >= plain - 0.08


@pytest.mark.parametrize("factory", ["", "IVF400,Flat"])
def test_more_lists_are_looked_into_where_few_rows_are_allowed(factory, query_bd):
    """Otherwise as many lists hold a tenth of the rows, and what is nearest lies in others."""
    lists = {"lists": 400, "list_dim": 8, "probes": 8}
    how = {"factory": factory, "parameters": "nprobe=8"} if factory else lists
    z_nd = draw(20_000, D)
    index = Index.build(None, z_nd, plan=Plan(Schedule.parse(f"8:100 > {D}"), "l2", **how))

    def recall(allow):
        wanted_bk = allow[best(similar(z_nd[allow], query_bd, "l2"), K)]
        found_bk, _ = index.search(query_bd, K, allow=allow)
        return (found_bk[:, :, None] == wanted_bk[:, None, :]).any(2).mean()

    plain = recall(np.arange(20_000))
    assert 0.5 < plain < 0.99
    drawn = np.random.default_rng(5).permutation(20_000)
    assert recall(np.sort(drawn[:4000])) >= plain


PREDICATES = {
    "number": (pc.field("year") >= 2015, lambda a: a["year"] >= 2015),
    "text": (pc.field("language") == "ja", lambda a: a["language"] == "ja"),
    "both": (
        (pc.field("language") != "ja") & (pc.field("year") == 2001),
        lambda a: (a["language"] != "ja") & (a["year"] == 2001),
    ),
    "one of": (pc.field("year").isin([1991, 2025]), lambda a: np.isin(a["year"], [1991, 2025])),
    "missing is not true": (
        pc.field("price") > 300,
        lambda a: np.array([p is not None and p > 300 for p in a["price"]]),
    ),
    "missing": (pc.field("price").is_null(), lambda a: np.array([p is None for p in a["price"]])),
    "all": (pc.scalar(True), lambda a: np.ones(N, bool)),
    "none": (pc.field("year") > 3000, lambda a: np.zeros(N, bool)),
}


@pytest.mark.parametrize("name", PREDICATES)
def test_a_predicate(build, name, attributes, query_bd, tmp_path):
    predicate, oracle = PREDICATES[name]
    for plan in ("flat", "exact"):
        index = build(plan)
        wanted = index.search(query_bd, K, allow=np.flatnonzero(oracle(attributes)))
        assert (wanted[0][0] == NO_ID).all() == (name == "none")
        for a, b in zip(index.search(query_bd, K, allow=predicate), wanted, strict=True):
            np.testing.assert_array_equal(a, b)
    # What is copied, merged and opened again has them, too.
    index.save(tmp_path / "copy")
    copy = Index.open(tmp_path / "copy")
    copy.compact()
    for index in (copy, Index.open(tmp_path / "copy")):
        found = index.search(query_bd, K, allow=predicate)
        np.testing.assert_array_equal(found[0], wanted[0])
    index.verify()


@pytest.mark.parametrize("name", ["exact", "lists", "IVF"])
def test_a_filter_that_is_kept(name, z_nd, query_bd):
    """It gives what a search with it gives, and of the index as it was."""
    for allow, allowed in ((None, 500), (np.arange(0, 500, 3), 167), (np.arange(500) < 80, 80)):
        index = Index.build(None, z_nd[:500], plan=PLANS[name])
        kept = index.allowing(allow)
        assert len(kept) == allowed
        wanted = index.search(query_bd, K, allow=allow)
        least = float(wanted[1][:, 3].max())
        wanted_range = index.range_search(query_bd, least, allow=allow)
        index.delete(wanted[0][:, 0])
        for found in (kept.search(query_bd, K), *kept.search_batches([query_bd], K)):
            for a, b in zip(found, wanted, strict=True):
                np.testing.assert_array_equal(a, b)
        for a, b in zip(kept.range_search(query_bd, least), wanted_range, strict=True):
            np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="least_score must be a number, got nan"):
        kept.range_search(query_bd, float("nan"))
    with pytest.raises(ValueError, match="k must be 1 to"):
        kept.search(query_bd, 0)


def test_what_cannot_be_allowed(build, query_bd, z_nd):
    index, plain = build("flat"), Index.build(None, z_nd[:20])
    there = index.rows
    for allow, error, message in (
        (np.ones(N, bool), ValueError, f"allow must be [{there}], one for each id, got ({N},)"),
        (np.ones((there, 1), bool), ValueError, f"allow must be [{there}], one for each id"),
        ([0.5], ValueError, "ids must be int64, got float64"),
        (["a"], ValueError, "ids must be int64, got <U1"),
        (pc.field("yaer") > 1, UsageError, "of the columns year, language, price: No match for"),
        (pc.field("year"), UsageError, "allow must be true or false of a row, year is int64"),
        (pc.field("language") > 3, UsageError, "allow cannot be told of the columns year, lang"),
    ):
        for ask in (
            lambda allow=allow: index.search(query_bd, K, allow=allow),
            lambda allow=allow: index.range_search(query_bd, 0, allow=allow),
            lambda allow=allow: index.search_batches([query_bd], K, allow=allow),
        ):
            with pytest.raises(error) as raised:
                ask()
            assert message in str(raised.value)
            assert "\n" not in str(raised.value)
    with pytest.raises(UsageError, match="allow is a predicate, but the index has no attributes"):
        plain.search(query_bd, 3, allow=pc.field("year") > 1)


def test_attributes_that_cannot_be(z_nd, tmp_path):
    def build(attributes):
        Index.build(tmp_path / "index", z_nd[:4], attributes=attributes)

    index = Index.build(None, z_nd[:3], attributes={"year": [1, 2, 3], "name": ["a", "b", "c"]})
    plain = Index.build(None, z_nd[:3])
    more = z_nd[:1], [9]
    two = pa.Table.from_arrays([pa.array(range(4))] * 2, names=["a", "a"])
    for do, message in (
        (lambda: build({"a": [1, 2]}), "attributes have 2 rows, there are 4 vectors"),
        (lambda: build({}), "attributes must have a column at least"),
        (lambda: build({"a": [1, "x", 2, 3]}), "attributes must be a table, or columns by name"),
        (lambda: build({"a": [1], "b": [1, 2]}), "attributes must be a table, or columns by name"),
        (lambda: build(7), "attributes must be a table, or columns by name"),
        (lambda: build(two), "attributes have two columns of a name: a, a"),
        (lambda: index.add(*more), "vectors of this index have attributes: give those of the new"),
        (
            lambda: index.add(*more, attributes={"year": [1]}),
            "attributes have the columns year; those of the index are year, name",
        ),
        (
            lambda: index.upsert(*more, attributes={"year": ["x"], "name": ["d"]}),
            "attributes are of other types than the index has",
        ),
        (
            lambda: plain.add(*more, attributes={"year": [1]}),
            "vectors of this index have no attributes",
        ),
    ):
        with pytest.raises(DataError) as raised:
            do()
        assert message in str(raised.value)
        assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []
    assert (len(index), len(plain)) == (3, 3)


@pytest.mark.parametrize("name", ["exact", "flat", "lists", "HNSW"])
def test_all_that_is_near_enough(build, name, z_nd, query_bd):
    index, metric = build(name), PLANS[name].metric
    left = np.flatnonzero(alive())
    for allow in (None, left[::3], left[:0]):
        rows = left if allow is None else allow
        truth_bn = similar(z_nd[rows], query_bd, metric)
        # Between two scores, so that rounding does not matter.
        some = np.sort(truth_bn.ravel())[-400:-398].mean() if len(rows) else 0.0
        limits, ids, scores = index.range_search(query_bd, some, allow=allow)
        assert (limits.dtype, ids.dtype, scores.dtype) == (np.int64, np.int64, np.float32)
        assert (limits[0], limits[-1], len(limits)) == (0, len(ids), len(query_bd) + 1)
        assert len(ids) == (399 if len(rows) else 0)
        for b, truth_n in enumerate(truth_bn):
            span = slice(limits[b], limits[b + 1])
            wanted = np.argsort(-truth_n, kind="stable")[: (truth_n >= some).sum()]
            np.testing.assert_array_equal(ids[span], rows[wanted])
            np.testing.assert_allclose(scores[span], truth_n[wanted], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "inner", "l2"])
def test_ranges_of_every_size(metric, z_nd):
    """From none to all of them, of one query and of none, by any number of threads."""
    index = Index.build(None, z_nd, np.char.add("id ", np.arange(N).astype(str)), metric=metric)
    query_d = z_nd[33]
    limits, ids, scores = index.range_search(query_d, -np.inf)
    assert limits.tolist() == [0, N]
    assert len(set(ids)) == N
    assert (np.diff(scores) <= 0).all()
    for least, count in ((np.inf, 0), (1e30, 0), (scores[4:6].mean(), 5), (scores[:2].mean(), 1)):
        assert index.range_search(query_d, least)[0].tolist() == [0, count]
    assert [len(x) for x in index.range_search(np.empty((0, D), np.float32), 0)] == [1, 0, 0]
    one, many = (index.range_search(z_nd, scores[40], threads=threads) for threads in (1, 3))
    for a, b in zip(one, many, strict=True):
        np.testing.assert_array_equal(a, b)
    for least in (np.nan, "0", None, [0.5]):
        with pytest.raises(ValueError, match="least_score must be a number, got "):
            index.range_search(query_d, least)
    with pytest.raises(ValueError, match="threads must be at least 1"):
        index.range_search(query_d, 0, threads=0)


def test_equal_rows_in_a_range_keep_their_order(tmp_path):
    z_nd = np.repeat(draw(2, D), 700, 0)
    index = Index.build(None, z_nd)
    limits, ids, _ = index.range_search(z_nd[[0, 1000]], 0.999)
    assert ids[: limits[1]].tolist() == list(range(700))
    assert ids[limits[1] :].tolist() == list(range(700, 1400))


def test_batches_one_after_another(build, query_bd):
    """Each is read when its turn has come; all see what was there at first."""
    index, read = build("flat"), []

    def batches():
        for b in (0, 7, 8):
            read.append(b)
            yield query_bd[b : b + 7]

    allow = np.arange(0, N, 7)
    found = index.search_batches(batches(), K, allow=allow, keeps=(50, 40))
    assert read == []
    first = next(found)
    assert read == [0]
    index.delete([7])
    try:
        for b, (ids_bk, scores_bk) in zip((0, 7, 8), [first, *found], strict=True):
            wanted = index.search(query_bd[b : b + 7], K, allow=allow, keeps=(50, 40))
            assert not (wanted[0] == 7).any()
            same = ~(ids_bk == 7).any(1)  # whose answer the deletion did not change
            np.testing.assert_array_equal(ids_bk[same], wanted[0][same])
            np.testing.assert_array_equal(scores_bk[same], wanted[1][same])
    finally:
        index.add(draw(N, D)[7:8], [7], attributes={"year": [0], "language": [""], "price": [0.0]})
    with pytest.raises(ValueError, match="k must be 1 to 30"):
        index.search_batches([], 31)
    with pytest.raises(TypeError, match="wide"):
        index.search_batches([], 3, wide=7)


def test_lists_looked_into_where_rows_are_hidden():
    """So many that a query compares as many rows as if nothing were hidden, or all there are."""
    rng = np.random.default_rng(0)
    centroid_ld, query_bd = draw(40, 6), draw(30, 6, seed=1)
    score_bl = similar(centroid_ld, query_bd, "l2")
    all_l = rng.integers(0, 30, 40)
    for share in (0.02, 0.3, 0.9, 1):
        rows_l = rng.binomial(all_l, share)
        for probes in (1, 4, 40):
            list_bp = clusters.looked_into(query_bd, centroid_ld, probes, "l2", rows_l, 1, 1, all_l)
            for score_l, found_p in zip(score_bl, list_bp, strict=True):
                order = np.argsort(-score_l)
                planned = all_l[[which for which in order if all_l[which]][:probes]].sum()
                there = [which for which in order if rows_l[which]]
                before = np.cumsum(rows_l[there]) - rows_l[there]
                wanted = [w for p, w in enumerate(there) if p < probes or before[p] < planned]
                assert sorted(found_p[found_p < 40].tolist()) == sorted(wanted)
