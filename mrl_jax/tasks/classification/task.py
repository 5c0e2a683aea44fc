"""Image classification on every prefix of the embedding (arXiv 2205.13147, section 3)."""

import dataclasses
from typing import Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mrl_jax.data.augment import Augmentation
from mrl_jax.errors import UsageError, check_choice, shown
from mrl_jax.heads import NestedHead
from mrl_jax.kernels import nested_linear_cross_entropy
from mrl_jax.losses import nested_cross_entropy
from mrl_jax.nesting import Nesting
from mrl_jax.runtime.mesh import rows_split
from mrl_jax.runtime.task import Tree
from mrl_jax.tasks.image_encoder import check_pixels, scaled

LossForm = Literal["auto", "plain", "blockwise", "streamed"]

# From this many logits of all granularities on one device (8 MiB), the fused loss is faster: on a
# CPU it takes 0.4 to 1.0 times as long as the plain one, and below that up to 1.25 times as long.
FUSED_FROM = 2**21


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
      augmentation: of training images, on the device.
      mean: is subtracted from pixels of 0 to 255; one number or one per channel.
      std: divides them then; as `mean`.
      loss_form: "plain" computes all logits [G, B, C] and their cross-entropy; "blockwise" and
        "streamed" fuse the two, see `kernels.nested_linear_cross_entropy`. "auto": see `form_of`.
      mesh: devices. The embedding axis stays whole on every device: prefixes must not be sliced
        from a split axis; on some three-axis meshes gradients through them were silently wrong.

    Raises:
      ValueError: a loss form that does not exist, or a fused one whose classes do not divide over
        the mesh.
    """

    backbone: nn.Module
    head: NestedHead
    image_shape: tuple[int, int, int]
    label_smoothing: float = 0.0
    augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)
    mean: tuple[float, ...] = (127.5,)
    std: tuple[float, ...] = (127.5,)
    loss_form: LossForm = "auto"
    mesh: Mesh | None = None

    def __post_init__(self):
        check_pixels(self.mean, self.std, self.image_shape)
        check_choice("loss", self.loss_form, get_args(LossForm))
        if self.loss_form in ("blockwise", "streamed") and not self._divides:
            raise ValueError(
                f"loss {shown(self.loss_form)} needs classes that divide over mesh tensor="
                f"{self.mesh.shape['tensor']}, got {self.head.num_classes}; 'plain' does not"
            )

    @property
    def _divides(self) -> bool:
        return self.mesh is None or self.head.num_classes % self.mesh.shape["tensor"] == 0

    def form_of(self, batch_size: int) -> LossForm:
        """The form that a batch of this size is trained with, which resolves "auto".

        "blockwise" where all logits would be `FUSED_FROM` numbers or more on a device and the
        classes divide over the mesh, else "plain".
        """
        if self.loss_form != "auto":
            return self.loss_form
        numbers = len(self.nesting) * batch_size * self.head.num_classes
        devices = 1 if self.mesh is None else self.mesh.size
        return "blockwise" if self._divides and numbers >= FUSED_FROM * devices else "plain"

    @property
    def nesting(self) -> Nesting:
        """The granularities that are trained."""
        return self.head.nesting

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of a batch of so many images of `image_shape`."""
        return {
            "image": jax.ShapeDtypeStruct((batch_size, *self.image_shape), jnp.uint8),
            "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
            "mask": jax.ShapeDtypeStruct((batch_size,), jnp.float32),
        }

    def init(self, key: jax.Array) -> tuple[Tree, Tree]:
        """Fresh (parameters, model state); the model state holds e.g. batch statistics."""
        backbone_key, head_key = jax.random.split(key)
        image_bhwc = jnp.zeros((1, *self.image_shape))
        backbone = self.backbone.init(backbone_key, image_bhwc)
        z_bd = self.backbone.apply(backbone, image_bhwc)
        if z_bd.shape != (1, self.backbone.out_dim):
            raise UsageError(
                f"config.model.name: embeddings of one image must be [1, {self.backbone.out_dim}] "
                f"as the backbone's out_dim says, got {z_bd.shape}"
            )
        params = {"backbone": backbone["params"], "head": self.head.init(head_key, z_bd)["params"]}
        return params, {name: tree for name, tree in backbone.items() if name != "params"}

    def loss(
        self, params: Tree, model_state: Tree, batch: Tree, key: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, Tree]]:
        """Training loss: (total, (per-granularity loss [G], new model state))."""
        image_key, mixup_key = jax.random.split(key)
        image_bhwc = self._scale(self.augmentation(image_key, batch["image"]))
        share = None
        if self.augmentation.mixup:
            share = self.augmentation.share(mixup_key)
            image_bhwc = share * image_bhwc + (1 - share) * jnp.roll(image_bhwc, 1, 0)
        z_bd, model_state = self.backbone.apply(
            {"params": params["backbone"], **model_state},
            image_bhwc,
            train=True,
            mutable=list(model_state),
        )
        z_bd = rows_split(z_bd, self.mesh)
        loss, loss_g = self._head_loss(params["head"], z_bd, batch)
        if share is not None:
            # The other image's label; whether a mixture counts depends on its own image's mask.
            other = {"label": jnp.roll(batch["label"], 1, 0), "mask": batch["mask"]}
            found = self._head_loss(params["head"], z_bd, other)
            loss, loss_g = (
                share * mine + (1 - share) * theirs
                for mine, theirs in zip((loss, loss_g), found, strict=True)
            )
        return loss, (loss_g, model_state)

    def _head_loss(self, params: Tree, z_bd: jax.Array, batch: Tree):
        options = {"label_smoothing": self.label_smoothing, "mask_b": batch["mask"]}
        form = self.form_of(z_bd.shape[0])
        if form == "plain":
            logits_gbc = self.head.apply({"params": params}, z_bd)
            return nested_cross_entropy(logits_gbc, batch["label"], self.nesting, **options)
        return nested_linear_cross_entropy(
            z_bd,
            *self.head.kernels_and_biases(params),
            batch["label"],
            self.nesting,
            normalize=self.head.normalize,
            form=form,
            mesh=self.mesh if self.mesh is not None and self.mesh.size > 1 else None,
            **options,
        )

    def embed(self, params: Tree, model_state: Tree, batch: Tree) -> jax.Array:
        """Embeddings [B, D] of a batch, without augmentation and with stored batch statistics."""
        variables = {"params": params["backbone"], **model_state}
        return rows_split(self.backbone.apply(variables, self._scale(batch["image"])), self.mesh)

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
        # The kernel's shape follows from the largest dim: it has to be among the dims.
        nesting = Nesting(tuple(sorted({*dims, self.nesting.width})))
        head = self.head.clone(nesting=nesting, kind="shared")
        return head.apply({"params": params["head"]}, z_bd)[: len(dims)]

    def _scale(self, image_bhwc: jax.Array) -> jax.Array:
        return scaled(image_bhwc, self.mean, self.std)
