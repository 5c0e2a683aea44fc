"""Multi-layer perceptron on flattened images: the fastest backbone that learns anything."""

import flax.linen as nn
import jax


class Mlp(nn.Module):
    """`depth` hidden layers of `width` units, then a linear embedding of `embedding_dim`."""

    embedding_dim: int
    width: int = 32
    depth: int = 2

    @property
    def out_dim(self) -> int:
        """Width of the embeddings."""
        return self.embedding_dim

    @nn.compact
    def __call__(self, x_bhwc: jax.Array, train: bool = False) -> jax.Array:
        """Embeds [B, H, W, C] images as [B, embedding_dim]; `train` changes nothing here."""
        del train
        x = x_bhwc.reshape(x_bhwc.shape[0], -1)
        for _ in range(self.depth):
            x = nn.relu(nn.Dense(self.width)(x))
        return nn.Dense(self.embedding_dim, name="embedding")(x)
