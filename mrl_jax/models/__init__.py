"""Backbones: Flax modules that turn a batch of images into embeddings, `x_bhwc -> z_bd`.

Each has `out_dim`, the width D of its embeddings. To add one, write it in a file of its own and add
it to `BACKBONES`, or keep it in a module of your own and name it by its import path.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, get_args

import flax.linen as nn
import jax.numpy as jnp

from mrl_jax.errors import check_choice, cut, shown
from mrl_jax.imported import by_path
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
_LEGAL = {"stem": get_args(Stem), "pool": get_args(Pool), "dtype": ("float32", "bfloat16")}

_STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
_HEADS = {"ti": 3, "s": 6, "b": 12}

BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "mlp": Mlp,
    "cnn": Cnn,
    **{
        f"resnet{layers}": functools.partial(ResNet, stages=stages, bottleneck=layers >= 50)
        for layers, stages in _STAGES.items()
    },
    **{
        f"vit_{size}{patch}": functools.partial(
            ViT, patch=patch, width=64 * heads, depth=12, heads=heads
        )
        for patch in (16, 8)
        for size, heads in _HEADS.items()
    },
}


def build(name: str, **options: Any) -> nn.Module:
    """The backbone called `name`: one of `BACKBONES`, or what the function at an import path makes.

    Args:
      name: in `BACKBONES`, or such as "my_lab.nets:make".
      **options: some of `DEFAULTS`. Those that differ from it are handed on, and must be among the
        parameters of the network or function; the networks' attributes say what they do.

    Raises:
      ValueError: no such backbone, an option that it does not have, or a value that is not legal;
        a function that fails or does not make a Flax module with an `out_dim`.
    """
    if name not in BACKBONES and ":" not in name:
        raise ValueError(
            f"model name must be one of {', '.join(BACKBONES)}, or an import path; "
            f"got {shown(name)}"
        )
    make = BACKBONES.get(name) or by_path(name, "config.model.name")
    if not callable(make):
        raise ValueError(f"model {name} must be a function, got {shown(make)}")
    parameters = inspect.signature(make).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    fixed = getattr(make, "keywords", {})  # what the name stands for
    legal = [key for key in DEFAULTS if (takes_all or key in parameters) and key not in fixed]
    chosen = {}
    for key, value in options.items():
        if key in _LEGAL:
            check_choice(f"model {key}", value, _LEGAL[key])
        elif value < DEFAULTS[key]:
            raise ValueError(f"model {key} must be >= {DEFAULTS[key]}, got {value}")
        if key == "depth" and value > MOST_LAYERS:
            raise ValueError(f"model depth must be at most {MOST_LAYERS}, got {value}")
        if value == DEFAULTS[key]:
            continue
        if key not in legal:
            raise ValueError(
                f"model {name} has no option {key}; it has {', '.join(legal) or 'none'}"
            )
        chosen[key] = jnp.dtype(value) if key == "dtype" else value
    for key in (key for key in legal if key in parameters and key not in chosen):
        if parameters[key].default is inspect.Parameter.empty:
            raise ValueError(f"model {name} needs {key}, got {shown(DEFAULTS[key])}")
    try:
        backbone = make(**chosen)
    except Exception as error:
        reason = cut(f"{type(error).__name__}: {error}", 300)
        raise ValueError(f"model {name} fails with {reason}") from error
    if not isinstance(backbone, nn.Module) or not isinstance(
        getattr(backbone, "out_dim", None), int
    ):
        raise ValueError(
            f"model {name} must make a Flax module with an integer out_dim, got {shown(backbone)}"
        )
    return backbone
