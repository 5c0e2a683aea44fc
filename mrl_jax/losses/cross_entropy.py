"""Nested losses as pure functions of arrays: (total, per-granularity vector)."""

import jax
import jax.numpy as jnp

from mrl_jax.kernels.cross_entropy import check_targets
from mrl_jax.nesting import Nesting


def nested_cross_entropy(
    logits_gbc: jax.Array,
    labels_b: jax.Array,
    nesting: Nesting,
    *,
    label_smoothing: float = 0.0,
    mask_b: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Matryoshka classification loss: sum over m of c_m times the mean cross-entropy at m.

    arXiv 2205.13147, eq. 1. A sum over granularities, not a mean: the reference's learning rates
    assume it. Smoothing as in PyTorch: the target is (1 - s) one-hot + s / C.

    Args:
      logits_gbc: [G, B, C] logits of every granularity.
      labels_b: [B] integer classes in [0, C). Not checked here, where values are traced:
        the data sets check them.
      nesting: gives the weights c_m; must have G dims.
      label_smoothing: s in [0, 1).
      mask_b: [B], 1 for examples that count and 0 for padding; all count where not given. A batch
        of padding alone has loss 0.

    Returns:
      loss: scalar.
      per_granularity_g: [G], the unweighted mean cross-entropy of each granularity.

    Raises:
      ValueError: shapes that do not fit together, labels that are not integers, smoothing out of
        range.
    """
    if logits_gbc.ndim != 3 or logits_gbc.shape[0] != len(nesting):
        raise ValueError(f"logits must be [{len(nesting)}, B, C], got {logits_gbc.shape}")
    check_targets(logits_gbc.shape[1], labels_b, mask_b, label_smoothing)
    logits_gbc = logits_gbc.astype(jnp.promote_types(logits_gbc.dtype, jnp.float32))
    normaliser_gb = jax.nn.logsumexp(logits_gbc, axis=-1)
    target_gb = jnp.take_along_axis(logits_gbc, labels_b[None, :, None], axis=-1)[..., 0]
    if label_smoothing:
        mean_gb = logits_gbc.mean(-1)
        target_gb = (1 - label_smoothing) * target_gb + label_smoothing * mean_gb
    loss_gb = normaliser_gb - target_gb
    if mask_b is None:
        per_granularity_g = loss_gb.mean(-1)
    else:
        # where, not a product: a padded row may hold anything, also NaN.
        valid_1b = (mask_b > 0)[None, :]
        count = jnp.maximum(valid_1b.sum(), 1)
        per_granularity_g = jnp.where(valid_1b, loss_gb, 0).sum(-1) / count
    weights_g = jnp.asarray(nesting.weights, loss_gb.dtype)
    return (weights_g * per_granularity_g).sum(), per_granularity_g
