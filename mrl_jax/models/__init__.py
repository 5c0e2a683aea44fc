"""Backbones: Flax modules that turn a batch of images into embeddings, `x_bhwc -> z_bd`.

Each has `out_dim`, the width D of its embeddings.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import flax.linen as nn
import jax.numpy as jnp

from mrl_jax.errors import shown
from mrl_jax.models.cnn import Cnn
from mrl_jax.models.mlp import Mlp
from mrl_jax.models.resnet import ResNet, Stem
from mrl_jax.models.vit import Pool, ViT

# What `build` takes besides the name: the value that leaves a network as it is.
DEFAULTS = {
    "embedding_dim": 0,
    "width": 0,
    "depth": 0,
    "stem": "imagenet",
    "blurpool": False,
    "batch_norm_groups": 1,
    "pool": "gap",
    "dtype": "float32",
    "remat": False,
}
MOST_LAYERS = 100  # each is traced and compiled by itself
_LEGAL = {
    "stem": get_args(Stem),
    "pool": get_args(Pool),
    "dtype": ("float32", "bfloat16"),
}


class _Network(NamedTuple):
    make: Callable[..., nn.Module]
    options: tuple[str, ...]
    fixed: dict[str, Any]  # what the name stands for


_PLAIN = ("embedding_dim", "width", "depth")
_RESNET = ("embedding_dim", "width", "stem", "blurpool", "batch_norm_groups", "dtype", "remat")
_VIT = ("embedding_dim", "pool", "dtype", "remat")
_STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
_HEADS = {"ti": 3, "s": 6, "b": 12}

BACKBONES = {
    "mlp": _Network(Mlp, _PLAIN, {}),
    "cnn": _Network(Cnn, _PLAIN, {}),
    **{
        f"resnet{layers}": _Network(ResNet, _RESNET, {"stages": stages, "bottleneck": layers >= 50})
        for layers, stages in _STAGES.items()
    },
    **{
        f"vit_{size}{patch}": _Network(
            ViT, _VIT, {"patch": patch, "width": 64 * heads, "depth": 12, "heads": heads}
        )
        for patch in (16, 8)
        for size, heads in _HEADS.items()
    },
}


def build(name: str, **options: Any) -> nn.Module:
    """The backbone called `name`.

    Args:
      name: one of `BACKBONES`.
      **options: some of `DEFAULTS`; the attributes of the networks say what they do.

    Raises:
      ValueError: no such backbone, an option that it does not have, or a value that is not legal.
    """
    if name not in BACKBONES:
        raise ValueError(f"model name must be one of {', '.join(BACKBONES)}; got {shown(name)}")
    network = BACKBONES[name]
    chosen = {}
    for key, value in options.items():
        if key in _LEGAL and value not in _LEGAL[key]:
            raise ValueError(
                f"model {key} must be one of {', '.join(_LEGAL[key])}; got {shown(value)}"
            )
        if key not in _LEGAL and value < DEFAULTS[key]:
            raise ValueError(f"model {key} must be >= {DEFAULTS[key]}, got {value}")
        if key == "depth" and value > MOST_LAYERS:
            raise ValueError(f"model depth must be at most {MOST_LAYERS}, got {value}")
        if value == DEFAULTS[key]:
            continue
        if key not in network.options:
            raise ValueError(
                f"model {name} has no option {key}; it has {', '.join(network.options)}"
            )
        chosen[key] = jnp.dtype(value) if key == "dtype" else value
    if "embedding_dim" not in chosen and network.options is _PLAIN:
        raise ValueError(f"model {name} needs an embedding_dim >= 1")
    return network.make(**network.fixed, **chosen)
