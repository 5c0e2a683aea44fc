"""Small convolutional network with batch-norm, for images of 8 to 64 pixels."""

import flax.linen as nn
import jax

from mrl_jax.models import convolution
from mrl_jax.models.features import Features


class Cnn(nn.Module):
    """`depth` stages of two 3x3 convolutions; the second halves the resolution.

    Channels start at `width` and double per stage. The embedding is linear in the flattened last
    feature map: at these sizes the position of a stroke matters, which average pooling would drop.
    Batch statistics are over the global batch, on any mesh.
    """

    embedding_dim: int
    width: int = 32
    depth: int = 2

    @property
    def out_dim(self) -> int:
        """Width of the embeddings."""
        return self.embedding_dim

    @nn.compact
    def __call__(self, x_bhwc: jax.Array, train: bool = False) -> jax.Array:
        """Embeds [B, H, W, C] images as [B, embedding_dim]; `train` uses batch statistics."""
        x = x_bhwc
        for stage in range(self.depth):
            for strides in (1, 2):
                x = nn.Conv(
                    self.width * 2**stage,
                    (3, 3),
                    strides=strides,
                    use_bias=False,
                    conv_general_dilated=convolution.for_flax,
                )(x)
                x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
                x = nn.relu(x)
        x = Features(x.shape[1:3], name="features")(x)
        x = x.reshape(x.shape[0], -1)
        return nn.Dense(self.embedding_dim, name="embedding")(x)
