"""Text to token ids, and ids to batches of a few lengths: a thin layer on tokenizers."""

import collections
import itertools
import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mrl_jax import extras
from mrl_jax.errors import DataError, UsageError, cut, shown
from mrl_jax.models.text import tokenizer_files
from mrl_jax.models.text.tokenizer_files import SPECIAL

with extras.needed("text", "tokenising text"):
    import tokenizers
    from tokenizers import normalizers, trainers

# Batches are padded to these lengths, so that few shapes are compiled with little padding.
LENGTHS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)

MOST_LETTERS = 1000  # of a new vocabulary; all others are unknown

_UNCUT = 2**30  # tokens; no text is longer

# Letters of a text that are read at a time: tokenizers needs 250 bytes of memory for each. A word
# is cut only if it is longer than `LONGEST_WORD`.
PIECE, LONGEST_WORD = 1 << 15, 1 << 17
_SPACE = re.compile("[ \n]")
_LOOK = 256  # letters before and after a place where a text may be cut


def pieces_of(text: str) -> list[str]:
    """The text in pieces of about `PIECE` letters that begin at spaces."""
    pieces, start = [], 0
    while len(text) - start > PIECE:
        end = min(start + LONGEST_WORD, len(text))
        space = _SPACE.search(text, start + PIECE, end)
        end = space.start() if space else end
        pieces.append(text[start:end])
        start = end
    return [*pieces, text[start:]] if start < len(text) or not pieces else pieces


def padded_length(tokens: int, longest: int) -> int:
    """The smallest of `LENGTHS`, then of the multiples of 128, that holds so many tokens.

    At most `longest`, which the model can take.
    """
    fitting = (length for length in LENGTHS if length >= tokens)
    return min(next(fitting, -(-tokens // 128) * 128), longest)


def pad(tokens: Sequence[np.ndarray], length: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The ids of several texts as one batch of `rows` rows of `length` places.

    Returns:
      (tokens_bt, lengths_b), int32; 0 beyond a text, and for rows without one.
    """
    tokens_bt = np.zeros((rows, length), np.int32)
    lengths_b = np.zeros(rows, np.int32)
    lengths_b[: len(tokens)] = [len(ids_t) for ids_t in tokens]
    if len(tokens):
        tokens_bt[np.arange(length) < lengths_b[:, None]] = np.concatenate(tokens)
    return tokens_bt, lengths_b


class Tokenizer:
    """Text to ids, with the special tokens around it that its model was trained with.

    Attributes:
      raw: the `tokenizers.Tokenizer`, which neither pads nor truncates.
      marks: whether special tokens such as [CLS] and [SEP] are put around a text.
      cut: "left" or "right", the side on which a long text is cut.
    """

    def __init__(self, raw: tokenizers.Tokenizer, *, marks: bool = True, cut: str = "right"):
        raw.no_padding()
        raw.no_truncation()
        self.raw = raw
        self.marks = marks
        self.cut = cut

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        *,
        marks: bool = True,
        settings: bool = True,
        lowercase: bool = False,
    ) -> "Tokenizer":
        """Reads a tokenizer.json, a WordPiece vocab.txt, or a folder with one of them.

        Args:
          path: of the file or folder.
          marks: see the class.
          settings: also read tokenizer_config.json and the other files beside it.
          lowercase: lowercase the text first, whatever the files say.

        Raises:
          UsageError: there is no such file, or a setting is not supported.
          DataError: a file is not what its name says, or contradicts another.
        """
        found = tokenizer_files.read(pathlib.Path(path), settings=settings, lowercase=lowercase)
        return cls(found.raw, marks=marks, cut=found.cut)

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int, *, lowercase: bool = True, marks: bool = True
    ) -> "Tokenizer":
        """A WordPiece vocabulary made of the texts; BERT's five special tokens come first.

        Args:
          texts: the same texts give the same vocabulary. They are read twice; an iterator, which
            cannot be, is kept in memory.
          vocab_size: the most tokens; letters come first, then the most frequent pieces.
          lowercase: lowercase the texts and strip accents.
          marks: see the class.

        Raises:
          UsageError: `vocab_size` leaves no room for more than special tokens.
        """
        special = [names[0] for names in SPECIAL.values()]
        if vocab_size <= len(special):
            raise UsageError(f"a vocabulary needs more than {len(special)} tokens: {vocab_size}")
        settings = {"do_lower_case": lowercase}
        # No special tokens yet: if a text happens to contain one, it is read as ordinary words.
        raw = tokenizer_files.bare_wordpiece({}, settings)
        texts = list(texts) if iter(texts) is texts else texts
        found = collections.Counter()
        for piece in itertools.chain.from_iterable(map(pieces_of, texts)):
            found.update(raw.normalizer.normalize_str(piece))
        common = sorted(
            (c for c in found if not c.isspace()), key=lambda letter: (-found[letter], letter)
        )
        letters = sorted(common[: min(MOST_LETTERS, (vocab_size - len(special)) // 2)])
        # The trainer numbers letters in the order of a hash map, which changes from call to call,
        # and both breaks ties and chooses among rare letters by these numbers. Here it has no
        # choice: the letters to keep are given, and as they are also given as special tokens, they
        # are numbered before it reads a text.
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            special_tokens=[*special, *letters, *(f"##{letter}" for letter in letters)],
            initial_alphabet=letters,
            limit_alphabet=len(letters),
            show_progress=False,
        )
        raw.train_from_iterator(itertools.chain.from_iterable(map(pieces_of, texts)), trainer)
        return cls(tokenizer_files.wordpiece(raw.get_vocab(), settings), marks=marks)

    def encode(self, texts: Iterable[str], max_length: int) -> list[np.ndarray]:
        """The ids of each text, int32, at most `max_length` with marks; longer texts are cut.

        Raises:
          UsageError: something that is not text, or no room for a token between the marks.
          DataError: text that is not Unicode (half of a surrogate pair).
        """
        texts = text_list(texts)
        around = self._around
        if max_length <= around:
            raise UsageError(
                f"max_length must be more than the {around} special tokens around a text, "
                f"got {max_length}"
            )
        lengthy = [i for i, text in enumerate(texts) if len(text) > PIECE]
        usual = [text if len(text) <= PIECE else "" for text in texts] if lengthy else texts
        try:
            found = self._encode(usual, max_length, max_length - around)
            for i in lengthy:
                found[i] = self._encode_lengthy(texts[i], max_length - around)
        except (TypeError, UnicodeEncodeError):  # raised for half a surrogate pair
            bad = [row for row, text in enumerate(texts) if not _is_unicode(text)]
            if not bad:
                raise
            raise DataError(f"text {bad[0]} is not valid Unicode: {shown(texts[bad[0]])}") from None
        return found

    def _encode(self, texts: Sequence[str], max_length: int, room: int) -> list[np.ndarray]:
        encodings = self.raw.encode_batch_fast(texts, add_special_tokens=self.marks)
        long = [i for i, encoding in enumerate(encodings) if len(encoding) > max_length]
        # The text is cut, not the marks, which are put around what is left.
        bare = self.raw.encode_batch_fast([texts[i] for i in long], add_special_tokens=False)
        for i, encoding in zip(long, bare, strict=True):
            encoding.truncate(room, direction=self.cut)
            encodings[i] = self.raw.post_process(encoding, add_special_tokens=self.marks)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def _encode_lengthy(self, text: str, room: int) -> np.ndarray:
        """The ids of a text that is read in pieces, only as far as is needed."""
        pieces, parts, count = pieces_of(text), [], 0
        left = self.cut == "left"
        for number in reversed(range(len(pieces))) if left else range(len(pieces)):
            if number and not self._is_apart(pieces[number - 1], pieces[number]):
                return self._encode([text], room + self._around, room)[0]
            parts.append(self._bare(pieces[number]))
            count += len(parts[-1])
            if count >= room:
                break
        ids_t = np.concatenate(parts[::-1] if left else parts)
        ids_t = ids_t[max(count - room, 0) :] if left else ids_t[:room]
        if not self.marks:
            return ids_t
        word = self.raw.encode("a")  # any word: its ids are where those of the text belong
        text_at = [at for at, special in enumerate(word.special_tokens_mask) if not special]
        marks = word.ids[: text_at[0]], word.ids[text_at[-1] + 1 :]
        return np.concatenate([marks[0], ids_t, marks[1]]).astype(np.int32)

    def _is_apart(self, before: str, after: str) -> bool:
        """Whether pieces have the same tokens alone as together: rules may look beyond a space."""
        if not _SPACE.match(after):
            return True  # a word that is longer than `LONGEST_WORD`
        before, after = before[-_LOOK:], after[:_LOOK]
        apart_t = np.concatenate([self._bare(before), self._bare(after)])
        return np.array_equal(apart_t, self._bare(before + after))

    @property
    def _around(self) -> int:
        return self.raw.num_special_tokens_to_add(False) if self.marks else 0

    def _bare(self, text: str) -> np.ndarray:
        return np.array(self.raw.encode(text, add_special_tokens=False).ids, np.int32)

    def to_json(self, max_length: int | None = None) -> str:
        """The text of tokenizer.json, which `load` reads back the same.

        `max_length` tells other readers where to cut longer texts; None tells them not to.
        """
        content = json.loads(self.raw.to_str())
        if max_length is not None or self.cut == "left":
            content["truncation"] = {
                "direction": self.cut.title(),
                "max_length": max_length or _UNCUT,
                "strategy": "LongestFirst",
                "stride": 0,
            }
        return json.dumps(content, ensure_ascii=False, indent=2)

    def save(self, folder: str | os.PathLike, max_length: int | None) -> None:
        """Writes tokenizer.json and tokenizer_config.json as transformers reads them.

        `max_length` tells them where to cut longer texts; None tells them not to.
        """
        folder = pathlib.Path(folder)
        (folder / "tokenizer.json").write_text(self.to_json(max_length), "utf-8")
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_input_names": ["input_ids", "attention_mask"],
            "clean_up_tokenization_spaces": False,
            "truncation_side": self.cut,
        }
        if max_length is not None:
            config["model_max_length"] = max_length
        normalizer = self.raw.normalizer
        if isinstance(normalizer, normalizers.BertNormalizer):
            config["do_lower_case"] = normalizer.lowercase
        for kind, names in SPECIAL.items():
            found = [name for name in names if self.raw.token_to_id(name) is not None]
            if found:
                config[kind] = found[0]
        text = json.dumps(config, indent=2) + "\n"
        (folder / "tokenizer_config.json").write_text(text, "utf-8")

    @property
    def content(self) -> str:
        """Everything that ids depend on besides the marks; it differs if two tokenizers differ."""
        return self.raw.to_str() + (" cut on the left" if self.cut == "left" else "")

    @property
    def vocab_size(self) -> int:
        """The number of ids, which is that of the rows of the token table."""
        return 1 + max(self.raw.get_vocab().values())

    @property
    def pad_id(self) -> int:
        """The id of [PAD] or <pad>."""
        return self._id("pad_token")

    @property
    def mask_id(self) -> int:
        """The id of [MASK] or <mask>, which hides a token in masked language modelling."""
        return self._id("mask_token")

    @property
    def special_ids(self) -> tuple[int, ...]:
        """The ids of all tokens that are not text, in order."""
        added = self.raw.get_added_tokens_decoder()
        return tuple(sorted(i for i, token in added.items() if token.special))

    def _id(self, kind: str) -> int:
        names = SPECIAL[kind]
        found = [i for name in names if (i := self.raw.token_to_id(name)) is not None]
        if not found:
            raise UsageError(f"the tokenizer has no {kind}: legal is {' or '.join(names)}")
        return found[0]


def text_list(texts: Iterable[str]) -> list[str]:
    """The texts of any iterable as a list.

    Raises:
      UsageError: this is not a collection of texts, or an item is not a string; names the first.
    """
    if isinstance(texts, str):
        raise UsageError("texts must be a list of strings, got one string: put it in a list")
    # Iterating over a table or a dict would give the names of its columns or its keys.
    if isinstance(texts, Mapping) or hasattr(type(texts), "columns"):
        raise UsageError(
            f"texts must be a list of strings, got a {type(texts).__name__}: pass one column of a "
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
    """The beginning of a value, and its type, on one line."""
    return f"{cut(repr(value), 60)} ({type(value).__name__})"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
