import numpy as np
import pytest
from evaluators.subjects import (
    BATCH,
    CLASSES,
    clusters,
    random_dataset,
    random_params,
    subject_of,
    task_of,
)

from mrl_jax.evaluators import classification, projections
from mrl_jax.evaluators.subject import Embedded, Instruments, Subject
from mrl_jax.record.results import Series
from mrl_jax.runtime.mesh import make_mesh

DIMS = (1, 2, 3, 5, 8)


def data():
    train, test = clusters(60, 8, seed=1), clusters(50, 8, seed=2)
    return {"train": (train[0] + 1, train[1]), "test": (test[0] + 1, test[1])}


def normalised(kind):
    """As `subject_of`, with a head that scales every prefix to unit length."""
    task = task_of(kind, normalize="prefix")
    params, _ = random_params(task)
    instruments = Instruments(task, make_mesh(), BATCH, DIMS)
    known = {(name, False): Embedded(*of) for name, of in data().items()}
    dataset = random_dataset({"train": 1, "test": 1})
    return Subject(instruments, dataset, params, {}, seed=0, embedded=known)


def values(finding):
    return {(r.name, r.dim): r.value for r in finding.results}


def full_head(subject, kind):
    suffix = "_0008" if kind == "separate" else ""
    head = subject.params["head"]
    return (np.asarray(head[name + suffix], np.float64) for name in ("kernel", "bias"))


@pytest.mark.parametrize(
    ("kind", "normalise"),
    [
        ("separate", False),
        ("shared", False),
        ("fixed", False),
        ("separate", True),
        ("shared", True),
    ],
)
def test_the_head_reads_what_is_put_back(kind, normalise):
    subject = normalised(kind) if normalise else subject_of(data(), kind, measured=DIMS)
    kernel_dc, bias_c = full_head(subject, kind)
    query = subject.embedded("test")
    expected = {}
    for name, space in subject.spaces.items():
        for m in space.dims(DIMS):
            basis_dm = space.basis_de[:, :m]
            back_nd = space.mean_d + (query.z_nd - space.mean_d) @ basis_dm @ basis_dm.T
            if normalise:
                back_nd = back_nd / np.linalg.norm(back_nd, axis=1, keepdims=True)
            right_n = (back_nd @ kernel_dc + bias_c).argmax(1) == query.label_n
            expected[Series("", "test", "top1", "cut" if name == "trained" else name).name, m] = (
                right_n.mean()
            )
    found = projections.measure(subject, "test")
    assert values(found) == pytest.approx(expected)
    assert len(expected) == 5 * len(DIMS) - 1
    accuracy = values(classification.measure(subject, "test"))
    # Nothing is lost by a whole basis, and cutting is what shared and fixed heads always do.
    for name in ("cut", "random", "rotation", "pca"):
        assert expected[f"test/top1_{name}", 8] == pytest.approx(accuracy["test/top1", 8])
    for m in DIMS:
        if kind != "separate":
            assert expected["test/top1_cut", m] == pytest.approx(accuracy["test/top1", m])
    if kind == "separate":
        assert expected["test/top1_cut", 3] != accuracy["test/top1", 3]


@pytest.mark.parametrize("classes", [7, 12])
def test_svd_is_the_classifier_cut_to_rank_m(classes):
    z_nd, label_n = clusters(80, 8, classes, seed=2)
    embedded = {"train": clusters(60, 8, classes, seed=1), "test": (z_nd, label_n)}
    subject = subject_of(embedded, "fixed", classes=classes, measured=DIMS)
    kernel_dc, bias_c = full_head(subject, "fixed")
    u, s, vh = np.linalg.svd(kernel_dc, full_matrices=False)
    found = projections.measure(subject, "test").examples["test/top1_svd"]
    assert found.dims == tuple(m for m in DIMS if m <= classes)
    for m, right_n in zip(*found, strict=True):
        low_rank_dc = u[:, :m] * s[:m] @ vh[:m]
        assert np.linalg.matrix_rank(low_rank_dc) == m
        predicted_n = (z_nd @ low_rank_dc + bias_c).argmax(1)
        np.testing.assert_array_equal(right_n, predicted_n == label_n)


def test_spaces_narrower_than_every_prefix_are_left_out():
    embedded = {"train": clusters(3, 8, 2, seed=1), "test": clusters(9, 8, 2, seed=2)}
    subject = subject_of(embedded, classes=2, measured=(5, 8))
    names = {r.name for r in projections.measure(subject, "test").results}
    assert names == {"test/top1_cut", "test/top1_random", "test/top1_rotation"}


def test_scores_do_not_depend_on_chunks(monkeypatch):
    whole = projections.measure(subject_of(data(), measured=DIMS), "test")
    monkeypatch.setattr(projections, "_MAX_SCORES", 16 * len(DIMS) * CLASSES)
    assert projections.measure(subject_of(data(), measured=DIMS), "test").results == whole.results


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_ties_and_nan_are_never_right(value):
    x_ne, label_n = np.ones((4, 3), np.float32), np.zeros(4, np.int32)
    readout = projections.Readout(np.full((3, 5), value), np.zeros(5))
    assert not projections.right(readout, x_ne, label_n, (1, 3)).any()
    # So that the above is not for want of trying:
    winning = projections.Readout(np.zeros((3, 5)), np.eye(5)[0])
    assert projections.right(winning, x_ne, label_n, (1, 3)).all()
