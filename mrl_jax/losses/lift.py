"""Any loss on embeddings becomes a loss on all their prefixes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from mrl_jax.nesting import Nesting

# A shorter vector has no meaningful direction (as in torch.nn.functional.normalize).
SMALLEST_NORM = 1e-12


def unit_length(x: jax.Array) -> jax.Array:
    """The vectors x [..., D], scaled to length 1; the norm is taken in at least float32.

    A vector shorter than 1e-12 becomes zero and gets a zero gradient: a ReLU network can have short
    prefixes of zeros, and dividing by a floor would give them gradients of 1e12.
    """
    squares = jnp.square(x.astype(jnp.promote_types(x.dtype, jnp.float32))).sum(-1, keepdims=True)
    present = squares > SMALLEST_NORM**2
    scale = jnp.where(present, lax.rsqrt(jnp.where(present, squares, 1)), 0)
    return (x * scale).astype(x.dtype)


def nested(
    loss_fn: Callable[..., jax.Array],
    nesting: Nesting,
    *,
    normalize: bool = True,
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Lifts a loss on embeddings to the weighted sum of that loss over their prefixes.

    `lifted(*embeddings, **context) -> (loss, per_granularity_g)`. What is positional is an
    embedding and is cut; what is named goes to `loss_fn` as it is, at every granularity. So a
    full-width teacher, or scores of a batch as large as the embedding, are never cut by accident:

        lifted = nested(pairs.cosent, Nesting((64, 256, 768)))
        loss, loss_g = lifted(a_bd, b_bd, scores_b=scores_b)

    For contrastive losses and classifiers `mrl_jax.kernels` has forms that share the work of the
    prefixes, at the cost of about one full-width loss.

    Args:
      loss_fn: `loss_fn(*prefixes, **context) -> scalar`, pure.
      nesting: prefix lengths and weights c_m. Dims beyond `nesting.width` are not read.
      normalize: scale every prefix to unit length, as cosine retrieval will.

    Returns:
      The lifted function, of embeddings [..., >= m_G], floating point. Its results, float32 or
      wider:
        loss: sum over granularities of c_m times the loss at m.
        per_granularity_g: [G], the loss at each m, unweighted.

    Raises:
      ValueError: from the lifted function, if an embedding is too narrow or not an embedding, or
        `loss_fn` gives no scalar.

    Source: arXiv 2205.13147, eq. 1.
    """

    def at(m: int, embeddings, context) -> jax.Array:
        prefixes = [x[..., :m] for x in embeddings]
        if normalize:
            prefixes = [unit_length(x) for x in prefixes]
        return _scalar(loss_fn(*prefixes, **context))

    def lifted(*embeddings: jax.Array, **context):
        _check_embeddings(embeddings, nesting)
        per_granularity_g = jnp.stack([at(m, embeddings, context) for m in nesting.dims])
        weights_g = jnp.asarray(nesting.weights, per_granularity_g.dtype)
        return (weights_g * per_granularity_g).sum(), per_granularity_g

    return lifted


def _check_embeddings(embeddings: tuple[jax.Array, ...], nesting: Nesting) -> None:
    if not embeddings:
        raise ValueError("the lifted loss needs at least one embedding as a positional argument")
    for position, x in enumerate(embeddings):
        shape = jnp.shape(x)
        if len(shape) < 2 or not jnp.issubdtype(jnp.result_type(x), jnp.floating):
            raise ValueError(
                f"positional argument {position} must be floating-point embeddings [..., D], got "
                f"{shape} {jnp.result_type(x)}; labels and the like are keyword arguments"
            )
        if shape[-1] < nesting.width:
            raise ValueError(
                f"positional argument {position} must be embeddings [..., >= {nesting.width}], "
                f"got {shape}"
            )


def _scalar(loss) -> jax.Array:
    if isinstance(loss, (tuple, list, dict)) or loss is None:
        raise ValueError(f"loss_fn must return a scalar, got a {type(loss).__name__}")
    if jnp.shape(loss) != ():
        raise ValueError(f"loss_fn must return a scalar, got shape {jnp.shape(loss)}")
    loss = jnp.asarray(loss)
    return loss.astype(jnp.promote_types(loss.dtype, jnp.float32))
