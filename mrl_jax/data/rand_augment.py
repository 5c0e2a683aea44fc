"""RandAugment (Cubuk et al., arXiv 1909.13719): a few random changes of one strength, by Pillow."""

import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from mrl_jax.errors import shown

GREY = (128, 128, 128)  # what shows where an image was moved away
STRONGEST = 10


class RandAugment(NamedTuple):
    """So many changes per image, each of one of `CHANGES`, drawn uniformly.

    Attributes:
      layers: changes, one after the other.
      strength: 0 to 10; at 10 an image is turned by 30 degrees, sheared by 0.3, moved by 45 % of
        its width, its colours are changed by 90 %.
    """

    layers: int
    strength: float

    def check(self) -> None:
        """Raises a ValueError for numbers that are not legal."""
        if type(self.layers) is not int or self.layers < 1:
            raise ValueError(
                f"rand_augment needs a whole number of changes, got {shown(self.layers)}"
            )
        if not 0 <= self.strength <= STRONGEST:
            raise ValueError(
                f"rand_augment needs a strength from 0 to {STRONGEST}, got {self.strength}"
            )

    def __call__(self, image_hwc: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """A changed uint8 image [H, W, 3]; `uniform` [layers, 2] are numbers in [0, 1)."""
        image = Image.fromarray(image_hwc)
        for choice, side in uniform:
            change = CHANGES[int(choice * len(CHANGES))]
            share = self.strength / STRONGEST
            image = change(image, share, -share if side < 0.5 else share)
        return np.asarray(image)


def _moved(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    """`matrix` (a, b, c, d, e, f) takes the pixel (x, y) of the result from (ax+by+c, dx+ey+f)."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=GREY)


def _sheared(image, x: float, y: float):
    # About the middle, so that as little as possible leaves the image.
    width, height = image.size
    return _moved(image, (1, x, -x * height / 2, y, 1, -y * width / 2))


def _enhanced(kind):
    return lambda image, share, signed: kind(image).enhance(1 + 0.9 * signed)


# (image, strength from 0 to 1, the same with a random sign) -> image. The ranges are those of
# torchvision, which are the paper's.
CHANGES = (
    lambda image, share, signed: image,
    lambda image, share, signed: ImageOps.autocontrast(image),
    lambda image, share, signed: ImageOps.equalize(image),
    lambda image, share, signed: ImageOps.solarize(image, math.ceil(256 * (1 - share))),
    lambda image, share, signed: ImageOps.posterize(image, 8 - round(4 * share)),
    lambda image, share, signed: image.rotate(30 * signed, fillcolor=GREY),
    lambda image, share, signed: _sheared(image, 0.3 * signed, 0),
    lambda image, share, signed: _sheared(image, 0, 0.3 * signed),
    lambda image, share, signed: _moved(image, (1, 0, 0.45 * signed * image.width, 0, 1, 0)),
    lambda image, share, signed: _moved(image, (1, 0, 0, 0, 1, 0.45 * signed * image.height)),
    _enhanced(ImageEnhance.Color),
    _enhanced(ImageEnhance.Contrast),
    _enhanced(ImageEnhance.Brightness),
    _enhanced(ImageEnhance.Sharpness),
)
