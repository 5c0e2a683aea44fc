"""Text to token ids, and ids to batches of a few lengths. A thin wrap of the package tokenizers."""

import collections
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mrl_jax.errors import DataError, UsageError

try:
    import tokenizers
except ImportError as error:
    raise UsageError(
        'tokenising text needs the package tokenizers: pip install "mrl_jax[text]"'
    ) from error

from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

# Batches are padded to these, so that few shapes are compiled and little is padding.
LENGTHS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)

MOST_LETTERS = 1000  # of a vocabulary that is made; others are unknown

# What is special is called thus by BERT, or thus by RoBERTa and MPNet.
_SPECIAL = {
    "pad_token": ("[PAD]", "<pad>"),
    "unk_token": ("[UNK]", "<unk>"),
    "cls_token": ("[CLS]", "<s>"),
    "sep_token": ("[SEP]", "</s>"),
    "mask_token": ("[MASK]", "<mask>"),
}
_PAD, _UNK, _CLS, _SEP, _MASK = (names[0] for names in _SPECIAL.values())


def padded_length(tokens: int, longest: int) -> int:
    """The smallest of `LENGTHS`, then of the multiples of 128, that holds the tokens.

    Args:
      tokens: how many there are, at most `longest`.
      longest: what the model can take, and the length where that is less.
    """
    fitting = (length for length in LENGTHS if length >= tokens)
    return min(next(fitting, -(-tokens // 128) * 128), longest)


def pad(tokens: Sequence[np.ndarray], length: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of several texts as one batch.

    Args:
      tokens: ids of each text, none longer than `length`.
      length: T of the batch.
      rows: B of the batch; those that no text is for have length 0.

    Returns:
      (tokens_bt, lengths_b), int32; 0 beyond a text.
    """
    tokens_bt = np.zeros((rows, length), np.int32)
    lengths_b = np.zeros(rows, np.int32)
    lengths_b[: len(tokens)] = [len(ids_t) for ids_t in tokens]
    if len(tokens):
        tokens_bt[np.arange(length) < lengths_b[:, None]] = np.concatenate(tokens)
    return tokens_bt, lengths_b


class Tokenizer:
    """Text to ids, with the marks around it that its model was trained with.

    Attributes:
      raw: the `tokenizers.Tokenizer`, which neither pads nor cuts.
      marks: whether a text's ids are put between special ones, as [CLS] and [SEP].
    """

    def __init__(self, raw: tokenizers.Tokenizer, *, marks: bool = True):
        raw.no_padding()
        raw.no_truncation()
        self.raw = raw
        self.marks = marks

    @classmethod
    def load(
        cls, path: str | os.PathLike, *, marks: bool = True, lowercase: bool = False
    ) -> "Tokenizer":
        """Reads a tokenizer.json, a WordPiece vocab.txt, or a folder with one of them.

        tokenizer_config.json beside it says whether BERT's normaliser makes letters small.

        Args:
          path: of the file or folder.
          marks: see the class.
          lowercase: make letters small first, whatever the files say.

        Raises:
          UsageError: no such file.
          DataError: a file that is not what its name says.
        """
        path = pathlib.Path(path)
        if path.is_dir():
            found = [path / name for name in ("tokenizer.json", "vocab.txt")]
            files = [file for file in found if file.exists()]
            if not files:
                raise UsageError(f"{path} has no tokenizer: legal is tokenizer.json or vocab.txt")
            path = files[0]
        if not path.exists():
            raise UsageError(f"tokenizer {path} not found")
        config = _read_config(path.with_name("tokenizer_config.json"))
        try:
            if path.name.endswith(".txt"):
                raw = _wordpiece(models.WordPiece.read_file(str(path)), config)
            else:
                raw = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # of no narrower type
            reason = str(error).partition("\n")[0]
            raise DataError(f"{path}: not a tokenizer ({reason})") from error
        normalizer = raw.normalizer
        if isinstance(normalizer, normalizers.BertNormalizer) and "do_lower_case" in config:
            normalizer.lowercase = bool(config["do_lower_case"])
        if lowercase:
            then = [] if normalizer is None else [normalizer]
            raw.normalizer = normalizers.Sequence([normalizers.Lowercase(), *then])
        return cls(raw, marks=marks)

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int, *, lowercase: bool = True, marks: bool = True
    ) -> "Tokenizer":
        """A WordPiece vocabulary of the texts, which begins with BERT's five special tokens.

        Args:
          texts: the same texts give the same vocabulary. They are read twice, and kept in memory
            only where they cannot be, as an iterator.
          vocab_size: at most so many tokens; letters come first, then the pieces that occur most.
          lowercase: make letters small and take their accents off.
          marks: see the class.

        Raises:
          UsageError: a vocabulary without room for more than special tokens.
        """
        special = [names[0] for names in _SPECIAL.values()]
        if vocab_size <= len(special):
            raise UsageError(f"a vocabulary needs more than {len(special)} tokens: {vocab_size}")
        settings = {"do_lower_case": lowercase}
        # It knows no special tokens: where texts happen to hold one, it is words as all others.
        raw = _bare_wordpiece({_UNK: special.index(_UNK)}, settings)
        texts = list(texts) if iter(texts) is texts else texts
        found = collections.Counter()
        for text in texts:
            found.update(raw.normalizer.normalize_str(text))
        common = sorted(
            (c for c in found if not c.isspace()), key=lambda letter: (-found[letter], letter)
        )
        letters = sorted(common[: min(MOST_LETTERS, (vocab_size - len(special)) // 2)])
        # The trainer numbers letters in the order of a hash map, which changes from call to call,
        # breaks ties by these numbers, and chooses among rare letters in the same way. Here it has
        # no choice: the letters are given, all others are left out, and as special tokens those
        # that are given have their numbers before it looks at a text.
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            special_tokens=[*special, *letters, *(f"##{letter}" for letter in letters)],
            initial_alphabet=letters,
            limit_alphabet=len(letters),
            show_progress=False,
        )
        raw.train_from_iterator(texts, trainer)
        return cls(_wordpiece(raw.get_vocab(), settings), marks=marks)

    def encode(self, texts: Iterable[str], max_length: int) -> list[np.ndarray]:
        """The ids of each text, int32, with marks at most `max_length`; a longer text is cut.

        Raises:
          UsageError: something that is not text, or no room for a token between the marks.
          DataError: text that is not Unicode (half of a surrogate pair).
        """
        texts = listed(texts)
        around = self.raw.num_special_tokens_to_add(False) if self.marks else 0
        if max_length <= around:
            raise UsageError(
                f"max_length must be more than the {around} special tokens around a text, "
                f"got {max_length}"
            )
        try:
            encodings = self.raw.encode_batch_fast(texts, add_special_tokens=self.marks)
        except (TypeError, UnicodeEncodeError):  # what it makes of half a surrogate pair
            bad = [row for row, text in enumerate(texts) if not _is_unicode(text)]
            if not bad:
                raise
            raise DataError(f"text {bad[0]} is not valid Unicode: {texts[bad[0]]!r:.60}") from None
        long = [i for i, encoding in enumerate(encodings) if len(encoding) > max_length]
        # What is cut off is text, not the marks: those are put around what is left.
        bare = self.raw.encode_batch_fast([texts[i] for i in long], add_special_tokens=False)
        for i, encoding in zip(long, bare, strict=True):
            encoding.truncate(max_length - around)
            encodings[i] = self.raw.post_process(encoding, add_special_tokens=self.marks)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def to_json(self, max_length: int | None = None) -> str:
        """The text of tokenizer.json, which `load` reads back the same.

        `max_length` is what longer texts are to be cut to by other readers; None: they are not.
        """
        content = json.loads(self.raw.to_str())
        if max_length is not None:
            content["truncation"] = {
                "direction": "Right",
                "max_length": max_length,
                "strategy": "LongestFirst",
                "stride": 0,
            }
        return json.dumps(content, ensure_ascii=False, indent=2)

    def save(self, folder: str | os.PathLike, max_length: int | None) -> None:
        """Writes tokenizer.json and tokenizer_config.json as transformers reads them.

        `max_length` is what longer texts are to be cut to; None: they are not.
        """
        folder = pathlib.Path(folder)
        (folder / "tokenizer.json").write_text(self.to_json(max_length), "utf-8")
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_input_names": ["input_ids", "attention_mask"],
            "clean_up_tokenization_spaces": False,
        }
        if max_length is not None:
            config["model_max_length"] = max_length
        normalizer = self.raw.normalizer
        if isinstance(normalizer, normalizers.BertNormalizer):
            config["do_lower_case"] = normalizer.lowercase
        for kind, names in _SPECIAL.items():
            found = [name for name in names if self.raw.token_to_id(name) is not None]
            if found:
                config[kind] = found[0]
        text = json.dumps(config, indent=2) + "\n"
        (folder / "tokenizer_config.json").write_text(text, "utf-8")

    @property
    def vocab_size(self) -> int:
        """How many ids there are: rows of the token table."""
        return 1 + max(self.raw.get_vocab().values())

    @property
    def pad_id(self) -> int:
        """Of [PAD] or <pad>."""
        return self._id("pad_token")

    @property
    def mask_id(self) -> int:
        """Of [MASK] or <mask>, which hides a token in masked language modelling."""
        return self._id("mask_token")

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Of all tokens that are no text, in order."""
        added = self.raw.get_added_tokens_decoder()
        return tuple(sorted(i for i, token in added.items() if token.special))

    def _id(self, kind: str) -> int:
        names = _SPECIAL[kind]
        found = [i for name in names if (i := self.raw.token_to_id(name)) is not None]
        if not found:
            raise UsageError(f"the tokenizer has no {kind}: legal is {' or '.join(names)}")
        return found[0]


def listed(texts: Iterable[str]) -> list[str]:
    """The texts as a list; they may come as anything that gives one after another.

    Raises:
      UsageError: names the first that is no text, or what is not a number of texts at all.
    """
    if isinstance(texts, str):
        raise UsageError("texts must be a list of strings, got one string: put it in a list")
    # Going through a table or a dict gives the names of its columns, or its keys.
    if isinstance(texts, Mapping) or hasattr(type(texts), "columns"):
        raise UsageError(
            f"texts must be a list of strings, got a {type(texts).__name__}: give one column of a "
            "table, or the values() of a dict"
        )
    try:
        one_by_one = iter(texts)
    except TypeError:
        raise UsageError(f"texts must be a list of strings, got {_short(texts)}") from None
    found = list(one_by_one)
    for row, text in enumerate(found):
        if not isinstance(text, str):
            raise UsageError(f"texts must be strings, text {row} is {_short(text)}")
    return found


def _short(value: Any) -> str:
    """What a value is, on one line."""
    text = " ".join(repr(value).split())
    return f"{text[:60]} ({type(value).__name__})"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _bare_wordpiece(vocabulary: dict[str, int], config: dict[str, Any]) -> tokenizers.Tokenizer:
    """BERT's way from a text to pieces, without special tokens."""
    raw = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=_UNK))
    raw.normalizer = normalizers.BertNormalizer(
        lowercase=config.get("do_lower_case", True),
        strip_accents=config.get("strip_accents"),
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
    )
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    return raw


def _wordpiece(vocabulary: dict[str, int], config: dict[str, Any]) -> tokenizers.Tokenizer:
    """BERT's tokenizer of a vocabulary."""
    missing = [token for token in (_UNK, _CLS, _SEP) if token not in vocabulary]
    if missing:
        raise DataError(f"the vocabulary lacks {', '.join(missing)}")
    raw = _bare_wordpiece(vocabulary, config)
    raw.post_processor = processors.TemplateProcessing(
        single=f"{_CLS} $A {_SEP}",
        special_tokens=[(token, vocabulary[token]) for token in (_CLS, _SEP)],
    )
    special = [names[0] for names in _SPECIAL.values() if names[0] in vocabulary]
    raw.add_special_tokens(special)
    return raw


def _read_config(path: pathlib.Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not JSON ({error})") from error
    if not isinstance(config, dict):
        raise DataError(f"{path}: not a JSON object")
    return config
