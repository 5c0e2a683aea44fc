import tracemalloc

import numpy as np
import pytest
from evaluators.subjects import CLASSES, clusters, subject_of
from sklearn.linear_model import Ridge

from mrl_jax.errors import NonFiniteError
from mrl_jax.evaluators import linear_probe, projections, spaces
from mrl_jax.evaluators.subject import Embedded
from mrl_jax.record.results import Series

DIMS = (1, 2, 3, 5, 8)


def imbalanced(n=150, seed=1):
    """Clusters of unequal size around a mean that is not zero, and none of class 2."""
    z_nd, label_n = clusters(2 * n, 8, spread=0.7, seed=seed)
    kept = np.flatnonzero((label_n != 2) & ((label_n < 4) | (np.arange(2 * n) % 3 == 0)))[:n]
    return z_nd[kept] + np.float32(5), label_n[kept]


def ridge_of(z_nd, label_n, classes=CLASSES):
    """scikit-learn's ridge regression, unfitted, with our penalty, and its targets."""
    centred = z_nd.astype(np.float64) - z_nd.mean(0, dtype=np.float64)
    alpha = linear_probe.RIDGE * (centred**2).sum() / z_nd.shape[1]
    return Ridge(alpha=alpha), np.eye(classes)[label_n]


def test_probes_are_ridge_regressions_on_every_prefix():
    train, test = imbalanced(), clusters(60, 8, spread=0.7, seed=2)
    test = test[0] + np.float32(5), test[1]
    subject = subject_of({"train": train, "test": test}, measured=DIMS, seed=5)
    finding = linear_probe.measure(subject, "test")
    moments = subject.moments
    ridge, target_nc = ridge_of(*train)
    expected = {}
    for name, space in subject.spaces.items():
        probe = linear_probe.fit(moments, space)
        train_x, test_x = (
            (z_nd.astype(np.float64) - space.mean_d) @ space.basis_de for z_nd, _ in (train, test)
        )
        for m in space.dims(DIMS):
            ridge.fit(train_x[:, :m], target_nc)
            found_dc = probe.whitening_de[:, :m] @ probe.readout.kernel_ec[:m]
            expected_dc = space.basis_de[:, :m] @ ridge.coef_.T
            np.testing.assert_allclose(found_dc, expected_dc, atol=1e-12)
            predicted_n = ridge.predict(test_x[:, :m]).argmax(1)
            expected[Series("", "test", "probe", name).name, m] = (predicted_n == test[1]).mean()
    assert {(r.name, r.dim): r.value for r in finding.results} == pytest.approx(expected)
    # Seven classes: of the classifier's singular vectors there are seven.
    assert len(expected) == 5 * len(DIMS) - 1
    assert expected["test/probe", 8] > 0.5 > expected["test/probe", 1]
    assert all(r.n == 60 for r in finding.results)


def test_examples_are_those_behind_the_results():
    train, test = clusters(90, 8, seed=1), clusters(33, 8, seed=2)
    test[0][4] = np.nan
    subject = subject_of({"train": train, "test": test}, measured=DIMS)
    finding = linear_probe.measure(subject, "test")
    for result in finding.results:
        dims, right_gn = finding.examples[result.name]
        assert right_gn.shape == (len(dims), 33)
        assert right_gn[dims.index(result.dim)].mean() == result.value
        assert not right_gn[:, 4].any()
    right_gn = finding.examples["test/probe"].right_gn
    ridge, target_nc = ridge_of(*train)
    known_n = np.arange(33) != 4
    predicted_n = ridge.fit(train[0].astype(np.float64), target_nc).predict(test[0][known_n])
    np.testing.assert_array_equal(right_gn[-1, known_n], predicted_n.argmax(1) == test[1][known_n])


def test_probes_do_not_depend_on_chunks(monkeypatch):
    embedded = {"train": clusters(90, 8, seed=1), "test": clusters(33, 8, seed=2)}
    whole = linear_probe.measure(subject_of(embedded, measured=DIMS), "test")
    monkeypatch.setattr(spaces, "_MAX_COPIED", 7 * 8)
    monkeypatch.setattr(projections, "_MAX_SCORES", 16 * len(DIMS) * CLASSES)
    assert linear_probe.measure(subject_of(embedded, measured=DIMS), "test").results == (
        whole.results
    )


def test_fewer_examples_than_dims():
    train, test = clusters(5, 8, spread=0.1, seed=1), clusters(30, 8, spread=0.1, seed=2)
    subject = subject_of({"train": train, "test": test}, measured=DIMS)
    values = {(r.name, r.dim): r.value for r in linear_probe.measure(subject, "test").results}
    assert [m for name, m in values if name == "test/probe_pca"] == [1, 2, 3, 5]
    # All that there is to learn is in the span of the examples: every whole basis finds it.
    known = np.isin(test[1], train[1]).mean()
    assert 0 < known < 1
    for suffix in ("", "_random", "_rotation"):
        assert values[f"test/probe{suffix}", 8] == known


def test_embeddings_that_are_all_the_same_give_the_commonest_class():
    train = np.ones((9, 8), np.float32), np.array([0, 1, 1, 1, 1, 2, 2, 3, 4], np.int32)
    test = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32), np.arange(20) % 7
    subject = subject_of({"train": train, "test": test}, measured=(3, 8))
    for result in linear_probe.measure(subject, "test").results:
        assert result.value == (test[1] == 1).mean()


def test_indicators_of_many_classes_are_never_held(monkeypatch):
    monkeypatch.setattr(spaces, "_MAX_COPIED", 4 * 256)
    rng = np.random.default_rng(0)
    label_n = rng.integers(0, 2000, 5000).astype(np.int32)
    train = Embedded(rng.normal(size=(5000, 4)).astype(np.float32), label_n)
    tracemalloc.start()
    try:
        found = spaces.moments(*train, 2000)
        # As float64 they take 80 MB.
        assert tracemalloc.get_traced_memory()[1] < 4e6
    finally:
        tracemalloc.stop()
    indicator_nc = np.eye(2000)[label_n]
    centred = train.z_nd.astype(np.float64) - train.z_nd.mean(0, dtype=np.float64)
    np.testing.assert_allclose(found.sum_cd, indicator_nc.T @ centred, atol=1e-9)
    np.testing.assert_allclose(found.share_c, indicator_nc.mean(0))


def test_nan_in_training_embeddings_is_refused():
    train = clusters(30, 8)
    train[0][7, 2] = np.nan
    with pytest.raises(NonFiniteError, match="1 of 30 training embeddings"):
        linear_probe.measure(subject_of({"train": train, "test": clusters(5, 8)}), "test")
