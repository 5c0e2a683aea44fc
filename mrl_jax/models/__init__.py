"""Backbones: Flax modules that turn a batch of images into embeddings, `x_bhwc -> z_bd`."""

import flax.linen as nn

from mrl_jax.models.cnn import Cnn
from mrl_jax.models.mlp import Mlp

BACKBONES = {"mlp": Mlp, "cnn": Cnn}


def build(name: str, *, embedding_dim: int, width: int, depth: int) -> nn.Module:
    """The backbone called `name`.

    Raises:
      ValueError: no such backbone, or a size below 1.
    """
    if name not in BACKBONES:
        raise ValueError(f"model name must be one of {', '.join(BACKBONES)}; got {name!r}")
    for key, value in (("embedding_dim", embedding_dim), ("width", width), ("depth", depth)):
        if value < 1:
            raise ValueError(f"model {key} must be >= 1, got {value}")
    return BACKBONES[name](embedding_dim=embedding_dim, width=width, depth=depth)
