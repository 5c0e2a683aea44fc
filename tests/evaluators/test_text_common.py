import numpy as np
import pytest
from evaluators.subjects import texts_by

from mrl_jax.errors import NonFiniteError
from mrl_jax.evaluators.text_common import (
    FITTED_ON,
    RESAMPLES,
    fitted_on,
    interval,
    resamples,
    rivals,
)
from mrl_jax.record.results import Series

WIDTH = 6


def test_every_different_text_is_embedded_once_and_scaled():
    seen = []

    def embed(texts):
        seen.append(texts)
        return np.array([[len(t), 0.0, 1.0] for t in texts])

    z_nd = texts_by(embed, (2,)).embedded(["bb", "a", "bb", "ccc"], "texts")
    assert seen == [["bb", "a", "ccc"]]
    expected = np.array([[2, 0, 1], [1, 0, 1], [2, 0, 1], [3, 0, 1]])
    np.testing.assert_allclose(z_nd, expected / np.linalg.norm(expected, axis=1)[:, None], 1e-6)


def test_rivals_are_orthogonal_and_pca_has_the_variance_of_unit_vectors_in_order():
    rng = np.random.default_rng(0)
    z_nd = rng.normal(size=(200, WIDTH)) * np.arange(1, WIDTH + 1) * rng.uniform(1, 9, (200, 1))
    spaces = rivals(z_nd, seed=3)
    assert list(spaces) == ["trained", "rotation", "pca"]
    for space in spaces.values():
        np.testing.assert_allclose(space.basis_de.T @ space.basis_de, np.eye(WIDTH), atol=1e-12)
    unit_nd = z_nd / np.linalg.norm(z_nd, axis=1, keepdims=True)
    np.testing.assert_array_equal(
        spaces["trained"].project(np.float32(unit_nd)), np.float32(unit_nd)
    )
    variance_e = spaces["pca"].project(unit_nd).var(0)
    expected = np.linalg.eigvalsh(np.cov(unit_nd.T, bias=True))[::-1]
    np.testing.assert_allclose(variance_e, expected, rtol=1e-5)


def test_resamples_are_uniform_and_the_same_for_the_same_seed():
    weight_rn = np.concatenate(list(resamples(3000, 1)))
    assert weight_rn.shape == (RESAMPLES, 3000)
    assert (weight_rn.sum(1) == 3000).all()
    np.testing.assert_allclose(weight_rn.mean(0), 1, atol=0.2)
    # A draw with replacement leaves out 1/e of all.
    np.testing.assert_allclose((weight_rn == 0).mean(), np.exp(-1), atol=2e-3)
    np.testing.assert_array_equal(weight_rn, np.concatenate(list(resamples(3000, 1))))
    assert (weight_rn[:9] != next(resamples(3000, 2))[:9]).any()


def test_interval_is_the_middle_95_percent():
    told = interval(Series("s", metric="x"), 8, np.arange(1001))
    assert told == {**Series("s", metric="x")._asdict(), "dim": 8, "low": 25, "high": 975}


def test_embeddings_that_are_not_finite_are_refused():
    with pytest.raises(NonFiniteError, match="1 of 2 embeddings of queries hold NaN"):
        texts_by(lambda t: np.array([[1.0, np.nan], [1, 1]]), (2,)).embedded(["a", "b"], "queries")


@pytest.mark.parametrize("count", [1, FITTED_ON, FITTED_ON + 1, 2 * FITTED_ON - 1, 50 * FITTED_ON])
def test_rivals_are_fitted_on_rows_from_everywhere(count):
    rows = range(count)[fitted_on(count)]
    assert min(count, FITTED_ON / 2) <= len(rows) <= FITTED_ON
    assert rows[-1] >= count - rows.step
