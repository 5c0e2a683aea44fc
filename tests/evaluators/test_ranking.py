import numpy as np
import pytest
import scipy.stats
from evaluators.subjects import texts_by

from mrl_jax.evaluators import matching, preservation, text_sts
from mrl_jax.evaluators.class_means import nearest_is_own
from mrl_jax.evaluators.ranking import ROUNDING, nearest, tied
from mrl_jax.record.results import Series


def test_what_rounding_tells_apart_is_equal_and_nothing_else():
    rng = np.random.default_rng(0)
    exact_n = rng.choice(np.linspace(-0.9, 0.9, 40), 500)
    found_n = tied(exact_n + rng.uniform(-0.4, 0.4, 500) * ROUNDING)
    np.testing.assert_array_equal(scipy.stats.rankdata(found_n), scipy.stats.rankdata(exact_n))
    apart_n = rng.permutation(200) * 1.01 * ROUNDING
    np.testing.assert_array_equal(tied(apart_n), apart_n)
    # However dense numbers lie, they are not all one.
    dense_n = rng.permutation(10_000) * 1e-3 * ROUNDING
    found_n = tied(dense_n)
    assert np.abs(found_n - dense_n).max() <= ROUNDING
    assert 9 <= len(np.unique(found_n)) <= 11


def nearly_equal_pairs(n, equal, seed=0):
    """Texts by number: the first `equal` pairs are the same vector but for the last digits."""
    rng = np.random.default_rng(seed)
    a_nd, b_nd = rng.normal(size=(2, n, 24))
    b_nd[:equal] = a_nd[:equal] * rng.uniform(0.5, 2, (equal, 1))
    b_nd += 1e-7 * rng.normal(size=b_nd.shape) * (np.arange(n) < equal)[:, None]
    return np.concatenate([a_nd, b_nd]).astype(np.float32), rng


def spearman(z_nd, score_n, dim=24):
    n = len(score_n)
    sides = range(n), range(n, 2 * n)
    found = text_sts.measure(
        texts_by(lambda rows: z_nd[rows], (dim,)), Series("s"), text_sts.Scored(*sides, score_n)
    )
    return {r.name: r.value for r in found.results}["s/spearman"]


def exact(z_nd, equal):
    """Cosines in float64, 1 where they are."""
    unit_nd = z_nd.astype(np.float64)
    unit_nd /= np.linalg.norm(unit_nd, axis=1, keepdims=True)
    cosine_n = (unit_nd[: len(z_nd) // 2] * unit_nd[len(z_nd) // 2 :]).sum(1)
    cosine_n[:equal] = 1
    return cosine_n


@pytest.mark.parametrize("random", [False, True])
def test_a_third_of_equal_pairs_ties(random):
    z_nd, rng = nearly_equal_pairs(90, 30)
    score_n = rng.integers(0, 6, 90) if random else np.r_[np.full(30, 5), rng.integers(0, 5, 60)]
    expected = scipy.stats.spearmanr(exact(z_nd, 30), score_n).statistic
    assert spearman(z_nd, score_n) == pytest.approx(expected, abs=1e-9)


def test_equal_pairs_alone_agree_with_nothing():
    z_nd, rng = nearly_equal_pairs(60, 60)
    assert spearman(z_nd, rng.normal(size=60)) == 0


def test_kept_order_of_equal_cosines():
    """Copies of few vectors, each with its own last digits: most pairs are equal."""
    rng = np.random.default_rng(3)
    whole_nd = rng.normal(size=(4, 16))[rng.integers(0, 4, 80)]
    other_nd = whole_nd @ np.linalg.qr(rng.normal(size=(16, 16)))[0]  # all cosines as they were
    noisy = [(z + 1e-8 * rng.normal(size=z.shape)).astype(np.float32) for z in (other_nd, whole_nd)]
    found = preservation.measure(
        [("trained", (16,), noisy[0])], noisy[1], Series(split="val"), seed=0
    )
    kept = {r.name: r.value for r in found.results}
    assert kept["val/cosine_spearman"] == pytest.approx(1, abs=1e-9)


def test_of_equally_near_rows_the_smaller_is_first_also_at_one_dim():
    rng = np.random.default_rng(0)
    z_nd, q_bd = rng.normal(size=(300, 3)).astype(np.float32), rng.normal(size=(9, 3))
    (row_bk,) = nearest(z_nd, q_bd.astype(np.float32), (1,), 20)
    for q_d, row_k in zip(q_bd, row_bk, strict=True):
        same = np.flatnonzero(np.sign(z_nd[:, 0]) == np.sign(q_d[0]))
        np.testing.assert_array_equal(row_k, same[:20])


def test_no_text_and_no_class_is_right_by_the_last_digit():
    """The nearest is as near as another but for rounding: by chance half would be right."""
    rng = np.random.default_rng(1)
    a_nd = rng.normal(size=(40, 24))
    twice_nd = np.repeat(a_nd, 2, axis=0).astype(np.float32)
    b_nd = np.float32(np.repeat(a_nd, 2, axis=0) * rng.uniform(0.3, 3, (80, 1)))
    ids = np.arange(80), np.arange(80, 160)
    found = matching.measure(twice_nd, b_nd, *ids, Series(split="val"), (1, 8, 24))
    assert [r.value for r in found.results] == [0, 0, 0]
    right_gn = nearest_is_own(twice_nd, np.arange(80), b_nd, (1, 8, 24))
    assert not right_gn.any()
