"""The text towers of CLIP (Radford et al., arXiv 2103.00020) and SigLIP (arXiv 2303.15343)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrl_jax.models.activations import Activation
from mrl_jax.models.vit import Block

_init = nn.initializers.normal(0.02)


class ClipText(nn.Module):
    """Tokens to the hidden states of a transformer whose layers normalise before adding.

    Attributes:
      vocab_size: rows of the token table.
      width: D of the hidden states.
      layers: how many.
      heads: of the attention; divide the width.
      hidden: width between the two layers of the perceptron.
      max_positions: rows of the position table.
      causal: whether a token reads none that comes after it, as in CLIP.
      pad_id: None: what is beyond a text is not read. An id: every text is filled up with it to
        `max_positions`, and it is read as any other token, as in SigLIP.
      activation: one of `models.activations`.
      epsilon: of the layer norms.
      dtype: of the matrix products and hidden states; parameters are float32.
      remat: compute every layer again in the backward pass instead of keeping its activations.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    hidden: int
    max_positions: int = 77
    causal: bool = True
    pad_id: int | None = None
    activation: Activation = "quick_gelu"
    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    remat: bool = False

    @property
    def out_dim(self) -> int:
        """Width of the hidden states."""
        return self.width

    @property
    def max_tokens(self) -> int:
        """The longest sequence that has positions."""
        return self.max_positions

    @property
    def reads_padding(self) -> bool:
        """Whether every text has `max_tokens` tokens, however short it is."""
        return self.pad_id is not None

    @nn.compact
    def __call__(
        self,
        tokens_bt: jax.Array,
        lengths_b: jax.Array,
        *,
        train: bool = False,
        depth: int | None = None,
    ) -> tuple[jax.Array, ...]:
        """The hidden states [B, T, D] of the table and, normalised, of each layer that was run.

        Args:
          tokens_bt: ids, int32; those at and after the length do not matter.
          lengths_b: int32; 0 for an empty row, whose hidden states mean nothing.
          train: changes nothing here.
          depth: 1 to `layers`: how many layers to run; None: all.

        Returns:
          T is `max_tokens` if padding is read.

        Raises:
          ValueError: more tokens than positions, or a depth out of range; or tokens that read what
            comes after them where padding is not read.
        """
        del train
        tokens = tokens_bt.shape[1]
        depth = self.layers if depth is None else depth
        if not 1 <= depth <= self.layers:
            raise ValueError(f"depth must be 1 to {self.layers}, got {depth}")
        if tokens > self.max_tokens:
            raise ValueError(f"{tokens} tokens are more than the {self.max_tokens} positions")
        if self.reads_padding:
            longer = ((0, 0), (0, self.max_tokens - tokens))
            tokens_bt, tokens = jnp.pad(tokens_bt, longer), self.max_tokens
            real_bt = jnp.arange(tokens)[None] < lengths_b[:, None]
            tokens_bt = jnp.where(real_bt, tokens_bt, self.pad_id)
        elif not self.causal:
            raise ValueError("tokens that read what comes after them need a pad_id")
        x_btd = nn.Embed(self.vocab_size, self.width, embedding_init=_init, name="tokens")(
            tokens_bt
        )
        position_td = nn.Embed(
            self.max_positions, self.width, embedding_init=_init, name="positions"
        )(jnp.arange(tokens))
        x_btd = (x_btd + position_td[None]).astype(self.dtype)
        states = [x_btd]
        norm = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm")
        block = nn.remat(Block) if self.remat else Block
        for index in range(depth):
            x_btd = block(
                self.heads,
                self.dtype,
                self.causal,
                self.hidden,
                self.activation,
                self.epsilon,
                name=f"layer_{index:02d}",
            )(x_btd)
            states.append(norm(x_btd))
        return tuple(states)
