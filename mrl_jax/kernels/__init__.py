"""The nested maths as plain functions of arrays."""

from mrl_jax.kernels.prefix import prefix_matmul, prefix_norms

__all__ = ["prefix_matmul", "prefix_norms"]
