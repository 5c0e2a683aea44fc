"""The image towers of CLIP (Radford et al., arXiv 2103.00020) and SigLIP (arXiv 2303.15343)."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrl_jax.models.activations import ACTIVATIONS, Activation
from mrl_jax.models.features import Features
from mrl_jax.models.vit import Block, patches_of

Pool = Literal["cls", "map"]

_dense_init = nn.initializers.xavier_uniform()


class Probe(nn.Module):
    """A learned query that reads all tokens, then a perceptron.

    The fields are as those of `ClipVision`.
    """

    heads: int
    hidden: int
    activation: Activation
    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x_btd: jax.Array) -> jax.Array:
        """[B, T, D] -> [B, D] float32."""
        batch, _, width = x_btd.shape

        def dense(name, features, x):
            return nn.Dense(features, kernel_init=_dense_init, dtype=self.dtype, name=name)(x)

        def project(name, x_btd):
            y = dense(name, width, x_btd)
            return y.reshape(*y.shape[:2], self.heads, width // self.heads)

        query_d = self.param("query_token", nn.initializers.normal(0.02), (width,))
        query_b1d = jnp.broadcast_to(query_d, (batch, 1, width))
        query, key, value = (
            project(name, of)
            for name, of in (("query", query_b1d), ("key", x_btd), ("value", x_btd))
        )
        y = jax.nn.dot_product_attention(query, key, value).reshape(batch, width)
        z_bd = dense("out", width, y).astype(jnp.float32)
        y = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm")(z_bd)
        y = ACTIVATIONS[self.activation](dense("fc1", self.hidden, y))
        return z_bd + dense("fc2", width, y).astype(jnp.float32)


class ClipVision(nn.Module):
    """Images, cut into patches, through a transformer to one embedding of its width.

    Attributes:
      patch: pixels per side of a patch; what remains of an image at the right and below is not
        read.
      width: D of the tokens and of the embedding.
      layers: blocks.
      heads: of the attention; divide the width.
      hidden: width between the two layers of the perceptron.
      pool: "cls": the class token after the last norm, as in CLIP. "map": no class token, but what
        a learned query reads of all tokens after the last norm, as in SigLIP.
      first_norm: whether tokens are normalised before the first block too.
      patch_bias: whether the embedding of patches has a bias.
      activation: one of `models.activations`.
      epsilon: of the layer norms.
      dtype: of the matrix products; parameters and embeddings are float32.
      remat: compute every block again in the backward pass instead of keeping its activations.
    """

    patch: int
    width: int
    layers: int
    heads: int
    hidden: int
    pool: Pool = "cls"
    first_norm: bool = True
    patch_bias: bool = False
    activation: Activation = "quick_gelu"
    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    remat: bool = False

    @property
    def out_dim(self) -> int:
        """Width of the embeddings."""
        return self.width

    @nn.compact
    def __call__(self, x_bhwc: jax.Array, train: bool = False) -> jax.Array:
        """Embeds [B, H, W, C] images as [B, D]; `train` changes nothing here."""
        del train
        height, width = (side - side % self.patch for side in x_bhwc.shape[1:3])
        x_btd, grid = patches_of(x_bhwc[:, :height, :width], self.patch)
        x_btd = nn.Dense(self.width, use_bias=self.patch_bias, dtype=self.dtype, name="patches")(
            x_btd.astype(self.dtype)
        )
        if self.pool == "cls":
            cls_d = self.param("cls", nn.initializers.zeros, (self.width,))
            first_b1d = jnp.broadcast_to(cls_d, (x_btd.shape[0], 1, self.width))
            x_btd = jnp.concatenate([first_b1d.astype(x_btd.dtype), x_btd], 1)
        position_td = self.param("position", nn.initializers.normal(0.02), x_btd.shape[1:])
        x_btd = x_btd + position_td.astype(x_btd.dtype)[None]
        if self.first_norm:
            x_btd = self._norm("first_norm", self.dtype)(x_btd)
        block = nn.remat(Block) if self.remat else Block
        features = Features(grid, name="features")
        for index in range(self.layers):
            # In the last block the class token reads the other tokens for the last time.
            if self.pool == "cls" and index == self.layers - 1:
                x_btd = features(x_btd)
            x_btd = block(
                self.heads,
                self.dtype,
                hidden=self.hidden,
                activation=self.activation,
                epsilon=self.epsilon,
                name=f"block_{index:02d}",
            )(x_btd)
        norm = self._norm("norm", jnp.float32)
        if self.pool == "cls":
            return norm(x_btd[:, 0])
        x_btd = features(norm(x_btd))
        return Probe(
            self.heads, self.hidden, self.activation, self.epsilon, self.dtype, name="probe"
        )(x_btd)

    def _norm(self, name: str, dtype: Any) -> nn.LayerNorm:
        return nn.LayerNorm(epsilon=self.epsilon, dtype=dtype, name=name)
