"""Any loss on embeddings becomes a loss on all their prefixes."""

import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from mrl_jax.nesting import Nesting

# Below this norm a vector has no direction worth following (as torch.nn.functional.normalize).
SMALLEST_NORM = 1e-12


def unit_length(x: jax.Array) -> jax.Array:
    """The vectors x [..., D], scaled to length 1; the norm is taken in at least float32.

    A vector shorter than 1e-12 becomes zero and gets a zero gradient: a ReLU network can have
    all-zero short prefixes, and dividing by a floor would give those gradients of 1e12.
    """
    squares = jnp.square(x.astype(jnp.promote_types(x.dtype, jnp.float32))).sum(-1, keepdims=True)
    present = squares > SMALLEST_NORM**2
    scale = jnp.where(present, lax.rsqrt(jnp.where(present, squares, 1)), 0)
    return (x * scale).astype(x.dtype)


def nested(
    loss_fn: Callable[..., jax.Array],
    nesting: Nesting,
    *,
    dims_per_step: int | None = None,
    normalize: bool = True,
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Lifts a loss on embeddings to the weighted sum of that loss over their prefixes.

    `lifted(*embeddings, key=None, **context) -> (loss, per_granularity_g)`. What is positional is
    an embedding and is cut; what is named goes to `loss_fn` as it is, at every granularity. So a
    full-width teacher, or scores of a batch that is as large as the embedding, are never cut by
    accident:

        lifted = nested(pair_losses.cosent, Nesting((64, 256, 768)))
        loss, loss_g = lifted(a_bd, b_bd, scores_b=scores_b)

    With `dims_per_step=k` a call computes k granularities: the largest, and k - 1 of the other
    G - 1 drawn without replacement. Those are weighted by 1/p, p = (k-1)/(G-1), so that the
    expected loss and gradient are those of all G. Prefix lengths are static shapes: the k - 1 run
    one after the other through a `lax.switch` over the G - 1 prefixes, which executes only the
    one that was drawn (under `vmap` JAX executes all of them). They are rematerialised: the
    backward pass computes them once more, and no memory is held for those that were not drawn.

    For contrastive losses and classifiers `mrl_jax.kernels` has forms that share the work of the
    prefixes, at the cost of about one full-width loss.

    Args:
      loss_fn: `loss_fn(*prefixes, **context) -> scalar`, pure. A context called `key` cannot
        reach it.
      nesting: prefix lengths and weights c_m. Dims beyond `nesting.width` are not read.
      dims_per_step: k in [1, G]; all where not given.
      normalize: scale every prefix to unit length, as cosine retrieval will.

    Returns:
      The lifted function. Its arguments: embeddings [..., >= m_G], floating point; `key`, a PRNG
      key, read only when 1 < k < G. Its results, both differentiable, float32 or wider:
        loss: sum over granularities of c_m (times 1/p where drawn) times the loss at m.
        per_granularity_g: [G], the loss at each m, unweighted; NaN for those that were not
          computed, for a number that nobody measured must not enter a mean: log them with
          `nanmean`. Gradients have no NaN, but `jax_debug_nans` stops at these values.

    Raises:
      ValueError: here, if k is out of range; from the lifted function, if an embedding is too
        narrow or not an embedding, a key is needed and missing, or `loss_fn` gives no scalar.

    Source: arXiv 2205.13147, eq. 1; drawing granularities: own.
    """
    count = len(nesting)
    drawn = _granularities_per_step(dims_per_step, count) - 1

    def at(m: int, embeddings, context) -> jax.Array:
        prefixes = [x[..., :m] for x in embeddings]
        if normalize:
            prefixes = [unit_length(x) for x in prefixes]
        return _scalar(loss_fn(*prefixes, **context))

    def draw(embeddings, key, context) -> tuple[jax.Array, jax.Array]:
        """Which granularities were drawn, and their losses: two [k - 1]."""
        if key is None:
            raise ValueError(
                f"the lifted loss needs key=... (a PRNG key) to draw {drawn} of {count - 1} dims"
            )
        # Without the inner checkpoint a switch hands on zeros for the intermediate values of every
        # branch not taken, without the outer one the scan keeps them for every step.
        prefixes = [
            jax.checkpoint(lambda embeddings, m=m: at(m, embeddings, context))
            for m in nesting.dims[:-1]
        ]
        draw_one = jax.checkpoint(lambda g: lax.switch(g, prefixes, embeddings))
        drawn_k = jax.random.permutation(key, count - 1)[:drawn]
        return drawn_k, lax.scan(lambda _, g: (None, draw_one(g)), None, drawn_k)[1]

    def lifted(*embeddings: jax.Array, key: jax.Array | None = None, **context):
        _check_embeddings(embeddings, nesting)
        if drawn == count - 1:
            per_granularity_g = jnp.stack([at(m, embeddings, context) for m in nesting.dims])
            weights_g = jnp.asarray(nesting.weights, per_granularity_g.dtype)
            return (weights_g * per_granularity_g).sum(), per_granularity_g
        largest = at(nesting.width, embeddings, context)
        weights_g = jnp.asarray(nesting.weights, largest.dtype)
        loss = weights_g[-1] * largest
        per_granularity_g = jnp.full(count, jnp.nan, largest.dtype).at[-1].set(largest)
        if drawn:
            drawn_k, losses_k = draw(embeddings, key, context)
            loss += (weights_g[drawn_k] * losses_k).sum() * ((count - 1) / drawn)
            per_granularity_g = per_granularity_g.at[drawn_k].set(losses_k)
        return loss, per_granularity_g

    return lifted


def _granularities_per_step(dims_per_step: int | None, count: int) -> int:
    if dims_per_step is None:
        return count
    try:
        legal = not isinstance(dims_per_step, bool) and 1 <= operator.index(dims_per_step) <= count
    except TypeError:
        legal = False
    if not legal:
        raise ValueError(f"dims_per_step must be an integer in [1, {count}], got {dims_per_step!r}")
    return operator.index(dims_per_step)


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
