"""The functions between the two layers of a transformer's perceptron."""

import functools
from typing import Literal, get_args

import flax.linen as nn
import jax

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"]


def _quick_gelu(x: jax.Array) -> jax.Array:
    """The approximation of the first CLIPs (arXiv 2103.00020)."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
    "quick_gelu": _quick_gelu,
    "relu": nn.relu,
    "silu": nn.silu,
}
assert tuple(ACTIVATIONS) == get_args(Activation)
