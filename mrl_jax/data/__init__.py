"""Where examples come from, and which of them make up the batch of a step."""

from mrl_jax.data.loader import Batches, padded_batches, train_rows
from mrl_jax.data.sources import Dataset, Split, load

__all__ = ["Batches", "Dataset", "Split", "load", "padded_batches", "train_rows"]
