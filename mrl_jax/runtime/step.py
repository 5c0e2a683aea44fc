"""The train state, one plain pytree, and the pure function that advances it by a step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from mrl_jax.tasks import Classification

State = dict[str, Any]


def init_state(
    task: Classification, optimizer: optax.GradientTransformation, key: jax.Array
) -> State:
    """The state before the first step: step, params, model_state, opt_state."""
    params, model_state = task.init(key)
    return {
        "step": jnp.zeros((), jnp.int32),
        "params": params,
        "model_state": model_state,
        "opt_state": optimizer.init(params),
    }


def train_step(
    state: State,
    batch: dict[str, jax.Array],
    key: jax.Array,
    *,
    task: Classification,
    optimizer: optax.GradientTransformation,
) -> tuple[State, dict[str, jax.Array]]:
    """One optimiser update. Pure: the same arguments give the same result, bit for bit.

    Args:
      state: as from `init_state`.
      batch: as the task reads it.
      key: of the whole run; the step's own key is folded from it.
      task: loss function.
      optimizer: what made `opt_state`.

    Returns:
      The next state, and metrics of this step (computed with the parameters before the update):
      loss, loss_g [G] per granularity, grad_norm.
    """
    step_key = jax.random.fold_in(key, state["step"])
    grad_fn = jax.value_and_grad(task.loss, has_aux=True)
    (loss, (loss_g, model_state)), grads = grad_fn(
        state["params"], state["model_state"], batch, step_key
    )
    updates, opt_state = optimizer.update(grads, state["opt_state"], state["params"])
    new_state = {
        "step": state["step"] + 1,
        "params": optax.apply_updates(state["params"], updates),
        "model_state": model_state,
        "opt_state": opt_state,
    }
    return new_state, {"loss": loss, "loss_g": loss_g, "grad_norm": optax.tree.norm(grads)}
