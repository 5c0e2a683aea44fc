"""Which columns are negatives of which rows: masks [B, N] for `nested_info_nce`.

Columns are the positives of the batch, then further ones (`extra_negatives`) in blocks of [B]:
hard negatives, or anchors. True where a column may be pushed away; pairs are always True.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mrl_jax.losses.lift import unit_length


def ids_mask(
    anchor_id_b: jax.Array, positive_id_b: jax.Array, negative_ids: Sequence[jax.Array] = ()
) -> jax.Array:
    """False where a column is the same text as a row's anchor or positive, or of an equal anchor.

    Args:
      anchor_id_b: [B] integers; equal ids mean the same text, or the same group, on any side.
      positive_id_b: [B].
      negative_ids: [B] for each hard negative; below 0 where a row has none, a column that is
        nobody's negative.

    Returns:
      [B, N] bool, N = B (1 + number of hard negatives).

    Raises:
      ValueError: ids that are not [B] integers.
    """
    for name, id_b in (
        ("anchor_id_b", anchor_id_b),
        ("positive_id_b", positive_id_b),
        *((f"negative_ids[{i}]", id_b) for i, id_b in enumerate(negative_ids)),
    ):
        if id_b.shape != (anchor_id_b.size,) or not jnp.issubdtype(id_b.dtype, jnp.integer):
            raise ValueError(
                f"{name} must be [{anchor_id_b.size}] integers, got {id_b.shape} {id_b.dtype}"
            )
    id_n = jnp.concatenate([positive_id_b, *negative_ids])
    same_bn = (id_n[None] == anchor_id_b[:, None]) | (id_n[None] == positive_id_b[:, None])
    batch = anchor_id_b.size
    # The positive of an equal anchor is also right for this one; its hard negatives are wrong.
    same_bn = same_bn.at[:, :batch].set(
        same_bn[:, :batch] | (anchor_id_b[:, None] == anchor_id_b[None])
    )
    missing_n = jnp.arange(id_n.size) >= batch
    keep_bn = ~same_bn & ~(missing_n & (id_n < 0))[None]
    return keep_bn | jnp.eye(*keep_bn.shape, dtype=bool)


def guided_mask(
    anchor_bd: jax.Array, positive_bd: jax.Array, negatives: Sequence[jax.Array] = ()
) -> jax.Array:
    """False where a guide finds a column nearer to the row's anchor than its positive is.

    Such a column is likely another right answer. The embeddings [B, D] are the guide's.

    Returns:
      [B, N] bool, N = B (1 + number of hard negatives).

    Source: GISTEmbed, arXiv 2402.16829, section 3.
    """
    columns_nd = jnp.concatenate([positive_bd, *negatives])
    similarity_bn = unit_length(anchor_bd) @ unit_length(columns_nd).T
    farther_bn = similarity_bn <= jnp.diagonal(similarity_bn)[:, None]
    return farther_bn | jnp.eye(*similarity_bn.shape, dtype=bool)
