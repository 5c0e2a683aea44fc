"""Searches on devices, where float32 rounds differences away, against float64."""

import jax
import numpy as np
import pytest
from brute_force import best, similar
from test_exhaustive import KINDS, METRICS, hard, scores

from mrl_jax.runtime.mesh import make_mesh
from mrl_jax.search import top_k
from mrl_jax.search.device import exact
from mrl_jax.search.device.funnel import funnel
from mrl_jax.search.schedule import Schedule

ROWS, DIMS, K = 500, (7, 24), 10


@pytest.mark.parametrize("metric", METRICS)
def test_top_k_finds_what_float64_finds(metric):
    for kind in KINDS:
        z_nd, query_bd = (x[:n] for x, n in zip(hard(kind), (ROWS, 4), strict=True))
        row_gbk, _ = top_k(z_nd, query_bd, DIMS, K, metric=metric)
        for row_bk, dim in zip(row_gbk, DIMS, strict=True):
            expected_bk = best(scores(z_nd[:, :dim], query_bd[:, :dim], metric), K)
            np.testing.assert_array_equal(row_bk, expected_bk, err_msg=f"{kind}, {dim} dims")


def test_products_with_the_shortest_rows_are_not_believed():
    rng = np.random.default_rng(0)
    z_nd, query_bd = (rng.choice([-1, 1], (n, 24)) * rng.uniform(1, 2, (n, 24)) for n in (ROWS, 4))
    z_nd, query_bd = (z_nd * 2.0**-124).astype(np.float32), query_bd.astype(np.float32)
    row_gbk, _ = top_k(z_nd, query_bd, (24,), K)
    np.testing.assert_array_equal(row_gbk[0], best(scores(z_nd, query_bd, "cosine"), K))


def test_rows_whose_prefix_is_zero_hide_no_others():
    rng = np.random.default_rng(3)
    z_nd, query_bd = rng.standard_normal((ROWS, 24)), rng.standard_normal((4, 24))
    z_nd[::9, :7] = 0
    z_nd[:, 7:] *= 1e8
    z_nd, query_bd = z_nd.astype(np.float32), query_bd.astype(np.float32)
    row_gbk, _ = top_k(z_nd, query_bd, DIMS, K)
    for row_bk, dim in zip(row_gbk, DIMS, strict=True):
        expected_bk = best(similar(z_nd[:, :dim], query_bd[:, :dim], "cosine"), K)
        np.testing.assert_array_equal(row_bk, expected_bk)


def test_neighbours_that_are_nearly_equal_may_lie_side_by_side():
    """In the same few blocks, of which not all rows are scored in float64."""
    rng = np.random.default_rng(1)
    z_nd = rng.standard_normal((2000, 24))
    z_nd[400:440] = z_nd[400] * (1 + 1e-7 * rng.standard_normal((40, 24)))
    query_bd = (z_nd[400] + 0.1 * rng.standard_normal((4, 24))).astype(np.float32)
    z_nd = z_nd.astype(np.float32)
    row_gbk, _ = top_k(z_nd, query_bd, (24,), K)
    np.testing.assert_array_equal(row_gbk[0], best(scores(z_nd, query_bd, "cosine"), K))


def test_so_it_does_on_a_mesh():
    for kind in ("nearly equal", "many equal"):
        z_nd, query_bd = (x[:n] for x, n in zip(hard(kind), (ROWS, 4), strict=True))
        row_gbk, _ = top_k(z_nd, query_bd, (24,), K, metric="l2", mesh=make_mesh(2, 2, 2))
        np.testing.assert_array_equal(row_gbk[0], best(scores(z_nd, query_bd, "l2"), K))


@pytest.mark.parametrize("metric", METRICS)
def test_a_funnel_that_keeps_all_does_so_too(metric):
    for kind in KINDS[::2]:
        z_nd, query_bd = hard(kind)
        rows_bk, _ = funnel(z_nd[:200], query_bd, Schedule(((7, 200),), 24), K, metric=metric)
        np.testing.assert_array_equal(
            rows_bk, best(scores(z_nd[:200], query_bd, metric), K), err_msg=kind
        )


@pytest.mark.parametrize(("metric", "shift"), [("cosine", 0), ("l2", 1000)])
def test_few_queries_need_a_second_look(metric, shift, monkeypatch):
    """It is there for what rounding leaves open: of ordinary vectors, next to nothing."""
    looked, search = [], exact._search

    def counted(placed, query_bd, *rest):
        looked.append(len(query_bd))
        return search(placed, query_bd, *rest)

    monkeypatch.setattr(exact, "_search", counted)
    rng = np.random.default_rng(5)
    z_nd, query_bd = ((rng.standard_normal((n, 96)) + shift).astype("f4") for n in (2000, 64))
    top_k(z_nd, query_bd, (96,), K, metric=metric)
    assert looked[0] == 64
    assert sum(looked[1:]) <= 4


def test_where_thousands_of_rows_tie_all_are_compared_at_once(monkeypatch):
    """And only at the dims where they tie; looking into ever more rows would take too long."""
    looked, search = [], exact._search

    def counted(placed, query_bd, split, scan, k):
        looked.append(scan.dims)
        return search(placed, query_bd, split, scan, k)

    monkeypatch.setattr(exact, "_search", counted)
    rng = np.random.default_rng(6)
    z_nd, query_bd = (rng.standard_normal((n, 24)).astype("f4") for n in (3000, 16))
    z_nd[:, :2], query_bd[:, :2] = rng.integers(0, 2, (3000, 2)), 1
    row_gbk, _ = top_k(z_nd, query_bd, (2, 24), K, metric="inner")
    for row_bk, dim in zip(row_gbk, (2, 24), strict=True):
        expected_bk = best(scores(z_nd[:, :dim], query_bd[:, :dim], "inner"), K)
        np.testing.assert_array_equal(row_bk, expected_bk)
    assert looked == [(2, 24), (2,)]


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">f2", np.longdouble])
def test_numbers_in_any_form(dtype):
    z_nd, query_bd = hard("one large dim")
    z_nd, query_bd = z_nd[:40, 4:12].astype(dtype), query_bd[:, 4:12].astype(dtype)
    row_bk = best(scores(z_nd, query_bd, "cosine"), K)
    fortran_nd = np.asfortranarray(z_nd)
    strided_nd = np.repeat(z_nd, 2, axis=0)[::-1][::-2]
    for given_nd in (z_nd, fortran_nd, strided_nd, z_nd.tolist()):
        queries = query_bd if given_nd is not fortran_nd else query_bd.tolist()
        np.testing.assert_array_equal(top_k(given_nd, queries, (8,), K)[0][0], row_bk)
        found = funnel(given_nd, queries, Schedule(((4, 40),), 8), K)
        np.testing.assert_array_equal(found[0], row_bk)


def test_masked_and_too_large_numbers_are_refused():
    z_nd, query_bd = np.ones((5, 4)), np.ones((2, 4))
    with pytest.raises(ValueError, match="database must have a number everywhere, some are masked"):
        top_k(np.ma.masked_greater(z_nd * np.arange(4), 2), query_bd, (4,), 1)
    with pytest.raises(ValueError, match="the database holds NaN or infinity, or is a vector long"):
        top_k(z_nd * 1e300, query_bd, (4,), 1)
    with pytest.raises(ValueError, match="a query holds NaN or infinity, or is a vector longer"):
        top_k(z_nd, query_bd * 1e300, (4,), 1)


def test_jax_may_have_float64_everywhere():
    z_nd, query_bd = hard("far from the origin")
    z_nd = z_nd[:ROWS]
    expected = top_k(z_nd, query_bd, DIMS, K, metric="l2")
    with jax.enable_x64(True):
        found = top_k(z_nd.astype(np.float64), query_bd.astype(np.float64), DIMS, K, metric="l2")
        shortlisted = funnel(z_nd, query_bd, Schedule(((7, ROWS),), 24), K, metric="l2")
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(shortlisted[0], expected[0][1])
