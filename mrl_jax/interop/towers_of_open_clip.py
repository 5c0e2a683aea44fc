"""CLIP and SigLIP as OpenCLIP saves them; settings as in its model.py."""

import pathlib
import re

from mrl_jax.errors import DataError, UsageError, shown
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
from mrl_jax.interop.tower_names import OPEN_CLIP
from mrl_jax.models.activations import Activation
from mrl_jax.models.clip_vision import ClipVision
from mrl_jax.models.text import ClipText
from mrl_jax.models.text.tokenizer import Tokenizer
from mrl_jax.models.text.tokenizer_files import without_punctuation
from mrl_jax.store import json_files
from mrl_jax.store.json_files import field

CONFIG = "open_clip_config.json"
_WEIGHTS = ("open_clip_model.safetensors", "model.safetensors")

# What would make other towers in OpenCLIP, with what is supported.
_SAME_BLOCKS = {
    "ls_init_value": (None,),
    "block_type": (None, "default"),
    "qk_norm": (False,),
    "scaled_cosine_attn": (False,),
    "scale_heads": (False,),
    "scale_attn_inner": (False,),
    "scale_attn": (False,),
    "scale_fc": (False,),
}
_OPEN_VISION = {
    **_SAME_BLOCKS,
    "attentional_pool": (False,),
    "pool_type": ("tok",),
    "input_patchnorm": (False,),
    "global_average_pool": (False,),
}
_OPEN_TEXT = {
    **_SAME_BLOCKS,
    "hf_model_name": (None, ""),
    "embed_cls": (False,),
    "pool_type": ("argmax", "eos", "last"),
    "proj_type": ("linear",),
    "proj": ("linear", None),
    "tokenizer_mode": (None, ""),
}
_OPEN_VISION_USUAL = {
    "layers": 12,
    "width": 768,
    "head_width": 64,
    "mlp_ratio": 4.0,
    "patch_size": 16,
    "image_size": 224,
}
_OPEN_TEXT_USUAL = {
    "context_length": 77,
    "vocab_size": 49408,
    "width": 512,
    "heads": 8,
    "layers": 12,
    "mlp_ratio": 4.0,
}
# timm's SigLIPs: their sizes are not in the config; attention heads cannot be seen in the weights.
_SIGLIP_NAME = r"vit_(base|large|so400m|giantopt)_patch(\d+)_siglip_(\d+)"
SIGLIPS = {  # width, layers, heads, hidden
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "so400m": (1152, 27, 16, 4304),
    "giantopt": (1536, 40, 16, 6144),
}
# Those that were not made from weights with the tanh approximation of GELU keep the exact one.
_EXACT_GELU = (
    r"vit_(base_patch16_siglip_.*|large_patch16_siglip_(256|384)|so400m_patch14_siglip_.*)"
)


def describe(root: pathlib.Path) -> Described:
    """The towers of a folder with an open_clip_config.json; raises as for transformers."""
    where = root / CONFIG
    whole = Config(json_files.read_object(where), str(where))
    config = whole.part("model_cfg")
    vision = config.part("vision_cfg", _OPEN_VISION_USUAL)
    text = config.part("text_cfg", _OPEN_TEXT_USUAL)
    text.check(_OPEN_TEXT)
    quick = bool(config.values.get("quick_gelu"))
    causal = not text.values.get("no_causal_mask")
    padded = text.values.get("pool_type") == "last"
    if not causal and not padded:
        raise UsageError(
            f"{text.where}: no_causal_mask with pool_type "
            f"{shown(text.values.get('pool_type', 'argmax'))} is not supported; legal: 'last'"
        )
    tokenizer = _open_tokenizer(root, text)
    width = text.count("width")
    backbone = ClipText(
        text.count("vocab_size"),
        width,
        text.count("layers", most=MOST_LAYERS),
        text.count("heads"),
        int(width * text.share("mlp_ratio", most=100.0)),
        max_positions=text.count("context_length", LEAST_POSITIONS),
        causal=causal,
        pad_id=padding(root, tokenizer) if padded else None,
        activation=_open_activation(text, quick),
        epsilon=_open_epsilon(text),
    )
    check_heads(text.where, width, backbone.heads)
    space = config.count("embed_dim")
    projected = {"text": bool(text.values.get("proj_bias"))}
    size = vision.side("image_size")
    if vision.values.get("timm_model_name"):
        network = _timm(vision)
        if network.width != space:
            raise DataError(f"{vision.where}: images end in {network.width} dims, not {space}")
    else:
        network, projected["image"] = _open_vision(vision, quick), False
    check_patches(vision.where, size, network.patch)
    last = field(text.values, "eos_id", int, text.where) if text.values.get("eos_id") else 2
    return Described(
        OPEN_CLIP,
        network,
        backbone,
        size,
        space,
        projected,
        _open_pixels(whole.part("preprocess_cfg"), size),
        weights_file(root, _WEIGHTS, "open_clip_pytorch_model.bin"),
        bias=config.values.get("init_logit_bias") is not None,
        tokenizer=tokenizer,
        last=last if text.values.get("pool_type") == "eos" else None,
    )


def _open_vision(vision: Config, quick: bool) -> ClipVision:
    if isinstance(vision.values["layers"], list):
        raise UsageError(
            f"{vision.where}: a ResNet (layers {shown(vision.values['layers'])}) is not supported; "
            "legal: a vision transformer, such as ViT-B-32"
        )
    vision.check(_OPEN_VISION)
    width, head_width = vision.count("width"), vision.count("head_width")
    if width % head_width:
        raise DataError(f"{vision.where}: head_width {head_width} does not divide width {width}")
    return ClipVision(
        vision.side("patch_size"),
        width,
        vision.count("layers", most=MOST_LAYERS),
        width // head_width,
        int(width * vision.share("mlp_ratio", most=100.0)),
        first_norm=not vision.values.get("no_ln_pre"),
        activation=_open_activation(vision, quick),
        epsilon=_open_epsilon(vision),
    )


def _timm(vision: Config) -> ClipVision:
    """The image tower of OpenCLIP's SigLIPs."""
    name = field(vision.values, "timm_model_name", str, vision.where)
    found = re.fullmatch(_SIGLIP_NAME, name)
    if not found:
        raise UsageError(
            f"{vision.where}: timm_model_name {shown(name)} is not supported; legal: a SigLIP, "
            "such as vit_base_patch16_siglip_224"
        )
    vision.check({"timm_pool": ("map",), "timm_proj": ("none", "", None)})
    exact = re.fullmatch(_EXACT_GELU, name)
    return ClipVision(
        int(found[2]),
        *SIGLIPS[found[1]],
        pool="map",
        first_norm=False,
        patch_bias=True,
        activation="gelu" if exact else "gelu_tanh",
        epsilon=1e-6,
    )


def _open_activation(config: Config, quick: bool) -> Activation:
    if quick:
        return "quick_gelu"
    config.check({"act_kwargs": (None, {}, {"approximate": "none"}, {"approximate": "tanh"})})
    given = config.values.get("act_kwargs") or {}
    return "gelu_tanh" if given.get("approximate") == "tanh" else "gelu"


def _open_epsilon(config: Config) -> float:
    given = config.part("norm_kwargs", {"eps": 1e-5})
    if foreign := sorted(given.values.keys() - {"eps"}):
        raise UsageError(f"{given.where}: {foreign[0]} is not supported; legal: eps")
    return given.share("eps")


def _open_tokenizer(root: pathlib.Path, text: Config) -> Tokenizer:
    options = text.part("tokenizer_kwargs")
    options.check({"clean": ("lower", "whitespace", "canonicalize"), "strip_sep_token": (False,)})
    tokenizer = Tokenizer.load(root)
    if options.values.get("clean") == "canonicalize":
        without_punctuation(tokenizer.raw, apart="_")
    return tokenizer


def _open_pixels(config: Config, size: int) -> Pixels:
    usual = {"mean": list(FIRST_MEAN), "std": list(FIRST_STD), "size": size}
    config = Config({**usual, **config.values}, config.where)
    if config.side("size") != size:
        raise DataError(
            f"{config.where}: size is {config.side('size')}, the image tower reads {size}x{size} "
            "pixels"
        )
    notes = []
    if (mode := config.values.get("resize_mode", "shortest")) == "squash":
        notes.append(SQUASHED)
    elif mode != "shortest":
        raise UsageError(
            f"{config.where}: resize_mode {shown(mode)} is not supported; legal: shortest, squash"
        )
    if config.values.get("interpolation", "bicubic") != "bilinear":
        notes.append(OTHER_FILTER)
    mean, std = config.channels("mean"), config.channels("std")
    return pixels(config.where, mean, std, 1 / 255, notes)
