"""Rows in chunks of one size, as `lax.scan` goes through them, and back."""

import jax
import jax.numpy as jnp
from jax import lax


def cut_rows(x: jax.Array | None, axis: int, size: int) -> jax.Array | None:
    """[..., B, ...] -> [chunks, ..., size, ...]: padded by zeros, which weigh nothing in a sum."""
    if x is None:
        return None
    rows = x.shape[axis]
    chunks = -(-rows // size)
    padding = [(0, chunks * size - rows if d == axis else 0) for d in range(x.ndim)]
    shape = (*x.shape[:axis], chunks, size, *x.shape[axis + 1 :])
    return jnp.moveaxis(jnp.pad(x, padding).reshape(shape), axis, 0)


def join_rows(x: jax.Array | None, axis: int, rows: int) -> jax.Array | None:
    """[chunks, ..., size, ...] -> [..., B, ...], without the padding."""
    if x is None:
        return None
    whole = jnp.moveaxis(x, 0, axis)
    shape = (*whole.shape[:axis], -1, *whole.shape[axis + 2 :])
    return lax.slice_in_dim(whole.reshape(shape), 0, rows, axis=axis)
