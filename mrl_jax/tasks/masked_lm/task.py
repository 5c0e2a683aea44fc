"""Masked language modelling on every prefix of what the output layer reads."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mrl_jax.kernels import nested_linear_cross_entropy
from mrl_jax.models.activations import ACTIVATIONS, Activation
from mrl_jax.models.text.bert import Bert
from mrl_jax.nesting import Nesting
from mrl_jax.runtime.mesh import rows_split
from mrl_jax.runtime.task import Tree


class Transform(nn.Module):
    """The layers between BERT's hidden states and its output layer (arXiv 1810.04805).

    Attributes:
      activation: one of `models.activations.ACTIVATIONS`.
      epsilon: of the layer norm.
    """

    activation: Activation
    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]."""
        dense = nn.Dense(x.shape[-1], kernel_init=nn.initializers.normal(0.02), name="dense")
        return nn.LayerNorm(epsilon=self.epsilon, name="norm")(
            ACTIVATIONS[self.activation](dense(x))
        )


@dataclasses.dataclass(frozen=True)
class MaskedLM:
    """BERT and its output layer as pure functions of parameters and a batch.

    The output layer is the table of tokens E [V, D] once more, so nesting it is MRL-E by
    construction (arXiv 2205.13147, section 3): the logits of granularity m are
    h[:m] @ E[:, :m].T + bias, for the transformed hidden state h of a hidden token.

    A batch is a dict of `tokens` [B, T] int32, some of them hidden; `places` [B, P] int32 in [0, T)
    of the tokens to predict, `labels` [B, P] int32, the tokens that were there, and `mask`
    [B, P], 1 where a prediction counts. Only the P places go through the output layer.

    Attributes:
      backbone: tokens to hidden states of D dims.
      nesting: the granularities that are trained; one granularity m is FF-m.
      max_length: T.
      predictions: P.
      mesh: devices. The embedding axis stays whole on every device; the vocabulary is split over
        `tensor` where it divides.
    """

    backbone: Bert
    nesting: Nesting
    max_length: int
    predictions: int
    mesh: Mesh | None = None

    @property
    def transform(self) -> Transform:
        """The module between hidden states and output layer."""
        return Transform(self.backbone.activation, self.backbone.epsilon)

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of a batch of so many sequences."""
        places = jax.ShapeDtypeStruct((batch_size, self.predictions), jnp.int32)
        return {
            "tokens": jax.ShapeDtypeStruct((batch_size, self.max_length), jnp.int32),
            "places": places,
            "labels": places,
            "mask": jax.ShapeDtypeStruct(places.shape, jnp.float32),
        }

    def init(self, key: jax.Array) -> tuple[Tree, Tree]:
        """Fresh (parameters, model state); the latter is empty."""
        backbone_key, transform_key = jax.random.split(key)
        tokens, lengths = jnp.zeros((1, 2), jnp.int32), jnp.full(1, 2, jnp.int32)
        params = {
            "backbone": self.backbone.init(backbone_key, tokens, lengths)["params"],
            "transform": self.transform.init(transform_key, jnp.zeros((1, self.backbone.width)))[
                "params"
            ],
            "head": {"bias": jnp.zeros(self.backbone.vocab_size)},
        }
        return params, {}

    def loss(
        self, params: Tree, model_state: Tree, batch: Tree, key: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, Tree]]:
        """Training loss: (total, (per-granularity loss [G], model state)), means of predictions."""
        h_bpd = self.predicted(params, batch, dropout_key=key)
        kernel_dv, bias_v = self.kernel_and_bias(params)
        mesh = self.mesh if self.mesh is not None and self.mesh.size > 1 else None
        divides = mesh is not None and self.backbone.vocab_size % mesh.shape["tensor"] == 0
        loss, loss_g = nested_linear_cross_entropy(
            h_bpd.reshape(-1, h_bpd.shape[-1]),
            kernel_dv,
            bias_v,
            batch["labels"].reshape(-1),
            self.nesting,
            mask_b=batch["mask"].reshape(-1),
            mesh=mesh,
            class_axis="tensor" if divides else None,
        )
        return loss, (loss_g, model_state)

    def kernel_and_bias(self, params: Tree) -> tuple[jax.Array, jax.Array]:
        """The output layer at the widest granularity: [m_G, V] and [V]."""
        table_vd = params["backbone"]["tokens"]["embedding"]
        return table_vd[:, : self.nesting.width].T, params["head"]["bias"]

    def predicted(
        self, params: Tree, batch: Tree, dropout_key: jax.Array | None = None
    ) -> jax.Array:
        """What the output layer reads at the P `places` of `tokens`, [B, P, D].

        Without a key nothing is dropped out.
        """
        tokens_bt = batch["tokens"]
        lengths_b = jnp.full(tokens_bt.shape[0], tokens_bt.shape[1], jnp.int32)
        states = self._states(params, tokens_bt, lengths_b, dropout_key)
        places_bp1 = batch["places"][..., None]
        return self._transformed(params, jnp.take_along_axis(states, places_bp1, 1))

    def embed(self, params: Tree, model_state: Tree, batch: Tree) -> jax.Array:
        """Embeddings [B, D] of `tokens` [B, T] and `lengths` [B], not normalised.

        The mean over tokens of what the output layer would read: its prefixes were trained. Rows of
        length 0 are zero.
        """
        del model_state
        tokens_bt, lengths_b = batch["tokens"], batch["lengths"]
        h_btd = self._transformed(params, self._states(params, tokens_bt, lengths_b))
        real_bt = jnp.arange(tokens_bt.shape[1])[None] < lengths_b[:, None]
        share_bt = real_bt / jnp.maximum(lengths_b, 1)[:, None]
        return (h_btd * share_bt[..., None]).sum(1)

    def _states(
        self,
        params: Tree,
        tokens_bt: jax.Array,
        lengths_b: jax.Array,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        train = dropout_key is not None
        states = self.backbone.apply(
            {"params": params["backbone"]},
            tokens_bt,
            lengths_b,
            train=train,
            rngs={"dropout": dropout_key} if train else {},
        )
        return rows_split(states[-1], self.mesh)

    def _transformed(self, params: Tree, x: jax.Array) -> jax.Array:
        return rows_split(self.transform.apply({"params": params["transform"]}, x), self.mesh)
