"""The rows of a batch that count, and means and cosines of these alone."""

import jax
import jax.numpy as jnp

from mrl_jax.losses.lift import unit_length


def valid_rows(mask_b: jax.Array | None, *embeddings: jax.Array, **per_row: jax.Array) -> jax.Array:
    """The rows that count, [B] bool: where `mask_b` [B] is above 0, or all of them.

    Raises:
      ValueError: embeddings that are not all [B, D], or further arrays that are not [B].
    """
    shapes = [x.shape for x in embeddings]
    if any(len(shape) != 2 or shape != shapes[0] for shape in shapes):
        raise ValueError(f"embeddings must all be [B, D], got {', '.join(map(str, shapes))}")
    batch = shapes[0][0]
    for name, x_b in (*per_row.items(), ("mask_b", mask_b)):
        if x_b is not None and x_b.shape != (batch,):
            raise ValueError(f"{name} must be [{batch}], got {x_b.shape}")
    return jnp.ones(batch, bool) if mask_b is None else mask_b > 0


def without_padding(valid_b: jax.Array, *embeddings: jax.Array) -> list[jax.Array]:
    """The embeddings [B, D] with zeros in padded rows, float32 or wider."""
    # where, not a product: a padded row may hold anything, also NaN.
    return [
        jnp.where(valid_b[:, None], x, 0).astype(jnp.promote_types(x.dtype, jnp.float32))
        for x in embeddings
    ]


def cosines_of_all(valid_b: jax.Array, z_bd: jax.Array) -> jax.Array:
    """Cosines [B, B] of all rows with all rows; 0 where one is padding."""
    (z_bd,) = without_padding(valid_b, z_bd)
    unit_bd = unit_length(z_bd)
    return unit_bd @ unit_bd.T


def other_rows(valid_b: jax.Array) -> jax.Array:
    """Which pairs of rows count, [B, B] bool: a valid row with another valid one."""
    return valid_b[:, None] & valid_b[None] & ~jnp.eye(valid_b.size, dtype=bool)


def mean_of(values: jax.Array, counts: jax.Array) -> jax.Array:
    """The mean of the values that count; 0 if none does."""
    return jnp.where(counts, values, 0).sum() / jnp.maximum(counts.sum(), 1)
