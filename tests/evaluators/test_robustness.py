import json
import math

import numpy as np
import pytest
from evaluators.subjects import (
    CLASSES,
    DIMS,
    clusters,
    random_params,
    subject_of,
    task_of,
)
from scipy.stats import binom

from mrl_jax.data import Split
from mrl_jax.data.shifts import Shift
from mrl_jax.evaluators import Finding, classification, robustness
from mrl_jax.evaluators.robustness import relative_drop

SOME = (0, 1, 2, 4, 5, 6)
FEW = (1, 4)


@pytest.fixture(scope="module")
def params():
    """A head that knows where the clusters are."""
    z_nd, label_n = clusters(100, 8, spread=0)
    centre_cd = np.stack([z_nd[label_n == k][0] for k in range(CLASSES)])
    return {"head": {"kernel": centre_cd.T, "bias": -(centre_cd**2).sum(1) / 2}}


def shift_of(label_n, classes):
    image = np.zeros((len(label_n), 4, 4, 1), np.uint8)
    return Shift(Split(image, label_n), tuple(sorted(classes)))


def labelled(n, classes, seed):
    z_nd, label_n = clusters(n, 8, spread=0.7, seed=seed)
    keep = np.isin(label_n, classes)
    return z_nd[keep], label_n[keep]


def by_hand(params, z_nd, label_n, classes, m, k):
    """Whether the true class is among the k first of these classes, for every example."""
    head = {name: np.asarray(p, np.float64) for name, p in params["head"].items()}
    logits_nc = z_nd[:, :m] @ head["kernel"][:m] + head["bias"]
    right = []
    for logits_c, label in zip(logits_nc, label_n, strict=True):
        ranked = sorted(classes, key=lambda c: -logits_c[c])
        right.append(label in ranked[:k])
    return np.array(right)


def test_shifts_equal_brute_force(params):
    clean = clusters(83, 8, spread=0.7, seed=1)
    shifted = {
        "some": (labelled(60, SOME, 2), SOME),
        "few": (labelled(70, FEW, 3), FEW),
        "whole": (clusters(50, 8, spread=2, seed=4), range(CLASSES)),
    }
    subject = subject_of(
        {"val": clean, "test": clean, **{name: z for name, (z, _) in shifted.items()}},
        params=params,
        shifts={name: shift_of(z[1], classes) for name, (z, classes) in shifted.items()},
    )
    finding = robustness.measure(subject, "test")
    found = {(r.name, r.dim): r for r in finding.results}
    content = json.loads(finding.files["test_robustness.json"])
    assert (content["schema"], content["clean"]) == (1, "test")
    expected = set()
    for name, ((z_nd, label_n), classes) in shifted.items():
        of_them = np.isin(clean[1], classes)
        about = content["shifts"][name]
        assert about["classes"] == [f"class{k}" for k in sorted(classes)]
        assert (about["n"], about["n_clean"]) == (len(label_n), of_them.sum())
        assert about["dims"] == list(DIMS)
        for g, m in enumerate(DIMS):
            rows = {
                "top1": by_hand(params, z_nd, label_n, classes, m, 1),
                "top5": by_hand(params, z_nd, label_n, classes, m, 5),
                "top1_clean": by_hand(params, clean[0][of_them], clean[1][of_them], classes, m, 1),
            }
            if name == "few":  # of two classes one of five is always right
                del rows["top5"]
            for metric, right_n in rows.items():
                expected.add((f"{name}/{metric}", m))
                result = found[f"{name}/{metric}", m]
                assert (result.value, result.n) == (right_n.mean(), len(right_n))
                right_gn = finding.examples[f"{name}/{metric}"].right_gn
                np.testing.assert_array_equal(right_gn[g], right_n)
            assert about["top1"][g] == rows["top1"].mean()
            assert about["top1_clean"][g] == rows["top1_clean"].mean()
            drop = 1 - rows["top1"].mean() / rows["top1_clean"].mean()
            assert about["relative_drop"][g] == pytest.approx(drop)
            low, high = about["relative_drop_95"][g]
            assert low <= drop <= high  # equal where all are right
    assert set(found) == expected
    # Something is lost in it, and fewer classes are easier.
    assert found["whole/top1", 8].value < found["whole/top1_clean", 8].value
    assert found["few/top1_clean", 8].value > found["whole/top1_clean", 8].value
    # The clean figure of all classes is the accuracy.
    accuracy = classification.measure(subject, "test").examples["test/top1"].right_gn
    np.testing.assert_array_equal(finding.examples["whole/top1_clean"].right_gn, accuracy)
    # Only beside the last split.
    assert robustness.measure(subject, "val") == Finding()


def test_a_shift_is_embedded_like_a_split():
    """Through the backbone, and into the fingerprint."""
    params, _ = random_params(task_of("shared"))
    subject = subject_of({"val": clusters(23, 8)}, params=params)
    subject._embedded.clear()
    split = subject.dataset.splits["val"]
    turned = Split(split.image[::-1], split.label[::-1])
    subject.shifts = {"x": Shift(turned, tuple(range(CLASSES)))}
    finding = robustness.measure(subject, "val")
    right_gn = finding.examples["x/top1"].right_gn
    assert 0 < right_gn.mean() < 1
    np.testing.assert_array_equal(right_gn, finding.examples["x/top1_clean"].right_gn[:, ::-1])
    data = json.loads(finding.files["val_robustness.json"])["shifts"]["x"]["data"]
    subject.shifts["x"] = Shift(split, tuple(range(CLASSES)))
    other = json.loads(robustness.measure(subject, "val").files["val_robustness.json"])
    assert other["shifts"]["x"]["data"] != data


def test_no_shifts_no_clean_examples_and_nan(params):
    clean = labelled(40, (0, 2, 3), 1)
    subject = subject_of({"val": clean}, params=params)
    assert robustness.measure(subject, "val") == Finding()
    # The clean split has neither of the two classes: there is nothing to compare with.
    z_nd, label_n = labelled(40, FEW, 2)
    subject = subject_of(
        {"val": clean, "few": (z_nd * np.float32(np.nan), label_n)},
        params=params,
        shifts={"few": shift_of(label_n, FEW)},
    )
    finding = robustness.measure(subject, "val")
    assert [(r.name, r.value) for r in finding.results] == [("few/top1", 0)] * 3
    about = json.loads(finding.files["val_robustness.json"])["shifts"]["few"]
    assert about["n_clean"] == 0
    assert "relative_drop" not in about


def test_relative_drop_by_the_delta_method():
    drop, (low, high) = relative_drop(30, 100, 160, 200)
    assert drop == pytest.approx(1 - 0.3 / 0.8)
    deviation = math.sqrt(0.7 / 30 + 0.2 / 160)
    assert low == pytest.approx(1 - 0.375 * math.exp(1.959964 * deviation))
    assert high == pytest.approx(1 - 0.375 * math.exp(-1.959964 * deviation))
    assert relative_drop(0, 10, 5, 10) == (1, (None, 1))
    assert relative_drop(5, 10, 0, 10) == (None, (None, None))
    assert relative_drop(0, 10, 0, 10) == (None, (None, None))
    assert relative_drop(10, 10, 4, 4) == (0, (0, 0))


def test_the_interval_holds_the_truth_19_times_of_20():
    n, n_clean, p, p_clean = 60, 90, 0.3, 0.7
    covered = 0.0
    for hits in range(5, 40):
        for clean_hits in range(40, 86):
            _, (low, high) = relative_drop(hits, n, clean_hits, n_clean)
            if low <= 1 - p / p_clean <= high:
                covered += binom.pmf(hits, n, p) * binom.pmf(clean_hits, n_clean, p_clean)
    assert covered == pytest.approx(0.95, abs=0.015)
