"""What transformers, OpenCLIP and timm call the tensors of two towers, and what we call them.

Names as in transformers' modeling_clip.py and modeling_siglip.py, OpenCLIP's transformer.py, and
timm's vision_transformer.py and attention_pool.py, which OpenCLIP's SigLIPs take their image tower
from. Our paths begin with "image", "text", "image_projection" or "text_projection".
"""

import re

import flax.linen as nn

from mrl_jax.interop.tensor_names import Rule, TensorNames

_ATTENTION = ("query", "key", "value")


def _rule(theirs: str, form: str, *ours: str) -> Rule:
    """`theirs` is a name with {} for the number of a layer."""
    return Rule(re.escape(theirs).replace(r"\{\}", r"(\d+)"), ours, form)


def _linear(theirs: str, *ours: str) -> tuple[Rule, ...]:
    return (
        _rule(f"{theirs}.weight", "linear", *(f"{path}/kernel" for path in ours)),
        _rule(f"{theirs}.bias", "vector", *(f"{path}/bias" for path in ours)),
    )


def _packed(theirs: str, ours: str) -> tuple[Rule, ...]:
    """An attention whose three products of one input are stored as one, as in PyTorch."""
    return (
        _rule(f"{theirs}.in_proj_weight", "linear", *(f"{ours}/{p}/kernel" for p in _ATTENTION)),
        _rule(f"{theirs}.in_proj_bias", "vector", *(f"{ours}/{p}/bias" for p in _ATTENTION)),
        *_linear(f"{theirs}.out_proj", f"{ours}/out"),
    )


def _norm(theirs: str, ours: str) -> tuple[Rule, ...]:
    return (
        _rule(f"{theirs}.weight", "vector", f"{ours}/scale"),
        _rule(f"{theirs}.bias", "vector", f"{ours}/bias"),
    )


def _patches(theirs: str) -> tuple[Rule, ...]:
    return (
        _rule(f"{theirs}.weight", "patches", "image/patches/kernel"),
        _rule(f"{theirs}.bias", "vector", "image/patches/bias"),
    )


_OURS = {"image": "image/block_{0:0>2}", "text": "text/layer_{0:0>2}"}


def _transformers_layers(theirs: str, tower: str) -> tuple[Rule, ...]:
    layer, ours = f"{theirs}.encoder.layers.{{}}", _OURS[tower]
    attention = [
        _linear(f"{layer}.self_attn.{name[0]}_proj", f"{ours}/attention/{name}")
        for name in _ATTENTION
    ]
    return (
        *(rule for rules in attention for rule in rules),
        *_linear(f"{layer}.self_attn.out_proj", f"{ours}/attention/out"),
        *_norm(f"{layer}.layer_norm1", f"{ours}/norm1"),
        *_norm(f"{layer}.layer_norm2", f"{ours}/norm2"),
        *_linear(f"{layer}.mlp.fc1", f"{ours}/fc1"),
        *_linear(f"{layer}.mlp.fc2", f"{ours}/fc2"),
    )


_TRANSFORMERS = (
    _rule("vision_model.embeddings.class_embedding", "vector", "image/cls"),
    *_patches("vision_model.embeddings.patch_embedding"),
    _rule("vision_model.embeddings.position_embedding.weight", "table", "image/position"),
    *_transformers_layers("vision_model", "image"),
    *_norm("vision_model.pre_layrnorm", "image/first_norm"),  # so it is spelt
    *_norm("vision_model.post_layernorm", "image/norm"),
    _rule("text_model.embeddings.token_embedding.weight", "table", "text/tokens/embedding"),
    _rule("text_model.embeddings.position_embedding.weight", "table", "text/positions/embedding"),
    *_transformers_layers("text_model", "text"),
    *_norm("text_model.final_layer_norm", "text/norm"),
)
_POSITIONS = r"(text|vision)_model\.embeddings\.position_ids"

CLIP = TensorNames(
    "transformers CLIPModel",
    nn.Module,
    (
        *_TRANSFORMERS,
        *_linear("visual_projection", "image_projection"),
        *_linear("text_projection", "text_projection"),
    ),
    ignored=_POSITIONS,
)
SIGLIP = TensorNames(
    "transformers SiglipModel",
    nn.Module,
    (
        *_TRANSFORMERS,
        _rule("vision_model.head.probe", "class token", "image/probe/query_token"),
        *_packed("vision_model.head.attention", "image/probe"),
        *_norm("vision_model.head.layernorm", "image/probe/norm"),
        *_linear("vision_model.head.mlp.fc1", "image/probe/fc1"),
        *_linear("vision_model.head.mlp.fc2", "image/probe/fc2"),
        *_linear("text_model.head", "text_projection"),
    ),
    ignored=_POSITIONS,
)


def _open_clip_layers(theirs: str, tower: str) -> tuple[Rule, ...]:
    layer, ours = f"{theirs}.resblocks.{{}}", _OURS[tower]
    return (
        *_packed(f"{layer}.attn", f"{ours}/attention"),
        *_norm(f"{layer}.ln_1", f"{ours}/norm1"),
        *_norm(f"{layer}.ln_2", f"{ours}/norm2"),
        *_linear(f"{layer}.mlp.c_fc", f"{ours}/fc1"),
        *_linear(f"{layer}.mlp.c_proj", f"{ours}/fc2"),
    )


_TIMM = "visual.trunk"
_TIMM_LAYER, _OUR_LAYER = f"{_TIMM}.blocks.{{}}", _OURS["image"]

# Its text tower has a prefix in models that are put together of any two towers.
_OPEN_CLIP_TEXT = (
    _rule("token_embedding.weight", "table", "text/tokens/embedding"),
    _rule("positional_embedding", "table", "text/positions/embedding"),
    *_open_clip_layers("transformer", "text"),
    *_norm("ln_final", "text/norm"),
    # Without a bias it is no layer, and is stored as it is multiplied with.
    _rule("text_projection", "table", "text_projection/kernel"),
    *_linear("text_projection", "text_projection"),
)
OPEN_CLIP = TensorNames(
    "OpenCLIP",
    nn.Module,
    (
        _rule("visual.class_embedding", "vector", "image/cls"),
        *_patches("visual.conv1"),
        _rule("visual.positional_embedding", "table", "image/position"),
        *_open_clip_layers("visual.transformer", "image"),
        *_norm("visual.ln_pre", "image/first_norm"),
        *_norm("visual.ln_post", "image/norm"),
        _rule("visual.proj", "table", "image_projection/kernel"),
        *_patches(f"{_TIMM}.patch_embed.proj"),
        _rule(f"{_TIMM}.pos_embed", "position", "image/position"),
        *_linear(
            f"{_TIMM_LAYER}.attn.qkv", *(f"{_OUR_LAYER}/attention/{name}" for name in _ATTENTION)
        ),
        *_linear(f"{_TIMM_LAYER}.attn.proj", f"{_OUR_LAYER}/attention/out"),
        *_norm(f"{_TIMM_LAYER}.norm1", f"{_OUR_LAYER}/norm1"),
        *_norm(f"{_TIMM_LAYER}.norm2", f"{_OUR_LAYER}/norm2"),
        *_linear(f"{_TIMM_LAYER}.mlp.fc1", f"{_OUR_LAYER}/fc1"),
        *_linear(f"{_TIMM_LAYER}.mlp.fc2", f"{_OUR_LAYER}/fc2"),
        *_norm(f"{_TIMM}.norm", "image/norm"),
        _rule(f"{_TIMM}.attn_pool.latent", "class token", "image/probe/query_token"),
        *_linear(f"{_TIMM}.attn_pool.q", "image/probe/query"),
        *_linear(f"{_TIMM}.attn_pool.kv", "image/probe/key", "image/probe/value"),
        *_linear(f"{_TIMM}.attn_pool.proj", "image/probe/out"),
        *_norm(f"{_TIMM}.attn_pool.norm", "image/probe/norm"),
        *_linear(f"{_TIMM}.attn_pool.mlp.fc1", "image/probe/fc1"),
        *_linear(f"{_TIMM}.attn_pool.mlp.fc2", "image/probe/fc2"),
        *(rule._replace(pattern=rf"(?:text\.)?{rule.pattern}") for rule in _OPEN_CLIP_TEXT),
    ),
    # Buffers of its first releases.
    ignored=r"(text\.)?attn_mask",
)
