import collections
import json

import numpy as np
import pytest
from evaluators.subjects import CLASSES, DIMS, clusters, random_params, subject_of, task_of

from mrl_jax.evaluators import agreement, classification


def opinions(granularities=4, n=60, classes=5, seed=0):
    """Labels, and predictions that are right more often the larger the granularity."""
    rng = np.random.default_rng(seed)
    label_n = rng.integers(0, classes, n)
    wrong_gn = rng.integers(0, classes, (granularities, n))
    sure_g = np.linspace(0.2, 0.7, granularities)[:, None]
    predicted_gn = np.where(rng.uniform(size=(granularities, n)) < sure_g, label_n, wrong_gn)
    return label_n, predicted_gn


def test_oracle_by_loops():
    dims = (8, 16, 64, 2048)
    label_n, predicted_gn = opinions()
    right_gn = predicted_gn == label_n
    first, never = collections.Counter(), 0
    smallest = largest = 0
    for n in range(60):
        right = [g for g in range(4) if right_gn[g, n]]
        never += not right
        if right:
            first[right[0]] += 1
        smallest += dims[right[0]] if right else 8
        largest += dims[right[0]] if right else 2048
    assert never > 0
    assert agreement.oracle(dims, right_gn) == {
        "accuracy": pytest.approx(1 - never / 60),
        "never_right": never / 60,
        "first_right": [first[g] for g in range(4)],
        "expected_dim": {"smallest": smallest / 60, "largest": largest / 60},
    }


def test_oracle_of_nothing_right():
    found = agreement.oracle((2, 4), np.zeros((2, 3), bool))
    assert (found["accuracy"], found["never_right"], found["first_right"]) == (0, 1, [0, 0])
    assert found["expected_dim"] == {"smallest": 2, "largest": 4}


def test_pairs_by_loops():
    label_n, predicted_gn = opinions()
    found = agreement.pairs(predicted_gn, predicted_gn == label_n)
    for i in range(4):
        for j in range(4):
            expected = collections.Counter()
            for a, b, label in zip(predicted_gn[i], predicted_gn[j], label_n, strict=True):
                same = "same" if a == b else "different"
                kind = {
                    (True, True): "both_right",
                    (True, False): "only_first",
                    (False, True): "only_second",
                    (False, False): f"both_wrong_{same}",
                }[bool(a == label), bool(b == label)]
                expected[kind] += 1 / 60
                expected["agree"] += (a == b) / 60
            assert {name: share_gg[i][j] for name, share_gg in found.items()} == pytest.approx(
                {name: expected[name] for name in found}
            )
    assert found["both_wrong_same"][0][1] > 0
    assert found["both_wrong_different"][0][1] > 0


def test_votes_are_counted_and_ties_go_to_the_largest():
    columns = {
        (3, 3, 1, 2): 3,  # most
        (3, 1, 1, 3): 3,  # two and two: the largest says 3
        (1, 3, 3, 1): 1,
        (0, 1, 2, 3): 3,  # all differ
        (3, 3, 1, 1): 1,
        (1, 1, 2, 3): 1,  # the largest alone is no match for two
        (2, 2, 2, 2): 2,
    }
    found = agreement.vote(np.array(list(columns)).T)
    assert found.tolist() == list(columns.values())


@pytest.mark.parametrize(
    ("trend", "hits_g"),
    [
        ("rises", (50, 60, 70, 80)),
        ("rises", (50, 49, 70, 80)),  # one of 100 is within 2 %
        ("rises", (50, 70, 68, 69)),  # so is two
        ("rises_then_dips", (50, 70, 67, 67)),  # three is not
        ("rises_then_dips", (50, 70, 69, 67)),  # nor is three in two steps
        ("rises_then_dips", (50, 70, 60, 62)),
        ("dips_then_rises", (50, 47, 60, 70)),
        ("dips_then_rises", (50, 49, 47, 50)),
        ("no_trend", (50, 60, 50, 60)),
        ("no_trend", (60, 50, 60, 50)),
        ("no_trend", (50, 51, 50, 52)),  # stays
        ("no_trend", (80, 70, 60, 50)),  # only falls
    ],
)
def test_trends(trend, hits_g):
    found = agreement.trends(np.array([hits_g]), np.array([100]))
    assert {name for name, count in found.items() if count} == {trend}


def turns_by_loop(hits_g, allowed):
    """Directions taken, by following one class step by step."""
    turns, low, high = [], hits_g[0], hits_g[0]
    for hits in hits_g[1:]:
        low, high = min(low, hits), max(high, hits)
        if turns[-1:] != ["up"] and hits - low > allowed:
            turns.append("up")
            high = hits
        elif turns[-1:] != ["down"] and high - hits > allowed:
            turns.append("down")
            low = hits
    return tuple(turns)


def test_trends_of_many_classes_are_counted_each():
    rng = np.random.default_rng(0)
    count_c = rng.integers(0, 120, 500)
    hits_cg = rng.binomial(count_c[:, None], np.array([0.6, 0.62, 0.65, 0.66, 0.64])[None])
    names = {
        ("up",): "rises",
        ("up", "down"): "rises_then_dips",
        ("down", "up"): "dips_then_rises",
    }
    expected = collections.Counter(
        names.get(turns_by_loop(hits_g, 0.02 * count), "no_trend") if count else "no_examples"
        for hits_g, count in zip(hits_cg.tolist(), count_c.tolist(), strict=True)
    )
    assert len(expected) == 5
    assert agreement.trends(hits_cg, count_c) == dict(expected)


@pytest.mark.parametrize("kind", ["separate", "shared", "fixed"])
def test_measure_of_trained_dims(kind):
    rng, n = np.random.default_rng(0), 90
    z_nd = rng.normal(size=(n, 8)).astype(np.float32)
    label_n = rng.choice([0, 1, 2, 3, 5, 6], n).astype(np.int32)  # none of class 4
    subject = subject_of({"test": (z_nd, label_n)}, kind, measured=(1, 2, 3, 5, 8))
    trained = (8,) if kind == "fixed" else DIMS
    accuracy = classification.measure(subject, "test").examples["test/top1"]
    right_gn = accuracy.right_gn[[accuracy.dims.index(m) for m in trained]]
    found = agreement.measure(subject, "test")

    assert [(r.name, r.dim, r.n) for r in found.results] == [
        ("test/oracle", 8, n),
        ("test/vote", 8, n),
    ]
    np.testing.assert_array_equal(found.examples["test/oracle"].right_gn, [right_gn.any(0)])
    content = json.loads(found.files["test_agreement.json"])
    assert (content["schema"], content["n"], content["dims"]) == (1, n, list(trained))
    assert content["oracle"]["accuracy"] == pytest.approx(found.results[0].value)
    assert np.array(content["pairs"]["agree"]).shape == (len(trained),) * 2
    classes = content["classes"]
    assert classes["tolerance"] == 0.02
    assert sum(classes["trends"].values()) == CLASSES
    assert classes["trends"]["no_examples"] == 1
    assert len(classes["accuracy"]) == CLASSES
    for c in range(CLASSES):
        of_class = label_n == c
        assert classes["counts"][c] == of_class.sum()
        if c == 4:
            assert classes["accuracy"][c] is None
        else:
            expected = right_gn[:, of_class].mean(1)
            np.testing.assert_allclose(classes["accuracy"][c], expected)
    top1 = right_gn.mean(1)
    vote = found.results[1].value
    if kind == "fixed":
        assert found.results[0].value == vote == top1[0]
    else:
        assert found.results[0].value > top1.max() > 0
        predictions = subject.predictions("test")
        predicted_gn = predictions.predicted_gn[[predictions.dims.index(m) for m in trained]]
        voted = [
            max(column[::-1], key=lambda c, votes=column: votes.count(c))
            for column in predicted_gn.T.tolist()
        ]
        assert vote == pytest.approx((np.array(voted) == label_n).mean())


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_ties_and_nan_win_no_vote(value):
    task = task_of("shared")
    params, _ = random_params(task)
    params["head"] = {name: np.full_like(p, value) for name, p in params["head"].items()}
    embedded = {"test": (np.ones((6, 8), np.float32), np.zeros(6, np.int32))}
    found = agreement.measure(subject_of(embedded, params=params), "test")
    assert [r.value for r in found.results] == [0, 0]


def test_no_trained_dim_measured():
    subject = subject_of({"test": clusters(9, 8)}, measured=(2, 5))
    found = agreement.measure(subject, "test")
    assert not found.results
    assert not found.files
