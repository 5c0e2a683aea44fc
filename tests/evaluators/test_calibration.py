import json

import numpy as np
import pytest
from evaluators.subjects import CLASSES, DIMS, random_params, subject_of, task_of

from mrl_jax.errors import NonFiniteError
from mrl_jax.evaluators import calibration
from mrl_jax.evaluators.subject import Predictions


def said(confidence_gn, right_gn):
    """Predictions of these confidences, right or wrong as told."""
    confidence_gn = np.asarray(confidence_gn, np.float32)
    rank_gn = np.where(right_gn, 1, 2)
    n = confidence_gn.shape[1]
    zeros = np.zeros_like(rank_gn)
    dims = tuple(range(1, len(rank_gn) + 1))
    return Predictions(dims, np.zeros(n, np.int32), zeros, confidence_gn, rank_gn)


def by_hand(confidence_n, right_n):
    """The definition, bin by bin: (ece, counts, accuracies, confidences)."""
    ece, rows = 0.0, []
    for b in range(15):
        inside = (confidence_n > b / 15) & (confidence_n <= (b + 1) / 15)
        count = int(inside.sum())
        accuracy = right_n[inside].mean() if count else None
        confidence = confidence_n[inside].astype(np.float64).mean() if count else None
        if count:
            ece += count / len(right_n) * abs(accuracy - confidence)
        rows.append((count, accuracy, confidence))
    return ece, *(list(column) for column in zip(*rows, strict=True))


def random_predictions(n=300, seed=0):
    rng = np.random.default_rng(seed)
    confidence_gn = rng.uniform(0.3, 1, (3, n)).astype(np.float32)
    return confidence_gn, rng.uniform(size=(3, n)) < confidence_gn ** np.array([[1], [2], [4]])


def test_table_equals_the_definition():
    confidence_gn, right_gn = random_predictions()
    found = calibration.reliability(said(confidence_gn, right_gn), seed=0)
    np.testing.assert_allclose(found["edges"], np.arange(16) / 15)
    for g in range(3):
        ece, counts, accuracy, confidence = by_hand(confidence_gn[g], right_gn[g])
        assert found["ece"][g] == pytest.approx(ece)
        assert found["counts"][g] == counts
        for name, expected in (("accuracy", accuracy), ("confidence", confidence)):
            assert [v is None for v in found[name][g]] == [v is None for v in expected]
            assert found[name][g][5:] == pytest.approx(expected[5:])
    assert found["counts"][0][:4] == [0] * 4
    assert found["accuracy"][0][0] is None
    # Confidence above the accuracy, more and more of it.
    assert found["ece"] == sorted(found["ece"])


def test_a_table_small_enough_for_the_hand():
    found = calibration.reliability(
        said([[0.9, 0.9, 0.9, 0.5], [1, 1, 1, 1]], [[True, True, False, True], [True] * 4]), seed=0
    )
    # |2/3 - 0.9| of three examples, |1 - 0.5| of one; and always right, always sure.
    assert found["ece"] == pytest.approx([3 / 4 * (0.9 - 2 / 3) + 1 / 4 * 0.5, 0], abs=1e-7)
    assert found["counts"][0][7] == 1
    assert found["counts"][0][13] == 3
    assert found["counts"][1][14] == 4
    assert found["stderr"][1] == 0


def test_bins_are_closed_above():
    edge, above = np.float32(0.2), np.nextafter(np.float32(1), np.float32(2))
    found = calibration.reliability(
        said([[0.0, 0.19, 1.0, above], [1 / 3] * 4], np.ones((2, 4), bool)), seed=0
    )
    assert [found["counts"][0][b] for b in (0, 2, 14)] == [1, 1, 2]
    # In float32 a fifth is a little more than in float64, and so above the edge.
    assert float(edge) > 0.2
    assert calibration.reliability(said([[edge]], [[True]]), seed=0)["counts"][0][3] == 1


def test_standard_error_is_that_of_resampled_examples():
    confidence_gn, right_gn = random_predictions()
    found = calibration.reliability(said(confidence_gn, right_gn), seed=3)
    rng = np.random.default_rng(3)
    drawn = []
    for _ in range(200):
        rows = rng.integers(0, 300, 300)
        drawn.append([by_hand(confidence_gn[g, rows], right_gn[g, rows])[0] for g in range(3)])
    np.testing.assert_allclose(found["stderr"], np.std(drawn, axis=0, ddof=1))
    assert (
        calibration.reliability(said(confidence_gn, right_gn), seed=4)["stderr"]
        != (found["stderr"])
    )


def test_standard_error_of_one_full_bin_is_that_of_a_mean():
    right_gn = np.random.default_rng(0).uniform(size=(1, 2000)) < 0.5
    found = calibration.reliability(said(np.full((1, 2000), 0.9), right_gn), seed=0)
    assert found["stderr"][0] == pytest.approx(np.sqrt(0.25 / 2000), rel=0.15)


def test_measure_writes_results_and_table():
    z_nd = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    label_n = (np.arange(40) % CLASSES).astype(np.int32)
    subject = subject_of({"val": (z_nd, label_n)}, seed=7)
    found = calibration.measure(subject, "val")
    table = json.loads(found.files["val_calibration.json"])
    assert table["schema"] == 1
    assert table["n"] == 40
    assert table["dims"] == list(DIMS)
    assert [(r.name, r.dim, r.value, r.stderr, r.n) for r in found.results] == [
        ("val/ece", m, ece, stderr, 40)
        for m, ece, stderr in zip(DIMS, table["ece"], table["stderr"], strict=True)
    ]
    head = {name: np.asarray(p, np.float64) for name, p in subject.params["head"].items()}
    for g, m in enumerate(DIMS):
        logits = z_nd[:, :m] @ head["kernel"][:m] + head["bias"]
        softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        ece, counts, *_ = by_hand(softmax.max(1), softmax.argmax(1) == label_n)
        assert table["ece"][g] == pytest.approx(ece, abs=1e-6)
        assert table["counts"][g] == counts
    assert all(0 < r.value < 1 and r.stderr > 0 for r in found.results)


def test_confidence_that_is_nan_is_refused():
    params, _ = random_params(task_of("shared"))
    z_nd = np.ones((5, 8), np.float32)
    z_nd[3, 2] = np.nan
    subject = subject_of({"val": (z_nd, np.zeros(5, np.int32))}, params=params)
    message = "val: the head's confidence is NaN for 1 of 5 examples at 3 dims"
    with pytest.raises(NonFiniteError, match=message):
        calibration.measure(subject, "val")
