"""Other test sets of the classes a model was trained on."""

from typing import NamedTuple

from mrl_jax.data.sources import Split
from mrl_jax.data.stream import Stream


class Shift(NamedTuple):
    """Images from elsewhere, labelled with training classes, and which classes those are."""

    split: Split | Stream
    classes: tuple[int, ...]
