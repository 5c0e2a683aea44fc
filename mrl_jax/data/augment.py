"""Random changes of training images on the device: a whole batch at once, in one program."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from mrl_jax.data.boxes import ATTEMPTS, random_box


def _weights(low_b: jax.Array, high_b: jax.Array, pixels: int, flipped_b: jax.Array) -> jax.Array:
    """How much each input pixel of one axis counts in each output pixel, [B, pixels, pixels].

    Bilinear from [low, high) to all `pixels`; a part is never larger than the image, so there is
    nothing to average over. Pixels beside the image do not count.
    """
    index = jnp.arange(pixels, dtype=jnp.float32)
    out_bo = jnp.where(flipped_b[:, None], pixels - 1 - index[None], index[None])
    centre_bo = low_b[:, None] + (out_bo + 0.5) * ((high_b - low_b) / pixels)[:, None]
    distance_boi = jnp.abs(index[None, None] + 0.5 - centre_bo[:, :, None])
    weight_boi = jnp.maximum(0.0, 1.0 - distance_boi)
    return weight_boi / weight_boi.sum(-1, keepdims=True)


def _resized_crop(key: jax.Array, image_bhwc: jax.Array, area: float, flip_b: jax.Array):
    batch, height, width, _ = image_bhwc.shape
    uniform = jax.random.uniform(key, (batch, ATTEMPTS, 4))
    left_b, top_b, right_b, bottom_b = random_box(uniform, width, height, (area, 1.0), xp=jnp)
    # Two small matrix products per image: gathers of single pixels are slow on every device.
    rows_boh = _weights(top_b, bottom_b, height, jnp.zeros_like(flip_b))
    columns_bow = _weights(left_b, right_b, width, flip_b)
    image_bhwc = image_bhwc.astype(jnp.float32)
    image_bhwc = jnp.einsum("boh,bhwc->bowc", rows_boh, image_bhwc)
    return jnp.einsum("bow,bhwc->bhoc", columns_bow, image_bhwc)


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
class Augmentation:
    """What happens to training images on the device.

    Attributes:
      crop: smallest share of the area that a random part shows, enlarged to the whole size
        (torchvision's RandomResizedCrop); 0 = the whole image.
      flip: half of the images are mirrored, left to right.
      shift: images move by up to this many pixels in x and y, edges repeated.
      mixup: if > 0, each image is mixed with the one before it, by a share that is drawn from
        Beta(mixup, mixup) once per batch (arXiv 1710.09412).

    Raises:
      ValueError: a value that is not legal.
    """

    crop: float = 0.0
    flip: bool = False
    shift: int = 0
    mixup: float = 0.0

    def __post_init__(self):
        if not 0 <= self.crop <= 1:
            raise ValueError(f"random_crop must be in [0, 1], got {self.crop}")
        if self.shift < 0:
            raise ValueError(f"random_shift must be >= 0, got {self.shift}")
        if not 0 <= self.mixup < math.inf:
            raise ValueError(f"mixup must be >= 0 and finite, got {self.mixup}")

    def __call__(self, key: jax.Array, image_bhwc: jax.Array) -> jax.Array:
        """Changed images of the same shape, 0 to 255; float32 after a crop, else the same dtype."""
        flip_key, crop_key, shift_key = jax.random.split(key, 3)
        flip_b = jax.random.bernoulli(flip_key, 0.5, image_bhwc.shape[:1]) & self.flip
        if self.crop:
            image_bhwc = _resized_crop(crop_key, image_bhwc, self.crop, flip_b)
        elif self.flip:
            flipped = image_bhwc[:, :, ::-1]
            image_bhwc = jnp.where(flip_b[:, None, None, None], flipped, image_bhwc)
        return _shift(shift_key, image_bhwc, self.shift) if self.shift else image_bhwc

    def share(self, key: jax.Array) -> jax.Array:
        """The share of its own image in a mixed one, for one batch; at least one half."""
        share = jax.random.beta(key, self.mixup, self.mixup)
        return jnp.maximum(share, 1 - share)
