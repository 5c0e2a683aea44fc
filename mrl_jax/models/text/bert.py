"""BERT (Devlin et al., arXiv 1810.04805) and its relatives, without a pooler or a head.

These are MiniLM and other BERTs of any size; RoBERTa (arXiv 1907.11692), whose positions begin
after the id of padding; MPNet (arXiv 2004.09297), whose attention adds a learned bias by distance;
and DistilBERT (arXiv 1910.01108), which has no token types. Sequences are padded on the right.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mrl_jax.models.activations import ACTIVATIONS, Activation

# MPNet tells this many distances apart; all of 128 tokens or more are one.
BUCKETS = 32
_FARTHEST = 128

_init = nn.initializers.normal(0.02)


def distance_buckets(tokens: int) -> np.ndarray:
    """Which of the `BUCKETS` each key is in for each query, [tokens, tokens] int32.

    Half of the buckets are for keys that come after the query. Of each half, one half are single
    distances, and the others grow by a constant factor (Raffel et al., arXiv 1910.10683, section
    2.1).
    """
    ahead_qk = np.arange(tokens)[None] - np.arange(tokens)[:, None]
    half = BUCKETS // 2
    single = half // 2
    distance_qk = abs(ahead_qk)
    # In float32, as the weights were trained: rounding decides at the limits of buckets.
    ratio_qk = np.maximum(distance_qk, single).astype(np.float32) / np.float32(single)
    grown_qk = np.log(ratio_qk) / np.float32(math.log(_FARTHEST / single)) * (half - single)
    far_qk = np.minimum(single + grown_qk.astype(np.int32), half - 1)
    bucket_qk = np.where(distance_qk < single, distance_qk, far_qk)
    return (bucket_qk + half * (ahead_qk > 0)).astype(np.int32)


class Attention(nn.Module):
    """Multi-head self-attention; the softmax is float32."""

    heads: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x_btd: jax.Array, bias_bhqk: jax.Array, train: bool) -> jax.Array:
        """[B, T, D] -> [B, T, D]; the bias, about -inf at padding, is added to the scores."""
        batch, tokens, width = x_btd.shape

        def project(name):
            y = nn.Dense(width, kernel_init=_init, dtype=self.dtype, name=name)(x_btd)
            return y.reshape(batch, tokens, self.heads, width // self.heads)

        query, key, value = project("query"), project("key"), project("value")
        scores_bhqk = jnp.einsum("bqhe,bkhe->bhqk", query, key).astype(jnp.float32)
        scores_bhqk = scores_bhqk / math.sqrt(width // self.heads) + bias_bhqk
        p_bhqk = jax.nn.softmax(scores_bhqk).astype(self.dtype)
        p_bhqk = nn.Dropout(self.dropout, name="dropout")(p_bhqk, deterministic=not train)
        y = jnp.einsum("bhqk,bkhe->bqhe", p_bhqk, value).reshape(batch, tokens, width)
        return nn.Dense(width, kernel_init=_init, dtype=self.dtype, name="out")(y)


class Layer(nn.Module):
    """Attention and a two-layer perceptron, normalised after each."""

    heads: int
    hidden: int
    activation: Activation
    epsilon: float
    dropout: float
    attention_dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x_btd: jax.Array, bias_bhqk: jax.Array, train: bool) -> jax.Array:
        """[B, T, D] -> [B, T, D]."""
        width = x_btd.shape[-1]
        dropout = nn.Dropout(self.dropout, deterministic=not train, name="dropout")
        attention = Attention(self.heads, self.attention_dropout, self.dtype, name="attention")
        y = dropout(attention(x_btd, bias_bhqk, train))
        x_btd = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm1")(x_btd + y)
        y = nn.Dense(self.hidden, kernel_init=_init, dtype=self.dtype, name="fc1")(x_btd)
        y = ACTIVATIONS[self.activation](y)
        y = dropout(nn.Dense(width, kernel_init=_init, dtype=self.dtype, name="fc2")(y))
        return nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm2")(x_btd + y)


class Bert(nn.Module):
    """Tokens to the hidden states of a transformer whose layers normalise after adding.

    Attributes:
      vocab_size: rows of the token table.
      width: D of the hidden states.
      layers: how many.
      heads: of the attention; divide the width.
      hidden: width between the two layers of the perceptron.
      max_positions: rows of the position table.
      types: rows of the token type table, of which the first is used; 0: no such table.
      position_offset: row of the first token's position; RoBERTa and MPNet begin after the id of
        padding.
      relative: adds MPNet's bias by distance, which all layers share.
      activation: one of `models.activations`; "gelu" is the exact one.
      epsilon: of the layer norms.
      dropout, attention_dropout: rates of hidden states and of attention, in training.
      dtype: of the matrix products and hidden states; parameters are float32.
      remat: compute every layer again in the backward pass instead of keeping its activations.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    hidden: int
    max_positions: int = 512
    types: int = 2
    position_offset: int = 0
    relative: bool = False
    activation: Activation = "gelu"
    epsilon: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    dtype: Any = jnp.float32
    remat: bool = False

    reads_padding = False  # what is beyond a text is not read

    @property
    def out_dim(self) -> int:
        """Width of the hidden states."""
        return self.width

    @property
    def max_tokens(self) -> int:
        """The longest sequence that has positions."""
        return self.max_positions - self.position_offset

    @nn.compact
    def __call__(
        self,
        tokens_bt: jax.Array,
        lengths_b: jax.Array,
        *,
        train: bool = False,
        depth: int | None = None,
    ) -> tuple[jax.Array, ...]:
        """The hidden states [B, T, D] of the table and of each layer that was run.

        Args:
          tokens_bt: ids, int32; those at and after the length do not matter.
          lengths_b: int32; 0 for an empty row, whose hidden states mean nothing.
          train: applies dropout with the random key "dropout".
          depth: 1 to `layers`: how many layers to run; None: all.

        Raises:
          ValueError: more tokens than positions, or a depth out of range.
        """
        tokens = tokens_bt.shape[1]
        depth = self.layers if depth is None else depth
        if not 1 <= depth <= self.layers:
            raise ValueError(f"depth must be 1 to {self.layers}, got {depth}")
        if tokens > self.max_tokens:
            raise ValueError(f"{tokens} tokens are more than the {self.max_tokens} positions")

        def table(name, rows):
            return nn.Embed(rows, self.width, embedding_init=_init, name=name)

        x_btd = table("tokens", self.vocab_size)(tokens_bt)
        positions_t = jnp.arange(tokens) + self.position_offset
        added_td = table("positions", self.max_positions)(positions_t)
        if self.types:
            added_td = added_td + table("types", self.types)(jnp.zeros(1, jnp.int32))
        x_btd = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm")(
            x_btd + added_td[None]
        )
        x_btd = nn.Dropout(self.dropout, name="dropout")(x_btd, deterministic=not train)

        real_bt = jnp.arange(tokens)[None] < lengths_b[:, None]
        # Finite, so that the hidden states of a row without tokens are not NaN.
        bias_bhqk = jnp.where(real_bt, 0.0, -1e30)[:, None, None]
        if self.relative:
            bias_qkh = nn.Embed(BUCKETS, self.heads, embedding_init=_init, name="relative")(
                distance_buckets(tokens)
            )
            bias_bhqk = bias_bhqk + bias_qkh.transpose(2, 0, 1)[None]
        states = [x_btd]
        layer = nn.remat(Layer, static_argnums=(3,)) if self.remat else Layer
        for index in range(depth):
            states.append(
                layer(
                    self.heads,
                    self.hidden,
                    self.activation,
                    self.epsilon,
                    self.dropout,
                    self.attention_dropout,
                    self.dtype,
                    name=f"layer_{index:02d}",
                )(states[-1], bias_bhqk, train)
            )
        return tuple(states)
