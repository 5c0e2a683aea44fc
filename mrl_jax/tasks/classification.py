"""Image classification on every prefix of the embedding (arXiv 2205.13147, section 3)."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrl_jax.heads import NestedHead
from mrl_jax.losses import nested_cross_entropy
from mrl_jax.nesting import Nesting

Tree = dict[str, Any]


def _shift(key: jax.Array, image_bhwc: jax.Array, pixels: int) -> jax.Array:
    """Moves every image by its own random offset of up to `pixels`, edges repeated."""
    padding = ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0))
    padded_bhwc = jnp.pad(image_bhwc, padding, mode="edge")
    offset_b2 = jax.random.randint(key, (image_bhwc.shape[0], 2), 0, 2 * pixels + 1)

    def crop(image_hwc, offset_2):
        start = (offset_2[0], offset_2[1], 0)
        return jax.lax.dynamic_slice(image_hwc, start, image_bhwc.shape[1:])

    return jax.vmap(crop)(padded_bhwc, offset_b2)


@dataclasses.dataclass(frozen=True)
class Classification:
    """A backbone with a nested head, as pure functions of parameters and a batch.

    A batch is a dict of `image` [B, H, W, C] uint8, `label` [B] int32 in [0, num_classes) and
    `mask` [B] (1 = counts, 0 = padding).

    Attributes:
      backbone: Flax module, images -> embeddings.
      head: nested classifier on the embeddings.
      image_shape: (H, W, C) of the images.
      label_smoothing: of every granularity's loss.
      random_shift: training images move by up to this many pixels.
      embedding_sharding: where embeddings live on the mesh. The embedding axis must stay whole on
        every device: prefixes of a split axis are wrong to slice, and on some three-axis meshes
        gradients through them came out silently wrong.
    """

    backbone: nn.Module
    head: NestedHead
    image_shape: tuple[int, int, int]
    label_smoothing: float = 0.0
    random_shift: int = 0
    embedding_sharding: jax.sharding.NamedSharding | None = None

    @property
    def nesting(self) -> Nesting:
        """The granularities that are trained."""
        return self.head.nesting

    def init(self, key: jax.Array) -> tuple[Tree, Tree]:
        """Fresh (parameters, model state); the model state holds e.g. batch statistics."""
        backbone_key, head_key = jax.random.split(key)
        image_bhwc = jnp.zeros((1, *self.image_shape))
        backbone = self.backbone.init(backbone_key, image_bhwc)
        z_bd = self.backbone.apply(backbone, image_bhwc)
        params = {"backbone": backbone["params"], "head": self.head.init(head_key, z_bd)["params"]}
        return params, {name: tree for name, tree in backbone.items() if name != "params"}

    def loss(
        self, params: Tree, model_state: Tree, batch: Tree, key: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, Tree]]:
        """Training loss: (total, (per-granularity loss [G], new model state))."""
        image_bhwc = batch["image"]
        if self.random_shift:
            image_bhwc = _shift(key, image_bhwc, self.random_shift)
        z_bd, model_state = self.backbone.apply(
            {"params": params["backbone"], **model_state},
            self._scale(image_bhwc),
            train=True,
            mutable=list(model_state),
        )
        logits_gbc = self.head.apply({"params": params["head"]}, self._whole(z_bd))
        loss, loss_g = nested_cross_entropy(
            logits_gbc,
            batch["label"],
            self.nesting,
            label_smoothing=self.label_smoothing,
            mask_b=batch["mask"],
        )
        return loss, (loss_g, model_state)

    def embed(self, params: Tree, model_state: Tree, batch: Tree) -> jax.Array:
        """Embeddings [B, D] of a batch, without augmentation and with stored batch statistics."""
        variables = {"params": params["backbone"], **model_state}
        return self._whole(self.backbone.apply(variables, self._scale(batch["image"])))

    def classifiable(self, dim: int) -> bool:
        """Whether the head has a classifier for the first `dim` dims.

        Separate heads exist for the trained granularities only; the rows of a shared or fixed
        kernel can be cut anywhere.
        """
        if self.head.kind == "separate":
            return dim in self.nesting.dims
        return dim <= self.nesting.width

    def logits(self, params: Tree, z_bd: jax.Array, dims: tuple[int, ...]) -> jax.Array:
        """Logits [len(dims), B, C] at any `classifiable` dims."""
        if self.head.kind == "separate":
            logits_gbc = self.head.apply({"params": params["head"]}, z_bd)
            return logits_gbc[jnp.array([self.nesting.dims.index(m) for m in dims])]
        # The kernel's shape follows from the largest dim: keep it in the list, drop it after.
        nesting = Nesting(tuple(sorted({*dims, self.nesting.width})))
        head = self.head.clone(nesting=nesting, kind="shared")
        return head.apply({"params": params["head"]}, z_bd)[: len(dims)]

    def _scale(self, image_bhwc: jax.Array) -> jax.Array:
        return image_bhwc.astype(jnp.float32) / 127.5 - 1.0

    def _whole(self, z_bd: jax.Array) -> jax.Array:
        if self.embedding_sharding is None:
            return z_bd
        return jax.lax.with_sharding_constraint(z_bd, self.embedding_sharding)
