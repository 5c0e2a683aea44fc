"""CLIP and SigLIP as transformers saves them.

Settings as in its configuration_clip.py and configuration_siglip.py.
"""

import pathlib
from typing import Any

from mrl_jax.errors import DataError, UsageError, shown
from mrl_jax.interop.text_families import TWO_TOWERS
from mrl_jax.interop.text_folder import weights_file
from mrl_jax.interop.tower_configs import (
    FIRST_MEAN,
    FIRST_STD,
    LEAST_POSITIONS,
    MOST_LAYERS,
    OTHER_FILTER,
    SQUASHED,
    Config,
    Described,
    Pixels,
    check_heads,
    check_patches,
    padding,
    pixels,
)
from mrl_jax.interop.tower_names import CLIP, SIGLIP
from mrl_jax.models.clip_vision import ClipVision
from mrl_jax.models.text import ClipText
from mrl_jax.models.text.tokenizer import Tokenizer
from mrl_jax.store import json_files

# What is not in a config.json, because it is as transformers has it by default.
_CLIP_TEXT = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}
_CLIP_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_OF_SIGLIP = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
_SIGLIP_TEXT = {
    **_CLIP_TEXT,
    **_OF_SIGLIP,
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "max_position_embeddings": 64,
}
_SIGLIP_VISION = {**_CLIP_VISION, **_OF_SIGLIP, "patch_size": 16}


def describe(root: pathlib.Path) -> Described:
    """The towers of a folder with a config.json.

    Raises:
      UsageError: towers that are not supported, or a file that is missing.
      DataError: a missing value, or one out of range.
    """
    where = root / "config.json"
    config = Config(json_files.read_object(where), str(where))
    config.check({"model_type": TWO_TOWERS, "quantization_config": (None,)})
    siglip = config.values.get("model_type") == "siglip"
    usual = {"text": _CLIP_TEXT, "vision": _CLIP_VISION}
    if siglip:
        usual = {"text": _SIGLIP_TEXT, "vision": _SIGLIP_VISION}
    text, vision = (_tower_config(config, tower, usual[tower]) for tower in ("text", "vision"))
    vision.check({"num_channels": (3,), "vision_use_head": (True,)})
    size, patch = vision.side("image_size"), vision.side("patch_size")
    check_patches(vision.where, size, patch)
    tokenizer = Tokenizer.load(root)
    backbone = ClipText(
        text.count("vocab_size"),
        **_sizes(text),
        max_positions=text.count("max_position_embeddings", LEAST_POSITIONS),
        causal=not siglip,
        pad_id=padding(root, tokenizer) if siglip else None,
    )
    network = ClipVision(
        patch,
        **_sizes(vision),
        pool="map" if siglip else "cls",
        first_norm=not siglip,
        patch_bias=siglip,
    )
    if siglip:
        space, projected = network.width, {"text": True}
        stated = text.values.get("projection_size")
        if (stated or backbone.width) != space:
            raise DataError(
                f"{where}: texts end in {stated or backbone.width} dims, images in {space}"
            )
    else:
        space = Config(config.values, str(where), {"projection_dim": 512}).count("projection_dim")
        projected = {"image": False, "text": False}
    last = text.values["eos_token_id"]
    if not isinstance(last, int):
        raise UsageError(f"{text.where}: eos_token_id {shown(last)} is not supported; legal: an id")
    return Described(
        SIGLIP if siglip else CLIP,
        network,
        backbone,
        size,
        space,
        projected,
        _pixels(root, size, siglip),
        weights_file(root),
        bias=siglip,
        tokenizer=tokenizer,
        # 2 is what transformers wrote before it looked at the id.
        last=None if last == 2 else last,
    )


def _tower_config(config: Config, tower: str, usual: dict[str, Any]) -> Config:
    found = config.part(f"{tower}_config", usual)
    # Its name in the first releases; where it is there, nothing else counts.
    if config.values.get(f"{tower}_config_dict"):
        older = config.part(f"{tower}_config_dict", usual)
        found = Config({**found.values, **older.values}, older.where)
    return found


def _sizes(config: Config) -> dict[str, Any]:
    """The fields that both towers have."""
    found = {
        "width": config.count("hidden_size"),
        "layers": config.count("num_hidden_layers", most=MOST_LAYERS),
        "heads": config.count("num_attention_heads"),
        "hidden": config.count("intermediate_size"),
        "activation": config.activation("hidden_act"),
        "epsilon": config.share("layer_norm_eps"),
    }
    check_heads(config.where, found["width"], found["heads"])
    return found


# What is not said of images, by whether they are those of a SigLIP.
_PIXELS: dict[bool, dict[str, Any]] = {
    False: {
        "image_mean": list(FIRST_MEAN),
        "image_std": list(FIRST_STD),
        "do_center_crop": True,
        "size": 224,
        "crop_size": 224,
    },
    True: {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_center_crop": False, "size": 224},
}
_EVERY_PIXEL = {
    "do_rescale": True,
    "do_normalize": True,
    "rescale_factor": 1 / 255,
    "resample": 3,
}
_BILINEAR = 2  # Pillow's number


def _pixels(root: pathlib.Path, size: int, siglip: bool) -> Pixels:
    """How images are made."""
    path, both = root / "preprocessor_config.json", root / "processor_config.json"
    usual = _EVERY_PIXEL | _PIXELS[siglip]
    if path.exists():
        config = Config(json_files.read_object(path), str(path), usual)
    elif both.exists():
        config = Config(json_files.read_object(both), str(both)).part("image_processor", usual)
    else:
        raise UsageError(
            f"{root} has no preprocessor_config.json, which says how pixels are normalised"
        )
    cropped = bool(config.values["do_center_crop"])
    key = "crop_size" if cropped else "size"
    if _sides(config.values[key]) not in ([size], [size, size]):
        raise DataError(
            f"{config.where}: {key} is {shown(config.values[key])}, the image tower reads "
            f"{size}x{size} pixels"
        )
    notes = []
    if not cropped:
        notes.append(SQUASHED)
    elif (shortest := config.side("size", "shortest_edge")) > size:
        notes.append(
            f"images were resized to {shortest} pixels and {size} were cut out when the towers "
            f"were trained; data.eval_crop {size / shortest:.3f} does the same"
        )
    if config.values["resample"] != _BILINEAR:
        notes.append(OTHER_FILTER)
    mean, std = (0.0,) * 3, (1.0,) * 3
    if config.values["do_normalize"]:
        mean, std = config.channels("image_mean"), config.channels("image_std")
    unit = config.share("rescale_factor") if config.values["do_rescale"] else 1.0
    return pixels(config.where, mean, std, unit, notes)


def _sides(made: Any) -> list[Any]:
    return list(made.values()) if isinstance(made, dict) else [made]
