import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrl_jax.kernels import prefix_matmul, prefix_norms
from mrl_jax.kernels.prefix import prefix_dots

DIMS = (1, 3, 8, 13)


def test_products_of_every_prefix_equal_slices_in_float64():
    rng = np.random.default_rng(0)
    a_bd, w_dc = rng.normal(size=(5, 16)), rng.normal(size=(13, 7))
    expected = np.stack([a_bd[:, :m] @ w_dc[:m] for m in DIMS])
    found = prefix_matmul(jnp.float32(a_bd), jnp.float32(w_dc), DIMS)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_gradients_equal_those_of_slices_in_float64():
    rng = np.random.default_rng(1)
    a_bd, w_dc = rng.normal(size=(5, 16)), rng.normal(size=(13, 7))
    upstream_gbc = rng.normal(size=(len(DIMS), 5, 7))
    # d/da sum(u * a[:, :m] @ w[:m]) and d/dw of the same, written out.
    da, dw = np.zeros_like(a_bd), np.zeros_like(w_dc)
    for u_bc, m in zip(upstream_gbc, DIMS, strict=True):
        da[:, :m] += u_bc @ w_dc[:m].T
        dw[:m] += a_bd[:, :m].T @ u_bc

    def loss(a, w):
        return (prefix_matmul(a, w, DIMS) * jnp.float32(upstream_gbc)).sum()

    found = jax.grad(loss, (0, 1))(jnp.float32(a_bd), jnp.float32(w_dc))
    np.testing.assert_allclose(found[0], da, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[1], dw, rtol=1e-5, atol=1e-5)


def test_bfloat16_inputs_are_summed_in_float32():
    a_bd = jnp.ones((1, 1024), jnp.bfloat16)
    w_dc = jnp.ones((1024, 1), jnp.bfloat16)
    found = prefix_matmul(a_bd, w_dc, (257, 1024))
    assert found.dtype == jnp.float32
    # A bfloat16 sum has 8 bits: 257 would come out as 256.
    np.testing.assert_array_equal(found[:, 0, 0], [257, 1024])


def test_norms_of_every_prefix():
    a_bd = np.random.default_rng(2).normal(size=(5, 16))
    expected = np.stack([np.linalg.norm(a_bd[:, :m], axis=1) for m in DIMS])
    np.testing.assert_allclose(prefix_norms(jnp.float32(a_bd), DIMS), expected, rtol=1e-6)


def test_products_of_rows_at_every_prefix():
    a_bd, b_bd = np.random.default_rng(3).normal(size=(2, 5, 16))
    expected = np.stack([(a_bd[:, :m] * b_bd[:, :m]).sum(1) for m in DIMS])
    found = prefix_dots(jnp.float32(a_bd), jnp.float32(b_bd), DIMS)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_norm_of_a_zero_vector_has_a_finite_gradient():
    gradient = jax.grad(lambda a: prefix_norms(a, (2, 4)).sum())(jnp.zeros((3, 4)))
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("shape", [(4, 7), (12, 7)])
def test_prefix_beyond_the_operands_is_refused(shape):
    with pytest.raises(ValueError, match="prefix 13"):
        prefix_matmul(jnp.zeros((2, 16)), jnp.zeros(shape), DIMS)
    with pytest.raises(ValueError, match="prefix 13"):
        prefix_norms(jnp.zeros((2, shape[0])), DIMS)
