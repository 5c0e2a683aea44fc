"""Vision transformers (Dosovitskiy et al., arXiv 2010.11929) without a classifier."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrl_jax.models.activations import ACTIVATIONS, Activation
from mrl_jax.models.features import Features

Pool = Literal["gap", "cls"]

EPSILON = 1e-6  # of the layer norms

_dense_init = nn.initializers.xavier_uniform()


class Attention(nn.Module):
    """Multi-head self-attention; the softmax is float32.

    Attributes:
      heads: divide the width.
      dtype: of the products.
      causal: whether a token reads none that comes after it.
    """

    heads: int
    dtype: Any = jnp.float32
    causal: bool = False

    @nn.compact
    def __call__(self, x_btd: jax.Array) -> jax.Array:
        """[B, T, D] -> [B, T, D]."""
        batch, tokens, width = x_btd.shape

        def project(name):
            y = nn.Dense(width, kernel_init=_dense_init, dtype=self.dtype, name=name)(x_btd)
            return y.reshape(batch, tokens, self.heads, width // self.heads)

        query, key, value = project("query"), project("key"), project("value")
        y = jax.nn.dot_product_attention(query, key, value, is_causal=self.causal)
        y = y.reshape(batch, tokens, width)
        return nn.Dense(width, kernel_init=_dense_init, dtype=self.dtype, name="out")(y)


class Block(nn.Module):
    """Attention and a two-layer perceptron, normalised before each.

    Attributes:
      heads, dtype, causal: of the attention.
      hidden: width between the two layers of the perceptron; 0: four times that of the tokens.
      activation: one of `models.activations`; "gelu" is the exact one.
      epsilon: of the layer norms.
    """

    heads: int
    dtype: Any = jnp.float32
    causal: bool = False
    hidden: int = 0
    activation: Activation = "gelu"
    epsilon: float = EPSILON

    @nn.compact
    def __call__(self, x_btd: jax.Array) -> jax.Array:
        """[B, T, D] -> [B, T, D]."""
        y = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm1")(x_btd)
        x_btd = x_btd + Attention(self.heads, self.dtype, self.causal, name="attention")(y)
        y = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm2")(x_btd)
        width = x_btd.shape[-1]
        hidden = self.hidden or 4 * width
        y = nn.Dense(hidden, kernel_init=_dense_init, dtype=self.dtype, name="fc1")(y)
        y = ACTIVATIONS[self.activation](y)
        y = nn.Dense(width, kernel_init=_dense_init, dtype=self.dtype, name="fc2")(y)
        return x_btd + y


def patches_of(x_bhwc: jax.Array, patch: int) -> tuple[jax.Array, tuple[int, int]]:
    """Images cut into patches, [B, T, patch * patch * C], and their (rows, columns).

    A patch's pixels are in the order row, column, channel. One product with all patches gives the
    numbers of a strided convolution, but faster in XLA:CPU.

    Raises:
      ValueError: the patches do not fill the images.
    """
    batch, height, width, channels = x_bhwc.shape
    if height % patch or width % patch:
        raise ValueError(f"images of {height}x{width} pixels do not divide into patches of {patch}")
    rows, columns = height // patch, width // patch
    x = x_bhwc.reshape(batch, rows, patch, columns, patch, channels)
    x = x.swapaxes(2, 3).reshape(batch, rows * columns, patch**2 * channels)
    return x, (rows, columns)


class ViT(nn.Module):
    """Images, cut into patches, through a transformer to one embedding of its width.

    Attributes:
      patch: pixels per side of a patch; the image size is a multiple of it.
      width: D of the tokens and of the embedding.
      depth: blocks.
      heads: of the attention; divide the width.
      pool: "cls": the class token after the last norm. "gap": no class token, but the norm of the
        mean of all tokens, as timm's `fc_norm`.
      embedding_dim: 0 for the features as they are; else a linear layer to so many dims.
      dtype: of the matrix products; parameters and embeddings are float32.
      remat: compute every block again in the backward pass instead of keeping its activations.
    """

    patch: int
    width: int
    depth: int
    heads: int
    pool: Pool = "gap"
    embedding_dim: int = 0
    dtype: Any = jnp.float32
    remat: bool = False

    @property
    def out_dim(self) -> int:
        """Width of the embeddings."""
        return self.embedding_dim or self.width

    @nn.compact
    def __call__(self, x_bhwc: jax.Array, train: bool = False) -> jax.Array:
        """Embeds [B, H, W, C] images as [B, D]; `train` changes nothing here."""
        del train
        x, (rows, columns) = patches_of(x_bhwc, self.patch)
        batch = x.shape[0]
        x = nn.Dense(self.width, dtype=self.dtype, name="patches")(x.astype(self.dtype))
        tokens = rows * columns + (self.pool == "cls")
        if self.pool == "cls":
            cls_d = self.param("cls", nn.initializers.zeros, (self.width,))
            first = jnp.broadcast_to(cls_d.astype(x.dtype), (batch, 1, self.width))
            x = jnp.concatenate([first, x], 1)
        position_td = self.param("position", nn.initializers.normal(0.02), (tokens, self.width))
        x = x + position_td.astype(x.dtype)[None]
        block = nn.remat(Block) if self.remat else Block
        features = Features((rows, columns), name="features")
        for index in range(self.depth):
            # In the last block the class token reads the other tokens for the last time.
            if self.pool == "cls" and index == self.depth - 1:
                x = features(x)
            x = block(self.heads, self.dtype, name=f"block_{index:02d}")(x)
        x = x.astype(jnp.float32)
        if self.pool == "gap":
            x = features(x)
        z_bd = x[:, 0] if self.pool == "cls" else x.mean(1)
        z_bd = nn.LayerNorm(epsilon=EPSILON, name="norm")(z_bd)
        if self.embedding_dim:
            z_bd = nn.Dense(self.embedding_dim, name="embedding")(z_bd)
        return z_bd
