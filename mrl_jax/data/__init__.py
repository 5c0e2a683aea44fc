"""Where examples come from, and which of them make up the batch of a step."""

from mrl_jax.data.augment import Augmentation
from mrl_jax.data.labelled_images import SOURCES, Dataset, Options, Split, load
from mrl_jax.data.loader import Batches, padded_batches, train_rows
from mrl_jax.data.stream import Stream

__all__ = [
    "SOURCES",
    "Augmentation",
    "Batches",
    "Dataset",
    "Options",
    "Split",
    "Stream",
    "load",
    "padded_batches",
    "train_rows",
]
