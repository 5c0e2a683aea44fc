"""Where the tensors of PyTorch networks belong in ours: tables of regular expressions.

The names are those of torchvision's resnet.py, RAIVNLab/MRL (MRL.py, utils.py), timm's
vision_transformer.py and transformers' modeling_vit.py, both as `save_pretrained` writes them and
as they are in the state dicts of version 5.
"""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import flax.linen as nn
import numpy as np

from mrl_jax.models.resnet import ResNet
from mrl_jax.models.vit import ViT


class Form(NamedTuple):
    """How a kind of tensor is stored in PyTorch: its rank, and the conversion to our shape."""

    rank: int
    convert: Callable[[np.ndarray], np.ndarray]


FORMS = {
    "vector": Form(1, lambda x_d: x_d),
    "linear": Form(2, lambda w_oi: w_oi.T),
    "table": Form(2, lambda w_vd: w_vd),
    "convolution": Form(4, lambda w_oihw: w_oihw.transpose(2, 3, 1, 0)),
    # A convolution whose stride is its size is one product with the pixels of each patch, which are
    # here in the order row, column, channel.
    "patches": Form(4, lambda w_oihw: w_oihw.transpose(2, 3, 1, 0).reshape(-1, len(w_oihw))),
    "class token": Form(3, lambda x_11d: x_11d.reshape(-1)),
    "position": Form(3, lambda x_1td: x_1td.reshape(-1, x_1td.shape[-1])),
}


class Rule(NamedTuple):
    """What becomes of the tensors of one name.

    Attributes:
      pattern: regex of the whole name.
      targets: paths of parameters, with the pattern's groups as {0}, {1}...; a tensor with several
        targets is cut into as many equal parts along its first axis. "head/{g}/kernel" is the
        kernel of the g-th classifier, whatever the head calls it.
      form: one of `FORMS`.
    """

    pattern: str
    targets: tuple[str, ...]
    form: str


_NOTHING = r"(?!)"  # matches no name


class TensorNames(NamedTuple):
    """The tensor names of one family of networks, and where each tensor goes.

    Attributes:
      title: what messages call it.
      network: the module that it fits.
      rules: first match wins.
      signature: regex of a name that every network of the family has and no other family has.
      ignored: regex of names whose tensors are not needed.
    """

    title: str
    network: type[nn.Module]
    rules: tuple[Rule, ...]
    signature: str = _NOTHING
    ignored: str = _NOTHING


def _linear(theirs: str, *ours: str) -> tuple[Rule, ...]:
    return (
        Rule(rf"{theirs}\.weight", tuple(f"{path}/kernel" for path in ours), "linear"),
        Rule(rf"{theirs}\.bias", tuple(f"{path}/bias" for path in ours), "vector"),
    )


def _norm(theirs: str, ours: str) -> tuple[Rule, ...]:
    return (
        Rule(rf"{theirs}\.weight", (f"backbone/{ours}/scale",), "vector"),
        Rule(rf"{theirs}\.bias", (f"backbone/{ours}/bias",), "vector"),
    )


def _batch_norm(theirs: str, ours: str) -> tuple[Rule, ...]:
    return (
        *_norm(theirs, ours),
        Rule(rf"{theirs}\.running_mean", (f"batch_stats/{ours}/mean",), "vector"),
        Rule(rf"{theirs}\.running_var", (f"batch_stats/{ours}/var",), "vector"),
    )


def _convolution(theirs: str, ours: str) -> tuple[Rule, ...]:
    return (Rule(rf"{theirs}\.weight", (f"backbone/{ours}/conv/kernel",), "convolution"),)


_BLOCK = r"layer(\d+)\.(\d+)"
# FFCV's BlurPoolConv2d keeps the convolution that it blurs for as `conv`.
_BLURRED = r"(?:\.conv)?"

_RESNET = (
    *_convolution("conv1", "conv1"),
    *_batch_norm("bn1", "bn1"),
    *_convolution(rf"{_BLOCK}\.(conv\d){_BLURRED}", "layer{0}_{1}/{2}"),
    *_batch_norm(rf"{_BLOCK}\.(bn\d)", "layer{0}_{1}/{2}"),
    *_convolution(rf"{_BLOCK}\.downsample\.0{_BLURRED}", "layer{0}_{1}/downsample_conv"),
    *_batch_norm(rf"{_BLOCK}\.downsample\.1", "layer{0}_{1}/downsample_bn"),
    # MRL and MRL-E, then one plain layer: torchvision, FF-m and MRL-E's older checkpoints.
    *_linear(r"fc\.nesting_classifier_(\d+)", "head/{0}"),
    *_linear("fc", "head/0"),
)

_TIMM_BLOCK = r"blocks\.(\d+)"
_OUR_BLOCK = "block_{0:0>2}"
_OUR_ATTENTION = f"backbone/{_OUR_BLOCK}/attention"

_TIMM = (
    Rule(r"cls_token", ("backbone/cls",), "class token"),
    Rule(r"pos_embed", ("backbone/position",), "position"),
    Rule(r"patch_embed\.proj\.weight", ("backbone/patches/kernel",), "patches"),
    Rule(r"patch_embed\.proj\.bias", ("backbone/patches/bias",), "vector"),
    *_norm(rf"{_TIMM_BLOCK}\.norm1", f"{_OUR_BLOCK}/norm1"),
    *_norm(rf"{_TIMM_BLOCK}\.norm2", f"{_OUR_BLOCK}/norm2"),
    *_linear(
        rf"{_TIMM_BLOCK}\.attn\.qkv",
        *(f"{_OUR_ATTENTION}/{part}" for part in ("query", "key", "value")),
    ),
    *_linear(rf"{_TIMM_BLOCK}\.attn\.proj", f"{_OUR_ATTENTION}/out"),
    *_linear(rf"{_TIMM_BLOCK}\.mlp\.fc1", f"backbone/{_OUR_BLOCK}/fc1"),
    *_linear(rf"{_TIMM_BLOCK}\.mlp\.fc2", f"backbone/{_OUR_BLOCK}/fc2"),
    *_norm("(?:fc_)?norm", "norm"),
    *_linear("head", "head/0"),
)

_HF = r"(?:vit\.)?"
_HF_BLOCK = rf"{_HF}(?:encoder\.layer|layers)\.(\d+)"

_HF_VIT = (
    Rule(rf"{_HF}embeddings\.cls_token", ("backbone/cls",), "class token"),
    Rule(rf"{_HF}embeddings\.position_embeddings", ("backbone/position",), "position"),
    Rule(
        rf"{_HF}embeddings\.patch_embeddings\.projection\.weight",
        ("backbone/patches/kernel",),
        "patches",
    ),
    Rule(
        rf"{_HF}embeddings\.patch_embeddings\.projection\.bias",
        ("backbone/patches/bias",),
        "vector",
    ),
    *_norm(rf"{_HF_BLOCK}\.layernorm_before", f"{_OUR_BLOCK}/norm1"),
    *_norm(rf"{_HF_BLOCK}\.layernorm_after", f"{_OUR_BLOCK}/norm2"),
    *(
        rule
        for part in ("query", "key", "value")
        for rule in _linear(
            rf"{_HF_BLOCK}\.attention\.(?:attention\.{part}|{part[0]}_proj)",
            f"{_OUR_ATTENTION}/{part}",
        )
    ),
    *_linear(rf"{_HF_BLOCK}\.attention\.(?:output\.dense|o_proj)", f"{_OUR_ATTENTION}/out"),
    *_linear(rf"{_HF_BLOCK}\.(?:intermediate\.dense|mlp\.fc1)", f"backbone/{_OUR_BLOCK}/fc1"),
    *_linear(rf"{_HF_BLOCK}\.(?:output\.dense|mlp\.fc2)", f"backbone/{_OUR_BLOCK}/fc2"),
    *_norm(rf"{_HF}layernorm", "norm"),
    *_linear("classifier", "head/0"),
    # A layer between features and classifier that our networks lack: it can only be skipped along
    # with the head.
    *_linear(rf"{_HF}pooler\.dense", "head/pooler"),
)

KNOWN = (
    TensorNames(
        "torchvision or RAIVNLab/MRL ResNet",
        ResNet,
        _RESNET,
        r"layer1\.0\.bn1\.weight",
        r".*\.(num_batches_tracked|blur_filter)",
    ),
    TensorNames("timm ViT", ViT, _TIMM, r"blocks\.0\.attn\.qkv\.weight"),
    TensorNames(
        "transformers ViT",
        ViT,
        _HF_VIT,
        rf"{_HF}embeddings\.patch_embeddings\.projection\.weight",
    ),
)


def detect(names: Iterable[str]) -> list[tuple[TensorNames, str]]:
    """The networks that the names belong to: the table of each, and the prefix of its names."""
    found = []
    for name in names:
        for table in KNOWN:
            match = re.fullmatch(rf"((?:\w+\.)*?)(?:{table.signature})", name)
            if match:
                found.append((table, match[1]))
    return found


def find(table: TensorNames, name: str) -> tuple[tuple[str, ...], Form] | None:
    """The targets of the tensor called `name` and how it is converted; None for a foreign name."""
    for rule in table.rules:
        match = re.fullmatch(rule.pattern, name)
        if match:
            targets = tuple(target.format(*match.groups()) for target in rule.targets)
            return targets, FORMS[rule.form]
    return None
