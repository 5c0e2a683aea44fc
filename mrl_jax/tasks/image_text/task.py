"""Images and texts in one space, with a loss on every prefix of both (arXiv 2205.13147, ALIGN)."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mrl_jax.data.augment import Augmentation
from mrl_jax.errors import UsageError, check_choice
from mrl_jax.kernels import nested_info_nce, nested_sigmoid_loss
from mrl_jax.losses.gradient_cache import embed_in_parts
from mrl_jax.losses.negatives import ids_mask
from mrl_jax.models.text import SentenceEncoder
from mrl_jax.nesting import Nesting
from mrl_jax.runtime.mesh import batch_divisor, rows_split
from mrl_jax.runtime.task import Tree
from mrl_jax.tasks.image_encoder import check_pixels, scaled

Tower = Literal["image", "text"]
Loss = Literal["info_nce", "sigmoid"]

TOWERS: tuple[Tower, ...] = get_args(Tower)
# Of info_nce, what cosines are multiplied by at most, as CLIP does (arXiv 2103.00020, section 2.5):
# a learned temperature that falls further makes training unstable.
MAX_SCALE = 100.0


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _at_most(x: jax.Array, most: float) -> jax.Array:
    """The smaller one. There, only a step that would raise x further has no gradient.

    That of `jnp.minimum` is 0 either way: x, which in many a CLIP starts there, would stay there.
    """
    return jnp.minimum(x, most)


def _at_most_forward(x, most):
    return jnp.minimum(x, most), x >= most


def _at_most_backward(most, is_there, grad):
    del most
    # Training goes against the gradient.
    return (jnp.where(is_there & (grad < 0), 0, grad),)


_at_most.defvjp(_at_most_forward, _at_most_backward)


@dataclasses.dataclass(frozen=True)
class ImageText:
    """Two towers that end in one space, and a loss on every prefix of it.

    A batch is a dict of `image` [B, H, W, C] uint8, or `image_vector` [B, any] where that tower is
    locked; `text_tokens` [B, T] int32 and `text_lengths` [B] int32, or `text_vector` [B, any];
    `image_id` and `text_id` [B] int32, equal for pairs that are not to be told apart; and `mask`
    [B] (1 = counts, 0 = padding).

    The parameters of a locked tower are model state: they get no gradient and no optimiser state,
    and are in every checkpoint.

    Attributes:
      backbone: Flax module, images -> vectors.
      encoder: Flax module, tokens and lengths -> vectors.
      nesting: the granularities that are trained.
      width: dims of the space; both vectors are projected to it.
      image_shape: (H, W, C) of the images.
      max_length: tokens of the longest text.
      locked: the towers that stay as they are.
      projection_bias: the towers whose projection has a bias.
      loss_name: "info_nce" or "sigmoid".
      temperature: that training starts with.
      bias: of the sigmoid loss, that training starts with.
      learned: whether these two are parameters.
      scales: whether each granularity has its own.
      micro_batch: pairs that go through the towers at a time, 0 for all.
      augmentation: of training images, on the device.
      mean, std: see `image_encoder.scaled`.
      mesh: devices. The embedding axis stays whole on every device.

    Raises:
      ValueError: numbers out of range, or a loss that does not exist.
    """

    backbone: nn.Module
    encoder: SentenceEncoder
    nesting: Nesting
    width: int
    image_shape: tuple[int, int, int]
    max_length: int
    locked: tuple[Tower, ...] = ()
    projection_bias: tuple[Tower, ...] = ()
    loss_name: Loss = "info_nce"
    temperature: float = 0.07
    bias: float = -10.0
    learned: bool = True
    scales: Literal["shared", "separate"] = "shared"
    micro_batch: int = 0
    augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)
    mean: tuple[float, ...] = (127.5,)
    std: tuple[float, ...] = (127.5,)
    mesh: Mesh | None = None

    def __post_init__(self):
        check_pixels(self.mean, self.std, self.image_shape)
        check_choice("loss", self.loss_name, get_args(Loss))
        least = 1 / self._most if self.learned else 0
        # What is 100 in a file is that up to rounding.
        if not (self.temperature > 0 and self.temperature >= 0.9999 * least):
            raise ValueError(
                f"temperature must be {f'>= {least:g}' if least else '> 0'}, got {self.temperature}"
            )
        if self.nesting.width > self.width:
            raise ValueError(
                f"nesting dim {self.nesting.width} is wider than the space ({self.width} dims)"
            )

    @property
    def _most(self) -> float:
        return MAX_SCALE if self.loss_name == "info_nce" else math.inf

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of a batch of so many pairs of an image and a longest text."""

        def shape(*rest, dtype=jnp.int32):
            return jax.ShapeDtypeStruct((batch_size, *rest), dtype)

        spec = {"image_id": shape(), "text_id": shape(), "mask": shape(dtype=jnp.float32)}
        if "image" in self.locked:
            spec["image_vector"] = shape(self.backbone.out_dim, dtype=jnp.float32)
        else:
            spec["image"] = shape(*self.image_shape, dtype=jnp.uint8)
        if "text" in self.locked:
            spec["text_vector"] = shape(self.encoder.out_dim, dtype=jnp.float32)
        else:
            spec |= {"text_tokens": shape(self.max_length), "text_lengths": shape()}
        return spec

    def init(self, key: jax.Array) -> tuple[Tree, Tree]:
        """Fresh (parameters, model state)."""
        keys = dict(
            zip(("image", "text", *self._projections), jax.random.split(key, 4), strict=True)
        )
        image = self.backbone.init(keys["image"], jnp.zeros((1, *self.image_shape)))
        token_bt, length_b = jnp.zeros((1, 2), jnp.int32), jnp.full(1, 2, jnp.int32)
        towers = {
            "image": image["params"],
            "text": self.encoder.init(keys["text"], token_bt, length_b)["params"],
        }
        state = {"image": {name: tree for name, tree in image.items() if name != "params"}}
        state["locked"] = {tower: towers[tower] for tower in self.locked}
        params = {tower: towers[tower] for tower in TOWERS if tower not in self.locked}
        z_bd = jax.eval_shape(self._vectors_of_images, image, jnp.zeros((1, *self.image_shape)))
        if z_bd.shape != (1, self.backbone.out_dim):
            raise UsageError(
                f"config.model.name: embeddings of one image must be [1, {self.backbone.out_dim}] "
                f"as the backbone's out_dim says, got {z_bd.shape}"
            )
        for tower, module in (("image", self.backbone), ("text", self.encoder)):
            name = f"{tower}_projection"
            params[name] = self._projections[name].init(keys[name], jnp.zeros((1, module.out_dim)))[
                "params"
            ]
        if self.learned:
            shape = (len(self.nesting),) if self.scales == "separate" else ()
            params["log_scale"] = jnp.full(shape, -math.log(self.temperature))
            if self.loss_name == "sigmoid":
                params["bias"] = jnp.full(shape, self.bias)
        return params, {name: tree for name, tree in state.items() if tree}

    @functools.cached_property
    def _projections(self) -> dict[str, nn.Dense]:
        return {
            f"{tower}_projection": nn.Dense(self.width, use_bias=tower in self.projection_bias)
            for tower in TOWERS
        }

    def loss(
        self, params: Tree, model_state: Tree, batch: Tree, key: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, Tree]]:
        """Training loss: (total, (per-granularity loss [G], new model state))."""
        rows = {}
        if "image" not in self.locked:
            rows["image"] = batch["image"]
        if "text" not in self.locked:
            rows["text"] = (batch["text_tokens"], batch["text_lengths"])
        found = {f"{tower}_vector": batch[f"{tower}_vector"] for tower in self.locked}
        if rows:
            encode = functools.partial(self._encode, model_state=model_state)
            size = min(self.micro_batch or batch["mask"].size, batch["mask"].size)
            if batch["mask"].size % size:
                raise ValueError(f"micro_batch {size} does not divide {batch['mask'].size} pairs")
            found |= embed_in_parts(encode, params, rows, batch["mask"].size // size, key)
        if "statistics" in found:
            # One set of every part; the running statistics take a step towards their mean.
            mean = jax.tree.map(lambda x: x.mean(0), found["statistics"])
            model_state = {**model_state, "image": mean}
        a_bd, b_bd = (self._project(params, tower, found[f"{tower}_vector"]) for tower in TOWERS)
        id_b = [batch[f"{tower}_id"] for tower in TOWERS]
        loss, loss_g = self._nested_loss(params, a_bd, b_bd, batch["mask"], ids_mask(*id_b))
        return loss, (loss_g, model_state)

    def _encode(self, params: Tree, rows: Tree, key: jax.Array, model_state: Tree) -> Tree:
        """The vectors of rows of both towers before their projections, in training."""
        image_key, text_key = jax.random.split(key)
        found = {}
        if "image" in rows:
            image_bhwc = scaled(self.augmentation(image_key, rows["image"]), self.mean, self.std)
            state = model_state.get("image", {})
            variables = {"params": params["image"], **state}
            found["image_vector"], state = self.backbone.apply(
                variables, image_bhwc, train=True, mutable=list(state)
            )
            if state:
                # An axis of parts: `embed_in_parts` puts those of all parts one behind the other.
                found["statistics"] = jax.tree.map(lambda x: x[None], state)
        if "text" in rows:
            found["text_vector"] = self.encoder.apply(
                {"params": params["text"]}, *rows["text"], train=True, rngs={"dropout": text_key}
            )
        return found

    def _project(self, params: Tree, tower: Tower, x_bd: jax.Array) -> jax.Array:
        name = f"{tower}_projection"
        z_bd = self._projections[name].apply({"params": params[name]}, x_bd)
        divides = self.mesh is not None and len(z_bd) % batch_divisor(dict(self.mesh.shape)) == 0
        return rows_split(z_bd, self.mesh) if divides else z_bd

    def log_scale(self, params: Tree) -> jax.Array:
        """The logarithm of what cosines are multiplied by in the loss, [] or [G]."""
        if not self.learned:
            return jnp.array(-math.log(self.temperature))
        return _at_most(params["log_scale"], math.log(self._most))

    def _nested_loss(
        self, params: Tree, a_bd, b_bd, mask_b, keep_bn
    ) -> tuple[jax.Array, jax.Array]:
        temperature, bias = self.temperature, self.bias
        if self.learned:
            temperature = jnp.exp(-self.log_scale(params))
            bias = params.get("bias")
        shared = {
            "temperature": temperature,
            "mask": (mask_b, keep_bn),
            "mesh": self.mesh if self.mesh is not None and self.mesh.size > 1 else None,
        }
        if self.loss_name == "info_nce":
            return nested_info_nce(a_bd, b_bd, self.nesting, symmetric=True, **shared)
        return nested_sigmoid_loss(a_bd, b_bd, self.nesting, bias=bias, **shared)

    def vectors(self, params: Tree, model_state: Tree, batch: Mapping[str, Any]) -> jax.Array:
        """What the tower makes of `image`, or of `tokens` and `lengths`, before its projection."""
        tower = "image" if "image" in batch else "text"
        own = model_state["locked"][tower] if tower in self.locked else params[tower]
        if tower == "text":
            return self.encoder.apply({"params": own}, batch["tokens"], batch["lengths"])
        return self._vectors_of_images(
            {"params": own, **model_state.get("image", {})}, batch["image"]
        )

    def _vectors_of_images(self, variables: Tree, image_bhwc: jax.Array) -> jax.Array:
        return self.backbone.apply(variables, scaled(image_bhwc, self.mean, self.std))

    def embed(self, params: Tree, model_state: Tree, batch: Mapping[str, Any]) -> jax.Array:
        """Embeddings [B, D], not normalised, of `image` [B, H, W, C] uint8, or of `tokens` [B, T]
        and `lengths` [B]; without augmentation and with stored batch statistics."""
        tower = "image" if "image" in batch else "text"
        return self._project(params, tower, self.vectors(params, model_state, batch))
