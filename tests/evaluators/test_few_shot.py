import json

import numpy as np
import pytest
from evaluators.subjects import clusters, subject_of
from scipy import stats

from mrl_jax.evaluators import class_means, few_shot
from mrl_jax.evaluators.class_means import nearest_is_own, rows_of_classes
from mrl_jax.record.finding import Unmeasurable
from mrl_jax.record.results import Series

# Not at 1 dim: there every cosine is 1 or -1, and rounding picks among the ties.
MEASURED = (2, 3, 8)
TRAIN = clusters(40, 8, seed=9)


def labelled(sizes, width=8, seed=0, spread=1.5):
    """Clusters with so many examples of every class, in random order."""
    rng = np.random.default_rng(seed)
    label_n = rng.permutation(np.repeat(np.arange(len(sizes)), sizes)).astype(np.int32)
    centres_cd = np.random.default_rng(5).normal(size=(len(sizes), width))
    z_nd = centres_cd[label_n] + spread * rng.normal(size=(len(label_n), width))
    return z_nd.astype(np.float32), label_n


def measured(z_nd, label_n, split="test", **context):
    classes = max(7, int(label_n.max()) + 1)
    embedded = {"train": TRAIN, split: (z_nd, label_n)}
    subject = subject_of(embedded, measured=MEASURED, classes=classes, **context)
    found = few_shot.measure(subject, split)
    content = found.files.get(f"{split}_few_shot.json")
    return found, content and json.loads(content), subject


def brute_force(z_nd, episode_ws, shots, m):
    """Accuracy of one episode in float64, example by example."""
    z_nm = z_nd[:, :m].astype(np.float64)
    means = [z_nm[row_s[:shots]].mean(0) for row_s in episode_ws]
    right = []
    for own, row_s in enumerate(episode_ws):
        for n in row_s[shots:]:
            cosines = [z_nm[n] @ mean / np.linalg.norm(mean) for mean in means]
            others = cosines[:own] + cosines[own + 1 :]
            right.append(cosines[own] > max(others))
    return np.mean(right)


def test_equals_brute_force(monkeypatch):
    monkeypatch.setattr(few_shot, "EPISODES", 12)
    monkeypatch.setattr(few_shot, "EPISODES_OF_ALL", 3)
    z_nd, label_n = labelled([8, 12, 7, 30, 9, 8, 11, 10, 7, 14, 8, 9])
    found, content, subject = measured(z_nd, label_n)
    rows = list(rows_of_classes(label_n).values())
    chosen = few_shot.settings(7, 12)
    assert [(s.metric, s.ways, s.shots, s.queries, s.episodes) for s in chosen] == [
        ("ncm_10way_1shot", 10, 1, 6, 12),
        ("ncm_10way_3shot", 10, 3, 4, 12),
        ("ncm_10way_5shot", 10, 5, 2, 12),
        ("ncm_allway_1shot", 12, 1, 6, 3),
        ("ncm_allway_3shot", 12, 3, 4, 3),
        ("ncm_allway_5shot", 12, 5, 2, 3),
    ]
    pairs = [(s, "trained") for s in chosen] + [(chosen[2], s) for s in ("pca", "random")]
    results = {(r.name, r.dim): r for r in found.results}
    assert len(results) == len(found.results) == len(pairs) * len(MEASURED)
    for setting, space in pairs:
        name = Series("", "", setting.metric, space).label
        x_nd = subject.spaces[space].project(z_nd)
        for m in MEASURED:
            expected = [
                brute_force(x_nd, episode, setting.shots, m)
                for episode in few_shot.draw(rows, setting)
            ]
            result = results[f"test/{name}", m]
            assert content["accuracy"][name][str(m)] == pytest.approx(expected, abs=1e-6)
            assert result.value == pytest.approx(np.mean(expected))
            assert result.stderr == pytest.approx(stats.sem(expected))
            assert result.n == setting.episodes
    # Far from chance, and the numbers differ: nothing above compares noise with noise.
    assert results["test/ncm_10way_5shot", 8].value > results["test/ncm_10way_1shot", 8].value > 0.2
    assert content["accuracy"]["ncm_10way_5shot"] != content["accuracy"]["ncm_10way_5shot_random"]


def test_episodes_are_drawn_from_the_labels_alone():
    z_nd, label_n = labelled([20] * 12)
    rows = list(rows_of_classes(label_n).values())
    (setting,) = (s for s in few_shot.settings(20, 12) if s.metric == "ncm_10way_5shot")
    episodes = few_shot.draw(rows, setting)
    assert episodes.shape == (200, 10, 20)
    label_ews = label_n[episodes]
    assert (label_ews == label_ews[:, :, :1]).all()
    assert all(len(np.unique(classes)) == 10 for classes in label_ews[:, :, 0])
    assert all(len(np.unique(episode)) == episode.size for episode in episodes)
    assert len(np.unique(episodes, axis=0)) == 200
    # Every class and every example has its turn.
    assert np.bincount(label_ews[:, :, 0].ravel()).min() > 140
    assert len(np.unique(episodes[:, :, :5])) == len(label_n)
    # Neither embeddings nor the run's seed move them.
    a, b = (measured(z, label_n, seed=i)[1] for i, z in enumerate((z_nd, z_nd + 1)))
    assert a["draws"] == b["draws"]
    assert a["accuracy"]["ncm_10way_1shot"] != b["accuracy"]["ncm_10way_1shot"]
    moved = measured(z_nd, np.roll(label_n, 1))[1]
    assert moved["draws"] != a["draws"]


def test_what_small_classes_leave_out():
    # A class of one example takes no part; the smallest other one has 5,
    # of which none would be left to classify after 5 shots.
    z_nd, label_n = labelled([5, 1, 6, 7])
    found, content, _ = measured(z_nd, label_n, "val")
    assert {r.name for r in found.results} == {"val/ncm_3way_1shot", "val/ncm_3way_3shot"}
    assert content["classes"] == 3
    assert content["settings"]["ncm_3way_3shot"]["queries"] == 2
    # ImageNetV2 has ten images of each class: nine shots and one query.
    assert [(s.metric, s.queries) for s in few_shot.settings(10, 1000)][4::5] == [
        ("ncm_10way_9shot", 1),
        ("ncm_allway_9shot", 1),
    ]
    assert {s.queries for s in few_shot.settings(500, 21841)} == {15, 1}


@pytest.mark.parametrize("sizes", [[9], [9, 1, 1], [1, 1, 1]])
def test_fewer_than_two_classes_give_nothing(sizes):
    with pytest.raises(Unmeasurable, match=r"at least 2 classes with 2 examples each, got [01]"):
        measured(*labelled(sizes))


def test_rivals_are_as_wide_as_they_can_be():
    embedded = {"train": clusters(5, 8), "test": labelled([8, 8, 8])}
    subject = subject_of(embedded, measured=MEASURED)
    dims = {}
    for result in few_shot.measure(subject, "test").results:
        dims.setdefault(result.name, []).append(result.dim)
    assert dims["test/ncm_3way_5shot"] == dims["test/ncm_3way_5shot_random"] == [2, 3, 8]
    assert dims["test/ncm_3way_5shot_pca"] == [2, 3]


def test_ties_and_nan_are_never_right():
    # At 1 dim the first two means are the same; whole numbers make it exact.
    mean_cd = np.array([[4, 0], [4, 3], [-4, 3]])
    query_nd = np.array([[2, 0], [2, 9], [-2, 3], [np.nan, 0], [0, 0]])
    own_n = np.array([0, 1, 2, 0, 1])
    right_gn = nearest_is_own(query_nd, own_n, mean_cd, (1, 2))
    np.testing.assert_array_equal(right_gn, [[0, 0, 1, 0, 0], [1, 1, 1, 0, 0]])
    for bad in (np.nan, np.inf):
        mean_cd = np.array([[1, bad], [1, 0], [-1, 0]])
        right_gn = nearest_is_own(np.array([[-1, 1]]), np.array([2]), mean_cd, (1, 2))
        np.testing.assert_array_equal(right_gn, [[1], [0]])


def test_the_length_of_vectors_and_chunks_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    query_nd, mean_cd = rng.normal(size=(50, 8)), rng.normal(size=(6, 8))
    own_n = rng.integers(0, 6, 50)
    expected = nearest_is_own(query_nd, own_n, mean_cd, MEASURED)
    scaled = nearest_is_own(query_nd * 7, own_n, mean_cd * rng.uniform(1, 9, (6, 1)), MEASURED)
    np.testing.assert_array_equal(scaled, expected)
    monkeypatch.setattr(class_means, "_MAX_COSINES", 6 * 7)
    np.testing.assert_array_equal(nearest_is_own(query_nd, own_n, mean_cd, MEASURED), expected)
