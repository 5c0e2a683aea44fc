"""The nested maths as plain functions of arrays."""

from mrl_jax.kernels.contrastive import nested_info_nce, nested_sigmoid_loss
from mrl_jax.kernels.cross_entropy import nested_linear_cross_entropy
from mrl_jax.kernels.prefix import prefix_matmul, prefix_norms

__all__ = [
    "nested_info_nce",
    "nested_linear_cross_entropy",
    "nested_sigmoid_loss",
    "prefix_matmul",
    "prefix_norms",
]
