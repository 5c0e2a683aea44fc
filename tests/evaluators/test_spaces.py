import tracemalloc

import numpy as np
import pytest
from sklearn.decomposition import PCA

from mrl_jax.errors import NonFiniteError
from mrl_jax.evaluators import spaces
from mrl_jax.evaluators.spaces import fit_spaces, moments, scatter


def spread_out(n, width, seed=0, offset=3.0):
    """Points whose variance differs by direction, so that components are not interchangeable."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(width, width)) * 0.7 ** np.arange(width)[:, None]
    return (rng.normal(size=(n, width)) @ mixing + offset).astype(np.float32)


def kernel(width, classes, seed=4):
    return np.random.default_rng(seed).normal(size=(width, classes)).astype(np.float32)


def fit(z_nd, kernel_dc, seed):
    return fit_spaces(moments(z_nd, np.zeros(len(z_nd), int), 1), kernel_dc, seed)


def small_chunks(monkeypatch, width, rows=7):
    monkeypatch.setattr(spaces, "_MAX_COPIED", rows * width)


@pytest.mark.parametrize("rows", [7, 1000])
def test_scatter_of_embeddings_far_from_zero(monkeypatch, rows):
    small_chunks(monkeypatch, 5, rows)
    z_nd = spread_out(40, 5, offset=1e4)
    mean_d, scatter_dd = scatter(z_nd)
    exact = z_nd.astype(np.longdouble)
    centred = exact - exact.mean(0)
    np.testing.assert_allclose(mean_d, exact.mean(0).astype(float), rtol=1e-14)
    expected = (centred.T @ centred).astype(float)
    np.testing.assert_allclose(scatter_dd, expected, rtol=1e-9, atol=1e-9 * np.trace(expected))


def test_embeddings_are_not_copied_whole(monkeypatch):
    small_chunks(monkeypatch, 16, rows=64)
    z_nd = spread_out(20_000, 16)
    fitted = fit(z_nd, kernel(16, 3), seed=0)
    tracemalloc.start()
    try:
        scatter(z_nd)
        assert tracemalloc.get_traced_memory()[1] < z_nd.nbytes / 4
        tracemalloc.reset_peak()
        x_ne = fitted["pca"].project(z_nd)
        assert tracemalloc.get_traced_memory()[1] < 1.25 * x_ne.nbytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_embeddings_that_are_not_finite(value):
    z_nd = spread_out(40, 5)
    z_nd[[3, 8], 1] = value
    with pytest.raises(NonFiniteError, match="2 of 40 training embeddings hold NaN or an infinity"):
        fit(z_nd, kernel(5, 3), seed=0)


@pytest.mark.parametrize(("n", "width", "classes"), [(50, 6, 9), (50, 6, 4), (4, 6, 9), (1, 6, 2)])
def test_bases_are_orthonormal_and_as_wide_as_promised(n, width, classes):
    fitted = fit(spread_out(n, width), kernel(width, classes), seed=0)
    expected = {
        "trained": width,
        "random": width,
        "rotation": width,
        "pca": min(n, width),
        "svd": min(width, classes),
    }
    assert {name: space.width for name, space in fitted.items()} == expected
    for space in fitted.values():
        gram_ee = space.basis_de.T @ space.basis_de
        np.testing.assert_allclose(gram_ee, np.eye(space.width), atol=1e-12)
        assert space.dims((1, 2, 4, 6)) == tuple(m for m in (1, 2, 4, 6) if m <= space.width)


@pytest.mark.parametrize("n", [50, 4])
def test_components_are_those_of_scikit_learn(monkeypatch, n):
    small_chunks(monkeypatch, 6)
    z_nd, other_nd = spread_out(n, 6), spread_out(20, 6, seed=1)
    # The last of n components has no variance when n <= D: it is any direction that is left.
    count = min(n - 1, 6)
    pca = PCA(count).fit(z_nd.astype(np.float64))
    expected = pca.transform(other_nd)
    found = fit(z_nd, kernel(6, 9), seed=0)["pca"].project(other_nd)[:, :count]
    signs = np.sign((found * expected).sum(0))
    np.testing.assert_allclose(found * signs, expected, rtol=1e-4, atol=1e-4)


def test_dead_dims_leave_a_whole_basis():
    z_nd = spread_out(50, 6)
    z_nd[:, [1, 4]] = 0  # as a ReLU that never fires
    z_nd[:, 5] = 2 * z_nd[:, 0]
    space = fit(z_nd, kernel(6, 9), seed=0)["pca"]
    x_nd = space.project(z_nd)
    assert np.abs(x_nd[:, 3:]).max() < 1e-5 < x_nd[:, :3].std(0).min()
    # Test images may light them up: no distance is lost at full width.
    other_nd = spread_out(20, 6, seed=1)
    x_nd = space.project(other_nd)
    np.testing.assert_allclose(
        np.linalg.norm(x_nd[:-1] - x_nd[1:], axis=1),
        np.linalg.norm(other_nd[:-1] - other_nd[1:], axis=1),
        rtol=1e-5,
    )


def test_signs_do_not_depend_on_those_of_the_data():
    z_nd, kernel_dc = spread_out(50, 6), kernel(6, 9)
    one, other = fit(z_nd, kernel_dc, seed=0), fit(-z_nd, -kernel_dc, seed=0)
    for name in ("pca", "svd"):
        np.testing.assert_allclose(one[name].basis_de, other[name].basis_de, atol=1e-9)
        basis_de = one[name].basis_de
        assert (basis_de[np.abs(basis_de).argmax(0), np.arange(6)] > 0).all()


@pytest.mark.parametrize("classes", [9, 4])
def test_svd_keeps_the_best_cut_of_the_classifier(classes):
    kernel_dc = kernel(6, classes)
    basis_de = fit(spread_out(50, 6), kernel_dc, seed=0)["svd"].basis_de
    singular = np.linalg.svd(kernel_dc.astype(np.float64), compute_uv=False)
    for m in range(1, basis_de.shape[1] + 1):
        cut_dc = basis_de[:, :m] @ basis_de[:, :m].T @ kernel_dc
        # Eckart-Young: no matrix of rank m is nearer.
        lost = np.linalg.norm(kernel_dc - cut_dc)
        assert lost == pytest.approx(np.sqrt((singular[m:] ** 2).sum()), abs=1e-6)


def test_random_spaces_follow_from_the_seed():
    z_nd, kernel_dc = spread_out(50, 6), kernel(6, 9)
    one, same, other = (fit(z_nd, kernel_dc, seed) for seed in (0, 0, 1))
    for name in ("random", "rotation"):
        np.testing.assert_array_equal(one[name].basis_de, same[name].basis_de)
        assert not np.allclose(one[name].basis_de, other[name].basis_de)


def test_dims_in_another_order_are_only_moved():
    z_nd = spread_out(50, 6)
    fitted = fit(z_nd, kernel(6, 9), seed=0)
    z_nd[0, 2] = np.nan  # which a product would spread
    order = np.random.default_rng(0).permutation(6)
    assert order.tolist() != list(range(6))
    np.testing.assert_array_equal(fitted["trained"].project(z_nd), z_nd)
    np.testing.assert_array_equal(fitted["random"].project(z_nd), z_nd[:, order])


def test_coordinates_do_not_depend_on_chunks(monkeypatch):
    z_nd = spread_out(41, 6)
    fitted = fit(z_nd, kernel(6, 9), seed=0)
    whole = {name: space.project(z_nd) for name, space in fitted.items()}
    assert all(x_ne.dtype == np.float32 for x_ne in whole.values())
    np.testing.assert_array_equal(whole["trained"], z_nd)
    small_chunks(monkeypatch, 6)
    for name, space in fitted.items():
        np.testing.assert_allclose(space.project(z_nd), whole[name], rtol=1e-5, atol=1e-5)
