"""Which part of an image is used: its middle, or a random part as torchvision chooses it."""

import math
from typing import Any

import numpy as np

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels

AREA = (0.08, 1.0)  # of the image that a random crop shows
ASPECT = (3 / 4, 4 / 3)  # width over height of a random crop
ATTEMPTS = 10


def centre_box(width: int, height: int, share: float = 1.0) -> Box:
    """The square in the middle whose side is `share` of the short side."""
    side = min(width, height) * share
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def random_box(
    uniform: Any,
    width: int,
    height: int,
    area: tuple[float, float] = AREA,
    aspect: tuple[float, float] = ASPECT,
    xp: Any = np,
) -> tuple[Any, Any, Any, Any]:
    """(left, top, right, bottom) of random crops, by the rule of torchvision's RandomResizedCrop.

    Ten tries of a uniform share of the area and a log-uniform aspect ratio; the first that fits is
    put anywhere. If none fits, the middle as far as the aspect ratios allow.

    Args:
      uniform: [..., ATTEMPTS, 4] random numbers in [0, 1), of `xp`, numpy or jax.numpy.
      width, height: of the image, pixels.
      area: smallest and largest share of the image.
      aspect: smallest and largest width / height.

    Returns:
      Whole numbers as floats, [...] each.
    """
    pixels = width * height * (area[0] + uniform[..., 0] * (area[1] - area[0]))
    low, high = math.log(aspect[0]), math.log(aspect[1])
    ratio = xp.exp(low + uniform[..., 1] * (high - low))
    tried_w, tried_h = xp.round(xp.sqrt(pixels * ratio)), xp.round(xp.sqrt(pixels / ratio))
    fits = (tried_w >= 1) & (tried_w <= width) & (tried_h >= 1) & (tried_h <= height)
    first, found = fits.argmax(-1)[..., None], fits.any(-1)

    def chosen(values, otherwise):
        return xp.where(found, xp.take_along_axis(values, first, -1)[..., 0], otherwise)

    crop_w = chosen(tried_w, max(1, min(width, round(height * aspect[1]))))
    crop_h = chosen(tried_h, max(1, min(height, round(width / aspect[0]))))
    room_x, room_y = width - crop_w, height - crop_h
    left = xp.floor(chosen(uniform[..., 2] * (width - tried_w + 1), room_x / 2))
    top = xp.floor(chosen(uniform[..., 3] * (height - tried_h + 1), room_y / 2))
    return left, top, left + crop_w, top + crop_h
