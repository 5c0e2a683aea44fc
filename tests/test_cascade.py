"""Cascades: policies and how they are fitted.

`published_model` is a SIMULATION: no outputs of an ImageNet model are at hand. See its docstring.
"""

import itertools
import json

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import norm

from mrl_jax import cascade
from mrl_jax.cascade import Policy, fitting, outcome, within
from mrl_jax.errors import DataError


def random_judged(n, dims=(2, 4, 16), seed=0, decimals=None):
    """Confidences that know a little of what is right: (dims, confidence [G, N], right [G, N])."""
    rng = np.random.default_rng(seed)
    skill_n = rng.normal(size=n)
    margin_gn = skill_n + rng.normal(size=(len(dims), n)) + 0.4 * np.arange(len(dims))[:, None]
    confidence_gn = expit(1.5 * margin_gn + rng.normal(size=margin_gn.shape))
    if decimals is not None:
        confidence_gn = confidence_gn.round(decimals).clip(0.1, 0.9)
    return tuple(dims), confidence_gn.astype(np.float32), margin_gn > 0


DIMS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)
# A ResNet-50's MRL head on ImageNet: accuracy at each dim, and at which dim examples are right for
# the first time (the rest never are), in percent.
ACCURACY = (67.46, 73.53, 75.03, 75.82, 76.30, 76.47, 76.65, 76.76, 76.80)
FIRST_RIGHT = (67.46, 8.78, 2.59, 1.36, 0.64, 0.32, 0.20, 0.13, 0.06)
# Of the reference's greedy cascades of the first 2, 3, ... 9 dims.
GREEDY_DIM = (13.19, 18.03, 25.73, 35.29, 45.66, 62.06, 87.92, 121.67)
GREEDY_ACCURACY = (73.79, 75.24, 76.05, 76.27, 76.42, 76.51, 76.53, 76.54)


def published_model(n=50_000, seed=0):
    """SIMULATED confidences and rights [9, N] that agree with the reference's published numbers.

    An example's margin is a Gaussian chain over the dims: its mean gives the accuracy of each dim,
    and the correlation of neighbours is solved for so that as many examples as published are right
    there for the first time. Confidence is a logistic function of the noisy margin, or for 60 % of
    the examples of its size alone, so that wrong answers can be sure. Noise falls from dim to dim.
    Slope, noise and that share are set by hand, so that greedy cascades come near the published.
    """
    rng = np.random.default_rng(seed)
    edge_g = -norm.ppf(np.array(ACCURACY) / 100)
    noise_gn = rng.normal(size=(9, n))
    chain = [noise_gn[0]]
    ever_n = chain[0] > edge_g[0]
    for g in range(1, 9):
        low, high = 0.0, 1.0
        for _ in range(20):
            r = (low + high) / 2
            next_n = r * chain[-1] + np.sqrt(1 - r * r) * noise_gn[g]
            too_many = ((next_n > edge_g[g]) & ~ever_n).mean() > FIRST_RIGHT[g] / 100
            low, high = (r, high) if too_many else (low, r)
        chain.append(next_n)
        ever_n |= next_n > edge_g[g]
    margin_gn = np.array(chain) - edge_g[:, None]
    size_gn = np.where(rng.random(n) < 0.6, np.abs(margin_gn), margin_gn)
    sigma_g1 = np.array([0.25, *np.geomspace(0.15, 0.03, 8)])[:, None]
    confidence_gn = expit(1.5 * (size_gn + sigma_g1 * rng.normal(size=size_gn.shape)))
    return confidence_gn.astype(np.float32), margin_gn > 0


@pytest.fixture(scope="module")
def published():
    return published_model()


def test_apply_equals_a_loop():
    dims, confidence_gn, right_gn = random_judged(200)
    confidence_gn[0, :20] = np.nan
    policy = Policy((2, 16), (0.6, 0))
    answer_gn = np.random.default_rng(1).integers(0, 9, right_gn.shape)
    expected = []
    for n in range(200):
        stops = confidence_gn[0, n] > 0.6
        expected.append((answer_gn[0, n], 2) if stops else (answer_gn[2, n], 16))
    found = cascade.apply(policy, dims, confidence_gn, answer_gn)
    np.testing.assert_array_equal(np.stack(found, 1), expected)
    assert (found[1][:20] == 16).all()
    assert {2, 16} == set(found[1][20:])


def test_equal_to_the_threshold_goes_on():
    half = np.full((2, 1), 0.5, np.float32)
    answer = np.array([[1], [2]])
    assert cascade.apply(Policy((1, 2), (0.5, 0)), (1, 2), half, answer) == (2, 2)
    # In float64: 0.1 as a float32 is a little more than 0.1.
    tenth = np.full((2, 1), 0.1, np.float32)
    assert cascade.apply(Policy((1, 2), (0.1, 0)), (1, 2), tenth, answer) == (1, 1)


def test_outcome_counts_both_costs():
    confidence_gn = np.array([[0.9, 0.1, 0.1, 0.1], [0.9, 0.9, 0.1, 0.1], [0.5] * 4])
    right_gn = np.array([[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]])
    found = outcome(Policy((2, 4, 16), (0.5, 0.5, 0)), (2, 4, 16), confidence_gn, right_gn)
    assert found == (3 / 4, (2 + 4 + 16 + 16) / 4, (2 + 6 + 22 + 22) / 4)
    skipping = outcome(Policy((2, 16), (0.5, 0)), (2, 4, 16), confidence_gn, right_gn)
    assert skipping == (2 / 4, (2 + 3 * 16) / 4, (2 + 3 * 18) / 4)


def test_policies_survive_a_file(tmp_path):
    policy = Policy((2, 4, 16), (1 / 3, 0.1, 0))
    policy.save(tmp_path / "cascade.json")
    assert Policy.load(tmp_path / "cascade.json") == policy
    assert json.loads((tmp_path / "cascade.json").read_text())["schema"] == 1
    assert policy.capped(4) == Policy((2, 4), (1 / 3, 0))


@pytest.mark.parametrize(
    ("dims", "thresholds", "message"),
    [
        ((4, 2), (0.5, 0), "strictly increasing"),
        ((2, 4), (0.5,), "one per dim: 2 dims"),
        ((2, 4), (0.5, 0.1), "last threshold must be 0 .all stop at dim 4., got 0.1"),
        ((2, 4), (1.5, 0), r"in \[0, 1\], got 1.5 at dim 2"),
        ((2, 4), (float("nan"), 0), r"in \[0, 1\], got nan at dim 2"),
        ((2, 4), ("x", 0), "must be numbers"),
        ((2, 4), None, "must be numbers"),
    ],
)
def test_bad_policies_are_refused(dims, thresholds, message):
    with pytest.raises(ValueError, match=message):
        Policy(dims, thresholds)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read .*No such file"),
        ("{", r"not valid JSON \(Expecting"),
        ("[1]", "holds no cascade policy: list"),
        ('{"schema": 2}', "schema must be 1, got 2"),
        ('{"schema": 1, "dims": [2]}', "'thresholds' is missing"),
        ('{"schema": 1, "dims": 2, "thresholds": [0]}', "holds no cascade policy: 'int'"),
        ('{"schema": 1, "dims": [2, 4], "thresholds": [0.5, 0.5]}', "last threshold must be 0"),
    ],
)
def test_bad_policy_files_are_refused(tmp_path, content, message):
    path = tmp_path / "cascade.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=message):
        Policy.load(path)


def test_a_policy_for_other_dims_is_refused():
    dims, confidence_gn, right_gn = random_judged(5)
    with pytest.raises(ValueError, match=r"stops at dim 8, which is not among \(2, 4, 16\)"):
        outcome(Policy((2, 8), (0.5, 0)), dims, confidence_gn, right_gn)


@pytest.mark.parametrize("decimals", [None, 1])
def test_greedy_is_the_references_rule(decimals):
    dims, confidence_gn, right_gn = random_judged(150, seed=3, decimals=decimals)
    thresholds = []
    for here in range(2):
        hits = []
        for t in np.linspace(0.1, 1, 100):
            stops_n = confidence_gn[here].astype(np.float64) > t
            hits.append(np.where(stops_n, right_gn[here], right_gn[here + 1]).sum())
        thresholds.append(np.linspace(0.1, 1, 100)[hits.index(max(hits))])
    found = cascade.fit_greedy(dims, confidence_gn, right_gn)
    assert found == Policy(dims, (*thresholds, 0))


def all_policies(dims, confidence_gn):
    """Every policy of three dims that does something else: all subsets, all thresholds between."""
    between = []
    for confidence_n in confidence_gn[:2]:
        values = np.unique(confidence_n.astype(np.float64))
        between.append([None, *((values[1:] + values[:-1]) / 2)])
    for last in range(3):
        for thresholds in itertools.product(*between[:last]):
            used = [g for g, t in enumerate(thresholds) if t is not None]
            yield Policy(tuple(dims[g] for g in (*used, last)), (*(thresholds[g] for g in used), 0))


def values(policies, dims, confidence_gn, right_gn, accounting):
    """[policies, 2]: expected accuracy and cost, by the functions that do not search."""
    chance_gn = fitting.chances(confidence_gn.astype(np.float64), right_gn)
    found = []
    for policy in policies:
        chance_n, dim_n = cascade.apply(policy, dims, confidence_gn, chance_gn)
        cost_of = dict(zip(policy.dims, np.cumsum(policy.dims), strict=True))
        cost_n = dim_n if accounting == "final" else [cost_of[m] for m in dim_n]
        found.append((chance_n.mean(), np.mean(cost_n)))
    return np.array(found)


@pytest.mark.parametrize("accounting", ["final", "cumulative"])
@pytest.mark.parametrize("seed", range(4))
def test_joint_search_against_all_policies(seed, accounting):
    n = 24
    dims, confidence_gn, right_gn = random_judged(n, seed=seed)
    frontier = cascade.fit_frontier(dims, confidence_gn, right_gn, accounting)
    policies = list(all_policies(dims, confidence_gn))
    accuracy_p, cost_p = values(policies, dims, confidence_gn, right_gn, accounting).T
    mine = np.array([(fitted.promised, fitted.cost) for fitted in frontier])
    for price in fitting._prices(dims, n):
        best = (mine[:, 0] - price * mine[:, 1]).max()
        # Guaranteed only for changes of one threshold; here it is the best of all policies.
        assert best >= (accuracy_p - price * cost_p).max() - 1e-6
    for accuracy, cost in zip(accuracy_p, cost_p, strict=True):
        # Not guaranteed at all: between those that are best at some price it may be low.
        assert within(frontier, cost).promised >= accuracy - 2 / n


@pytest.mark.parametrize("accounting", ["final", "cumulative"])
def test_the_frontier_of_two_dims_is_exact(accounting):
    dims, confidence_gn, right_gn = random_judged(60, dims=(2, 16), seed=5)
    frontier = cascade.fit_frontier(dims, confidence_gn, right_gn, accounting)
    edges = np.unique(confidence_gn[0].astype(np.float64))
    thresholds = (edges[1:] + edges[:-1]) / 2
    policies = [
        Policy((2,), (0,)),
        Policy((16,), (0,)),
        *(Policy(dims, (t, 0)) for t in thresholds),
    ]
    for accuracy, cost in values(policies, dims, confidence_gn, right_gn, accounting):
        assert within(frontier, cost).promised >= accuracy - 1e-6
    assert len(frontier) > 10


def changed_in_one_threshold(policy, dims, edges):
    """The policy, and those with one threshold more, less or elsewhere, or that end earlier."""
    yield policy
    by_dim = dict(zip(policy.dims, policy.thresholds, strict=True))
    for g, m in enumerate(dims[: dims.index(policy.dims[-1])]):
        others = {k: t for k, t in by_dim.items() if k != m}
        for t in (None, *((edges[g][1:] + edges[g][:-1]) / 2)):
            new = sorted((others if t is None else {**others, m: t}).items())
            yield Policy(*zip(*new, strict=True))
        yield Policy(*zip(*sorted({**others, m: 0.5}.items()), strict=True)).capped(m)


@pytest.mark.parametrize(
    ("accounting", "seed"), [("final", 1), ("final", 12), ("cumulative", 10), ("cumulative", 13)]
)
def test_at_every_price_no_single_threshold_can_be_better(accounting, seed):
    n, dims = 40, (2, 4, 8, 16, 64)
    dims, confidence_gn, right_gn = random_judged(n, dims=dims, seed=seed)
    frontier = cascade.fit_frontier(dims, confidence_gn, right_gn, accounting)
    mine = np.array([(fitted.promised, fitted.cost) for fitted in frontier])
    edges = [np.unique(c.astype(np.float64)) for c in confidence_gn]
    neighbours = {}  # accuracy and cost of what differs in one threshold from the best at a price
    for price in fitting._prices(dims, n):
        worth = mine[:, 0] - price * mine[:, 1]
        policy = frontier[int(worth.argmax())].policy
        if policy not in neighbours:
            changed = list(changed_in_one_threshold(policy, dims, edges))
            neighbours[policy] = values(changed, dims, confidence_gn, right_gn, accounting).T
        accuracy, cost = neighbours[policy]
        assert worth.max() >= (accuracy - price * cost).max() - 1e-6
    assert len(neighbours) > 5


@pytest.mark.parametrize("accounting", ["final", "cumulative"])
@pytest.mark.parametrize("decimals", [None, 1])
def test_joint_is_never_worse_than_greedy_where_both_are_fitted(accounting, decimals):
    index = {"final": 1, "cumulative": 2}[accounting]
    ahead = 0
    for seed in range(6):
        judged = random_judged(40 + 30 * seed, (2, 4, 8, 16), seed, decimals)
        frontier = cascade.fit_frontier(*judged, accounting)
        greedy = cascade.fit_greedy(*judged)
        for m in (4, 8, 16):
            reference = outcome(greedy.capped(m), *judged)
            joint = outcome(within(frontier, reference[index]).policy, *judged)
            assert joint.accuracy >= reference.accuracy
            assert joint[index] <= reference[index]
            ahead += joint.accuracy > reference.accuracy
    assert ahead > 0


def test_what_a_frontier_says_of_itself_is_true():
    dims, confidence_gn, right_gn = random_judged(200, (2, 4, 8, 16), seed=2)
    # The second dim adds nothing to the first.
    confidence_gn[1], right_gn[1] = confidence_gn[0], right_gn[0]
    for accounting in ("final", "cumulative"):
        judged = dims, confidence_gn, right_gn, accounting
        frontier = cascade.fit_frontier(*judged)
        found = values([fitted.policy for fitted in frontier], *judged)
        np.testing.assert_allclose([f.promised for f in frontier], found[:, 0], rtol=1e-9)
        np.testing.assert_allclose([f.cost for f in frontier], found[:, 1], rtol=1e-9)
        assert (np.diff(found[:, 1]) >= 0).all()
    # Where looking at a dim costs, it is left out.
    assert not any({2, 4} <= set(fitted.policy.dims) for fitted in frontier)
    target = frontier[len(frontier) // 2].promised
    assert cascade.reaching(frontier, target).promised >= target
    assert cascade.reaching(frontier, target).cost <= frontier[len(frontier) // 2].cost
    assert cascade.reaching(frontier, 2.0).promised == max(f.promised for f in frontier)
    assert within(frontier, 0) == frontier[0]


def test_the_simulation_is_near_what_was_published(published):
    confidence_gn, right_gn = published
    first_g = np.bincount(right_gn.argmax(0)[right_gn.any(0)], minlength=9) / right_gn.shape[1]
    np.testing.assert_allclose(100 * first_g, FIRST_RIGHT, atol=0.3)
    np.testing.assert_allclose(100 * right_gn.mean(1), ACCURACY, atol=0.3)
    greedy = cascade.fit_greedy(DIMS, confidence_gn, right_gn)
    found = [outcome(greedy.capped(m), DIMS, confidence_gn, right_gn) for m in DIMS[1:]]
    np.testing.assert_allclose([100 * o.accuracy for o in found], GREEDY_ACCURACY, atol=0.4)
    np.testing.assert_allclose([o.expected_dim for o in found], GREEDY_DIM, rtol=1)


@pytest.mark.parametrize(
    ("n", "times"), [(10_000, 12), pytest.param(50_000, 10, marks=pytest.mark.slow)]
)
def test_joint_against_greedy_in_the_published_setting(published, n, times):
    """A fifth of 50,000 to fit on and the rest to test on, as published, 10 times; SIMULATED.

    The quick one takes a fifth of the examples, 12 times.
    """
    rng = np.random.default_rng(0)
    gains, dims = [], []
    for _ in range(times):
        order = rng.permutation(50_000)[:n]
        fit, test = ((DIMS, *(x[:, rows] for x in published)) for rows in np.split(order, [n // 5]))
        greedy, frontier = cascade.fit_greedy(*fit), cascade.fit_frontier(*fit)
        pairs = []
        for m in DIMS[1:]:
            capped = greedy.capped(m)
            fitted = outcome(capped, *fit)
            joint = within(frontier, fitted.expected_dim).policy
            assert outcome(joint, *fit).accuracy >= fitted.accuracy
            assert outcome(joint, *fit).expected_dim <= fitted.expected_dim
            pairs.append((outcome(joint, *test), outcome(capped, *test)))
        gains.append([joint.accuracy - reference.accuracy for joint, reference in pairs])
        dims.append([joint.expected_dim / reference.expected_dim for joint, reference in pairs])
    gain = np.mean(gains, 0)
    # In the mean over examples that neither was fitted on: never worse, at the same dims.
    assert (gain > -2e-4).all()
    assert (np.mean(dims, 0) < 1.02).all()
    # Better with few dims and with many, the more so the more is fitted on.
    assert gain[0] > (0.004 if n == 50_000 else 0.001)
    assert gain[-1] > 0.001


def test_edge_cases_of_fitting():
    one = cascade.fit_frontier((8,), np.array([[0.5, 0.5]]), np.array([[True, False]]))
    assert one == [(Policy((8,), (0,)), 0.5, 8)]
    dims, n = (2, 4, 8), 30
    rng = np.random.default_rng(0)
    right_gn = rng.random((3, n)) < np.array([[0.3], [0.6], [0.9]])
    constant = np.full((3, n), 0.7)
    # Confidences that are all the same, or NaN, tell nothing: only whole dims are left.
    for confidence_gn in (constant, np.full((3, n), np.nan)):
        frontier = cascade.fit_frontier(dims, confidence_gn, right_gn)
        assert [f.policy for f in frontier] == [Policy((m,), (0,)) for m in dims]
        np.testing.assert_allclose([f.promised for f in frontier], right_gn.mean(1), atol=1e-4)
    # Always right or always wrong: nothing pays for more than the first dim.
    for right in (True, False):
        confidence_gn = rng.random((3, n))
        frontier = cascade.fit_frontier(dims, confidence_gn, np.full((3, n), right))
        assert frontier == [(Policy((2,), (0,)), float(right), 2)]
    assert cascade.fit_frontier(dims, confidence_gn[:, :1], right_gn[:, :1])
    # An example whose confidence is NaN goes to the end, also where thresholds are fitted.
    confidence_gn[:, 0] = np.nan
    greedy = cascade.fit_greedy(dims, confidence_gn, right_gn)
    assert cascade.apply(greedy, dims, confidence_gn, right_gn)[1][0] == 8


@pytest.mark.parametrize(
    ("confidence_gn", "right_gn", "message"),
    [
        (np.ones((3, 4)), np.ones((2, 4)), r"\[2 dims, >= 1 examples\], got \(3, 4\)"),
        (np.ones((3, 4)), np.ones((3, 4)), r"\[2 dims, >= 1 examples\], got \(3, 4\)"),
        (np.ones((2, 0)), np.ones((2, 0)), r"\[2 dims, >= 1 examples\]"),
        (np.full((2, 4), 3.5), np.ones((2, 4)), "confidences are probabilities, got 3.5 to 3.5"),
    ],
)
def test_bad_fitting_data_are_refused(confidence_gn, right_gn, message):
    for fit in (cascade.fit_greedy, cascade.fit_frontier):
        with pytest.raises(ValueError, match=message):
            fit((2, 4), confidence_gn, right_gn)


def test_an_unknown_accounting_is_refused():
    with pytest.raises(ValueError, match="accounting must be final or cumulative, got 'sum'"):
        cascade.fit_frontier(*random_judged(5), "sum")
