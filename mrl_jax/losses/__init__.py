"""Losses on embeddings, and the function that lifts them to every prefix."""

from mrl_jax.losses import pairs
from mrl_jax.losses.cross_entropy import nested_cross_entropy
from mrl_jax.losses.lift import nested

__all__ = ["nested", "nested_cross_entropy", "pairs"]
