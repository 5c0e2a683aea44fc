"""Writes text encoders as folders that sentence-transformers can load."""

import json
import os
import pathlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from flax import traverse_util
from safetensors import SafetensorError
from safetensors.numpy import save

from mrl_jax.errors import DataError, UsageError
from mrl_jax.interop.sentence_card import Scores, card
from mrl_jax.interop.tensor_names import FORMS
from mrl_jax.interop.text_families import (
    DISTILBERT,
    check_padding,
    config_of,
    family_of_bert,
    their_names,
)
from mrl_jax.interop.text_folder import (
    LENGTH,
    MATRYOSHKA,
    MODULES,
    OLD_POOLINGS,
    POOLINGS,
    SETTINGS,
    UNLIMITED,
    TextFolder,
)
from mrl_jax.models.text import ClipText, Static, prompts
from mrl_jax.runtime.task import Tree
from mrl_jax.store import outputs

_TYPES = "sentence_transformers.models"


def write_sentence_folder(
    path: str | os.PathLike,
    folder: TextFolder,
    *,
    scores: Scores | None = None,
    files: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Writes a folder for SentenceTransformer(path, truncate_dim=64), and for `mrl_jax.load`.

    It is written under another name and takes the place of `path` when it is complete.

    Args:
      path: a new or empty folder, or one that this function wrote and nobody has changed since,
        which is replaced.
      folder: the encoder and what belongs to it.
      scores: name of a measure -> dim -> value, for the table in README.md.
      files: further files by name, which sentence-transformers does not look for.

    Raises:
      UsageError: the path holds something else, or the encoder is of no family of transformers.
      DataError: it cannot be written, and what was there stays as it was; or the tokenizer does not
        pad with the token that the encoder counts positions from.
    """
    path = pathlib.Path(os.path.abspath(path))
    check_sentence_folder(path)
    try:
        with outputs.replaced(path) as new:
            _write(new, path.name, folder, scores or {})
            for name, content in files.items():
                (new / name).write_text(content, "utf-8")
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot write {path}: {reason}") from error


def check_sentence_folder(path: pathlib.Path) -> None:
    """Refuses a path that holds something else, which would be lost.

    Raises:
      UsageError: it is not a folder, or has a file that `write_sentence_folder` did not write or
        that was changed since; names the first.
    """
    if path.is_dir():
        found = outputs.foreign(path)
        what = f" as this command wrote it ({found} is new or was changed)" if found else ""
    elif os.path.lexists(path):
        found, what = path.name, ""
    else:
        return
    if found:
        raise UsageError(
            f"{path} holds something other than a sentence encoder{what}: give a new folder"
        )


def _write(root: pathlib.Path, title: str, folder: TextFolder, scores: Scores) -> None:
    encoder, params = folder.encoder, folder.params
    modules: list[tuple[str, str]] = []

    def module(kind: str, inside: bool = True) -> pathlib.Path:
        place = f"{len(modules)}_{kind}" if inside else ""
        modules.append((kind, place))
        (root / place).mkdir(exist_ok=True)
        return root / place

    if isinstance(encoder.backbone, Static):
        if encoder.pooling != "mean":
            raise UsageError(f"a StaticEmbedding pools by mean, the encoder by {encoder.pooling}")
        place = module("StaticEmbedding")
        table_vd = params["backbone"]["tokens"]["embedding"]
        _save(place, {"embedding.weight": table_vd})
        folder.tokenizer.save(place, folder.max_length if folder.max_length < UNLIMITED else None)
    elif isinstance(encoder.backbone, ClipText):
        raise UsageError(
            "sentence-transformers has no module for the text tower of a CLIP or SigLIP alone"
        )
    else:
        _write_transformer(module("Transformer", inside=False), folder)
        mode = next(theirs for theirs, ours in POOLINGS.items() if ours == encoder.pooling)
        modes = {key: name == mode for key, name in OLD_POOLINGS.items()}
        width = {"word_embedding_dimension": encoder.backbone.out_dim}
        _dump(module("Pooling") / "config.json", {**width, **modes})
    if encoder.projection:
        _write_dense(module("Dense"), params["project"])
    if folder.normalize:
        module("Normalize")
    entries = [
        {"idx": i, "name": str(i), "path": place, "type": f"{_TYPES}.{kind}"}
        for i, (kind, place) in enumerate(modules)
    ]
    _dump(root / MODULES, entries)
    settings: dict[str, Any] = {
        "model_type": "SentenceTransformer",
        "prompts": folder.prompts,
        "default_prompt_name": folder.default_prompt or None,
        "similarity_fn_name": "cosine",
    }
    if folder.truncate_dim is not None:
        settings["truncate_dim"] = folder.truncate_dim
    _dump(root / SETTINGS, settings)
    if folder.trained_dims:
        _dump(root / MATRYOSHKA, {"dims": list(folder.trained_dims)})
    readme = card(
        title,
        width=encoder.out_dim,
        max_length=folder.max_length if folder.max_length < UNLIMITED else 0,
        trained_dims=folder.trained_dims,
        prompts=folder.prompts,
        used=prompts.by_role(folder.prompts, folder.default_prompt),
        scores=scores,
    )
    (root / "README.md").write_text(readme, "utf-8")


def _write_transformer(place: pathlib.Path, folder: TextFolder) -> None:
    bert = folder.encoder.backbone
    check_padding(bert, folder.tokenizer, "the encoder")
    _dump(place / "config.json", config_of(bert))
    ours = traverse_util.flatten_dict(folder.params["backbone"], sep="/")
    state = {}
    for name, (theirs, form) in their_names(family_of_bert(bert), bert.layers).items():
        # The conversion of each form that text encoders have is its own inverse.
        state[theirs] = FORMS[form].convert(np.asarray(ours[name]))
    if family_of_bert(bert) is not DISTILBERT:
        # Nothing reads these, but transformers warns if they are missing.
        state["pooler.dense.weight"] = np.zeros((bert.width, bert.width))
        state["pooler.dense.bias"] = np.zeros(bert.width)
    _save(place, state)
    folder.tokenizer.save(place, folder.max_length)
    _dump(place / LENGTH, {"max_seq_length": folder.max_length, "do_lower_case": False})


def _write_dense(place: pathlib.Path, params: Tree) -> None:
    kernel_io = np.asarray(params["kernel"])
    config = {
        "in_features": kernel_io.shape[0],
        "out_features": kernel_io.shape[1],
        "bias": "bias" in params,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    _dump(place / "config.json", config)
    state = {"linear.weight": kernel_io.T}
    if "bias" in params:
        state["linear.bias"] = params["bias"]
    _save(place, state)


def _save(place: pathlib.Path, state: dict[str, Any]) -> None:
    state = {name: np.ascontiguousarray(value, np.float32) for name, value in state.items()}
    # Not `save_file`, whose files only their owner may read.
    (place / "model.safetensors").write_bytes(save(state, metadata={"format": "pt"}))


def _dump(path: pathlib.Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
