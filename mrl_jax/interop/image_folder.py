"""Image networks as modules of sentence-transformers, which reads a ViT of transformers."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util

from mrl_jax.errors import DataError, UsageError, shown
from mrl_jax.interop.torch_weights import load_weights
from mrl_jax.models.vit import EPSILON, ViT
from mrl_jax.runtime.task import Tree
from mrl_jax.store import json_files
from mrl_jax.store.json_files import field

PIXELS = "preprocessor_config.json"
_BILINEAR = 2  # of Pillow's resampling filters

# Our modules and parameters -> theirs; {} is the number of a block.
_NAMES = {
    "cls": "embeddings.cls_token",
    "position": "embeddings.position_embeddings",
    "patches": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
    "block_{}/norm1": "encoder.layer.{}.layernorm_before",
    "block_{}/norm2": "encoder.layer.{}.layernorm_after",
    "block_{}/attention/query": "encoder.layer.{}.attention.attention.query",
    "block_{}/attention/key": "encoder.layer.{}.attention.attention.key",
    "block_{}/attention/value": "encoder.layer.{}.attention.attention.value",
    "block_{}/attention/out": "encoder.layer.{}.attention.output.dense",
    "block_{}/fc1": "encoder.layer.{}.intermediate.dense",
    "block_{}/fc2": "encoder.layer.{}.output.dense",
}


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """An image network with everything that embedding an image takes.

    Attributes:
      backbone: the module, images -> vectors.
      params: of the backbone, on the host.
      projection: {"kernel" [vector, space], perhaps "bias" [space]}, from vectors to embeddings.
      size: pixels per side of the images that it reads.
      crop: share of the short side of a picture that is kept, see `data.images.centre_square`.
      mean, std: what is subtracted from pixels of 0 to 255, and what they are divided by then.
      log_scale: logarithm of what cosines with texts are multiplied by in the loss.
    """

    backbone: nn.Module
    params: Tree
    projection: Tree
    size: int
    crop: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    log_scale: float = 0.0

    def dense(self) -> Tree:
        """The projection, with the last layer of the network where that is linear as well."""
        last = self.params.get("embedding")
        if last is None:
            return self.projection
        return after(last, self.projection)


def after(first: Tree, second: Tree) -> Tree:
    """One linear layer for two, {"kernel" [in, out], perhaps "bias" [out]}."""
    kernel_mo = np.asarray(second["kernel"], np.float64)
    found = {"kernel": np.asarray(first["kernel"], np.float64) @ kernel_mo}
    bias_o = second.get("bias")
    if "bias" in first:
        bias_o = np.asarray(first["bias"], np.float64) @ kernel_mo + (
            0 if bias_o is None else bias_o
        )
    if bias_o is not None:
        found["bias"] = bias_o
    return {name: np.asarray(array, np.float32) for name, array in found.items()}


def transformer_files(folder: ImageFolder) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The JSON files, by name, and the tensors of the module Transformer."""
    vit = folder.backbone
    config = {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        "hidden_size": vit.width,
        "num_hidden_layers": vit.depth,
        "num_attention_heads": vit.heads,
        "intermediate_size": 4 * vit.width,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": EPSILON,
        "image_size": folder.size,
        "patch_size": vit.patch,
        "num_channels": 3,
        "qkv_bias": True,
    }
    # Without this sentence-transformers takes it for a network of texts.
    sentence = {
        "transformer_task": "feature-extraction",
        "modality_config": {
            "image": {"method": "forward", "method_output_name": "last_hidden_state"}
        },
        "module_output_name": "token_embeddings",
    }
    files = {
        "config.json": config,
        PIXELS: pixels_of(folder),
        "sentence_bert_config.json": sentence,
    }
    return files, _tensors(vit, folder.params)


def pixels_of(folder: ImageFolder) -> dict[str, Any]:
    """What preprocessor_config.json says: almost what `data.images.centre_square` does.

    Here a square is cut out and resized; there a picture is resized, and a square cut out.
    """
    size = folder.size
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": round(size / folder.crop)},
        "resample": _BILINEAR,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [float(x) / 255 for x in np.broadcast_to(folder.mean, 3)],
        "image_std": [float(x) / 255 for x in np.broadcast_to(folder.std, 3)],
    }


def _tensors(vit: ViT, params: Tree) -> dict[str, np.ndarray]:
    network = {name: tree for name, tree in params.items() if name != "embedding"}
    found = renamed(network, _NAMES, vit.patch)
    for name in ("cls", "position"):
        found[_NAMES[name]] = found[_NAMES[name]].reshape(1, -1, vit.width)
    # Nothing reads these, but transformers warns if they are missing.
    found["pooler.dense.weight"] = np.zeros((vit.width, vit.width))
    found["pooler.dense.bias"] = np.zeros(vit.width)
    return found


def renamed(params: Tree, names: Mapping[str, str], patch: int = 0) -> dict[str, np.ndarray]:
    """Parameters as tensors of PyTorch.

    Args:
      params: of a network.
      names: our modules, and parameters outside of them -> theirs; {} is the number of a layer.
      patch: pixels per side of what the module `patches` reads, if there is one.
    """
    found = {}
    for path, array in traverse_util.flatten_dict(params, sep="/").items():
        module, _, leaf = path.rpartition("/")
        number = re.search(r"_(\d+)/", path)
        theirs = names[re.sub(r"_\d+/", "_{}/", module + "/").rstrip("/") or leaf]
        theirs, array = theirs.format(int(number[1]) if number else ""), np.asarray(array)
        if module == "patches" and leaf == "kernel":
            array = array.reshape(patch, patch, -1, array.shape[-1]).transpose(3, 2, 0, 1)
        elif leaf == "kernel":
            array = array.T
        kind = "bias" if leaf == "bias" else "weight"
        found[f"{theirs}.{kind}" if module else theirs] = array
    return found


def read_transformer(place: pathlib.Path, dense: Tree, crop: float) -> ImageFolder:
    """Reads what `transformer_files` gives, beside the Dense behind it and the share of a picture.

    Raises:
      UsageError: a network that is not supported, or a file is missing.
      DataError: a file is damaged.
    """
    config, pixels = (json_files.read_object(place / name) for name in ("config.json", PIXELS))
    where = str(place / "config.json")
    vit = ViT(
        *(
            field(config, key, int, where)
            for key in ("patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
        ),
        pool="cls",
    )
    legal = {
        "model_type": "vit",
        "hidden_act": "gelu",
        "intermediate_size": 4 * vit.width,
        "layer_norm_eps": EPSILON,
        "num_channels": 3,
        "qkv_bias": True,
    }
    for key, value in legal.items():
        if config.get(key) != value:
            raise UsageError(f"{where}: {key} {shown(config.get(key))}; legal: {value}")
    size = field(config, "image_size", int, where)
    where = str(place / PIXELS)
    mean, std = (
        tuple(255 * number for number in field(pixels, key, list, where))
        for key in ("image_mean", "image_std")
    )
    if not len(mean) == len(std) == 3:
        raise DataError(f"{where} does not say how pixels are read")
    image_bhwc = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    shapes = jax.eval_shape(vit.init, jax.random.key(0), image_bhwc)["params"]
    params, _ = load_weights(
        place / "model.safetensors",
        vit,
        {"backbone": shapes},
        {},
        head="skip",
        say=lambda line: None,
    )
    return ImageFolder(vit, params["backbone"], dense, size, crop, mean, std)
