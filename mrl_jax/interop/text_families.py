"""What transformers calls the parts and settings of text encoders, and what we call them.

Names as in transformers' modeling_bert.py, modeling_roberta.py, modeling_mpnet.py and
modeling_distilbert.py. One table serves both ways: reading and writing.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from mrl_jax.errors import DataError, UsageError, shown
from mrl_jax.interop.tensor_names import Rule, TensorNames
from mrl_jax.models.activations import ACTIVATIONS
from mrl_jax.models.text import Bert
from mrl_jax.models.text.tokenizer import Tokenizer
from mrl_jax.store import json_files

# transformers' names of activations -> ours.
OUR_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
THEIR_ACTIVATIONS = {name: name for name in ACTIVATIONS} | {"gelu_tanh": "gelu_new"}

# Settings that would make a different encoder, with the only value that is supported.
_NEUTRAL = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "quantization_config": None,
}

# A sentence encoder has neither a pooler nor the heads of pre-training.
_IGNORED = (
    r"(\w+\.)?((embeddings\.)?position_ids|embeddings\.(position_ids|token_type_ids)|pooler\..*|"
    r"cls\..*|lm_head\..*|vocab_(transform|layer_norm|projector)\..*)"
)


class Family(NamedTuple):
    """Encoders whose files have the same form.

    Attributes:
      model_types: in config.json; the first is what is written.
      architecture: class of transformers.
      prefix: of tensor names if the encoder is part of a larger model.
      keys: our field -> key of config.json.
      parts: (their module, ours, "linear" | "norm" | "table"), with {} for the number of a layer.
    """

    model_types: tuple[str, ...]
    architecture: str
    prefix: str
    keys: dict[str, str]
    parts: tuple[tuple[str, str, str], ...]


_KEYS = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "activation": "hidden_act",
    "epsilon": "layer_norm_eps",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
}
_KEYS_WITH_TYPES = {**_KEYS, "types": "type_vocab_size"}
_KEYS_DISTILBERT = {
    "vocab_size": "vocab_size",
    "width": "dim",
    "layers": "n_layers",
    "heads": "n_heads",
    "hidden": "hidden_dim",
    "max_positions": "max_position_embeddings",
    "activation": "activation",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
}
_DISTILBERT_EPSILON = 1e-12  # not in its config.json

_EMBEDDINGS = (
    ("embeddings.word_embeddings", "tokens", "table"),
    ("embeddings.position_embeddings", "positions", "table"),
    ("embeddings.LayerNorm", "norm", "norm"),
)
_TYPES = (("embeddings.token_type_embeddings", "types", "table"),)


def _layer(theirs: str, names: dict[str, str]) -> tuple[tuple[str, str, str], ...]:
    """The parts of a layer: our name -> theirs."""
    return tuple(
        (f"{theirs}.{name}", f"layer_{{:0>2}}/{ours}", "norm" if "norm" in ours else "linear")
        for ours, name in names.items()
    )


_PERCEPTRON = {"fc1": "intermediate.dense", "fc2": "output.dense", "norm2": "output.LayerNorm"}
_BERT = (
    *_EMBEDDINGS,
    *_TYPES,
    *_layer(
        "encoder.layer.{}",
        {
            "attention/query": "attention.self.query",
            "attention/key": "attention.self.key",
            "attention/value": "attention.self.value",
            "attention/out": "attention.output.dense",
            "norm1": "attention.output.LayerNorm",
            **_PERCEPTRON,
        },
    ),
)
_MPNET = (
    *_EMBEDDINGS,
    ("encoder.relative_attention_bias", "relative", "table"),
    *_layer(
        "encoder.layer.{}",
        {
            "attention/query": "attention.attn.q",
            "attention/key": "attention.attn.k",
            "attention/value": "attention.attn.v",
            "attention/out": "attention.attn.o",
            "norm1": "attention.LayerNorm",
            **_PERCEPTRON,
        },
    ),
)
_DISTILBERT = (
    *_EMBEDDINGS,
    *_layer(
        "transformer.layer.{}",
        {
            "attention/query": "attention.q_lin",
            "attention/key": "attention.k_lin",
            "attention/value": "attention.v_lin",
            "attention/out": "attention.out_lin",
            "norm1": "sa_layer_norm",
            "fc1": "ffn.lin1",
            "fc2": "ffn.lin2",
            "norm2": "output_layer_norm",
        },
    ),
)

BERT = Family(("bert",), "BertModel", "bert", _KEYS_WITH_TYPES, _BERT)
ROBERTA = Family(
    ("roberta", "xlm-roberta", "camembert"), "RobertaModel", "roberta", _KEYS_WITH_TYPES, _BERT
)
MPNET = Family(("mpnet",), "MPNetModel", "mpnet", _KEYS, _MPNET)
DISTILBERT = Family(("distilbert",), "DistilBertModel", "distilbert", _KEYS_DISTILBERT, _DISTILBERT)
FAMILIES = (BERT, ROBERTA, MPNET, DISTILBERT)
TWO_TOWERS = ("clip", "siglip")  # model_types that `two_towers` reads

# Tensors of a part: (their suffix, ours, form).
_TENSORS = {
    "linear": (("weight", "kernel", "linear"), ("bias", "bias", "vector")),
    "norm": (("weight", "scale", "vector"), ("bias", "bias", "vector")),
    "table": (("weight", "embedding", "table"),),
}


def _tensors(family: Family) -> Iterator[tuple[str, str, str]]:
    for theirs, ours, kind in family.parts:
        for suffix, name, form in _TENSORS[kind]:
            yield f"{theirs}.{suffix}", f"{ours}/{name}", form


def names_of(family: Family) -> TensorNames:
    """How the tensors of a file become the parameters of a `Bert`."""
    rules = []
    for theirs, ours, form in _tensors(family):
        pattern = re.escape(theirs).replace(r"\{\}", r"(\d+)")
        # Norms of the oldest checkpoints have other names.
        pattern = re.sub(r"(LayerNorm\\\.)weight", r"\1(?:weight|gamma)", pattern)
        pattern = re.sub(r"(LayerNorm\\\.)bias", r"\1(?:bias|beta)", pattern)
        rules.append(Rule(rf"(?:{family.prefix}\.)?{pattern}", (ours,), form))
    title = f"transformers {family.architecture}"
    return TensorNames(title, Bert, tuple(rules), ignored=_IGNORED)


def their_names(family: Family, layers: int) -> dict[str, tuple[str, str]]:
    """Our path of every parameter of a `Bert` -> (their name, form)."""
    found = {}
    for theirs, ours, form in _tensors(family):
        for layer in range(layers if "{}" in theirs else 1):
            found[ours.format(layer)] = (theirs.format(layer), form)
    return found


def family_of(config: dict[str, Any], where: str) -> Family:
    """The family of a config.json, which `where` names in messages.

    Raises:
      UsageError: the family is not supported.
    """
    model_type = config.get("model_type")
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    if model_type in TWO_TOWERS:
        raise UsageError(
            f"{where}: model_type {shown(model_type)} is two towers, not a text encoder; legal: "
            "config.towers.weights of a run of image_text"
        )
    legal = ", ".join(name for family in FAMILIES for name in family.model_types)
    raise UsageError(f"{where}: model_type {shown(model_type)} is not supported; legal: {legal}")


# The range of each number in a config.json; those not listed are whole numbers from 1 on.
_RANGES = {
    "types": (0, 2**31 - 1),
    "pad_token_id": (0, 2**31 - 1),
    "layers": (1, 1000),  # each is traced by itself
    "max_positions": (8, 2**31 - 1),  # the marks around a text need some
    "epsilon": (1e-30, 1.0),
    "dropout": (0.0, 1.0),
    "attention_dropout": (0.0, 1.0),
}


def _check_field(ours: str, theirs: str, config: dict[str, Any], where: str) -> None:
    """Refuses a value of the wrong kind or out of range."""
    if ours == "activation":
        json_files.field(config, theirs, str, where)
        return
    low, high = _RANGES.get(ours, (1, 2**31 - 1))
    kinds = (int,) if isinstance(low, int) else (int, float)
    if not low <= json_files.field(config, theirs, kinds, where) <= high:
        raise DataError(f"{where}: {theirs} must be {low} to {high}, got {shown(config[theirs])}")


def bert_of(config: dict[str, Any], where: str) -> Bert:
    """The `Bert` that a config.json describes.

    Raises:
      UsageError: a model that `Bert` cannot be.
      DataError: a missing key, or a value out of range.
    """
    family = family_of(config, where)
    missing = [key for key in family.keys.values() if key not in config]
    if missing:
        raise DataError(f"{where} lacks {', '.join(missing)}")
    for ours, theirs in family.keys.items():
        _check_field(ours, theirs, config, where)
    if "pad_token_id" in config:
        _check_field("pad_token_id", "pad_token_id", config, where)
    fields = {ours: config[theirs] for ours, theirs in family.keys.items()}
    if fields["activation"] not in OUR_ACTIVATIONS:
        raise UsageError(
            f"{where}: {family.keys['activation']} {fields['activation']!r} is not supported; "
            f"legal: {', '.join(OUR_ACTIVATIONS)}"
        )
    fields["activation"] = OUR_ACTIVATIONS[fields["activation"]]
    for key, legal in _NEUTRAL.items():
        value = config.get(key, legal)
        if value not in (legal, None):
            raise UsageError(f"{where}: {key} {shown(value)} is not supported; legal: {legal!r}")
    if family is DISTILBERT:
        fields["epsilon"] = _DISTILBERT_EPSILON
    if family in (MPNET, DISTILBERT):
        fields["types"] = 0
    if family in (ROBERTA, MPNET):
        # MPNet's padding is 1 whatever its config says.
        fields["position_offset"] = 1 + (1 if family is MPNET else config.get("pad_token_id", 1))
    if fields["width"] % fields["heads"]:
        raise DataError(
            f"{where}: {fields['heads']} heads do not divide the width {fields['width']}"
        )
    return Bert(**fields, relative=family is MPNET)


def family_of_bert(bert: Bert) -> Family:
    """The family whose files can hold the encoder.

    Raises:
      UsageError: none can.
    """
    offset, types = bert.position_offset, bert.types
    if bert.relative and types == 0 and offset == 2:
        return MPNET
    if not bert.relative and types and offset:
        return ROBERTA
    if not bert.relative and types:
        return BERT
    if not bert.relative and not offset and bert.epsilon == _DISTILBERT_EPSILON:
        return DISTILBERT
    raise UsageError(
        "transformers has no encoder with "
        f"relative={bert.relative}, types={types}, position_offset={offset}, "
        f"epsilon={bert.epsilon}; legal: BERT (types, offset 0), RoBERTa (types, offset > 0), "
        "MPNet (relative, no types, offset 2), DistilBERT (no types, offset 0, epsilon 1e-12)"
    )


def check_padding(bert: Bert, tokenizer: Tokenizer, where: str) -> None:
    """Refuses an encoder whose positions skip a token other than the one its tokenizer pads with.

    In transformers, RoBERTa and MPNet count the tokens that are not padding: a text that contains
    the padding token would have different positions there and here.

    Raises:
      DataError: names both ids; `where` says in what.
    """
    padding = bert.position_offset - 1
    if padding >= 0 and tokenizer.pad_id != padding:
        raise DataError(
            f"{where}: positions begin after padding of id {padding}, "
            f"the tokenizer pads with {tokenizer.pad_id}"
        )


def config_of(bert: Bert) -> dict[str, Any]:
    """The config.json of the encoder; see also `family_of_bert`."""
    family = family_of_bert(bert)
    config: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.model_types[0],
        "dtype": "float32",
    }
    config |= {theirs: getattr(bert, ours) for ours, theirs in family.keys.items()}
    config[family.keys["activation"]] = THEIR_ACTIVATIONS[bert.activation]
    config["pad_token_id"] = bert.position_offset - 1 if bert.position_offset else 0
    if family is MPNET:
        config["relative_attention_num_buckets"] = 32
    return config
