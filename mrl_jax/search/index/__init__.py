"""Indexes on disk: nearest rows among millions of vectors, added to and deleted from."""

from mrl_jax.search.index.index import Index
from mrl_jax.search.index.rows import NO_ID

__all__ = ["NO_ID", "Index"]
