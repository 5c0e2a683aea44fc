"""Image networks as modules of sentence-transformers, which reads a ViT of transformers."""

import dataclasses
import pathlib
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

# Our paths of parameters -> theirs; {} is the number of a block.
_NAMES = {
    "cls": "embeddings.cls_token",
    "position": "embeddings.position_embeddings",
    "patches/kernel": "embeddings.patch_embeddings.projection.weight",
    "patches/bias": "embeddings.patch_embeddings.projection.bias",
    "norm": "layernorm",
    "block_{:02d}/norm1": "encoder.layer.{}.layernorm_before",
    "block_{:02d}/norm2": "encoder.layer.{}.layernorm_after",
    "block_{:02d}/attention/query": "encoder.layer.{}.attention.attention.query",
    "block_{:02d}/attention/key": "encoder.layer.{}.attention.attention.key",
    "block_{:02d}/attention/value": "encoder.layer.{}.attention.attention.value",
    "block_{:02d}/attention/out": "encoder.layer.{}.attention.output.dense",
    "block_{:02d}/fc1": "encoder.layer.{}.intermediate.dense",
    "block_{:02d}/fc2": "encoder.layer.{}.output.dense",
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
    """

    backbone: nn.Module
    params: Tree
    projection: Tree
    size: int
    crop: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def writable(self) -> bool:
        """Whether sentence-transformers has a module for the network."""
        return isinstance(self.backbone, ViT) and self.backbone.pool == "cls"

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
    vit, size = folder.backbone, folder.size
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
        "image_size": size,
        "patch_size": vit.patch,
        "num_channels": 3,
        "qkv_bias": True,
    }
    pixels = {
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
    # Without this sentence-transformers takes it for a network of texts.
    sentence = {
        "transformer_task": "feature-extraction",
        "modality_config": {
            "image": {"method": "forward", "method_output_name": "last_hidden_state"}
        },
        "module_output_name": "token_embeddings",
    }
    files = {"config.json": config, PIXELS: pixels, "sentence_bert_config.json": sentence}
    return files, _tensors(vit, folder.params)


def _tensors(vit: ViT, params: Tree) -> dict[str, np.ndarray]:
    ours = {name: np.asarray(x) for name, x in traverse_util.flatten_dict(params, sep="/").items()}
    found = {
        # Nothing reads these, but transformers warns if they are missing.
        "pooler.dense.weight": np.zeros((vit.width, vit.width)),
        "pooler.dense.bias": np.zeros(vit.width),
    }
    for name, theirs in _NAMES.items():
        for block in range(vit.depth if "{" in name else 1):
            path, target = name.format(block), theirs.format(block)
            if path == "patches/kernel":
                kernel = ours[path].reshape(vit.patch, vit.patch, 3, vit.width)
                found[target] = kernel.transpose(3, 2, 0, 1)
            elif path in ours:
                x = ours[path]
                found[target] = x if "bias" in path else x.reshape(1, -1, vit.width)
            else:
                scale, kernel = ours.get(f"{path}/scale"), ours.get(f"{path}/kernel")
                found[f"{target}.weight"] = scale if kernel is None else kernel.T
                found[f"{target}.bias"] = ours[f"{path}/bias"]
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
