"""A weighted sum of values whose gradients are taken in the forward pass."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

Tree = Any


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def weighted_sum(
    values: Callable, values_and_gradients: Callable, inputs: Tree, others: Tree, weights_gb
) -> tuple[jax.Array, jax.Array]:
    """(sum of weights_gb * values, values [G, B]), differentiable in inputs and weights.

    For values that pass through something large, such as logits, which should not live until the
    backward pass: the gradients are taken while it is at hand, and only scaled afterwards. They are
    exact for both outputs; those of the second one cost another run.

    Args:
      values: (inputs, others) -> [G, B]; runs where nobody differentiates.
      values_and_gradients: (inputs, others, weights_gb) -> ([G, B], gradients of the weighted sum,
        a tree like `inputs`).
      inputs: arrays.
      others: arrays without gradient.
      weights_gb: [G, B].
    """
    value_gb = values(inputs, others)
    return _total(weights_gb, value_gb), value_gb


def _total(weights_gb, value_gb):
    # where, not a product alone: a log-sum-exp of nothing is -inf, whatever its weight.
    return jnp.where(weights_gb == 0, 0, weights_gb * value_gb).sum()


def _forward(values, values_and_gradients, *arguments):
    inputs, others, weights_gb = jax.tree.map(
        lambda x: x.value, arguments, is_leaf=lambda x: hasattr(x, "perturbed")
    )
    value_gb, gradients = values_and_gradients(inputs, others, weights_gb)
    residuals = (inputs, others, value_gb, gradients)
    return (_total(weights_gb, value_gb), value_gb), residuals


def _backward(values, values_and_gradients, residuals, cotangents):
    inputs, others, value_gb, gradients = residuals
    dtotal, dvalue_gb = cotangents
    if isinstance(dtotal, SymbolicZero):
        dtotal = jnp.zeros(dtotal.shape, dtotal.dtype)
    gradients = jax.tree.map(lambda x: dtotal * x, gradients)
    if not isinstance(dvalue_gb, SymbolicZero):
        # Somebody differentiates the single values, too: rare, and worth one more run.
        _, more = values_and_gradients(inputs, others, dvalue_gb)
        gradients = jax.tree.map(jnp.add, gradients, more)
    dinputs = jax.tree.map(lambda d, x: d.astype(x.dtype), gradients, inputs)
    return dinputs, None, dtotal * jnp.where(value_gb == -jnp.inf, 0, value_gb)


weighted_sum.defvjp(_forward, _backward, symbolic_zeros=True)
