"""The head that transformers puts on an encoder for masked language modelling."""

import os
import pathlib
import re

from flax import traverse_util

from mrl_jax.interop.tensor_names import Rule, TensorNames
from mrl_jax.interop.torch_weights import assign, numbers, read_tensors
from mrl_jax.models.text import Bert
from mrl_jax.runtime.task import Tree

# BERT, then RoBERTa and MPNet, then DistilBERT. The weights of the output layer are the table's.
_DENSE = r"(?:cls\.predictions\.transform\.dense|lm_head\.dense|vocab_transform)"
_NORM = r"(?:cls\.predictions\.transform\.LayerNorm|lm_head\.layer_norm|vocab_layer_norm)"
_BIAS = r"(?:cls\.predictions\.bias|lm_head\.bias|vocab_projector\.bias)"
_HEAD = TensorNames(
    "transformers head of a masked language model",
    Bert,
    (
        Rule(rf"{_DENSE}\.weight", ("transform/dense/kernel",), "linear"),
        Rule(rf"{_DENSE}\.bias", ("transform/dense/bias",), "vector"),
        Rule(rf"{_NORM}\.(?:weight|gamma)", ("transform/norm/scale",), "vector"),
        Rule(rf"{_NORM}\.(?:bias|beta)", ("transform/norm/bias",), "vector"),
        Rule(_BIAS, ("head/bias",), "vector"),
    ),
)


def read_masked_head(folder: str | os.PathLike, width: int, vocab_size: int) -> Tree:
    """Parameters of `tasks.masked_lm.MaskedLM` besides the encoder's; {} if the folder has none.

    The folder is one of `text_folder.read_text_folder`, `width` that of the hidden states.

    Raises:
      UsageError: a part of a head, or one of another size.
      DataError: a damaged file.
    """
    path = pathlib.Path(folder, "model.safetensors")
    if not path.exists():  # a sentence encoder in folders of its own
        return {}
    tensors = {
        name: tensor
        for name, tensor in read_tensors(path).items()
        if any(re.fullmatch(rule.pattern, name) for rule in _HEAD.rules)
    }
    if not tensors:
        return {}
    wanted = {
        "transform/dense/kernel": (width, width),
        "transform/dense/bias": (width,),
        "transform/norm/scale": (width,),
        "transform/norm/bias": (width,),
        "head/bias": (vocab_size,),
    }
    parts = assign(path, _HEAD, tensors, wanted, {}, "load", "the head of that encoder, whole")
    found = {target: numbers(path, target, part) for target, part in parts.items()}
    return traverse_util.unflatten_dict(found, sep="/")
