import json
import math

import numpy as np
import pytest
from evaluators.subjects import subject_of
from scipy import stats

from mrl_jax.evaluators import long_tail
from mrl_jax.evaluators.class_means import rows_of_classes
from mrl_jax.evaluators.long_tail import GROUPS
from mrl_jax.record.finding import Unmeasurable

# Not at 1 dim: there every cosine is 1 or -1, and rounding picks among the ties.
MEASURED = (2, 3, 8)


def points(sizes, seed, width=8, spread=1.5):
    """Clusters with so many examples of every class, in random order."""
    rng = np.random.default_rng(seed)
    label_n = rng.permutation(np.repeat(np.arange(len(sizes)), sizes)).astype(np.int32)
    centres_cd = np.random.default_rng(5).normal(size=(len(sizes), width))
    z_nd = centres_cd[label_n] + spread * rng.normal(size=(len(label_n), width))
    return z_nd.astype(np.float32), label_n


def measured(train, test, split="test", **context):
    classes = int(max(train[1].max(), test[1].max())) + 1
    subject = subject_of(
        {"train": train, split: test}, measured=MEASURED, classes=classes, **context
    )
    found = long_tail.measure(subject, split)
    content = found.files.get(f"{split}_long_tail.json")
    return found, content and json.loads(content)


def brute_force(train, test, m):
    """Per stream and group, which test examples are right: a list of {group: {example: bool}}."""
    classes = sorted(set(train[1].tolist()) & set(test[1].tolist()))
    rows = [np.flatnonzero(train[1] == c) for c in classes]
    z_train, z_test = (z[:, :m].astype(np.float64) for z in (train[0], test[0]))
    streams = []
    for seed in range(10):
        stream = long_tail.draw(rows, seed)
        means = []
        for c in range(len(classes)):
            novel = "novel" in GROUPS[stream.group_c[c]]
            means.append(z_train[stream.shown[c] if novel else rows[c]].mean(0))
        right = {group: {} for group in GROUPS}
        for i, label in enumerate(test[1]):
            if label not in classes:
                continue
            own = classes.index(label)
            cosines = [z_test[i] @ mean / np.linalg.norm(mean) for mean in means]
            nearer = sum(cosine >= cosines[own] for cosine in cosines) - 1
            right[GROUPS[stream.group_c[own]]][i] = nearer == 0
        streams.append(right)
    return streams


def test_equals_brute_force():
    # Class 3 has no training example and class 6 no test example.
    train = points([9, 30, 12, 0, 25, 40, 8, 16, 33], seed=1)
    test = points([11, 5, 9, 4, 8, 7, 0, 3, 10], seed=2)
    found, content = measured(train, test)
    results = {(r.name, r.dim): r for r in found.results}
    assert list(results) == [(f"test/{g}", m) for g in GROUPS for m in MEASURED]
    for m in MEASURED:
        streams = brute_force(train, test, m)
        for group in GROUPS:
            right_s = [stream[group] for stream in streams]
            mean_s = [np.mean(list(right.values())) for right in right_s]
            # What an example adds to the mean's deviation, in all the streams that judge it.
            part = {}
            for right, mean in zip(right_s, mean_s, strict=True):
                for i, one in right.items():
                    part[i] = part.get(i, 0) + (one - mean) / len(right) / 10
            variance = sum(x**2 for x in part.values()) + stats.sem(mean_s) ** 2
            result = results[f"test/{group}", m]
            assert content["accuracy"][group][str(m)] == pytest.approx(mean_s, abs=1e-6)
            assert result.value == pytest.approx(np.mean(mean_s))
            assert result.stderr == pytest.approx(math.sqrt(variance))
            assert result.n == len(part)
    assert content["classes"] == dict(zip(GROUPS, (1, 1, 2, 3), strict=True))
    assert content["shown"]["tail_novel_tail"][0] == 1
    # Far from chance: the comparison above is not of noise with noise.
    assert results["test/tail_pretrain_head", 8].value > 0.4


def test_rare_new_classes_are_the_hard_ones():
    sizes = [100] * 40, [20] * 40
    train, test = (points(n, seed, spread=1) for seed, n in enumerate(sizes))
    found, _ = measured(train, test)
    at_8 = {r.name.removeprefix("test/tail_"): r for r in found.results if r.dim == 8}
    gap = at_8["novel_head"].value - at_8["novel_tail"].value
    assert gap > 3 * math.hypot(at_8["novel_head"].stderr, at_8["novel_tail"].stderr)
    assert at_8["pretrain_tail"].value > at_8["novel_tail"].value


@pytest.mark.parametrize(("classes", "size"), [(4, 9), (5, 2), (10, 140), (100, 500), (1000, 732)])
def test_streams_follow_zipf(classes, size):
    rows = np.split(np.arange(classes * size), classes)
    group_c, shown = long_tail.draw(rows, 3)
    pretrain = max(2, classes // 4)
    for members_c, k in ((group_c < 2, pretrain), (group_c >= 2, classes - pretrain)):
        counts = np.array([len(shown[c]) for c in np.flatnonzero(members_c)])
        head = counts[group_c[members_c] % 2 == 0]
        tail = counts[group_c[members_c] % 2 == 1]
        assert len(counts) == k
        assert len(head) == math.ceil(math.sqrt(k)) - 1
        # A straight line in log-log, from all examples down to one.
        exponent = math.log(size) / math.log(k)
        expected = [max(1, round(size / r**exponent)) for r in range(1, k + 1)]
        np.testing.assert_array_equal(np.sort(counts)[::-1], expected)
        assert counts.max() == size
        assert counts.min() == 1
        assert head.min() >= math.sqrt(size) - 0.5
        assert tail.max() <= math.sqrt(size) + 0.5
    for row_n, shown_n in zip(rows, shown, strict=True):
        assert len(np.unique(shown_n)) == len(shown_n)
        assert np.isin(shown_n, row_n).all()


def test_no_class_is_shown_more_often_than_it_can_be():
    rows = np.split(np.arange(93), [1, 3, 33, 63])
    for seed in range(10):
        for row_n, shown_n in zip(rows, long_tail.draw(rows, seed).shown, strict=True):
            assert 1 <= len(shown_n) <= len(row_n)


def test_streams_are_drawn_from_the_labels_alone():
    train, test = points([12] * 6, seed=1), points([5] * 6, seed=2)
    (found, a), (moved, b) = (
        measured((train[0] + i, train[1]), (test[0] + i, test[1]), seed=i) for i in range(2)
    )
    assert a["draws"] == b["draws"]
    assert found.results != moved.results
    assert measured(train, (test[0], np.roll(test[1], 1)))[1]["draws"] != a["draws"]
    assert measured((train[0], np.roll(train[1], 1)), test)[1]["draws"] != a["draws"]
    # Streams differ in who is new, and in what is shown.
    rows = list(rows_of_classes(train[1]).values())
    streams = [long_tail.draw(rows, seed) for seed in range(10)]
    assert len({tuple(s.group_c) for s in streams}) > 5


@pytest.mark.parametrize(
    ("train", "test"),
    [([9, 9, 9], [4, 4, 4]), ([9, 9, 9, 9, 0], [4, 4, 4, 0, 4]), ([1, 1, 1, 1], [4, 4, 4, 4])],
)
def test_where_nothing_is_rare_there_is_no_result(train, test):
    with pytest.raises(Unmeasurable, match="needs at least 4 classes that are in both splits"):
        measured(points(train, 1), points(test, 2), "val")


def test_what_cannot_be_told_apart_is_wrong():
    sizes = [6] * 5
    for value in (1, np.nan):
        train, test = ((np.full_like(z, value), label) for z, label in (points(sizes, 1),) * 2)
        found, _ = measured(train, test)
        assert {r.value for r in found.results} == {0}


def test_pairs_of_streams_tell_more_than_two_means():
    train, test = (points([n] * 20, seed, spread=1) for seed, n in ((1, 50), (2, 20)))
    rng = np.random.default_rng(0)
    noisy_train, noisy_test = (
        ((z + rng.normal(size=z.shape)).astype(np.float32), label) for z, label in (train, test)
    )
    (found, a), (_, b) = measured(train, test), measured(noisy_train, noisy_test)
    assert a["draws"] == b["draws"]
    of_a, of_b = (run["accuracy"]["tail_novel_head"]["8"] for run in (a, b))
    low, high = stats.ttest_rel(of_a, of_b).confidence_interval(0.95)
    assert low > 0
    (result,) = (r for r in found.results if (r.name, r.dim) == ("test/tail_novel_head", 8))
    assert high - low < 2 * stats.norm.ppf(0.975) * math.sqrt(2) * result.stderr
