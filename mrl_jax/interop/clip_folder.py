"""CLIPs of ours as folders of transformers, which sentence-transformers and we read."""

from typing import Any

import numpy as np

from mrl_jax.interop.image_folder import PIXELS, ImageFolder, pixels_of, renamed
from mrl_jax.interop.text_families import THEIR_ACTIVATIONS
from mrl_jax.interop.text_folder import TextFolder
from mrl_jax.models.clip_vision import ClipVision
from mrl_jax.models.text import ClipText

_LAYER = {
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/out": "self_attn.out_proj",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
_VISION = {
    "cls": "vision_model.embeddings.class_embedding",
    "position": "vision_model.embeddings.position_embedding.weight",
    "patches": "vision_model.embeddings.patch_embedding",
    "first_norm": "vision_model.pre_layrnorm",  # so it is spelt
    "norm": "vision_model.post_layernorm",
    **{f"block_{{}}/{our}": f"vision_model.encoder.layers.{{}}.{it}" for our, it in _LAYER.items()},
}
_TEXT = {
    "tokens": "text_model.embeddings.token_embedding",
    "positions": "text_model.embeddings.position_embedding",
    "norm": "text_model.final_layer_norm",
    **{f"layer_{{}}/{our}": f"text_model.encoder.layers.{{}}.{it}" for our, it in _LAYER.items()},
}


def is_clip(text: TextFolder, image: ImageFolder) -> bool:
    """Whether transformers has a CLIPModel of these towers."""
    vision, encoder = image.backbone, text.encoder
    return (
        isinstance(vision, ClipVision)
        and (vision.pool, vision.first_norm, vision.patch_bias) == ("cls", True, False)
        and isinstance(encoder.backbone, ClipText)
        and encoder.backbone.causal
        and not encoder.backbone.reads_padding
        and encoder.pooling == "last"
        and "bias" not in image.projection
        and not encoder.projection_bias
    )


def clip_files(text: TextFolder, image: ImageFolder) -> tuple[dict[str, Any], dict[str, Any]]:
    """The JSON files, by name, and the tensors of a CLIPModel; see `is_clip`."""
    words, vision = text.encoder.backbone, image.backbone
    marks = text.tokenizer.encode([""], text.max_length)[0]
    config = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": text.encoder.out_dim,
        "text_config": {
            **_sizes(words),
            "vocab_size": words.vocab_size,
            "max_position_embeddings": words.max_positions,
            "bos_token_id": int(marks[0]),
            "eos_token_id": int(marks[-1]),
        },
        "vision_config": {
            **_sizes(vision),
            "image_size": image.size,
            "patch_size": vision.patch,
        },
    }
    methods = {"text": "get_text_features", "image": "get_image_features"}
    sentence = {
        "max_seq_length": text.max_length,
        "transformer_task": "feature-extraction",
        "modality_config": {
            name: {"method": method, "method_output_name": "pooler_output"}
            for name, method in methods.items()
        },
        "module_output_name": "sentence_embedding",
    }
    tensors = {
        **renamed(text.params["backbone"], _TEXT),
        **renamed(image.params, _VISION, vision.patch),
        "text_projection.weight": np.asarray(text.params["project"]["kernel"]).T,
        "visual_projection.weight": np.asarray(image.projection["kernel"]).T,
        "logit_scale": np.asarray(image.log_scale),
    }
    files = {"config.json": config, PIXELS: pixels_of(image), "sentence_bert_config.json": sentence}
    return files, tensors


def _sizes(network: ClipVision | ClipText) -> dict[str, Any]:
    return {
        "hidden_size": network.width,
        "num_hidden_layers": network.layers,
        "num_attention_heads": network.heads,
        "intermediate_size": network.hidden,
        "hidden_act": THEIR_ACTIVATIONS[network.activation],
        "layer_norm_eps": network.epsilon,
    }
