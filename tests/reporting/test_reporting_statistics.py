"""Formulas against numbers worked out by hand."""

import math

import numpy as np
import pytest
from reporting.studies import flags
from scipy import stats

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
    # In another order, in which all would differ by 0.02; and a seed without a partner.
    b = {2: 0.89, 1: 0.91, 0: 0.90, 7: 0.10}
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


def paired(*pairs):
    """The difference over seeds of which these are the units."""
    units = dict(enumerate(pairs))
    a, b = ({seed: float(np.mean(pair[i])) for seed, pair in units.items()} for i in (0, 1))
    return statistics.paired_difference(a, b, units)


def test_one_pair_of_networks_by_hand():
    # 6 examples only the first gets right, none only the second: p = 2 / 2^6.
    difference = paired((flags((10, True), (10, False)), flags((4, True), (16, False))))
    assert difference.mean == pytest.approx(0.3)
    assert difference.p == pytest.approx(2 / 64)
    # Clopper and Pearson of 6 in 6: from 0.025^(1/6) to 1; times 6 of 20 examples.
    assert difference.low == pytest.approx((2 * 0.025 ** (1 / 6) - 1) * 0.3)
    assert difference.high == pytest.approx(0.3)
    assert (difference.n, difference.units, difference.verdict) == (1, 20, "better")


@pytest.mark.parametrize("only_second", range(10))
def test_interval_and_exact_test_agree(only_second):
    first = flags((30, True), (only_second, False))
    second = flags((20, True), (10, False), (only_second, True))
    difference = paired((first, second))
    assert (difference.p < 0.05) == (difference.verdict == "better")
    assert difference.low <= difference.mean <= difference.high


def test_the_same_answers_prove_no_sameness():
    same = flags((15, True), (5, False))
    difference = paired((same, same))
    # The rule of three, two-sided: 20 examples may agree where 17 in 100 others do not.
    assert (difference.mean, difference.p) == (0, 1)
    assert difference.high == -difference.low == pytest.approx(1 - 0.025 ** (1 / 20))
    assert difference.verdict == "no clear difference"


def test_two_seeds_by_hand():
    # Per example, mean of both seeds: 1, 0.5, 0.5, 0; per seed 0.75 and 0.25; mean 0.5.
    ones, zeros = np.ones(4, bool), np.zeros(4, bool)
    first = (flags((3, True), (1, False)), zeros)
    second = (flags((1, True), (3, False)), zeros)
    difference = paired(first, second)
    of_seeds, of_examples = 0.125 / 2, np.var([1, 0.5, 0.5, 0], ddof=1) / 4
    half = math.hypot(
        stats.t.ppf(0.975, 1) * math.sqrt(of_seeds), stats.t.ppf(0.975, 3) * math.sqrt(of_examples)
    )
    assert difference.mean == pytest.approx(0.5)
    assert difference.high - difference.mean == pytest.approx(half)
    assert (difference.n, difference.units) == (2, 4)
    # The p value is the level whose interval just reaches zero.
    reached = math.hypot(
        stats.t.isf(difference.p / 2, 1) * math.sqrt(of_seeds),
        stats.t.isf(difference.p / 2, 3) * math.sqrt(of_examples),
    )
    assert reached == pytest.approx(0.5)
    assert paired((ones, zeros), (ones, zeros)).verdict == "same in every seed"


def test_examples_never_narrow_what_seeds_leave_open():
    rng = np.random.default_rng(0)
    for _ in range(20):
        units = {seed: tuple(rng.random((2, 50)) < 0.6) for seed in range(3)}
        a, b = ({seed: pair[i].mean() for seed, pair in units.items()} for i in (0, 1))
        with_units = statistics.paired_difference(a, b, units)
        without = statistics.paired_difference(a, b)
        assert with_units.low <= without.low
        assert with_units.high >= without.high
        assert with_units.p >= without.p


def test_intervals_over_seeds_and_examples_hold_what_they_promise():
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        of_seed, of_example = rng.normal(0, 0.05, (3, 1)), rng.normal(0, 0.5, (1, 60))
        difference_sn = of_seed + of_example + rng.normal(0, 0.5, (3, 60))
        zeros = np.zeros(60)
        difference = paired(*((row, zeros) for row in difference_sn))
        held += difference.low <= 0 <= difference.high
    assert held / 400 > 0.94


def test_episodes_of_one_pair_of_networks_by_hand():
    # Differences 0.1, 0.2, 0.3 as over seeds, but of episodes.
    difference = paired((np.array([0.6, 0.7, 0.8]), np.array([0.5, 0.5, 0.5])))
    half = T_2 * 0.1 / math.sqrt(3)
    assert difference.high - difference.mean == pytest.approx(half, rel=1e-6)
    assert (difference.n, difference.units, difference.verdict) == (1, 3, "no clear difference")


def test_units_are_left_out_unless_all_seeds_have_the_same_number():
    a, b = {0: 0.5, 1: 0.6}, {0: 0.4, 1: 0.4}
    pair = (flags((5, True)), flags((5, False)))
    for units in ({0: pair}, {0: pair, 1: (flags((4, True)), flags((4, True)))}):
        assert statistics.paired_difference(a, b, units).units == 0


def test_of_an_error_less_is_better():
    a, b = dict(enumerate((0.1, 0.11, 0.12))), dict(enumerate((0.3, 0.31, 0.33)))
    assert statistics.paired_difference(a, b, lower_is_better=True).verdict == "better"
    assert statistics.paired_difference(b, a, lower_is_better=True).verdict == "worse"
