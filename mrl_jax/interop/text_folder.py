"""Reads text encoders from folders of transformers and of sentence-transformers."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from mrl_jax.errors import DataError, UsageError, shown
from mrl_jax.interop.tensor_names import Rule, TensorNames
from mrl_jax.interop.text_families import bert_of, check_padding, family_of, names_of
from mrl_jax.interop.torch_weights import assign, named, numbers, read_tensors
from mrl_jax.models.text import Bert, Pooling, SentenceEncoder, Static
from mrl_jax.models.text.tokenizer import Tokenizer
from mrl_jax.runtime.task import Tree
from mrl_jax.store import json_files
from mrl_jax.store.json_files import field

MODULES = "modules.json"
ROUTER = "router_config.json"
SETTINGS = "config_sentence_transformers.json"
LENGTH = "sentence_bert_config.json"
LENGTHS = "sentence_*_config.json"  # its first releases put the kind of model here
# Our own file, which sentence-transformers does not look for.
MATRYOSHKA = "matryoshka.json"

# The limit of a table that came without one: longer than any text.
UNLIMITED = 2**30

# sentence-transformers' names of poolings -> ours.
POOLINGS: dict[str, Pooling] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
# In its first releases the config.json of Pooling had a switch for each.
OLD_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
}

_TABLE = TensorNames(
    "table of token embeddings",
    Static,
    (Rule(r"embedding\.weight|embeddings", ("tokens/embedding",), "table"),),
)
_DENSE = TensorNames(
    "Dense of sentence-transformers",
    SentenceEncoder,
    (
        Rule(r"linear\.weight", ("kernel",), "linear"),
        Rule(r"linear\.bias", ("bias",), "vector"),
    ),
)


@dataclasses.dataclass(frozen=True)
class TextFolder:
    """A text encoder with everything that embedding a text takes.

    Attributes:
      encoder: the module.
      params: of the encoder, on the host.
      tokenizer: its own.
      max_length: tokens, marks included, that a text is cut to.
      prompts: name -> what is put before a text; the names are kinds of texts, such as "query".
      trained_dims: prefixes that were trained; () where unknown.
      normalize: whether an embedding is scaled to unit length before anyone sees it.
      default_prompt: name of the prompt for texts that come without one; "" for none.
      truncate_dim: the prefix that is used where none is asked for; None: all dims.
    """

    encoder: SentenceEncoder
    params: Tree
    tokenizer: Tokenizer
    max_length: int
    prompts: dict[str, str] = dataclasses.field(default_factory=dict)
    trained_dims: tuple[int, ...] = ()
    normalize: bool = False
    default_prompt: str = ""
    truncate_dim: int | None = None


def read_text_folder(path: str | os.PathLike) -> TextFolder:
    """Reads a folder that transformers, sentence-transformers or this package has saved.

    Without modules.json it holds config.json, model.safetensors and tokenizer.json or vocab.txt of
    a BERT, RoBERTa, MPNet or DistilBERT, and the mean of the tokens is the embedding. With it, a
    Transformer and its Pooling, or a StaticEmbedding; then a Dense without an activation and a
    Normalize, if they are there. Weights of poolers and of pre-training heads are passed over.

    Raises:
      UsageError: no such folder or file, a pickle, a model that is not supported, tensors without a
        parameter or parameters without a tensor.
      DataError: files that are damaged or contradict each other.
    """
    root = pathlib.Path(path)
    if not root.is_dir():
        raise UsageError(f"folder of a text encoder {root} not found")
    return of_modules(root, _modules(root))


def of_modules(root: pathlib.Path, modules: Sequence[tuple[str, pathlib.Path]]) -> TextFolder:
    """Reads modules, each by its kind and folder, and what else a folder says of them."""
    kinds = [kind for kind, _ in modules]
    folders = dict(modules)
    if kinds[0] == "StaticEmbedding":
        backbone, params, tokenizer, max_length = _read_static(folders["StaticEmbedding"])
        pooling: Pooling = "mean"
    else:
        backbone, params, tokenizer, max_length = _read_transformer(folders["Transformer"])
        pooling = _read_pooling(folders.get("Pooling"), backbone.width)
    tree = {"backbone": params}
    projection, bias = 0, True
    if "Dense" in folders:
        tree["project"] = read_dense(folders["Dense"], backbone.out_dim)
        projection = tree["project"]["kernel"].shape[1]
        bias = "bias" in tree["project"]
    encoder = SentenceEncoder(backbone, pooling, projection, bias)
    if tokenizer.vocab_size > backbone.vocab_size:
        raise DataError(
            f"{root}: the tokenizer has ids up to {tokenizer.vocab_size - 1}, "
            f"the table {backbone.vocab_size} rows"
        )
    settings = read_json(root / SETTINGS) if (root / SETTINGS).exists() else {}
    prompts, default_prompt = _prompts(settings, root / SETTINGS)
    if any(prompts.values()) and not _includes_prompt(folders.get("Pooling")):
        raise UsageError(f"{root}: pooling without the prompt is not known; legal: include_prompt")
    nested = root / MATRYOSHKA
    dims = field(read_json(nested), "dims", list, str(nested)) if nested.exists() else []
    truncate_dim = settings.get("truncate_dim")
    for dim in (*dims, *([] if truncate_dim is None else [truncate_dim])):
        if not isinstance(dim, int) or not 1 <= dim <= encoder.out_dim:
            raise DataError(f"{root}: dim {shown(dim)}, legal are 1 to {encoder.out_dim}")
    return TextFolder(
        encoder,
        tree,
        tokenizer,
        max_length,
        prompts,
        tuple(dims),
        "Normalize" in folders,
        default_prompt,
        truncate_dim,
    )


def keep_layers(folder: TextFolder, layers: tuple[int, ...]) -> TextFolder:
    """The folder with these layers of its network alone, from 1 on; what is around them stays.

    Raises:
      ValueError: it has no such layers, or they do not rise.
    """
    there, backbone = folder.encoder.layers, folder.encoder.backbone
    if not isinstance(backbone, Bert):
        raise ValueError("layers: a static table has none to choose from")
    if sorted({*layers} & {*range(1, there + 1)}) != [*layers]:
        raise ValueError(
            f"layers must be rising numbers from 1 to {there}, those there are; got {shown(layers)}"
        )
    params = dict(folder.params["backbone"])
    kept = [params.pop(f"layer_{number:02d}") for number in range(there)]
    params |= {f"layer_{new:02d}": kept[layer - 1] for new, layer in enumerate(layers)}
    return dataclasses.replace(
        folder,
        encoder=folder.encoder.clone(backbone=backbone.clone(layers=len(layers))),
        params={**folder.params, "backbone": params},
    )


def _prompts(settings: dict[str, Any], where: pathlib.Path) -> tuple[dict[str, str], str]:
    """The prompts by name, and the name of the default one ("" for none)."""
    prompts, default = settings.get("prompts") or {}, settings.get("default_prompt_name") or ""
    named = isinstance(prompts, dict)
    if not named or not all(isinstance(text, str | None) for text in prompts.values()):
        raise DataError(f"{where}: prompts must be texts by name, got {shown(prompts)}")
    prompts = {name: text or "" for name, text in prompts.items()}
    if not isinstance(default, str):
        raise DataError(f"{where}: default_prompt_name must be a text, got {shown(default)}")
    if default and default not in prompts:
        legal = ", ".join(prompts) or "none, there are no prompts"
        raise DataError(f"{where}: default_prompt_name {shown(default)}; legal: {legal}")
    return prompts, default


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      UsageError: no such file.
      DataError: something else in it.
    """
    try:
        return json_files.read_object(path)
    except json_files.MissingError:
        raise UsageError(f"{path} not found") from None


# The sequences of modules that are read, by the last part of their types.
LEGAL = tuple(
    (*first, *dense, *normalize)
    for first in (("Transformer", "Pooling"), ("StaticEmbedding",))
    for dense in ((), ("Dense",))
    for normalize in ((), ("Normalize",))
)


def _modules(root: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
    """Kind and folder of each module, in order."""
    path = root / MODULES
    if not path.exists():
        return [("Transformer", root)]
    where, entries = str(path), json_files.read(path)
    if not isinstance(entries, list):
        raise DataError(f"{path} must be a list of modules, got {shown(entries)}")
    found = [
        (field(entry, "type", str, where).rpartition(".")[2], field(entry, "path", str, where))
        for entry in entries
    ]
    return check_modules(root, found, LEGAL, path)


def check_modules(
    root: pathlib.Path,
    found: Sequence[tuple[str, str]],
    legal: Sequence[tuple[str, ...]],
    where: pathlib.Path,
) -> list[tuple[str, pathlib.Path]]:
    """The folders of modules, given as kinds and places inside the root.

    Raises:
      UsageError: another sequence of kinds than the legal ones, or a folder is missing.
      DataError: a place outside the root.
    """
    kinds = tuple(kind for kind, _ in found)
    if kinds not in legal:
        listed = "; ".join(" > ".join(kinds) for kinds in legal)
        raise UsageError(f"{where}: modules {' > '.join(kinds)} are not known; legal: {listed}")
    for kind, place in found:
        if ".." in pathlib.PurePath(place).parts or pathlib.PurePath(place).is_absolute():
            raise DataError(f"{where}: {shown(place)} is not inside the folder")
        # Nothing lies in the folder of a Normalize, and Git and archives lose empty folders.
        if place and kind != "Normalize" and not (root / place).is_dir():
            raise UsageError(f"{where}: {root} has no folder {shown(place)}")
    return [(kind, root / place) for kind, place in found]


def _load(
    path: pathlib.Path,
    table: TensorNames,
    tensors: dict[str, Any],
    wanted: dict[str, tuple[int, ...]],
) -> Tree:
    """The wanted parameters out of the tensors of a file."""
    legal = "the weights that the folder's config.json describes"
    parts = assign(path, table, tensors, wanted, {}, "skip", legal)
    found = {target: numbers(path, target, part) for target, part in parts.items()}
    return traverse_util.unflatten_dict(found, sep="/")


def weights_file(
    folder: pathlib.Path,
    names: Sequence[str] = ("model.safetensors",),
    pickle: str = "pytorch_model.bin",
) -> pathlib.Path:
    """The file of weights, under the first of the names that is there.

    Or the pickle if there is nothing else, which reading then refuses.

    Raises:
      UsageError: the weights are in several files.
    """
    for path in (folder / name for name in names):
        if path.with_name(f"{path.name}.index.json").exists():
            raise UsageError(f"{folder}: weights in several files; legal: one {path.name}")
        if path.exists():
            return path
    return folder / (pickle if (folder / pickle).exists() else names[0])


@functools.lru_cache(maxsize=8)
def _parameter_shapes(bert: Bert) -> dict[str, tuple[int, ...]]:
    """Shapes by path. Tracing takes a second, which several folders of one network can share."""
    tokens = jax.ShapeDtypeStruct((1, 2), np.int32), jax.ShapeDtypeStruct((1,), np.int32)
    shapes = jax.eval_shape(bert.init, jax.random.key(0), *tokens)["params"]
    return {name: leaf.shape for name, leaf in named(shapes)}


def _read_transformer(folder: pathlib.Path) -> tuple[Any, Tree, Tokenizer, int]:
    where = folder / "config.json"
    config = read_json(where)
    bert = bert_of(config, str(where))
    path = weights_file(folder)
    table = names_of(family_of(config, str(where)))
    params = _load(path, table, read_tensors(path), _parameter_shapes(bert))
    settings = _sentence_settings(folder)
    tokenizer = Tokenizer.load(folder, lowercase=bool(settings.get("do_lower_case")))
    check_padding(bert, tokenizer, str(folder))
    limit, tokens_file = settings.get("max_seq_length"), folder / "tokenizer_config.json"
    if limit is None and tokens_file.exists():
        tokens = read_json(tokens_file)
        limit = tokens.get("model_max_length", tokens.get("max_len"))  # the older name
    longest = _limit(bert.max_tokens if limit is None else limit, folder)
    return bert, params, tokenizer, min(longest, bert.max_tokens)


# Settings of sentence-transformers for which only these values are supported. All others must be
# empty, except those in _SENTENCE_KNOWN, which are read or make no difference.
_SENTENCE_NEUTRAL = {
    "transformer_task": ("feature-extraction",),
    "module_output_name": ("token_embeddings",),
    "backend": ("torch",),
}
_SENTENCE_KNOWN = {"max_seq_length", "do_lower_case", "modality_config", "unpad_inputs"}


def _sentence_settings(folder: pathlib.Path) -> dict[str, Any]:
    """The settings that sentence-transformers saves for its Transformer module.

    Raises:
      UsageError: a setting is not supported.
    """
    settings: dict[str, Any] = {}
    for file in sorted(folder.glob(LENGTHS)):
        for key, value in read_json(file).items():
            legal = _SENTENCE_NEUTRAL.get(key, (False, "", [], {}))
            if key not in _SENTENCE_KNOWN and value is not None and value not in legal:
                raise UsageError(f"{file}: {key} {shown(value)} is not supported")
            settings[key] = value
    return settings


def _limit(value: Any, where: pathlib.Path) -> int:
    """The limit in tokens, at most `UNLIMITED`; transformers writes a huge number for "no limit".

    Raises:
      DataError: it is not a number, or is less than 1.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 1:
        raise DataError(
            f"{where}: the longest text has {shown(value)} tokens; legal: a number >= 1"
        )
    return min(int(min(value, UNLIMITED)), UNLIMITED)


def _read_static(folder: pathlib.Path) -> tuple[Any, Tree, Tokenizer, int]:
    path = weights_file(folder)
    tensors = read_tensors(path)
    shapes = [tensor["shape"] for tensor in tensors.values() if len(tensor["shape"]) == 2]
    rows, width = shapes[0] if shapes else (0, 0)
    params = _load(path, _TABLE, tensors, {"tokens/embedding": (rows, width)})
    file = folder / "tokenizer.json"
    # sentence-transformers reads no other file here, and cuts texts only if this one says so.
    tokenizer = Tokenizer.load(file, marks=False, settings=False)
    limit = (read_json(file).get("truncation") or {}).get("max_length", UNLIMITED)
    return Static(rows, width), params, tokenizer, _limit(limit, file)


def _read_pooling(folder: pathlib.Path | None, width: int) -> Pooling:
    if folder is None:
        return "mean"
    path = folder / "config.json"
    config = read_json(path)
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [key for key, on in config.items() if key.startswith("pooling_mode_") and on]
        modes = [OLD_POOLINGS.get(key, key) for key in modes]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1 or modes[0] not in POOLINGS:
        legal = ", ".join(POOLINGS)
        raise UsageError(f"{path}: pooling {' and '.join(modes)} is not known; legal: {legal}")
    stated = config.get("embedding_dimension", config.get("word_embedding_dimension", width))
    if stated != width:
        raise DataError(f"{path}: pools {stated} dims, the transformer has {width}")
    return POOLINGS[modes[0]]


def _includes_prompt(folder: pathlib.Path | None) -> bool:
    return folder is None or bool(read_json(folder / "config.json").get("include_prompt", True))


def read_dense(folder: pathlib.Path, width: int) -> Tree:
    """The parameters of a Dense that reads so many dims.

    Raises:
      UsageError: a file is missing, or there is an activation.
      DataError: a file is damaged, or it reads other dims.
    """
    path = folder / "config.json"
    config = read_json(path)
    activation = str(config.get("activation_function", "")).rpartition(".")[2]
    if activation != "Identity" or config.get("use_residual"):
        raise UsageError(
            f"{path}: a Dense with activation {activation or 'unknown'}"
            f"{' and a residual' if config.get('use_residual') else ''}; legal: Identity alone"
        )
    out_dim = field(config, "out_features", int, str(path))
    if not 1 <= out_dim < 2**31:
        raise DataError(f"{path}: out_features must be 1 to {2**31 - 1}, got {shown(out_dim)}")
    wanted = {"kernel": (width, out_dim)}
    if config.get("bias", True):
        wanted["bias"] = wanted["kernel"][1:]
    weights = weights_file(folder)
    return _load(weights, _DENSE, read_tensors(weights), wanted)
