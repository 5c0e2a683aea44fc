"""Residual networks v1.5 (He et al., arXiv 1512.03385; stride in the 3x3)."""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrl_jax.models import convolution
from mrl_jax.models.batch_norm import BatchNorm
from mrl_jax.models.features import Features

Stem = Literal["imagenet", "small"]

# He et al., arXiv 1502.01852, by fan-out: torchvision's initialiser of convolutions.
conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def blur(x_bhwc: jax.Array) -> jax.Array:
    """The 3x3 filter [1 2 1] x [1 2 1] / 16 on every channel, zeros around the image.

    Before a convolution that halves the resolution it removes what would alias (arXiv 1904.11486).
    """
    padded = jnp.pad(x_bhwc, ((0, 0), (1, 1), (1, 1), (0, 0)))
    # Shifted sums: a depthwise convolution is slower on every device tried.
    rows = (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4
    return (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 4


class Conv(nn.Module):
    """A convolution without bias, padded as in PyTorch: equally on both sides."""

    features: int
    size: int
    stride: int = 1
    blurred: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H / stride, W / stride, features]."""
        # FFCV's rule: the first convolution, of three channels, stays as it is.
        if self.blurred and self.stride > 1 and x_bhwc.shape[-1] >= 16:
            x_bhwc = blur(x_bhwc)
        return nn.Conv(
            self.features,
            (self.size, self.size),
            strides=self.stride,
            padding=self.size // 2,
            use_bias=False,
            kernel_init=conv_init,
            dtype=self.dtype,
            conv_general_dilated=convolution.for_flax,
            name="conv",
        )(x_bhwc)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (ResNet-18 and -34)."""

    features: int
    stride: int
    conv: Any
    norm: Any
    expansion = 1

    @nn.compact
    def __call__(self, x_bhwc: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, H / stride, W / stride, features]."""
        y = self.conv(self.features, 3, self.stride, name="conv1")(x_bhwc)
        y = nn.relu(self.norm(name="bn1")(y, train))
        y = self.conv(self.features, 3, name="conv2")(y)
        y = self.norm(name="bn2")(y, train)
        return nn.relu(y + _shortcut(self, x_bhwc, y.shape[-1], train))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut (ResNet-50 and up)."""

    features: int
    stride: int
    conv: Any
    norm: Any
    expansion = 4

    @nn.compact
    def __call__(self, x_bhwc: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, H / stride, W / stride, 4 x features]."""
        y = self.conv(self.features, 1, name="conv1")(x_bhwc)
        y = nn.relu(self.norm(name="bn1")(y, train))
        y = self.conv(self.features, 3, self.stride, name="conv2")(y)
        y = nn.relu(self.norm(name="bn2")(y, train))
        y = self.conv(self.features * self.expansion, 1, name="conv3")(y)
        y = self.norm(name="bn3")(y, train)
        return nn.relu(y + _shortcut(self, x_bhwc, y.shape[-1], train))


def _shortcut(block: BasicBlock | Bottleneck, x_bhwc: jax.Array, channels: int, train: bool):
    if block.stride == 1 and x_bhwc.shape[-1] == channels:
        return x_bhwc
    x_bhwc = block.conv(channels, 1, block.stride, name="downsample_conv")(x_bhwc)
    return block.norm(name="downsample_bn")(x_bhwc, train)


class ResNet(nn.Module):
    """Images to the average of the last feature map: 512 channels for 64 first ones (basic block).

    Attributes:
      stages: blocks per stage; every stage but the first halves the resolution.
      bottleneck: whether blocks are `Bottleneck`, with four times the channels.
      width: channels of the first stage; they double per stage. 64 in the paper's networks.
      stem: "imagenet": 7x7 convolution and max-pooling, a quarter of the resolution; "small":
        one 3x3 convolution at full resolution, for images of 32 or 64 pixels.
      embedding_dim: 0 for the features as they are; else a linear layer to so many dims.
      blurpool: blur before convolutions of stride 2, as the reference's recipe does.
      batch_norm_groups: see `BatchNorm`.
      dtype: of convolutions; parameters, batch statistics and embeddings are float32.
      remat: compute every block again in the backward pass instead of keeping its activations.
    """

    stages: Sequence[int]
    bottleneck: bool
    width: int = 64
    stem: Stem = "imagenet"
    embedding_dim: int = 0
    blurpool: bool = False
    batch_norm_groups: int = 1
    dtype: Any = jnp.float32
    remat: bool = False

    @property
    def out_dim(self) -> int:
        """Width of the embeddings."""
        block = Bottleneck if self.bottleneck else BasicBlock
        return self.embedding_dim or self.width * 2 ** (len(self.stages) - 1) * block.expansion

    @nn.compact
    def __call__(self, x_bhwc: jax.Array, train: bool = False) -> jax.Array:
        """Embeds [B, H, W, C] images as [B, D]; `train` uses batch statistics."""
        conv = functools.partial(Conv, blurred=self.blurpool, dtype=self.dtype)
        norm = functools.partial(BatchNorm, groups=self.batch_norm_groups)
        block = Bottleneck if self.bottleneck else BasicBlock
        if self.remat:
            block = nn.remat(block, static_argnums=2)
        x = x_bhwc.astype(self.dtype)
        if self.stem == "imagenet":
            x = conv(self.width, 7, 2, name="conv1")(x)
        else:
            x = conv(self.width, 3, name="conv1")(x)
        x = nn.relu(norm(name="bn1")(x, train))
        if self.stem == "imagenet":
            # Padded beforehand: converters to ONNX ignore the padding of a pooling.
            x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
            x = nn.max_pool(x, window_shape=(3, 3), strides=(2, 2))
        for stage, blocks in enumerate(self.stages):
            for index in range(blocks):
                stride = 2 if stage and not index else 1
                name = f"layer{stage + 1}_{index}"
                x = block(self.width * 2**stage, stride, conv, norm, name=name)(x, train)
        x = Features(x.shape[1:3], name="features")(x.astype(jnp.float32))
        z_bd = x.mean((1, 2))
        if self.embedding_dim:
            z_bd = nn.Dense(self.embedding_dim, name="embedding")(z_bd)
        return z_bd
