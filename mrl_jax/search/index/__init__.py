"""Indexes on disk: nearest rows among millions of vectors, added to and deleted from."""

from mrl_jax.search.index.index import NO_ID, Index

__all__ = ["NO_ID", "Index"]
