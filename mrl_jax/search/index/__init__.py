"""Indexes in folders: nearest rows among millions of vectors, added to and deleted from."""

from mrl_jax.search.index.ids import NO_ID
from mrl_jax.search.index.index import Index

__all__ = ["NO_ID", "Index"]
