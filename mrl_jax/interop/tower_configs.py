"""What the folder of a CLIP or SigLIP says of its towers, before their weights are read."""

import pathlib
from typing import Any, NamedTuple

from mrl_jax.errors import DataError, UsageError, shown
from mrl_jax.interop.tensor_names import TensorNames
from mrl_jax.interop.text_families import OUR_ACTIVATIONS
from mrl_jax.models.activations import Activation
from mrl_jax.models.clip_vision import ClipVision
from mrl_jax.models.text import ClipText
from mrl_jax.models.text.tokenizer import Tokenizer
from mrl_jax.store import json_files
from mrl_jax.store.json_files import field

MOST_LAYERS = 1000  # each is traced by itself
LEAST_POSITIONS = 8  # the marks around a text need some

# Of the pixels, from 0 to 1, that the first CLIP was trained with.
FIRST_MEAN = (0.48145466, 0.4578275, 0.40821073)
FIRST_STD = (0.26862954, 0.26130258, 0.27577711)


class Pixels(NamedTuple):
    """How the images of a folder are made.

    Attributes:
      mean, std: of each channel of pixels from 0 to 255.
      notes: where they are made in another way here.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: tuple[str, ...]


class Described(NamedTuple):
    """What a folder says of its towers, before their weights are read.

    Attributes:
      table: of the names of tensors.
      vision, text: the towers.
      image_size: pixels per side.
      space: dims of the space that both end in.
      projected: tower -> whether its projection has a bias; a tower without one is not in it.
      pixels: how images are made.
      weights: the file of tensors.
      bias: whether there is one beside the scale.
      last: id of the token that texts are embedded at must be this one, or the largest (None).
    """

    table: TensorNames
    vision: ClipVision
    text: ClipText
    image_size: int
    space: int
    projected: dict[str, bool]
    pixels: Pixels
    weights: pathlib.Path
    bias: bool
    tokenizer: Tokenizer
    last: int | None


class Config:
    """A part of a config, whose values are checked as they are read."""

    def __init__(self, values: Any, where: str, usual: dict[str, Any] | None = None):
        if not isinstance(values, dict):
            raise DataError(f"{where} must be a JSON object, got {shown(values)}")
        self.values, self.where = {**(usual or {}), **values}, where

    def part(self, key: str, usual: dict[str, Any] | None = None) -> "Config":
        """An object of this one; one that is missing is empty."""
        return Config(self.values.get(key) or {}, f"{self.where}: {key}", usual)

    def count(self, key: str, least: int = 1, most: int = 2**31 - 1) -> int:
        """A whole number in a range."""
        value = field(self.values, key, int, self.where)
        if not least <= value <= most:
            raise DataError(f"{self.where}: {key} must be {least} to {most}, got {shown(value)}")
        return value

    def side(self, key: str, inner: str = "") -> int:
        """A number of pixels, a square's two, or an object with the number under `inner`."""
        value = self.values.get(key)
        if isinstance(value, dict) and inner in value:
            value = value[inner]
        elif isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
            value = value[0]
        return Config({key: value}, self.where).count(key)

    def share(self, key: str, least: float = 1e-30, most: float = 1.0) -> float:
        """A number in a range."""
        value = field(self.values, key, (int, float), self.where)
        if not least <= value <= most:
            raise DataError(f"{self.where}: {key} must be {least} to {most}, got {shown(value)}")
        return float(value)

    def activation(self, key: str) -> Activation:
        """The name of an activation of transformers, as ours."""
        value = field(self.values, key, str, self.where)
        if value not in OUR_ACTIVATIONS:
            legal = ", ".join(OUR_ACTIVATIONS)
            raise UsageError(f"{self.where}: {key} {value!r} is not supported; legal: {legal}")
        return OUR_ACTIVATIONS[value]

    def channels(self, key: str) -> tuple[float, ...]:
        """A number for each of three channels."""
        values = field(self.values, key, list, self.where)
        if len(values) != 3 or not all(type(value) in (int, float) for value in values):
            raise DataError(f"{self.where}: {key} must be three numbers, got {shown(values)}")
        return tuple(map(float, values))

    def check(self, legal: dict[str, tuple[Any, ...]]) -> None:
        """Refuses settings that would make other towers; the first of the legal values is usual."""
        for key, values in legal.items():
            value = self.values.get(key, values[0])
            if value not in values:
                raise UsageError(
                    f"{self.where}: {key} {shown(value)} is not supported; legal: "
                    f"{' or '.join(map(repr, values))}"
                )


def check_heads(where: str, width: int, heads: int) -> None:
    """Refuses heads that do not divide the width."""
    if width % heads:
        raise DataError(f"{where}: {heads} heads do not divide the width {width}")


def check_patches(where: str, size: int, patch: int) -> None:
    """Refuses patches that are larger than an image."""
    if size < patch:
        raise DataError(f"{where}: a patch of {patch} pixels is larger than an image of {size}")


def padding(root: pathlib.Path, tokenizer: Tokenizer) -> int:
    """The token that every text is filled up with, by default the one that ends it."""
    token = None
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if token is None and (root / name).exists():
            token = json_files.read_object(root / name).get("pad_token")
    token = token.get("content") if isinstance(token, dict) else token
    if token is None:
        return int(tokenizer.encode([""], 8)[0][-1])
    number = tokenizer.raw.token_to_id(token) if isinstance(token, str) else None
    if number is None:
        raise DataError(f"{root}: the tokenizer has no token {shown(token)}, which it pads with")
    return number


SQUASHED = (
    "images were squeezed to a square when the towers were trained, here their centre is cut out"
)
OTHER_FILTER = (
    "images were resized with another filter when the towers were trained, here with the bilinear "
    "one"
)


def pixels(
    where: str, mean: tuple[float, ...], std: tuple[float, ...], unit: float, notes: list[str]
) -> Pixels:
    """Of a mean and deviation of pixels that were multiplied by `unit` first."""
    if not all(value > 0 for value in std):
        raise DataError(f"{where}: deviations must be more than 0, got {shown(list(std))}")
    return Pixels(tuple(m / unit for m in mean), tuple(s / unit for s in std), tuple(notes))
