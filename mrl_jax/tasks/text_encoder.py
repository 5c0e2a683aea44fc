"""The text encoder of a config, which the tasks of text train."""

import dataclasses
import pathlib
from typing import Any, NamedTuple

import jax.numpy as jnp
from ml_collections import ConfigDict

from mrl_jax.interop.text_folder import UNLIMITED, TextFolder, keep_layers, read_text_folder
from mrl_jax.models.text import Bert, ClipText, SentenceEncoder, Static, prompts
from mrl_jax.models.text.tokenizer import Tokenizer
from mrl_jax.record.folder import TOKENIZER
from mrl_jax.tasks.common import config_errors

# Fresh encoders: width, layers, heads, hidden units.
FRESH = {
    "bert_tiny": (128, 2, 2, 512),
    "minilm_l6": (384, 6, 12, 1536),
    "bert_base": (768, 12, 12, 3072),
}
STATIC = "static"
MAX_LENGTH, MAX_LENGTH_TABLE = 128, 256  # of a fresh encoder, of a table that has no limit

_BACKBONES = {"bert": Bert, "clip": ClipText, "static": Static}
# What is no fact of a trained encoder: how it was trained and computed, and what Flax adds.
_LEFT_OUT = {"dropout", "attention_dropout", "dtype", "remat", "parent", "name"}


class TextEncoder(NamedTuple):
    """A module that embeds texts, and how texts become its input.

    Attributes:
      module: tokens and lengths -> embeddings.
      marks: whether special tokens stand around a text.
      max_length: tokens, marks included, that a text is cut to.
      prompts: name -> what is put before a text.
      default_prompt: name of the prompt for texts that come without one; "" for none.
      normalize: whether an embedding is scaled to unit length before anyone sees it.
    """

    module: SentenceEncoder
    marks: bool
    max_length: int
    prompts: dict[str, str]
    default_prompt: str = ""
    # The losses compare directions: lengths mean nothing unless a folder says otherwise.
    normalize: bool = True

    def with_vocabulary(self, size: int) -> "TextEncoder":
        """The encoder of a tokenizer of so many tokens."""
        backbone = self.module.backbone.clone(vocab_size=size)
        return self._replace(module=self.module.clone(backbone=backbone))

    def facts(self) -> dict[str, Any]:
        """All of it, as JSON holds it; see `of_facts`."""
        module, backbone = self.module, self.module.backbone
        kind = next(name for name, made in _BACKBONES.items() if isinstance(backbone, made))
        sizes = {
            field.name: getattr(backbone, field.name)
            for field in dataclasses.fields(backbone)
            if field.name not in _LEFT_OUT
        }
        return {
            "kind": kind,
            **sizes,
            "pooling": module.pooling,
            "projection": module.projection,
            "projection_bias": module.projection_bias,
            "marks": self.marks,
            "max_length": self.max_length,
            "prompts": self.prompts,
            "default_prompt": self.default_prompt,
            "normalize": self.normalize,
        }

    def folder(self, params: Any, tokenizer: Tokenizer, dims: tuple[int, ...]) -> TextFolder:
        """The encoder with trained parameters and all that belongs to it."""
        # Readers of the folder look for prompts called "query" and "document".
        by_role = prompts.by_role(self.prompts, self.default_prompt)
        stated = {role: by_role[role] for role in ("query", "document") if by_role[role]}
        return TextFolder(
            self.module,
            params,
            tokenizer,
            self.max_length,
            {**stated, **self.prompts},
            dims,
            self.normalize,
            self.default_prompt,
        )


def of_facts(facts: dict[str, Any], text: ConfigDict | None = None) -> TextEncoder:
    """The encoder that `TextEncoder.facts` describes; `text`: to be trained as this group says."""
    made = _BACKBONES[facts["kind"]]
    names = {field.name for field in dataclasses.fields(made)} - _LEFT_OUT
    sizes = {name: facts[name] for name in names}
    if text is not None and made is not Static:
        sizes |= {"dtype": jnp.dtype(text.dtype), "remat": text.remat}
    if made is Bert:
        dropout = 0.0 if text is None else text.dropout
        sizes |= {"dropout": dropout, "attention_dropout": dropout}
    module = SentenceEncoder(
        made(**sizes), facts["pooling"], facts["projection"], facts["projection_bias"]
    )
    return TextEncoder(
        module,
        facts["marks"],
        facts["max_length"],
        dict(facts["prompts"]),
        facts["default_prompt"],
        facts["normalize"],
    )


def trained_folder(setup: Any, params: Any, dims: tuple[int, ...]) -> TextFolder:
    """The encoder of an `experiment.Experiment` with trained parameters and its tokenizer."""
    found = of_facts(setup.facts["encoder"])
    tokenizer = kept_tokenizer(setup.folder, found.marks) or setup.dataset.tokenizer
    return found.folder(params, tokenizer, dims)


def kept_tokenizer(folder: pathlib.Path | None, marks: bool) -> Tokenizer | None:
    """The tokenizer that a run started with; None before its start."""
    kept = folder and folder / TOKENIZER
    return Tokenizer.load(kept, marks=marks, settings=False) if kept and kept.exists() else None


def of_config(
    config: ConfigDict,
    run: pathlib.Path | None = None,
    *,
    pooling: str = "",
    width: int = 0,
    said: tuple[str, ...] = (),
) -> tuple[TextEncoder, Tokenizer | None, TextFolder | None]:
    """The encoder of a config before its run starts.

    Args:
      config: of a run.
      run: its folder. The tokenizer that it holds goes before all others.
      pooling: "mean", "cls" or "last"; "" = the folder's, else the mean.
      width: dims of a table, or of a projection of others; 0 = none.
      said: prompts, as `text.prompts`; () = the folder's.

    Returns:
      The encoder; its tokenizer, None if one is still to be made of the texts, whose vocabulary has
      the largest size until then; and the folder that it comes from, None of a fresh one.

    Raises:
      UsageError: names the config key and what would be legal.
      DataError: a damaged folder or tokenizer.
    """
    t = config.text
    with config_errors("text"):
        if not t.encoder:
            raise ValueError("encoder is empty; legal is a folder or a fresh encoder")
        parsed = prompts.parse(said)
        if t.encoder not in (STATIC, *FRESH):
            found, tokenizer, folder = _from_folder(config, pooling, width, parsed)
            return found, kept_tokenizer(run, found.marks) or tokenizer, folder
        if t.layers:
            raise ValueError(f"layers: they are chosen of a folder, {t.encoder} is fresh")
        marks = t.encoder != STATIC
        tokenizer = kept_tokenizer(run, marks)
        if tokenizer is None and t.tokenizer:
            tokenizer = Tokenizer.load(t.tokenizer, marks=marks)
        rows = tokenizer.vocab_size if tokenizer else t.vocab_size
        length, default = t.max_length or MAX_LENGTH, "default" if "default" in parsed else ""
        if t.encoder == STATIC:
            if not width:
                raise ValueError("width: a static table needs so many dims")
            _check_table(t, pooling or "mean")
            module = SentenceEncoder(Static(rows, width))
            return TextEncoder(module, marks, length, parsed, default), tokenizer, None
        size, layers, heads, hidden = FRESH[t.encoder]
        backbone = Bert(rows, size, layers, heads, hidden)
        if length > backbone.max_tokens:
            raise ValueError(
                f"max_length {length}: {t.encoder} takes at most {backbone.max_tokens}"
            )
        module = SentenceEncoder(backbone, pooling or "mean", width)
        return TextEncoder(module, marks, length, parsed, default), tokenizer, None


def _check_table(text: ConfigDict, pooling: str) -> None:
    """Refuses what only networks have."""
    if text.dropout or text.remat or text.dtype != "float32" or pooling != "mean":
        raise ValueError(
            "a static table has no dropout, dtype or remat, and no pooling but the mean"
        )


def _from_folder(
    config: ConfigDict, pooling: str, width: int, said: dict[str, str]
) -> tuple[TextEncoder, Tokenizer, TextFolder]:
    t = config.text
    if t.tokenizer:
        raise ValueError(f"tokenizer: {t.encoder} is a folder and has its own")
    folder = read_text_folder(t.encoder)
    if t.layers:
        folder = keep_layers(folder, t.layers)
    encoder = folder.encoder
    changes: dict[str, Any] = {"pooling": pooling or encoder.pooling}
    if width not in (0, encoder.out_dim):
        if encoder.projection:
            raise ValueError(f"width {width}: {t.encoder} has a projection to {encoder.out_dim}")
        changes["projection"] = width
    if isinstance(encoder.backbone, Static):
        _check_table(t, changes["pooling"])
    # Batches are padded to their longest text, and a table may come without a limit.
    own = folder.max_length if folder.max_length < UNLIMITED else MAX_LENGTH_TABLE
    length = t.max_length or own
    if length > folder.max_length:
        raise ValueError(f"max_length {length}: {t.encoder} takes at most {folder.max_length}")
    default = ("default" if "default" in said else "") if said else folder.default_prompt
    found = TextEncoder(
        encoder.clone(**changes),
        folder.tokenizer.marks,
        length,
        said or folder.prompts,
        default,
        folder.normalize,
    )
    return found, folder.tokenizer, folder
