"""Reads a tokenizer from the files of transformers: each setting is either followed or refused.

They are read as transformers 5 reads them. The class that tokenizer_config.json names decides where
the steps from text to tokens come from: "PreTrainedTokenizerFast" takes all of them from
tokenizer.json, while BERT's classes take the normaliser from the settings, and CLIP's and SigLIP's
have one of their own, whatever tokenizer.json says.
"""

import json
import pathlib
import re
import shlex
import string
from collections.abc import Iterable
from typing import Any, NamedTuple

from mrl_jax import extras
from mrl_jax.errors import DataError, UsageError, shown
from mrl_jax.errors import cut as shortened
from mrl_jax.store import inputs, json_files

with extras.needed("text", "tokenising text"):
    import tokenizers
    from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

# Special tokens as BERT writes them, and as RoBERTa and MPNet do.
SPECIAL = {
    "pad_token": ("[PAD]", "<pad>"),
    "unk_token": ("[UNK]", "<unk>"),
    "cls_token": ("[CLS]", "<s>"),
    "sep_token": ("[SEP]", "</s>"),
    "mask_token": ("[MASK]", "<mask>"),
}
_OF_BERT = {kind: names[0] for kind, names in SPECIAL.items()}
_OF_ROBERTA = {kind: names[1] for kind, names in SPECIAL.items()}
_OF_CLIP = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
_OF_CLIP |= {"unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
_OF_T5 = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


class _Class(NamedTuple):
    """A class of transformers.

    Attributes:
      model: of its tokenizer.json.
      special: its special tokens by kind.
      around: the kinds of the tokens around a text.
    """

    model: str
    special: dict[str, str]
    around: tuple[str, ...] = ("cls_token", "sep_token")


_CLASSES = {
    "BertTokenizer": _Class("WordPiece", _OF_BERT),
    "DistilBertTokenizer": _Class("WordPiece", _OF_BERT),
    "ElectraTokenizer": _Class("WordPiece", _OF_BERT),
    "MPNetTokenizer": _Class("WordPiece", _OF_ROBERTA | {"unk_token": "[UNK]"}),
    "RobertaTokenizer": _Class("BPE", _OF_ROBERTA),
    "XLMRobertaTokenizer": _Class("Unigram", _OF_ROBERTA),
    "CamembertTokenizer": _Class("Unigram", _OF_ROBERTA),
    "CLIPTokenizer": _Class("BPE", _OF_CLIP, ("bos_token", "eos_token")),
    "SiglipTokenizer": _Class("Unigram", _OF_T5 | {"pad_token": "</s>"}, ("eos_token",)),
    "T5Tokenizer": _Class("Unigram", _OF_T5, ("eos_token",)),
}
# Classes that take tokenizer.json as it is.
_AS_IT_IS = ("PreTrainedTokenizer", "TokenizersBackend")
# The class by model_type in config.json, if no file names one.
_CLASS_OF = {
    "bert": "BertTokenizer",
    "distilbert": "BertTokenizer",
    "mpnet": "MPNetTokenizer",
    "roberta": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "camembert": "CamembertTokenizer",
    "clip": "CLIPTokenizer",
    "siglip": "SiglipTokenizer",
}

_EXTRA = ("additional_special_tokens", "extra_special_tokens")
_HEEDED = {
    *("tokenizer_class", "model_max_length", "max_len", "padding_side", "truncation_side"),
    *("do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space"),
    "added_tokens_decoder",
    *_EXTRA,
    *("bos_token", "eos_token", *SPECIAL),
}
# Settings that must have one of these values, which change no token; unlisted ones must be empty.
_EMPTY = (False, "", [], {})
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "do_basic_tokenize": (True,),
    "wordpieces_prefix": ("##",),
}
# Settings that never change the tokens of a single text.
_HARMLESS = {
    *("backend", "chat_template", "clean_up_tokenization_spaces", "device_map", "errors"),
    *("from_slow", "full_tokenizer_file", "is_local", "legacy", "local_files_only"),
    *("max_length", "merges_file", "model_input_names", "name_or_path", "pad_to_multiple_of"),
    *("pad_token_type_id", "processor_class", "return_token_type_ids", "sp_model_kwargs"),
    *("spaces_between_special_tokens", "special_tokens_map_file", "stride", "tokenizer_file"),
    *("trim_offsets", "truncation_strategy", "use_fast", "vocab_file"),
}


class Read(NamedTuple):
    """The tokenizer, and the side of a long text that is cut off: "left" or "right"."""

    raw: tokenizers.Tokenizer
    cut: str


def read(path: pathlib.Path, *, settings: bool = True, lowercase: bool = False) -> Read:
    """As `Tokenizer.load`, which has the arguments and errors.

    The settings are in tokenizer_config.json, special_tokens_map.json, added_tokens.json, and
    config.json if it names the class.
    """
    if path.is_dir():
        path = _file_in(path)
    if not path.exists():
        raise UsageError(f"tokenizer {path} not found")
    inputs.check_file(path)
    config = _settings(path) if settings else {}
    where = path.with_name("tokenizer_config.json")
    name = _class_name(path, config) if settings else None
    kind = _CLASSES.get(name or "")
    try:
        if path.name.endswith(".txt"):
            special = _special(config, kind.special if kind else _OF_BERT)
            raw = wordpiece(models.WordPiece.read_file(str(path)), config, special)
        elif path.name == "vocab.json":
            raw = _clip(*models.BPE.read_file(str(path), str(path.with_name("merges.txt"))))
        else:
            raw = tokenizers.Tokenizer.from_file(str(path))
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # tokenizers raises nothing narrower
        raise DataError(f"{path}: not a tokenizer ({shortened(str(error), 200)})") from error
    _check_template(raw, path)
    try:
        raw.encode("\U0010ffff a")  # a token that no vocabulary has
    except Exception as error:  # as above
        raise DataError(f"{path}: cannot tokenise ({shortened(str(error), 200)})") from error
    cut = config.get("truncation_side") or (raw.truncation or {}).get("direction", "right")
    if cut not in ("left", "right"):
        raise DataError(f"{where}: truncation_side {shown(cut)}; legal: left, right")
    padded = config.get("padding_side") or (raw.padding or {}).get("direction", "right")
    if settings and padded != "right":
        raise UsageError(f"{where}: padding_side {shown(padded)} is not supported; legal: right")
    raw.no_padding()
    raw.no_truncation()
    if kind:
        _heed_class(raw, name, kind, config, where)
    elif settings and name is None:
        _heed_stated(raw, config)
    try:
        _add_tokens(raw, config, where)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where}: tokens that cannot be added ({error})") from error
    if lowercase:
        then = [] if raw.normalizer is None else [raw.normalizer]
        raw.normalizer = normalizers.Sequence([normalizers.Lowercase(), *then])
    return Read(raw, cut)


def _file_in(folder: pathlib.Path) -> pathlib.Path:
    """The file that the tokenizer of a folder is read from.

    Raises:
      UsageError: there is none.
    """
    for name in ("tokenizer.json", "vocab.txt"):
        if (folder / name).exists():
            return folder / name
    if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        return folder / "vocab.json"
    legal = "tokenizer.json or vocab.txt, of a CLIP also vocab.json with merges.txt"
    if (folder / "spiece.model").exists():
        code = (
            "from transformers import T5TokenizerFast as T; "
            f"T.from_pretrained({str(folder)!r}, extra_ids=0)"
            f".backend_tokenizer.save({str(folder / 'tokenizer.json')!r})"
        )
        legal = (
            "tokenizer.json, which is made of a SigLIP's spiece.model where transformers is "
            f"installed: python -c {shlex.quote(code)}"
        )
    raise UsageError(f"{folder} has no tokenizer: legal is {legal}")


def _check_template(raw: tokenizers.Tokenizer, path: pathlib.Path) -> None:
    """Refuses special tokens around a text that do not exist, at which tokenizers would abort."""
    if not isinstance(raw.post_processor, processors.TemplateProcessing):
        return
    content = json.loads(raw.post_processor.__getstate__())
    pieces = (piece.get("SpecialToken", {}) for piece in content["single"])
    for name in (piece["id"] for piece in pieces if piece):
        if name not in content["special_tokens"]:
            raise DataError(
                f"{path}: post_processor puts {shown(name)} around a text but does not define it"
            )
        for number in content["special_tokens"][name]["ids"]:
            if number >= 2**31 or raw.id_to_token(number) is None:
                raise DataError(
                    f"{path}: post_processor puts id {number} around a text, but no token has it"
                )


def bare_wordpiece(
    vocabulary: dict[str, int], config: dict[str, Any], unknown: str = _OF_BERT["unk_token"]
) -> tokenizers.Tokenizer:
    """BERT's tokenizer without special tokens."""
    raw = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    raw.normalizer = _bert_normalizer(config)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    return raw


def wordpiece(
    vocabulary: dict[str, int], config: dict[str, Any], special: dict[str, str] = _OF_BERT
) -> tokenizers.Tokenizer:
    """BERT's tokenizer of a vocabulary, with these special tokens.

    Raises:
      DataError: the vocabulary lacks a special token that every text needs.
    """
    unknown, first, last = (special[kind] for kind in ("unk_token", "cls_token", "sep_token"))
    missing = [token for token in (unknown, first, last) if token not in vocabulary]
    if missing:
        raise DataError(f"the vocabulary lacks {', '.join(missing)}")
    raw = bare_wordpiece(vocabulary, config, unknown)
    raw.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        special_tokens=[(token, vocabulary[token]) for token in (first, last)],
    )
    raw.add_special_tokens([token for token in special.values() if token in vocabulary])
    return raw


# What one word of CLIP is, before it is cut into pieces.
_WORD_OF_CLIP = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|"
    r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


def _clip(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    """CLIP's tokenizer of a vocabulary.

    Raises:
      DataError: it lacks a special token that every text needs.
    """
    first, last = _OF_CLIP["bos_token"], _OF_CLIP["eos_token"]
    missing = [token for token in (first, last) if token not in vocabulary]
    if missing:
        raise DataError(
            f"the vocabulary lacks {', '.join(missing)}; of CLIP alone are vocab.json and "
            "merges.txt read, others need a tokenizer.json"
        )
    raw = tokenizers.Tokenizer(
        models.BPE(vocabulary, merges, end_of_word_suffix="</w>", unk_token=_OF_CLIP["unk_token"])
    )
    _steps_of_clip(raw)
    raw.decoder = decoders.ByteLevel()
    raw.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        special_tokens=[(token, vocabulary[token]) for token in (first, last)],
    )
    raw.add_special_tokens([first, last])
    return raw


def _steps_of_clip(raw: tokenizers.Tokenizer) -> None:
    raw.normalizer = normalizers.Sequence(
        [normalizers.NFC(), _single_spaces(), normalizers.Lowercase()]
    )
    split = pre_tokenizers.Split(tokenizers.Regex(_WORD_OF_CLIP), "removed", invert=True)
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def _single_spaces() -> normalizers.Replace:
    return normalizers.Replace(tokenizers.Regex(r"\s+"), " ")


def without_punctuation(
    raw: tokenizers.Tokenizer, *, lowercase: bool = True, apart: str = ""
) -> None:
    """Has the tokenizer read texts as SigLIP's does: lowercase words without punctuation.

    `apart`: the punctuation that becomes a space instead of nothing.
    """
    steps = [normalizers.Lowercase()] if lowercase else []
    for marks, instead in ((apart, " "), (string.punctuation, "")):
        if marks:
            steps.append(normalizers.Replace(tokenizers.Regex(f"[{re.escape(marks)}]"), instead))
    steps += [_single_spaces(), normalizers.Strip()]
    then = [] if raw.normalizer is None else [raw.normalizer]
    raw.normalizer = normalizers.Sequence([*steps, *then])


def _bert_normalizer(config: dict[str, Any]) -> normalizers.BertNormalizer:
    return normalizers.BertNormalizer(
        lowercase=bool(config.get("do_lower_case", True)),
        strip_accents=config.get("strip_accents"),
        handle_chinese_chars=bool(config.get("tokenize_chinese_chars", True)),
    )


def _settings(path: pathlib.Path) -> dict[str, Any]:
    """tokenizer_config.json, completed from the two older files that it replaced.

    Raises:
      UsageError: a setting is not supported.
    """
    where = path.with_name("tokenizer_config.json")
    config = _read_json(where)
    _check_class(config.get("tokenizer_class"), where)
    for key, value in config.items():
        if key in _HEEDED or key in _HARMLESS or value in (None, *_NEUTRAL.get(key, _EMPTY)):
            continue
        legal = " or ".join(map(repr, _NEUTRAL.get(key, ())))
        advice = f"legal: {legal}" if legal else "remove it if no token depends on it"
        raise UsageError(f"{where}: {key} {shown(value)} is not supported; {advice}")
    if "added_tokens_decoder" in config:
        _check_types(config, where)
        return config
    config |= _read_json(path.with_name("special_tokens_map.json"))
    _check_types(config, where)
    added = path.with_name("added_tokens.json")
    names = {_content(config.get(kind)) for kind in (*SPECIAL, "bos_token", "eos_token")}
    names |= {_content(token) for token in _extra(config)}
    config["added_tokens_decoder"] = {
        json_files.field({"id": number}, "id", int, f"{added}: {shown(token)}"): {
            "content": token,
            "special": token in names,
            "normalized": token not in names,
        }
        for token, number in _read_json(added).items()
    }
    return config


def _check_types(config: dict[str, Any], where: pathlib.Path) -> None:
    """Refuses settings of the wrong type.

    Raises:
      DataError: names the first one.
    """
    for key in ("do_lower_case", "strip_accents", "tokenize_chinese_chars"):
        if not isinstance(config.get(key), bool | None):
            raise DataError(f"{where}: {key} must be true or false, got {shown(config[key])}")
    for key in (*SPECIAL, "bos_token", "eos_token"):
        if not isinstance(_content(config.get(key)), str | None):
            raise DataError(f"{where}: {key} must be a text, got {shown(config[key])}")
    for key in _EXTRA:
        tokens = config.get(key) or []
        tokens = tokens.values() if isinstance(tokens, dict) else tokens
        if not isinstance(tokens, Iterable) or not all(
            isinstance(_content(token), str) for token in tokens
        ):
            raise DataError(f"{where}: {key} must be a list of texts, got {shown(config[key])}")


def _class_name(path: pathlib.Path, config: dict[str, Any]) -> str | None:
    """The class that reads the folder, without "Fast"; None if no file names it."""
    model = _read_json(path.with_name("config.json"))
    if name := config.get("tokenizer_class"):
        return name.removesuffix("Fast")
    if name := model.get("tokenizer_class"):
        _check_class(name, path.with_name("config.json"))
        return name.removesuffix("Fast")
    kind = model.get("model_type")
    return _CLASS_OF.get(kind) if isinstance(kind, str) else None


def _check_class(name: Any, where: pathlib.Path) -> None:
    """Refuses a tokenizer_class that is not supported."""
    if name and str(name).removesuffix("Fast") not in (*_CLASSES, *_AS_IT_IS):
        legal = ", ".join((*_CLASSES, "PreTrainedTokenizerFast", "TokenizersBackend"))
        raise UsageError(f"{where}: tokenizer_class {shown(name)} is not supported; legal: {legal}")


def _special(config: dict[str, Any], usual: dict[str, str]) -> dict[str, str]:
    """The special tokens by kind."""
    return {kind: _content(config.get(kind)) or token for kind, token in usual.items()}


def _heed_class(
    raw: tokenizers.Tokenizer,
    name: str,
    kind: _Class,
    config: dict[str, Any],
    where: pathlib.Path,
) -> None:
    """Changes the tokenizer as its class does according to the settings.

    Raises:
      UsageError: the tokenizer is not one of this class.
    """

    def refuse(what: str):
        raise UsageError(
            f"{where}: {name} with {what}; for such a tokenizer.json use tokenizer_class "
            "PreTrainedTokenizerFast, which takes it as it is"
        )

    def of(part: Any) -> str:
        return "none" if part is None else type(part).__name__

    if of(raw.model) != kind.model:
        refuse(f"a {of(raw.model)} model, where {kind.model} belongs")
    special = _special(config, kind.special)
    if kind.model == "WordPiece":
        if of(raw.normalizer) != "BertNormalizer" or of(raw.pre_tokenizer) != "BertPreTokenizer":
            refuse(f"normalizer {of(raw.normalizer)} and pre_tokenizer {of(raw.pre_tokenizer)}")
        raw.normalizer = _bert_normalizer(config)
        if raw.model.unk_token != special["unk_token"]:
            refuse(f"unk_token {special['unk_token']}, where its model has {raw.model.unk_token}")
    elif name == "CLIPTokenizer":
        _steps_of_clip(raw)
    elif name == "SiglipTokenizer":
        without_punctuation(raw, lowercase=config.get("do_lower_case", True))
    elif "add_prefix_space" in config or kind.model == "BPE":
        _check_prefix_space(raw, kind, config, refuse)
    around = raw.encode("").tokens
    if around != [special[kind_of] for kind_of in kind.around]:
        stated = " and ".join(f"{kind_of} {special[kind_of]}" for kind_of in kind.around)
        refuse(f"{stated}, where tokenizer.json puts {' '.join(around) or 'nothing'} around a text")


def _check_prefix_space(raw: tokenizers.Tokenizer, kind: _Class, config: dict, refuse) -> None:
    stated = bool(config.get("add_prefix_space", kind.model == "Unigram"))
    text = json.loads(raw.to_str())["pre_tokenizer"]
    parts = (text or {}).get("pretokenizers", [text or {}])
    found = {
        part.get("add_prefix_space", part.get("prepend_scheme", "always") != "never")
        for part in parts
        if part.get("type") in ("ByteLevel", "Metaspace")
    }
    if found != {stated}:
        refuse(f"add_prefix_space {stated}, which is not what tokenizer.json does")


def _heed_stated(raw: tokenizers.Tokenizer, config: dict[str, Any]) -> None:
    """Without a class, the settings that are given override those in tokenizer.json."""
    if isinstance(normalizer := raw.normalizer, normalizers.BertNormalizer):
        for ours, theirs in (
            ("lowercase", "do_lower_case"),
            ("strip_accents", "strip_accents"),
            ("handle_chinese_chars", "tokenize_chinese_chars"),
        ):
            if theirs in config:
                setattr(normalizer, ours, config[theirs])


def _extra(config: dict[str, Any]) -> list[Any]:
    """Special tokens of other kinds than those in `SPECIAL`."""
    lists = (config.get(key) or [] for key in _EXTRA)
    return [token for x in lists for token in (x.values() if isinstance(x, dict) else x)]


def _content(token: Any) -> str | None:
    """The text of a special token, which is given alone or with its properties."""
    return token.get("content") if isinstance(token, dict) else token


def _added(token: Any) -> AddedToken:
    if isinstance(token, str):
        return AddedToken(token, special=True, normalized=False)
    known = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(token["content"], **{key: token[key] for key in known if key in token})


def _add_tokens(raw: tokenizers.Tokenizer, config: dict[str, Any], where: pathlib.Path) -> None:
    """Adds the tokens that the settings name to those of tokenizer.json.

    Raises:
      DataError: a token has another id in the tokenizer.
    """
    there = {token.content for token in raw.get_added_tokens_decoder().values()}
    numbered = {int(i): token for i, token in (config.get("added_tokens_decoder") or {}).items()}
    named = [config.get(kind) for kind in (*SPECIAL, "bos_token", "eos_token")] + _extra(config)
    wanted = [(number, numbered[number]) for number in sorted(numbered)]
    wanted += [(None, token) for token in named if _content(token)]
    for number, token in wanted:
        if number is None and _content(token) in there:
            continue
        added = _added(token)
        (raw.add_special_tokens if added.special else raw.add_tokens)([added])
        there.add(added.content)
        if number is not None and raw.token_to_id(added.content) != number:
            raise DataError(
                f"{where} or added_tokens.json gives token {added.content!r} the id "
                f"{number}, but in the tokenizer it has {raw.token_to_id(added.content)}"
            )


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file; {} if there is no file."""
    return json_files.read_object(path) if path.exists() else {}
