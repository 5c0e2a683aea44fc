"""Formulas against numbers worked out by hand."""

import math

import pytest

from mrl_jax.reporting import statistics

# Two-sided 97.5% quantile of Student's t with 2 degrees of freedom, from a printed table.
T_2 = 4.302653


def test_mean_and_sample_sd():
    summary = statistics.summarize([0.90, 0.92, 0.94])
    assert summary.mean == pytest.approx(0.92)
    assert summary.sd == pytest.approx(0.02)  # n - 1 in the denominator; with n it is 0.0163
    assert summary.n == 3


def test_one_value_has_no_sd():
    assert statistics.summarize([0.9]) == statistics.Summary(0.9, None, 1)


def test_paired_difference_by_hand():
    # Differences 0.01, 0.02, 0.03: mean 0.02, sd 0.01, standard error 0.01 / sqrt(3).
    a = {0: 0.91, 1: 0.93, 2: 0.92}
    b = {2: 0.89, 0: 0.90, 1: 0.91, 7: 0.10}  # another order, and a seed without a partner
    difference = statistics.paired_difference(a, b)
    half = T_2 * 0.01 / math.sqrt(3)
    assert difference.mean == pytest.approx(0.02)
    assert difference.low == pytest.approx(0.02 - half, abs=1e-8)
    assert difference.high == pytest.approx(0.02 + half, abs=1e-8)
    # With 2 degrees of freedom p = 1 - t / sqrt(2 + t^2), t = 2 sqrt(3).
    t = 2 * math.sqrt(3)
    assert difference.p == pytest.approx(1 - t / math.sqrt(2 + t * t))
    assert difference.n == 3
    assert difference.verdict == "no clear difference"


@pytest.mark.parametrize(
    ("b", "verdict"), [((0.70, 0.71, 0.72), "better"), ((0.97, 0.98, 0.99), "worse")]
)
def test_verdict_where_the_interval_leaves_out_zero(b, verdict):
    a = dict(enumerate((0.90, 0.92, 0.91)))
    difference = statistics.paired_difference(a, dict(enumerate(b)))
    assert difference.verdict == verdict


def test_same_difference_in_every_seed_claims_no_certainty():
    # 0.1 + 0.2 style rounding would give a spread of 1e-17 and p = 0.
    a, b = {0: 0.3, 1: 0.7, 2: 0.9}, {0: 0.2, 1: 0.6, 2: 0.8}
    difference = statistics.paired_difference(a, b)
    assert difference.verdict == "same in every seed"
    assert (difference.low, difference.high, difference.p) == (None, None, 1.0)


def test_one_shared_seed_and_none():
    difference = statistics.paired_difference({0: 0.5, 1: 0.6}, {1: 0.4, 2: 0.4})
    assert (difference.n, difference.low, difference.verdict) == (1, None, "one seed")
    assert statistics.paired_difference({0: 0.5}, {1: 0.5}) is None


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1 = 0.04, 0.06, 0.06, 0.04, made monotone.
    assert statistics.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]
    assert statistics.holm([]) == []
