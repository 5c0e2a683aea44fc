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
from mrl_jax.interop.clip_folder import clip_files, is_clip
from mrl_jax.interop.image_folder import ImageFolder, transformer_files
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
    ROUTER,
    SETTINGS,
    UNLIMITED,
    TextFolder,
    read_json,
)
from mrl_jax.models.text import ClipText, Static, prompts
from mrl_jax.models.vit import ViT
from mrl_jax.runtime.task import Tree
from mrl_jax.store import outputs

_TYPES = "sentence_transformers.models"


def write_sentence_folder(
    path: str | os.PathLike,
    folder: TextFolder,
    *,
    image: ImageFolder | None = None,
    scores: Scores | None = None,
    files: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Writes a folder for SentenceTransformer(path, truncate_dim=64), and for `mrl_jax.load`.

    It is written under another name and takes the place of `path` when it is complete.

    Args:
      path: a new or empty folder, or one that this function wrote and nobody has changed since,
        which is replaced.
      folder: the encoder and what belongs to it.
      image: a network whose embeddings of images are in the same space, which then is in the folder
        as well; see `holds_images`.
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
            _write(new, path.name, folder, image, scores or {})
            for name, content in files.items():
                (new / name).write_text(content, "utf-8")
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot write {path}: {reason}") from error


def holds_images(folder: TextFolder, image: ImageFolder) -> bool:
    """Whether sentence-transformers has modules for an image network beside the text encoder."""
    if isinstance(folder.encoder.backbone, ClipText):
        return is_clip(folder, image)
    return isinstance(image.backbone, ViT) and image.backbone.pool == "cls"


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


class _Modules:
    """Modules that follow each other, as they are written.

    Attributes:
      found: (kind, folder below the root) of each.
    """

    def __init__(self, root: pathlib.Path, route: str = ""):
        self._root, self._route = root, f"{route}_" if route else ""
        self.found: list[tuple[str, str]] = []

    def add(self, kind: str) -> pathlib.Path:
        """The folder of the next module. A Transformer that comes first is in the root itself."""
        first = kind == "Transformer" and not self._route
        place = "" if first else f"{self._route}{len(self.found)}_{kind}"
        self.found.append((kind, place))
        (self._root / place).mkdir(exist_ok=True)
        return self._root / place


def _write(
    root: pathlib.Path, title: str, folder: TextFolder, image: ImageFolder | None, scores: Scores
) -> None:
    modules = _Modules(root)
    if image is None:
        _write_text(modules, folder)
        found = modules.found
    elif is_clip(folder, image):
        _write_clip(modules.add("Transformer"), folder, image)
        found = modules.found
    else:
        routes = {name: _Modules(root, name) for name in ("text", "image")}
        _write_text(routes["text"], folder)
        _write_image(routes["image"], image)
        _write_router(root, {name: modules.found for name, modules in routes.items()})
        found = [("Router", "")]
    entries = [
        {"idx": i, "name": str(i), "path": place, "type": f"{_TYPES}.{kind}"}
        for i, (kind, place) in enumerate(found)
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
    own: dict[str, Any] = {"dims": list(folder.trained_dims)} if folder.trained_dims else {}
    if image:
        own["crop_share"] = image.crop
    if own:
        _dump(root / MATRYOSHKA, own)
    readme = card(
        title,
        width=folder.encoder.out_dim,
        max_length=folder.max_length if folder.max_length < UNLIMITED else 0,
        trained_dims=folder.trained_dims,
        prompts=folder.prompts,
        used=prompts.by_role(folder.prompts, folder.default_prompt),
        scores=scores,
        image_size=image.size if image else 0,
    )
    (root / "README.md").write_text(readme, "utf-8")


def _write_text(modules: _Modules, folder: TextFolder) -> None:
    encoder, params = folder.encoder, folder.params
    if isinstance(encoder.backbone, Static):
        if encoder.pooling != "mean":
            raise UsageError(f"a StaticEmbedding pools by mean, the encoder by {encoder.pooling}")
        place = modules.add("StaticEmbedding")
        table_vd = params["backbone"]["tokens"]["embedding"]
        _save(place, {"embedding.weight": table_vd})
        folder.tokenizer.save(place, folder.max_length if folder.max_length < UNLIMITED else None)
    elif isinstance(encoder.backbone, ClipText):
        raise UsageError(
            "sentence-transformers has no module for the text tower of a CLIP or SigLIP alone; "
            "other formats have"
        )
    else:
        _write_transformer(modules.add("Transformer"), folder)
        mode = next(theirs for theirs, ours in POOLINGS.items() if ours == encoder.pooling)
        _write_pooling(modules.add("Pooling"), mode, encoder.backbone.out_dim)
    if encoder.projection:
        _write_dense(modules.add("Dense"), params["project"])
    if folder.normalize:
        modules.add("Normalize")


def _write_image(modules: _Modules, image: ImageFolder) -> None:
    place = modules.add("Transformer")
    files, tensors = transformer_files(image)
    for name, content in files.items():
        _dump(place / name, content)
    _save(place, tensors)
    _write_pooling(modules.add("Pooling"), "cls", image.backbone.width)
    _write_dense(modules.add("Dense"), image.dense())


def _write_clip(place: pathlib.Path, folder: TextFolder, image: ImageFolder) -> None:
    files, tensors = clip_files(folder, image)
    for name, content in files.items():
        _dump(place / name, content)
    _save(place, tensors)
    folder.tokenizer.save(place, folder.max_length)
    # Texts are filled up with what ends them: what comes after the first of these is not read.
    path, words = place / "tokenizer_config.json", files["config.json"]["text_config"]
    kinds = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "pad_token": "eos_token_id"}
    marks = {kind: folder.tokenizer.raw.id_to_token(words[key]) for kind, key in kinds.items()}
    _dump(path, {**read_json(path), **marks})


def _write_router(root: pathlib.Path, routes: Mapping[str, list[tuple[str, str]]]) -> None:
    content = {
        "types": {place: f"{_TYPES}.{kind}" for found in routes.values() for kind, place in found},
        "structure": {name: [place for _, place in found] for name, found in routes.items()},
        "parameters": {
            "default_route": next(iter(routes)),
            "allow_empty_key": True,
            "route_mappings": {str((None, name)): name for name in routes},
        },
    }
    _dump(root / ROUTER, content)


def _write_pooling(place: pathlib.Path, mode: str, width: int) -> None:
    modes = {key: name == mode for key, name in OLD_POOLINGS.items()}
    _dump(place / "config.json", {"word_embedding_dimension": width, **modes})


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
    state = {name: np.asarray(value, np.float32, order="C") for name, value in state.items()}
    # Not `save_file`, whose files only their owner may read.
    (place / "model.safetensors").write_bytes(save(state, metadata={"format": "pt"}))


def _dump(path: pathlib.Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
