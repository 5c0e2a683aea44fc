"""Reads CLIP and SigLIP from folders of transformers and of OpenCLIP: an image and a text tower."""

import math
import os
import pathlib
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from mrl_jax.errors import DataError, UsageError
from mrl_jax.interop import towers_of_open_clip, towers_of_transformers
from mrl_jax.interop.text_folder import TextFolder
from mrl_jax.interop.torch_weights import Part, array, assign, named, numbers, read_tensors
from mrl_jax.interop.tower_configs import Described
from mrl_jax.models.clip_vision import ClipVision
from mrl_jax.models.text import SentenceEncoder
from mrl_jax.runtime.task import Tree

Loss = Literal["info_nce", "sigmoid"]

_MOST_LOG_SCALE = 80.0  # the exponential is a float32


class TwoTowers(NamedTuple):
    """An image and a text tower that end in one space.

    Attributes:
      vision: images, normalised with `mean` and `std` -> vectors.
      vision_params: of `vision`, on the host.
      image_size: pixels per side of the images.
      mean, std: of each channel of pixels from 0 to 255.
      text: the text tower without its projection.
      projections: "image" and "text" -> {"kernel" [vector, space], perhaps "bias" [space]}.
      scale: what cosines are multiplied by.
      bias: what is added then; 0 without one.
      loss: that they were trained with.
      notes: where what is read here differs from what the towers read when they were trained.
    """

    vision: ClipVision
    vision_params: Tree
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    text: TextFolder
    projections: dict[str, Tree]
    scale: float
    bias: float
    loss: Loss
    notes: tuple[str, ...]


def read_two_towers(path: str | os.PathLike) -> TwoTowers:
    """Reads a folder of a CLIP or SigLIP that transformers or OpenCLIP has saved.

    Of transformers it holds config.json (model_type clip or siglip), model.safetensors and
    preprocessor_config.json; of OpenCLIP open_clip_config.json and open_clip_model.safetensors or
    model.safetensors. The tokenizer is in tokenizer.json, or of a CLIP in vocab.json and
    merges.txt. Texts are read as transformers does; OpenCLIP first replaces letters such as curly
    quotes and ligatures by plain ones.

    Raises:
      UsageError: no such folder or file, a pickle, a model that is not supported, tensors without a
        parameter or parameters without a tensor.
      DataError: files that are damaged or contradict each other.
    """
    root = pathlib.Path(path)
    if not root.is_dir():
        raise UsageError(f"folder of two towers {root} not found")
    theirs, own = root / "config.json", root / towers_of_open_clip.CONFIG
    # Many folders hold both forms of the same weights.
    if own.exists() and not (theirs.exists() and (root / "model.safetensors").exists()):
        read = towers_of_open_clip.describe(root)
    elif theirs.exists():
        read = towers_of_transformers.describe(root)
    else:
        raise UsageError(
            f"{root} has neither config.json nor {own.name}; legal: the folder of a CLIP or SigLIP "
            "of transformers or OpenCLIP"
        )
    _check_tokens(root, read)
    return _with_weights(read)


def _check_tokens(root: pathlib.Path, read: Described) -> None:
    tokenizer, text = read.tokenizer, read.text
    if tokenizer.vocab_size > text.vocab_size:
        raise DataError(
            f"{root}: the tokenizer has ids up to {tokenizer.vocab_size - 1}, "
            f"the table {text.vocab_size} rows"
        )
    if text.reads_padding:
        return
    # What is embedded is the last token of a text, which in the original is found by its id.
    last = tokenizer.encode([""], 8)[0][-1]
    wanted = tokenizer.vocab_size - 1 if read.last is None else read.last
    if last != wanted:
        raise DataError(
            f"{root}: texts are embedded at token {wanted}, but the tokenizer ends them with {last}"
        )


def _with_weights(read: Described) -> TwoTowers:
    tensors, size = read_tensors(read.weights), read.image_size
    image_bhwc = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32), jax.ShapeDtypeStruct((1,), jnp.int32)
    wanted = {**_shapes("image", read.vision, image_bhwc), **_shapes("text", read.text, *tokens)}
    widths = {"image": read.vision.out_dim, "text": read.text.out_dim}
    for tower, bias in read.projected.items():
        wanted[f"{tower}_projection/kernel"] = (widths[tower], read.space)
        if bias:
            wanted[f"{tower}_projection/bias"] = (read.space,)
    log_scale = _number(read.weights, tensors, "logit_scale")
    if log_scale > _MOST_LOG_SCALE:
        raise DataError(f"{read.weights}: logit_scale is {log_scale:g}, which is no logarithm")
    bias = _number(read.weights, tensors, "logit_bias") if read.bias else 0.0
    legal = "the weights that the folder's config describes"
    parts = assign(read.weights, read.table, tensors, wanted, {}, "skip", legal)
    found = {target: numbers(read.weights, target, part) for target, part in parts.items()}
    tree = traverse_util.unflatten_dict(found, sep="/")
    projections = {
        tower: tree[f"{tower}_projection"]
        if tower in read.projected
        else {"kernel": np.eye(width, dtype=np.float32)}
        for tower, width in widths.items()
    }
    text = TextFolder(
        SentenceEncoder(read.text, "last"),
        {"backbone": tree["text"]},
        read.tokenizer,
        read.text.max_tokens,
    )
    return TwoTowers(
        read.vision,
        tree["image"],
        size,
        read.pixels.mean,
        read.pixels.std,
        text,
        projections,
        math.exp(log_scale),
        bias,
        "sigmoid" if read.bias else "info_nce",
        read.pixels.notes,
    )


def _shapes(tower: str, module: Any, *inputs: Any) -> dict[str, tuple[int, ...]]:
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    return {f"{tower}/{name}": leaf.shape for name, leaf in named(shapes)}


def _number(path: pathlib.Path, tensors: dict[str, Any], name: str) -> float:
    """Takes the only value of a tensor out of the file's."""
    if name not in tensors:
        raise UsageError(f"{path} has no tensor {name}; legal: the weights of two towers")
    value = numbers(path, name, Part(name, array(path, name, tensors.pop(name))))
    if value.size != 1:
        raise DataError(f"{path}: {name} must be one number, it has shape {list(value.shape)}")
    return float(value.reshape(()))
