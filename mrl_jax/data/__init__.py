"""Where examples come from, and which of them make up the batch of a step."""

from mrl_jax.data.augment import Augmentation
from mrl_jax.data.labelled_images import SOURCES, Dataset, Split, check_options, load
from mrl_jax.data.loader import Batches, padded_batches, train_rows
from mrl_jax.data.stream import Stream

__all__ = [
    "SOURCES",
    "Augmentation",
    "Batches",
    "Dataset",
    "Split",
    "Stream",
    "check_options",
    "load",
    "padded_batches",
    "train_rows",
]
