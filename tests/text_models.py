"""Tiny text encoders with a tokenizer of their own, for tests: nothing is downloaded."""

import functools
import json

import jax
import numpy as np
import tokenizers

from mrl_jax.interop.sentence_folder import write_sentence_folder
from mrl_jax.interop.text_folder import UNLIMITED, TextFolder
from mrl_jax.models.text import Bert, SentenceEncoder, Static
from mrl_jax.models.text.tokenizer import Tokenizer

_WHO = ("a man", "the woman", "a small child", "two dogs", "the old cat", "some people")
_WHAT = ("is playing the guitar", "runs along the beach", "sleeps", "eats a red apple near a tree")
SENTENCES = tuple(f"{who} {what}." for who in _WHO for what in _WHAT)

# Positions for 30 tokens.
BERT = {"width": 32, "layers": 3, "heads": 4, "hidden": 48, "max_positions": 30}


@functools.cache
def tokenizer(marks: bool = True, pad: int = 0) -> Tokenizer:
    """A WordPiece of 100 tokens, trained on `SENTENCES`; `pad` is 0 or changes places with it."""
    trained = Tokenizer.train(SENTENCES, 100, marks=marks)
    content, swap = json.loads(trained.raw.to_str()), {0: pad, pad: 0}
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = {word: swap.get(i, i) for word, i in vocabulary.items()}
    for token in content["added_tokens"]:
        token["id"] = swap.get(token["id"], token["id"])
    content["added_tokens"].sort(key=lambda token: token["id"])
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(content)), marks=marks)


@functools.cache
def parameter_shapes(module):
    tokens = jax.ShapeDtypeStruct((1, 4), np.int32), jax.ShapeDtypeStruct((1,), np.int32)
    return jax.eval_shape(module.init, jax.random.key(0), *tokens)["params"]


def random_params(module, seed: int = 0):
    """Parameters of the module, all of them random numbers from numpy (also biases and norms)."""
    rng = np.random.default_rng(seed)

    def draw(keys, leaf):
        scale = keys[-1].key == "scale"
        return (scale + 0.2 * rng.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, parameter_shapes(module))


def bert(seed: int = 0, *, projection: int = 0, **fields) -> TextFolder:
    """A BERT with random weights; `fields` are of `SentenceEncoder` or of `Bert`."""
    outer = {key: fields.pop(key) for key in ("pooling", "projection_bias") if key in fields}
    backbone = Bert(tokenizer().vocab_size, **{**BERT, **fields})
    encoder = SentenceEncoder(backbone, projection=projection, **outer)
    words = tokenizer(pad=max(0, backbone.position_offset - 1))
    return TextFolder(encoder, random_params(encoder, seed), words, backbone.max_tokens)


def static(seed: int = 0, *, width: int = 32, **fields) -> TextFolder:
    """A table of random rows; `fields` are of `SentenceEncoder`."""
    words = tokenizer(marks=False)
    encoder = SentenceEncoder(Static(words.vocab_size, width), **fields)
    return TextFolder(encoder, random_params(encoder, seed), words, UNLIMITED)


def bert_folder(path, seed: int = 0, **fields) -> TextFolder:
    """Writes `bert(seed, **fields)` as a sentence-transformers folder and gives it."""
    write_sentence_folder(path, folder := bert(seed, **fields))
    return folder


def static_folder(path, seed: int = 0, **fields) -> TextFolder:
    """Writes `static(seed, **fields)` as a sentence-transformers folder and gives it."""
    write_sentence_folder(path, folder := static(seed, **fields))
    return folder
