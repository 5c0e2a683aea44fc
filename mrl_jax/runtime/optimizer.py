"""The optimiser and its learning-rate schedule, from plain numbers."""

import re
from typing import Any

import jax
import optax

from mrl_jax.errors import shown
from mrl_jax.runtime.mesh import path_name

SCHEDULES = ("cosine", "linear")
OPTIMIZERS = ("adamw", "sgd", "adafactor")


def schedule(name: str, learning_rate: float, warmup_steps: int, steps: int) -> optax.Schedule:
    """Linear from about 0 to `learning_rate` in `warmup_steps`, then down to 0 at `steps`.

    It goes down as `name` says: "cosine", or "linear" as in the reference, whose warm-up starts at
    1e-4 times the peak (its default_config.yaml: 2 of 40 epochs).

    Raises:
      ValueError: unknown name, a rate that is not positive, or no step left after the warm-up.
    """
    if name not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}; got {shown(name)}")
    if not learning_rate > 0:
        raise ValueError(f"learning_rate must be > 0, got {learning_rate}")
    if not 0 <= warmup_steps < steps:
        raise ValueError(f"warmup_steps must be in [0, steps={steps}), got {warmup_steps}")
    if name == "cosine":
        return optax.schedules.warmup_cosine_decay_schedule(0.0, learning_rate, warmup_steps, steps)
    down = optax.schedules.linear_schedule(learning_rate, 0.0, steps - warmup_steps)
    if not warmup_steps:
        return down
    up = optax.schedules.linear_schedule(1e-4 * learning_rate, learning_rate, warmup_steps)
    return optax.schedules.join_schedules([up, down], [warmup_steps])


def _matches(pattern: re.Pattern, params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: bool(pattern.search(path_name(path))), params
    )


def check_decay_mask(decay_mask: str, params: Any) -> None:
    """Refuses a mask that decays nothing.

    Raises:
      ValueError: no path of a parameter contains it.
    """
    if not any(jax.tree.leaves(_matches(re.compile(decay_mask), params))):
        raise ValueError(f"decay_mask {shown(decay_mask)} matches no parameter")


def make_optimizer(
    name: str,
    rate: optax.Schedule,
    *,
    weight_decay: float,
    decay_mask: str,
    nesterov: bool = False,
    clip_norm: float = 0.0,
) -> optax.GradientTransformation:
    """adamw, sgd with momentum 0.9, or adafactor.

    Args:
      name: "adamw" (decay decoupled from the gradient), "sgd" (decay added to the gradient, as in
        PyTorch) or "adafactor" (arXiv 1804.04235, without momentum; decay decoupled).
      rate: learning rate by step.
      weight_decay: 0 switches it off.
      decay_mask: regex; parameters whose path ("head/kernel") contains it are decayed.
      nesterov: Nesterov momentum, of sgd only.
      clip_norm: gradients of a larger global norm are scaled to this; 0 switches it off.

    Raises:
      ValueError: unknown name, negative numbers, a mask that is not a regex, an option that
        the optimiser does not have.
    """
    for key, value in (("weight_decay", weight_decay), ("clip_norm", clip_norm)):
        if not value >= 0:  # nor is NaN
            raise ValueError(f"{key} must be >= 0, got {value}")
    try:
        pattern = re.compile(decay_mask)
    except re.error as error:
        raise ValueError(
            f"decay_mask {shown(decay_mask)} is not a regular expression: {error}"
        ) from None
    if nesterov and name != "sgd":
        raise ValueError(f"nesterov is an option of sgd, not of {name}")

    def mask(params):
        return _matches(pattern, params)

    if name == "adamw":
        main = optax.adamw(rate, weight_decay=weight_decay, mask=mask)
    elif name == "sgd":
        main = optax.chain(
            optax.add_decayed_weights(weight_decay, mask),
            optax.sgd(rate, momentum=0.9, nesterov=nesterov),
        )
    elif name == "adafactor":
        main = optax.chain(
            optax.adafactor(None),
            optax.scale(-1.0),  # it turned the gradient into a step down, and the rate does so too
            optax.add_decayed_weights(weight_decay, mask),
            optax.scale_by_learning_rate(rate),
        )
    else:
        raise ValueError(
            f"optimizer name must be one of {', '.join(OPTIMIZERS)}; got {shown(name)}"
        )
    return optax.chain(optax.clip_by_global_norm(clip_norm), main) if clip_norm else main
