"""Text packed into sequences of one length, of which some tokens are hidden.

Documents follow one another, with a separator between them, and are cut without regard to where one
ends, so that nothing is padding. Which tokens are hidden follows from (seed, step) as well: every
epoch hides others.
"""

import dataclasses
import functools
import hashlib
import itertools
import pathlib
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from mrl_jax.data.loader import put, train_rows
from mrl_jax.data.text_files import Reading, columns_besides, find_files, read_rows, sha256
from mrl_jax.data.token_cache import Tokens, tokens_of, vocabulary_of
from mrl_jax.errors import DataError, UsageError, shown
from mrl_jax.models.text.tokenizer import Tokenizer

COLUMN = "text"
MASKED, RANDOM = 0.8, 0.1  # of what is predicted; the rest stays as it is
_WHOLE = 2**30  # tokens of a document: none is cut
_ROWS = 1024  # sequences masked together outside training


@dataclasses.dataclass(frozen=True)
class Masking:
    """How tokens are hidden (Devlin et al., arXiv 1810.04805, section 3.1).

    Of those that are to be predicted 80 % become the mask, 10 % a random token and 10 % stay.

    Attributes:
      predictions: P per sequence.
      mask_id: of the token that hides others.
      special_ids: tokens that are never predicted and never put in another's place.
      vocab_size: ids there are.
    """

    predictions: int
    mask_id: int
    special_ids: tuple[int, ...]
    vocab_size: int

    @functools.cached_property
    def words(self) -> np.ndarray:
        """Ids of tokens that are text."""
        return np.setdiff1d(np.arange(self.vocab_size, dtype=np.int32), self.special_ids)

    def hideable(self, tokens: np.ndarray) -> np.ndarray:
        """Which tokens may be predicted: bool of the same shape."""
        return ~np.isin(tokens, self.special_ids)

    def __call__(self, tokens_bt: np.ndarray, random: np.random.Generator) -> dict[str, np.ndarray]:
        """A batch with uniformly drawn places, see `tasks.masked_lm`.

        A sequence with fewer than P tokens that may be hidden has predictions of mask 0.
        """
        order_bt = np.where(self.hideable(tokens_bt), random.random(tokens_bt.shape), 2.0)
        places_bp = np.argpartition(order_bt, self.predictions - 1, axis=1)[:, : self.predictions]
        places_bp = np.sort(places_bp, axis=1)
        labels_bp = np.take_along_axis(tokens_bt, places_bp, 1)
        counts_bp = self.hideable(labels_bp)
        chance_bp = random.random(places_bp.shape)
        drawn_bp = self.words[random.integers(0, len(self.words), places_bp.shape)]
        shown_bp = np.where(chance_bp < MASKED, np.int32(self.mask_id), labels_bp)
        shown_bp = np.where(chance_bp >= 1 - RANDOM, drawn_bp, shown_bp)
        shown_bt = tokens_bt.copy()
        np.put_along_axis(shown_bt, places_bp, np.where(counts_bp, shown_bp, labels_bp), 1)
        return {
            "tokens": shown_bt,
            "places": places_bp.astype(np.int32),
            "labels": labels_bp,
            "mask": counts_bp.astype(np.float32),
        }


@dataclasses.dataclass(frozen=True)
class Sequences:
    """One split.

    Attributes:
      tokens: of all documents, without special ones between them.
      length: T of a sequence, with the two special tokens around it.
      around: these two, [CLS] and [SEP]. The second also stands after each document.
    """

    tokens: Tokens
    length: int
    around: tuple[int, int]
    masking: Masking

    @property
    def examples(self) -> int:
        """How many sequences there are; tokens after the last of them are not used."""
        return int(self._ends[-1]) // (self.length - 2) if len(self.tokens) else 0

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        """Where each document ends in the stream, its separator included."""
        return self.tokens.starts[1:] + np.arange(1, len(self.tokens) + 1)

    def rows(self, row_b: np.ndarray) -> np.ndarray:
        """The tokens [B, T] of these sequences, nothing hidden."""
        inside = self.length - 2
        tokens_bt = np.empty((len(row_b), self.length), np.int32)
        tokens_bt[:, 0], tokens_bt[:, -1] = self.around
        place_bt = row_b[:, None] * inside + np.arange(inside)
        document_bt = np.searchsorted(self._ends, place_bt, "right")
        behind_bt = place_bt == self._ends[document_bt] - 1
        # In the flat array no separator stands before the place, one per document before its own.
        flat_bt = self.tokens.flat[np.where(behind_bt, 0, place_bt - document_bt)]
        tokens_bt[:, 1:-1] = np.where(behind_bt, np.int32(self.around[1]), flat_bt)
        return tokens_bt

    def host_batch(self, seed: int, step: int, batch_size: int) -> dict[str, np.ndarray]:
        """The whole training batch of a step as it is on every process."""
        tokens_bt = self.rows(train_rows(seed, step, batch_size, self.examples))
        return self.masking(tokens_bt, np.random.Generator(np.random.Philox([seed, step, 2])))

    def batches(
        self, batch_size: int, seed: int, sharding: jax.sharding.Sharding
    ) -> Callable[[int], dict[str, jax.Array]]:
        """Training batches by step."""
        return lambda step: put(self.host_batch(seed, step, batch_size), sharding)

    def held_out(self, row_n: np.ndarray) -> dict[str, np.ndarray]:
        """These sequences with tokens hidden for measuring: the same in every run."""
        random = np.random.Generator(np.random.Philox(0))
        parts = [
            self.masking(self.rows(row_n[start : start + _ROWS]), random)
            for start in range(0, len(row_n), _ROWS)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@dataclasses.dataclass(frozen=True)
class MaskedText:
    """The data of a run, called `name` in messages; `reading` says what ids mean."""

    name: str
    splits: dict[str, Sequences]
    reading: str

    def fingerprint(self, *names: str) -> str:
        """Sixteen hex digits over the tokens of these splits (by default all) and their use."""
        digest = hashlib.sha256(self.reading.encode())
        for name in sorted(names or self.splits):
            split = self.splits[name]
            about = (name, len(split.tokens), split.length, split.around, split.masking)
            digest.update(repr(about).encode())
            digest.update(np.ascontiguousarray(split.tokens.starts))
            digest.update(np.ascontiguousarray(split.tokens.flat))
        return digest.hexdigest()[:16]

    @functools.cached_property
    def _training_digest(self) -> str | None:
        return self.fingerprint("train") if "train" in self.splits else None

    def training_fingerprint(self) -> str | None:
        """Sixteen hex digits over the training tokens and their use; None without a train split."""
        return self._training_digest

    def summary(self) -> str:
        """One line on what there is."""
        parts = [
            f"{name} {split.examples:,} sequences of {split.length} tokens"
            for name, split in self.splits.items()
        ]
        return f"{self.name}: {', '.join(parts)}"


@dataclasses.dataclass(frozen=True)
class Documents:
    """The texts of files, from column "text" or one per line of a txt; read in every pass."""

    files: tuple[pathlib.Path, ...]

    def __iter__(self) -> Iterator[str]:
        """The documents in order.

        Raises:
          DataError: a row without a text; names the line.
        """
        reading = Reading()
        for row in itertools.chain.from_iterable(read_rows(x, reading) for x in self.files):
            text = row.values.get(COLUMN)
            if not isinstance(text, str):
                raise DataError(f"{row.where}: column {COLUMN} must hold a text, got {shown(text)}")
            try:
                text.encode()
            except UnicodeEncodeError:
                raise DataError(f"{row.where}: not valid Unicode: {shown(text)}") from None
            if text.strip():
                yield text
        # Otherwise the cache would hold one content under the name of another.
        if "digests" in vars(self) and reading.digests != self.digests:
            raise DataError(f"{self.files[0]}, or a file beside it, was changed while it was read")

    @functools.cached_property
    def digests(self) -> list[str]:
        """sha256 of the content of each file."""
        return [sha256(path) for path in self.files]

    @property
    def source(self) -> str:
        """Hex digits over the content of all files, and over what kind each is of."""
        kinds = ["".join(path.suffixes[-2:]) for path in self.files]
        return hashlib.sha256(repr((self.digests, kinds)).encode()).hexdigest()


def open_documents(
    path: str, files: Sequence[str] = (), *, train: bool = True
) -> tuple[str, dict[str, Documents]]:
    """What the data are called in messages, and the documents of each split; reads nothing yet.

    Arguments and errors are those of `text_files.find_files`.
    """
    found = find_files(path, files, train=train)
    name = path or ", ".join(file.name for file in next(iter(found.values())))
    return name, {split: Documents(tuple(of_split)) for split, of_split in found.items()}


def unread_columns(documents: dict[str, Documents]) -> list[str]:
    """The columns other than the text, according to the first row of each file."""
    files = itertools.chain.from_iterable(of_split.files for of_split in documents.values())
    return columns_besides((COLUMN,), files)


def vocabulary(documents: Documents, vocab_size: int, cache: str = "") -> Tokenizer:
    """A tokenizer made from documents, of at most `vocab_size` tokens; `cache` as in `tokenise`."""
    source = documents.source if cache else ""
    return vocabulary_of(documents, vocab_size, cache=cache, source=source)


def tokenise(
    name: str,
    documents: dict[str, Documents],
    tokenizer: Tokenizer,
    *,
    length: int,
    rate: float,
    cache: str = "",
) -> MaskedText:
    """All splits as tokens.

    Args:
      name: what they are called in messages.
      documents: of each split.
      tokenizer: puts one special token before a text and one after it, and has one for hiding.
      length: T of a sequence.
      rate: share of its tokens to be predicted.
      cache: folder of the token ids, see `token_cache`; "": they are in memory.

    Raises:
      UsageError: another kind of tokenizer, or a rate or length that leaves nothing to predict.
      DataError: a split that is shorter than a sequence, or has nothing but unknown tokens.
    """
    around, predictions = _around(tokenizer), predictions_of(length, rate)
    masking = Masking(predictions, tokenizer.mask_id, tokenizer.special_ids, tokenizer.vocab_size)
    bare, splits = Tokenizer(tokenizer.raw, marks=False), {}
    for split, texts in documents.items():
        source = texts.source if cache else ""
        tokens = tokens_of(texts, bare, _WHOLE, cache=cache, source=source)
        sequences = splits[split] = Sequences(tokens, length, around, masking)
        where = ", ".join(map(str, texts.files))
        if not sequences.examples:
            raise DataError(
                f"{where}: {len(tokens.flat)} tokens do not fill one sequence of {length}; "
                "text.max_length is the length of a sequence"
            )
        if not masking.hideable(tokens.flat).any():
            raise DataError(f"{where}: all tokens are unknown to the tokenizer")
    return MaskedText(name, splits, tokenizer.content)


def _around(tokenizer: Tokenizer) -> tuple[int, int]:
    """What the tokenizer puts before and behind a text."""
    found = tokenizer.encode([""], 512)[0].tolist()
    if len(found) != 2:
        raise UsageError(
            f"text.tokenizer puts {len(found)} tokens around a text; legal for masked_lm is one "
            "before it and one behind it, such as [CLS] and [SEP]"
        )
    return found[0], found[1]


def predictions_of(length: int, rate: float) -> int:
    """How many tokens of a sequence are to be predicted: the share `rate` of all, at least one.

    Raises:
      UsageError: a rate outside (0, 1), or more than there are between the two special tokens.
    """
    if not 0 < rate < 1:
        raise UsageError(f"config.text.mask_rate must be in (0, 1), got {rate}")
    predictions = max(1, round(rate * length))
    if predictions > length - 2:
        raise UsageError(
            f"config.text.max_length {length} holds {max(0, length - 2)} tokens beside the two "
            f"special ones, of which text.mask_rate {rate} would hide {predictions}"
        )
    return predictions
