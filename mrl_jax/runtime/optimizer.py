"""The optimiser and its learning-rate schedule, from plain numbers."""

import re

import jax
import optax

from mrl_jax.runtime.mesh import path_name


def schedule(learning_rate: float, warmup_steps: int, steps: int) -> optax.Schedule:
    """Linear from 0 to `learning_rate` in `warmup_steps`, then a cosine to 0 at `steps`.

    Raises:
      ValueError: a rate that is not positive, or a warm-up that leaves no step for the rest.
    """
    if not learning_rate > 0:
        raise ValueError(f"learning_rate must be > 0, got {learning_rate}")
    if not 0 <= warmup_steps < steps:
        raise ValueError(f"warmup_steps must be in [0, steps={steps}), got {warmup_steps}")
    return optax.schedules.warmup_cosine_decay_schedule(0.0, learning_rate, warmup_steps, steps)


def make_optimizer(
    name: str, rate: optax.Schedule, *, weight_decay: float, decay_mask: str
) -> optax.GradientTransformation:
    """adamw (decay decoupled from the gradient) or sgd (Nesterov momentum 0.9, decay added to it).

    Args:
      name: "adamw" or "sgd".
      rate: learning rate by step.
      weight_decay: 0 switches it off.
      decay_mask: regex; parameters whose path ("head/kernel") contains it are decayed.

    Raises:
      ValueError: unknown name, negative decay, or a mask that is no regex.
    """
    if weight_decay < 0:
        raise ValueError(f"weight_decay must be >= 0, got {weight_decay}")
    try:
        pattern = re.compile(decay_mask)
    except re.error as error:
        raise ValueError(f"decay_mask {decay_mask!r} is no regular expression: {error}") from None

    def mask(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: bool(pattern.search(path_name(path))), params
        )

    if name == "adamw":
        return optax.adamw(rate, weight_decay=weight_decay, mask=mask)
    if name == "sgd":
        return optax.chain(
            optax.add_decayed_weights(weight_decay, mask),
            optax.sgd(rate, momentum=0.9, nesterov=True),
        )
    raise ValueError(f"optimizer name must be adamw or sgd, got {name!r}")
