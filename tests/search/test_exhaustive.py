"""Comparing all rows, against float64, where float32 rounds differences away."""

import numpy as np
import pytest
from brute_force import best, store

from mrl_jax.errors import DataError
from mrl_jax.search.index import Index
from mrl_jax.search.index.exhaustive import Exhaustive
from mrl_jax.search.plan import Plan
from mrl_jax.search.planner import ranks
from mrl_jax.search.schedule import Schedule

N, B, D, K = 2500, 12, 24, 10
METRICS = ("cosine", "inner", "l2")


def hard(kind):
    """Rows and queries of one kind, float32."""
    rng = np.random.default_rng(0)
    z_nd, query_bd = rng.standard_normal((N, D)), rng.standard_normal((B, D))
    if kind == "far from the origin":
        z_nd, query_bd = z_nd + 1000, query_bd + 1000
    elif kind == "two groups far apart":
        z_nd, query_bd = z_nd + 1e4 * rng.choice([-1, 1], (N, 1)), query_bd + 1e4
    elif kind == "nearly equal":
        z_nd, query_bd = 1 + 1e-4 * z_nd, 1 + 1e-4 * query_bd
    elif kind == "tiny":
        z_nd, query_bd = 1e-30 * z_nd, 1e-30 * query_bd
    elif kind == "of all lengths":
        z_nd *= 10.0 ** rng.uniform(-30, 15, (N, 1))
        query_bd *= 10.0 ** rng.uniform(-30, 15, (B, 1))
    elif kind == "one large dim":
        z_nd[:, 0], query_bd[:, 0] = 1e4 + z_nd[:, 0], 1e4 + query_bd[:, 0]
    elif kind == "many equal":
        z_nd = z_nd[rng.integers(0, 15, N)]
    return z_nd.astype(np.float32), query_bd.astype(np.float32)


KINDS = (
    "far from the origin",
    "two groups far apart",
    "nearly equal",
    "tiny",
    "of all lengths",
    "one large dim",
    "many equal",
)


def scores(z_nd, query_bd, metric):
    """[B, N] float64; each a sum by itself, so that equal rows have equal scores."""
    z_nd, query_bd = z_nd.astype(np.float64), query_bd.astype(np.float64)
    if metric == "l2":
        return -np.square(query_bd[:, None] - z_nd).sum(2)
    product_bn = (query_bd[:, None] * z_nd).sum(2)
    if metric == "inner":
        return product_bn
    length_n, length_b = (np.sqrt(np.square(x).sum(1)) for x in (z_nd, query_bd))
    return product_bn / (length_n * length_b[:, None])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", METRICS)
def test_finds_what_float64_finds(kind, metric):
    z_nd, query_bd = hard(kind)
    score_bn = scores(z_nd, query_bd, metric)
    row_bk = best(score_bn, K)
    whole = Exhaustive(query_bd, K, metric)
    whole.take(0, z_nd[:1400])
    whole.take(1400, z_nd[1400:])
    np.testing.assert_array_equal(whole.row_bk, row_bk)
    np.testing.assert_allclose(
        whole.score_bk, np.take_along_axis(score_bn, row_bk, 1), rtol=1e-12, atol=0
    )
    one = Exhaustive(query_bd[:1], K, metric)
    one.take(0, z_nd)
    np.testing.assert_array_equal(one.row_bk, row_bk[:1])


def test_far_from_the_origin_few_rows_are_compared_one_by_one():
    """By products of differences from a centre; those of vectors would rule nothing out."""
    z_nd, query_bd = hard("far from the origin")
    found = Exhaustive(query_bd, K, "l2")
    found.take(0, z_nd)
    assert found.compared_b.max() < N / 10


@pytest.mark.parametrize("metric", METRICS)
def test_an_index_and_the_truth_of_plans_are_found_so(metric, tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "_SHARD_NUMBERS", 1000 * D)  # several parts
    for kind in KINDS[:4]:
        z_nd, query_bd = hard(kind)
        row_bk = best(scores(z_nd, query_bd, metric), K)
        source = store(tmp_path, z_nd, name=kind)
        np.testing.assert_array_equal(ranks.neighbours(source, query_bd, K, metric), row_bk)
        for schedule in (Schedule.exact(D), Schedule.parse(f"8:{N} > {D}")):
            index = Index.build(
                tmp_path / f"{kind} {schedule}", source, plan=Plan(schedule, metric)
            )
            np.testing.assert_array_equal(index.search(query_bd, K)[0], row_bk)


@pytest.mark.parametrize("code", ["float32", "int8", "binary"])
@pytest.mark.parametrize("lists", [1, 8])
def test_short_vectors_are_found_as_long_ones_are(code, lists, tmp_path):
    rng = np.random.default_rng(1)
    z_nd, query_bd = (rng.standard_normal((n, 24)).astype(np.float32) for n in (800, 9))
    plan = Plan(Schedule.parse("16:60 > 24"), code=code, lists=lists, list_dim=8, probes=lists)
    found = []
    for power in (0, -44, -80):  # a power of two rounds nothing
        scale = np.float32(2.0**power)
        index = Index.build(tmp_path / str(power), store(tmp_path, z_nd * scale), plan=plan)
        found.append(index.search(query_bd * scale, 5))
    for ids_bk, scores_bk in found[1:]:
        np.testing.assert_array_equal(ids_bk, found[0][0])
        np.testing.assert_array_equal(scores_bk, found[0][1])


def test_vectors_that_cannot_be_compared_are_refused(tmp_path):
    z_nd, query_bd = hard("nearly equal")
    z_nd[7, 3] = 1e19
    with pytest.raises(DataError, match="row 7 holds NaN or infinity, or is longer than 4e18"):
        ranks.neighbours(store(tmp_path, z_nd), query_bd, K, "l2")
    query_bd[2, 0] = np.nan
    with pytest.raises(DataError, match="a query holds NaN or infinity, or is longer than 4e18"):
        ranks.neighbours(store(tmp_path, query_bd[:2]), query_bd, 1, "l2")


def test_more_results_than_could_ever_be_are_refused(tmp_path):
    z_nd, query_bd = hard("many equal")
    index = Index.build(tmp_path / "index", store(tmp_path, z_nd[:5]), plan=Plan(Schedule.exact(D)))
    with pytest.raises(ValueError, match="k must be 1 to 10000; got 100000000"):
        index.search(query_bd, 100_000_000)
