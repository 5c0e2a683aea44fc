"""All prefixes of a product for the price of one: running sums over blocks of dims."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mrl_jax.nesting import blocks_of

# For sums written as products: on TPU and GPU, matmuls of float32 round their inputs otherwise.
exact_dot = functools.partial(jnp.dot, precision=jax.lax.Precision.HIGHEST)


def prefix_matmul(a_bd: jax.Array, w_dc: jax.Array, dims: Sequence[int]) -> jax.Array:
    """The products a[:, :m] @ w[:m] for every m of `dims`, for the FLOPs of the largest alone.

    The product over the first m_g dims is the one over m_{g-1} dims plus one block product, so
    MRL-E's logits (arXiv 2205.13147, section 3) and nested similarity matrices need each dim only
    once. Block products are accumulated in at least float32, whatever the inputs: a running sum
    kept in bfloat16 is off by 2e-2 of a logit.

    Args:
      a_bd: rows.
      w_dc: columns.
      dims: increasing prefix lengths, the last at most D.

    Returns:
      [G, B, C], float32 (float64 if the inputs are).
    """
    if dims[-1] > min(a_bd.shape[-1], w_dc.shape[0]):
        raise ValueError(f"prefix {dims[-1]} exceeds operands of {a_bd.shape} and {w_dc.shape}")
    dtype = jnp.promote_types(jnp.result_type(a_bd, w_dc), jnp.float32)
    running_bc, products = None, []
    for lo, hi in blocks_of(dims):
        block_bc = jnp.matmul(a_bd[:, lo:hi], w_dc[lo:hi], preferred_element_type=dtype)
        running_bc = block_bc if running_bc is None else running_bc + block_bc
        products.append(running_bc)
    return jnp.stack(products)


def prefix_norms(a_bd: jax.Array, dims: Sequence[int], epsilon: float = 1e-12) -> jax.Array:
    """The Euclidean norm of every prefix of every row, [G, B], at least `epsilon`.

    The floor is taken before the root, so the gradient at a zero vector is zero and not NaN.
    """
    if dims[-1] > a_bd.shape[-1]:
        raise ValueError(f"prefix {dims[-1]} exceeds rows of {a_bd.shape}")
    squares_bd = jnp.square(a_bd.astype(jnp.promote_types(a_bd.dtype, jnp.float32)))
    blocks_gb = jnp.stack([squares_bd[:, lo:hi].sum(-1) for lo, hi in blocks_of(dims)])
    return jnp.sqrt(jnp.maximum(jnp.cumsum(blocks_gb, axis=0), epsilon**2))


def prefix_dots(x_bd: jax.Array, y_bd: jax.Array, dims: Sequence[int]) -> jax.Array:
    """The products x_i[:m] . y_i[:m] of row i of both, for every m of `dims`, [G, B].

    Float32 (float64 if the inputs are).
    """
    dtype = jnp.promote_types(jnp.result_type(x_bd, y_bd), jnp.float32)
    # A product with zeros and ones: the gradient of a slice per prefix would be [G, B, D].
    inside_dg = np.arange(x_bd.shape[1])[:, None] < np.array(dims)[None]
    products_bd = x_bd.astype(dtype) * y_bd.astype(dtype)
    inside_dg = jnp.asarray(inside_dg, dtype)
    return exact_dot(products_bd, inside_dg).T
