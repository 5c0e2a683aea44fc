"""A text encoder with its hidden states pooled to one embedding per text."""

from typing import Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrl_jax.errors import check_choice

Pooling = Literal["mean", "cls", "last"]


class SentenceEncoder(nn.Module):
    """Tokens to one embedding per row, not normalised.

    Attributes:
      backbone: `Bert`, `ClipText` or `Static`.
      pooling: "mean" of the tokens, "cls": the first, "last": the last one before the padding,
        which is that of the text or, where the backbone reads padding, of the longest text.
      projection: 0 for the pooled states as they are; else a linear layer to so many dims.
      projection_bias: whether that layer has a bias.
    """

    backbone: nn.Module
    pooling: Pooling = "mean"
    projection: int = 0
    projection_bias: bool = True

    @property
    def out_dim(self) -> int:
        """Width of the embeddings."""
        return self.projection or self.backbone.out_dim

    @property
    def layers(self) -> int:
        """Layers of the backbone."""
        return self.backbone.layers

    def setup(self):
        """Makes the projection; raises ValueError for an unknown pooling."""
        check_choice("pooling", self.pooling, get_args(Pooling))
        if self.projection:
            self.project = nn.Dense(self.projection, use_bias=self.projection_bias)

    def __call__(
        self,
        tokens_bt: jax.Array,
        lengths_b: jax.Array,
        *,
        train: bool = False,
        depth: int | None = None,
    ) -> jax.Array:
        """Embeddings [B, D] float32; zeros, before any projection, for rows of length 0.

        Args:
          tokens_bt, lengths_b, train: see the backbone.
          depth: layers to run, None for all; an earlier layer is pooled as the last one is.
        """
        states = self.backbone(tokens_bt, lengths_b, train=train, depth=depth)
        return self._embed(states[-1], lengths_b)

    def every_layer(
        self, tokens_bt: jax.Array, lengths_b: jax.Array, *, train: bool = False
    ) -> jax.Array:
        """The embeddings after each layer, [layers, B, D] float32; the last are those of a call."""
        states = self.backbone(tokens_bt, lengths_b, train=train)
        return jnp.stack([self._embed(x_btd, lengths_b) for x_btd in states[-self.layers :]])

    def _embed(self, x_btd: jax.Array, lengths_b: jax.Array) -> jax.Array:
        if self.backbone.reads_padding:
            lengths_b = jnp.where(lengths_b > 0, x_btd.shape[1], 0)
        z_bd = _pool(x_btd.astype(jnp.float32), lengths_b, self.pooling)
        return self.project(z_bd) if self.projection else z_bd


def _pool(x_btd: jax.Array, lengths_b: jax.Array, pooling: Pooling) -> jax.Array:
    real_bt = jnp.arange(x_btd.shape[1])[None] < lengths_b[:, None]
    if pooling == "mean":
        share_bt = real_bt / jnp.maximum(lengths_b, 1)[:, None]
        return (x_btd * share_bt[..., None]).sum(1)
    last_b = jnp.maximum(lengths_b - 1, 0)
    place_b = jnp.zeros_like(last_b) if pooling == "cls" else last_b
    z_bd = jnp.take_along_axis(x_btd, place_b[:, None, None], 1)[:, 0]
    return z_bd * (lengths_b > 0)[:, None]
