"""Searching nested embeddings; everything here sees only arrays."""

from mrl_jax.search.device.exact import top_k

__all__ = ["top_k"]
