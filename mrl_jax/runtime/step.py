"""The train state, a plain pytree, and the pure function that advances it."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mrl_jax.errors import NonFiniteError
from mrl_jax.runtime.task import Task

State = dict[str, Any]

# Batch statistics are averaged like the parameters they were measured with: those of the latest
# parameters do not fit averaged ones.
AVERAGED = ("params", "model_state")


def init_state(
    task: Task,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    *,
    ema: bool = False,
) -> State:
    """The state before the first step: step, params, model_state, opt_state.

    With `ema` also `ema_params` and `ema_model_state`, moving averages of these two.
    """
    params, model_state = task.init(key)
    state = {
        "step": jnp.zeros((), jnp.int32),
        "params": params,
        "model_state": model_state,
        "opt_state": optimizer.init(params),
    }
    if ema:
        for name in AVERAGED:
            # A copy: a state whose buffer appears twice cannot be donated.
            state[f"ema_{name}"] = jax.tree.map(jnp.copy, state[name])
    return state


def evaluated(state: State) -> tuple[Any, Any]:
    """(parameters, model state) to measure and to hand out: moving averages where there are any."""
    params, model_state = (state.get(f"ema_{name}", state[name]) for name in AVERAGED)
    return params, model_state


def check_finite(at_step: int, metrics: dict[str, np.ndarray], dims: Sequence[int]) -> None:
    """Stops a run whose loss or gradient is no longer a number.

    Raises:
      NonFiniteError: names the step and the granularities whose loss is NaN or infinite.
    """
    bad = [
        str(dim) for dim, loss in zip(dims, metrics["loss_g"], strict=True) if not np.isfinite(loss)
    ]
    if bad:
        raise NonFiniteError(f"step {at_step}: loss is not finite at granularity {', '.join(bad)}")
    for name in ("loss", "grad_norm"):
        if not math.isfinite(metrics[name]):
            raise NonFiniteError(f"step {at_step}: {name} is not finite ({metrics[name]})")


def _gradients(task: Task, state: State, batch: dict[str, jax.Array], key: jax.Array):
    grad_fn = jax.value_and_grad(task.loss, has_aux=True)
    (loss, (loss_g, model_state)), grads = grad_fn(
        state["params"], state["model_state"], batch, key
    )
    return (loss, loss_g, grads), model_state


def _accumulated_gradients(
    task: Task, state: State, batch: dict[str, jax.Array], key: jax.Array, parts: int
):
    """`_gradients` of the whole batch from one part after the other, which takes less memory."""

    def cut(x):
        # Every parts-th row, so that each device keeps the rows it has.
        return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)

    def step(carry, part):
        sums, model_state, count = carry
        index, rows = part
        found, model_state = _gradients(
            task, {**state, "model_state": model_state}, rows, jax.random.fold_in(key, index)
        )
        valid = (rows["mask"] > 0).sum()
        sums = jax.tree.map(lambda total, x: total + valid * x, sums, found)
        return (sums, model_state, count + valid), None

    parts_of_batch = jax.tree.map(cut, batch)
    first = jax.tree.map(lambda x: x[0], parts_of_batch)
    shapes, _ = jax.eval_shape(lambda: _gradients(task, state, first, key))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (sums, model_state, count), _ = jax.lax.scan(
        step, (zeros, state["model_state"], 0), (jnp.arange(parts), parts_of_batch)
    )
    return jax.tree.map(lambda total: total / jnp.maximum(count, 1), sums), model_state


def train_step(
    state: State,
    batch: dict[str, jax.Array],
    key: jax.Array,
    *,
    task: Task,
    optimizer: optax.GradientTransformation,
    accumulate: int = 1,
    ema_decay: float = 0.0,
) -> tuple[State, dict[str, jax.Array]]:
    """One optimiser update. Pure: the same arguments give the same result, bit for bit.

    Args:
      state: as from `init_state`.
      batch: as the task reads it.
      key: of the whole run; the step's own key is folded from it.
      task: loss function.
      optimizer: what made `opt_state`.
      accumulate: parts of the batch that go through the network one after the other. Their
        gradients are averaged over examples; batch-norm sees each part by itself.
      ema_decay: share of the moving averages that stays per step, where the state has them; in
        step t, counted from 0, at most (1 + t) / (10 + t), so that the initial values fade.

    Returns:
      The next state, and metrics of this step (computed with the parameters before the update):
      loss, loss_g [G] per granularity, grad_norm.
    """
    step_key = jax.random.fold_in(key, state["step"])
    if accumulate > 1:
        found, model_state = _accumulated_gradients(task, state, batch, step_key, accumulate)
    else:
        found, model_state = _gradients(task, state, batch, step_key)
    loss, loss_g, grads = found
    updates, opt_state = optimizer.update(grads, state["opt_state"], state["params"])
    new_state = {
        "step": state["step"] + 1,
        "params": optax.apply_updates(state["params"], updates),
        "model_state": model_state,
        "opt_state": opt_state,
    }
    if "ema_params" in state:
        keep = jnp.minimum(ema_decay, (1 + state["step"]) / (10 + state["step"]))
        for name in AVERAGED:
            new_state[f"ema_{name}"] = jax.tree.map(
                # A step towards the new value, so that what never changes stays as it is.
                lambda old, new: old + (1 - keep) * (new - old),
                state[f"ema_{name}"],
                new_state[name],
            )
    return new_state, {"loss": loss, "loss_g": loss_g, "grad_norm": optax.tree.norm(grads)}
