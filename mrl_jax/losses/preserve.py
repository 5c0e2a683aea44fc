"""Losses that keep the relations of whole frozen vectors to each other in every prefix.

Each is of one granularity; `lift.nested` makes it a loss on all prefixes.
Source: Matryoshka-Adaptor, arXiv 2407.20243.
"""

import jax
import jax.numpy as jnp

from mrl_jax.losses.lift import unit_length
from mrl_jax.losses.rows import cosines_of_all, mean_of, other_rows, valid_rows


def preserve_pairs(
    adapted_bd: jax.Array, *, source_bd: jax.Array, mask_b: jax.Array | None = None
) -> jax.Array:
    """The mean absolute difference of all pairs' cosines before and after.

    `source_bd` [B, any] are the vectors before the adaptor. 0 if fewer than two rows count.

    Source: Matryoshka-Adaptor, arXiv 2407.20243, eq. 1.
    """
    differs_bb, _, others_bb = _differences(adapted_bd, source_bd, mask_b)
    return mean_of(differs_bb, others_bb)


def preserve_neighbours(
    adapted_bd: jax.Array,
    *,
    source_bd: jax.Array,
    neighbours: int = 10,
    mask_b: jax.Array | None = None,
) -> jax.Array:
    """As `preserve_pairs`, but of every row with its nearest rows of the batch before.

    In a batch with fewer rows that count, with all of them.

    Source: Matryoshka-Adaptor, arXiv 2407.20243, eq. 2.
    """
    if neighbours < 1:
        raise ValueError(f"neighbours must be >= 1, got {neighbours}")
    differs_bb, before_bb, others_bb = _differences(adapted_bd, source_bd, mask_b)
    cosine_bb = jnp.where(others_bb, before_bb, -jnp.inf)
    _, nearest_bk = jax.lax.top_k(cosine_bb, min(neighbours, len(cosine_bb)))
    differs_bk, others_bk = (
        jnp.take_along_axis(x, nearest_bk, axis=1) for x in (differs_bb, others_bb)
    )
    return mean_of(differs_bk, others_bk)


def reconstruct(
    adapted_bd: jax.Array, source_bd: jax.Array, *, mask_b: jax.Array | None = None
) -> jax.Array:
    """The mean Euclidean distance of vectors [B, D] before and after, over the length before.

    Of whole vectors, not of prefixes: this keeps an adaptor near the identity.

    Source: Matryoshka-Adaptor, arXiv 2407.20243, eq. 3.
    """
    if adapted_bd.shape != source_bd.shape:
        raise ValueError(
            f"vectors must be as wide after as before, got {adapted_bd.shape} and {source_bd.shape}"
        )
    valid_b = valid_rows(mask_b, adapted_bd)
    squares_b, lengths_b = (
        jnp.square(jnp.where(valid_b[:, None], x, 0)).sum(-1)
        for x in (adapted_bd - source_bd, source_bd)
    )
    # The root has no gradient at 0, which is where the adaptor begins.
    moved_b = jnp.where(squares_b > 0, jnp.sqrt(jnp.where(squares_b > 0, squares_b, 1)), 0)
    lengths_b = jnp.sqrt(jnp.where(lengths_b > 0, lengths_b, 1))
    return mean_of(moved_b / lengths_b, valid_b)


def rank(
    query_bd: jax.Array,
    document_bd: jax.Array,
    *,
    scale: float = 20.0,
    keep_bb: jax.Array | None = None,
    mask_b: jax.Array | None = None,
) -> jax.Array:
    """The mean of log(1 + exp(scale (cos of another document - cos of the row's own))).

    Row i of one belongs to row i of the other; all other documents of the batch are worse answers,
    except where `keep_bb` [B, B] bool is False, as `negatives.ids_mask` is for duplicates.

    Source: Matryoshka-Adaptor, arXiv 2407.20243, eq. 5, with grades of 1 and 0 and a scale.
    """
    if not scale > 0:
        raise ValueError(f"scale must be > 0, got {scale}")
    if query_bd.shape != document_bd.shape:
        raise ValueError(
            f"queries and documents must be alike, got {query_bd.shape} and {document_bd.shape}"
        )
    valid_b = valid_rows(mask_b, query_bd)
    query_bd, document_bd = (
        unit_length(jnp.where(valid_b[:, None], x, 0)) for x in (query_bd, document_bd)
    )
    cosine_bb = query_bd @ document_bd.T
    others_bb = other_rows(valid_b)
    if keep_bb is not None:
        others_bb &= keep_bb
    lead_bb = jnp.diagonal(cosine_bb)[:, None] - cosine_bb
    return mean_of(jax.nn.softplus(-scale * lead_bb), others_bb)


def _differences(adapted_bd, source_bd, mask_b):
    """For all pairs of rows [B, B]: how far cosines differ, the cosines before, which count."""
    if source_bd.ndim != 2 or len(source_bd) != len(adapted_bd):
        raise ValueError(f"source_bd must be [{len(adapted_bd)}, any], got {source_bd.shape}")
    valid_b = valid_rows(mask_b, adapted_bd)
    before_bb = jax.lax.stop_gradient(cosines_of_all(valid_b, source_bd))
    return jnp.abs(cosines_of_all(valid_b, adapted_bd) - before_bb), before_bb, other_rows(valid_b)
