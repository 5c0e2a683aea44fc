"""Sentence embeddings from pairs of texts, with a loss on every prefix."""

import dataclasses
import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mrl_jax.errors import check_choice, cut, shown
from mrl_jax.losses import layers as layered
from mrl_jax.losses import pairs
from mrl_jax.losses.gradient_cache import embed_in_parts
from mrl_jax.losses.negatives import guided_mask, ids_mask
from mrl_jax.models.text import SentenceEncoder
from mrl_jax.nesting import Nesting
from mrl_jax.runtime.mesh import rows_split
from mrl_jax.runtime.task import Tree

Layers = Literal["last", "sampled", "sizes"]

_IN_WORDS = {
    "score": "pairs with a score",
    "negatives": "pairs with hard negatives",
    "teacher": "a teacher",
}


@dataclasses.dataclass(frozen=True)
class SentencePairs:
    """An encoder and a loss on its embeddings of the sides of pairs.

    A batch is a dict of, for every side, `{side}_tokens` [B, T] int32, `{side}_lengths` [B] int32
    and `{side}_id` [B] int32 (equal for texts not to be told apart); `score` [B] float32 of scored
    pairs; `{side}_teacher` [B, any] with a teacher; and `mask` [B] (1 = counts, 0 = padding).

    Attributes:
      encoder: Flax module, tokens and lengths -> embeddings.
      nesting: the granularities that are trained.
      sides: "anchor", "positive" and as many of "negative_0", "negative_1", ... as there are.
      max_length: tokens of the longest text.
      scored: whether pairs have a score.
      teacher_width: dims of the teacher's embeddings, 0 without one.
      loss_name: a name of `losses.pairs.LOSSES`, or the import path of a loss.
      temperature: for losses that have one, as info_nce and distill_kl.
      symmetric: info_nce in both directions.
      margin: for losses that have one, as triplet.
      micro_batch: pairs that go through the encoder at a time, 0 for all; the loss is the same.
      layers: "last", "sampled" (`layered.every_layer`) or "sizes" (`layered.small_to_large`, with
        depths in equal steps).
      mesh: devices. The embedding axis stays whole on every device.

    Raises:
      ValueError: a loss that does not exist or cannot be computed, or one that the batches hold too
        little or too much for; numbers out of range.
    """

    encoder: SentenceEncoder
    nesting: Nesting
    sides: tuple[str, ...]
    max_length: int
    scored: bool = False
    teacher_width: int = 0
    loss_name: str = "info_nce"
    temperature: float = 0.05
    symmetric: bool = True
    margin: float = 0.2
    micro_batch: int = 0
    layers: Layers = "last"
    mesh: Mesh | None = None

    def __post_init__(self):
        loss = pairs.find(self.loss_name)
        there = {"score": self.scored, "negatives": len(self.sides) > 2}
        there["teacher"] = self.teacher_width > 0
        if loss.needs and not there[loss.needs]:
            raise ValueError(f"loss {self.loss_name} needs {_IN_WORDS[loss.needs]}")
        for what in there:
            # Whoever gives it means it to be used.
            if there[what] and what not in (loss.needs, *loss.reads):
                raise ValueError(f"loss {self.loss_name} would ignore the given {what}")
        for name in ("temperature", "margin"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        if self.micro_batch < 0:
            raise ValueError(f"micro_batch must be >= 0, got {self.micro_batch}")
        check_choice("layers", self.layers, get_args(Layers))
        if self.layers != "last" and self.encoder.layers < 2:
            raise ValueError(
                f"layers {shown(self.layers)} needs an encoder of several layers, this has one"
            )
        if self.loss_name not in pairs.LOSSES:
            self._try_loss()

    def _try_loss(self) -> None:
        """Traces a user's loss, so that its mistakes show before data are read."""
        rows = 8
        z_bd = jax.ShapeDtypeStruct((rows, self.nesting.width), jnp.float32)
        try:
            loss, loss_g = jax.eval_shape(
                functools.partial(self._nested_loss, nesting=self.nesting),
                *[z_bd] * len(self.sides),
                batch=self.batch_spec(rows),
            )
        except Exception as error:
            reason = cut(f"{type(error).__name__}: {error}", 300)
            raise ValueError(f"loss {self.loss_name} fails with {reason}") from error
        if (loss.shape, loss_g.shape) != ((), (len(self.nesting),)):
            raise ValueError(
                f"loss {self.loss_name} must return a scalar and [{len(self.nesting)}], got "
                f"{loss.shape} and {loss_g.shape}"
            )

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of a batch of so many pairs of longest texts."""

        def shape(*rest, dtype=jnp.int32):
            return jax.ShapeDtypeStruct((batch_size, *rest), dtype)

        spec = {"mask": shape(dtype=jnp.float32)}
        for side in self.sides:
            spec[f"{side}_tokens"] = shape(self.max_length)
            spec[f"{side}_lengths"] = spec[f"{side}_id"] = shape()
            if self.teacher_width:
                spec[f"{side}_teacher"] = shape(self.teacher_width, dtype=jnp.float32)
        if self.scored:
            spec["score"] = shape(dtype=jnp.float32)
        return spec

    def init(self, key: jax.Array) -> tuple[Tree, Tree]:
        """Fresh (parameters, model state); the latter is empty."""
        variables = self.encoder.init(key, jnp.zeros((1, 2), jnp.int32), jnp.full(1, 2, jnp.int32))
        return variables["params"], {}

    def loss(
        self, params: Tree, model_state: Tree, batch: Tree, key: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, Tree]]:
        """Training loss: (total, (per-granularity loss [G], model state))."""
        encode_key, layer_key = jax.random.split(key)
        rows = {side: (batch[f"{side}_tokens"], batch[f"{side}_lengths"]) for side in self.sides}
        parts = self._parts(batch["mask"].size)
        found = embed_in_parts(self._encode, params, rows, parts, encode_key)
        sides = [rows_split(found[side], self.mesh) for side in self.sides]
        loss_fn = functools.partial(self._nested_loss, batch=batch)
        if self.layers == "last":
            loss, loss_g = loss_fn(*sides, nesting=self.nesting)
            return loss, (loss_g, model_state)
        sides = [z_bld.swapaxes(0, 1) for z_bld in sides]
        if self.layers == "sampled":
            lifted = functools.partial(
                layered.every_layer(loss_fn, self.nesting), key=layer_key, rows_b=batch["mask"]
            )
        else:
            lifted = functools.partial(
                layered.small_to_large(loss_fn, self.nesting, self.depths), rows_b=batch["mask"]
            )
        loss, loss_g = lifted(*sides)
        return loss, (loss_g, model_state)

    @property
    def depths(self) -> tuple[int, ...]:
        """The layers at which "sizes" trains each granularity, in equal steps up to all."""
        count, layers = len(self.nesting), self.encoder.layers
        return tuple(-(-layers * (g + 1) // count) for g in range(count))

    def _parts(self, batch_size: int) -> int:
        size = min(self.micro_batch or batch_size, batch_size)
        if batch_size % size:
            raise ValueError(f"micro_batch {size} does not divide the {batch_size} pairs")
        return batch_size // size

    def _encode(self, params: Tree, rows: Tree, key: jax.Array) -> Tree:
        """The embeddings of every side, [B, D], or [B, L, D] after each layer."""
        method = "__call__" if self.layers == "last" else "every_layer"
        found = {}
        for number, length in enumerate(sorted({tokens.shape[1] for tokens, _ in rows.values()})):
            # Sides of one length go through the encoder at once. The sides of a pair become
            # neighbours, so that each stays on its device.
            here = [side for side in rows if rows[side][0].shape[1] == length]
            tokens_bst = jnp.stack([rows[side][0] for side in here], 1)
            lengths_bs = jnp.stack([rows[side][1] for side in here], 1)
            z = self.encoder.apply(
                {"params": params},
                tokens_bst.reshape(-1, length),
                lengths_bs.reshape(-1),
                train=True,
                rngs={"dropout": jax.random.fold_in(key, number)},
                method=method,
            )
            z = z if self.layers == "last" else z.swapaxes(0, 1)
            z = z.reshape(*lengths_bs.shape, *z.shape[1:])
            found |= {side: z[:, place] for place, side in enumerate(here)}
        return found

    def _nested_loss(self, *sides: jax.Array, nesting: Nesting, batch: Tree):
        """The loss on every prefix: (total, [G])."""
        loss = pairs.find(self.loss_name)
        given = {name: getattr(self, name) for name in pairs.OPTIONS} | {"mask_b": batch["mask"]}
        given["mesh"] = self.mesh if self.mesh is not None and self.mesh.size > 1 else None
        if "scores_b" in loss.takes:
            given["scores_b"] = batch["score"]
        if "teacher_bd" in loss.takes:
            teacher = [batch[f"{side}_teacher"] for side in self.sides]
            given["teacher_bd"] = jnp.concatenate(teacher)
        if "keep_bn" in loss.takes:
            given["keep_bn"] = self._negatives_of(batch)
        return loss.on_prefixes(sides, nesting, **given)

    def _negatives_of(self, batch: Tree) -> jax.Array:
        """Which columns are negatives of which rows, [B, N]: no duplicates or better answers."""
        anchor, positive, *negatives = self.sides
        ids = [batch[f"{side}_id"] for side in negatives]
        mask_bn = ids_mask(batch[f"{anchor}_id"], batch[f"{positive}_id"], ids)
        if self.teacher_width:
            a_bd, b_bd, *others = (batch[f"{side}_teacher"] for side in self.sides)
            mask_bn &= guided_mask(a_bd, b_bd, others)
        return mask_bn

    def embed(
        self, params: Tree, model_state: Tree, batch: Tree, depth: int | None = None
    ) -> jax.Array:
        """Embeddings [B, D] of `tokens` [B, T] and `lengths` [B], not normalised.

        Only `depth` layers are run if it is given.
        """
        del model_state
        z_bd = self.encoder.apply(
            {"params": params}, batch["tokens"], batch["lengths"], depth=depth
        )
        return rows_split(z_bd, self.mesh)
