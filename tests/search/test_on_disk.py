import itertools

import numpy as np
import pytest

from mrl_jax.errors import DataError
from mrl_jax.search.device.on_disk import Found, merge_top_k, spans, top_k_on_disk
from mrl_jax.store.vectors import open_vectors

DIMS = (3, 8, 21)


@pytest.fixture
def stored(tmp_path):
    """700 vectors of -1 and 1: products are exact, all are of one length, and many scores tie."""
    rng = np.random.default_rng(0)
    z_nd = rng.choice(np.float32([-1, 1]), (700, 24))
    np.save(tmp_path / "z.npy", z_nd)
    return open_vectors(tmp_path / "z.npy"), z_nd, rng.choice(np.float32([-1, 1]), (9, 24))


@pytest.mark.parametrize(
    ("metric", "shard_rows"), [("cosine", 256), ("inner", 97), ("l2", 700), ("l2", 5)]
)
def test_all_rows_are_searched(stored, metric, shard_rows):
    vectors, z_nd, query_bd = stored
    found = top_k_on_disk(vectors, query_bd, DIMS, 12, metric=metric, shard_rows=shard_rows)
    assert (found.rows_gbk.dtype, found.scores_gbk.dtype) == (np.int64, np.float32)
    for g, m in enumerate(DIMS):
        product_bn = query_bd[:, :m] @ z_nd[:, :m].T
        best_bk = np.argsort(-product_bn, 1, kind="stable")[:, :12]
        np.testing.assert_array_equal(found.rows_gbk[g], best_bk)
        score_bk = np.take_along_axis(product_bn, best_bk, 1)
        expected_bk = {"inner": score_bk, "l2": 2 * score_bk - 2 * m, "cosine": score_bk / m}
        np.testing.assert_allclose(found.scores_gbk[g], expected_bk[metric], rtol=1e-6)


def test_equal_rows_tie_across_shards(tmp_path):
    rng = np.random.default_rng(1)
    z_nd = rng.standard_normal((600, 24)).astype(np.float32)
    z_nd[[70, 310, 599]] = z_nd[40]
    np.save(tmp_path / "z.npy", z_nd)
    found = top_k_on_disk(open_vectors(tmp_path / "z.npy"), z_nd[:50], DIMS, 5, shard_rows=64)
    assert found.rows_gbk[:, 40, :4].tolist() == [[40, 70, 310, 599]] * 3


def test_merged_in_any_order_and_grouping():
    rng = np.random.default_rng(0)
    score_gbn = rng.integers(0, 20, (2, 3, 40)).astype(np.float32)

    def part(first, last):
        row_gbk = first + np.argsort(-score_gbn[..., first:last], -1, kind="stable")[..., :9]
        return Found(row_gbk, np.take_along_axis(score_gbn, row_gbk, -1))

    whole = part(0, 40)
    parts = [part(*span) for span in ((0, 5), (5, 28), (20, 30), (30, 40))]  # 20 to 27 twice
    for order in itertools.permutations(parts):
        one_by_one = order[0]
        for other in order[1:]:
            one_by_one = merge_top_k([one_by_one, other], 9)
        halves = merge_top_k([merge_top_k(order[:2], 9), merge_top_k(order[2:], 9)], 9)
        for found in (merge_top_k(order, 9), one_by_one, halves):
            np.testing.assert_array_equal(found.rows_gbk, whole.rows_gbk)
            np.testing.assert_array_equal(found.scores_gbk, whole.scores_gbk)


def test_ties_go_to_the_smaller_row():
    def part(rows, scores):
        return Found(np.array([[rows]]), np.array([[scores]], np.float32))

    found = merge_top_k([part([7, 1], [2, 0.0]), part([9, 3, 2], [5, 2, -0.0])], 4)
    assert found.rows_gbk.tolist() == [[[9, 3, 7, 1]]]
    assert found.scores_gbk.tolist() == [[[5, 2, 2, 0]]]
    assert merge_top_k([part([4], [1])], 3).rows_gbk.tolist() == [[[4]]]


def test_shards_are_of_one_size():
    assert spans(10, 4) == [(0, 4), (4, 8), (6, 10)]
    assert spans(8, 4) == [(0, 4), (4, 8)]
    assert spans(3, 4) == [(0, 3)]


def test_refusals(stored, tmp_path):
    vectors, z_nd, query_bd = stored
    for k in (0, 701):
        with pytest.raises(ValueError, match="k must be 1 to 700"):
            top_k_on_disk(vectors, query_bd, DIMS, k)
    with pytest.raises(ValueError, match="at least 1 row"):
        top_k_on_disk(vectors, query_bd, DIMS, 2, shard_rows=0)
    z_nd[600, 1] = np.inf
    np.save(tmp_path / "bad.npy", z_nd)
    with pytest.raises(DataError, match="row 600 holds NaN"):
        top_k_on_disk(open_vectors(tmp_path / "bad.npy"), query_bd, DIMS, 2, shard_rows=128)
