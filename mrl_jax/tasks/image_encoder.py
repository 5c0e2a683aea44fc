"""The image network of a config, which the tasks of images train, and how it is given pixels."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mrl_jax import models
from mrl_jax.errors import shown
from mrl_jax.tasks.common import config_errors

_LEAST_STD = float(jnp.finfo(jnp.float32).tiny)  # smaller ones would be rounded to 0


def of_config(config: ConfigDict) -> nn.Module:
    """The network of a config.

    Raises:
      UsageError: names the config key and what would be legal.
    """
    with config_errors("model"):
        backbone = models.build(**config.model)
        part = config.batch_size // config.optimizer.accumulate
        groups = config.model.batch_norm_groups
        if part % groups:
            raise ValueError(
                f"batch_norm_groups {groups} does not divide the {part} examples that go through "
                "the network at a time (batch_size / optimizer.accumulate)"
            )
        return backbone


def check_pixels(mean: Sequence[float], std: Sequence[float], shape: Sequence[int]) -> None:
    """Raises a ValueError unless pixels of images [H, W, C] can be shifted and divided by these."""
    for key, value in (("mean", mean), ("std", std)):
        if len(value) not in (1, shape[-1]) or (key == "std" and min(value) < _LEAST_STD):
            raise ValueError(
                f"{key} must be one positive number or one per channel of images of shape "
                f"{tuple(shape)}, got {shown(value)}"
            )


def scaled(image_bhwc: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Pixels of 0 to 255 as a network reads them: less the mean, divided by std, float32."""
    mean, std = (jnp.array(v, jnp.float32)[None, None, None] for v in (mean, std))
    return (image_bhwc.astype(jnp.float32) - mean) / std
