"""What is made from texts once and kept in a cache: a vocabulary, token ids, vectors."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from tqdm import tqdm

from mrl_jax import extras
from mrl_jax.data.array_cache import Parts, stored
from mrl_jax.models.text.tokenizer import Tokenizer

with extras.needed("text", "tokenising text"):
    import tokenizers

# Texts tokenised at a time, or fewer with so many letters in all.
PART, PART_LETTERS = 1 << 14, 1 << 21
# Texts embedded at a time: a multiple of what an encoder sorts together, which changes nothing.
PART_VECTORS = 1 << 16


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Token ids of many texts in one array: no object per text.

    Attributes:
      flat: [sum of lengths] int32.
      starts: [texts + 1] int64.
    """

    flat: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[np.ndarray]) -> "Tokens":
        """From the ids of each text."""
        starts = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)])
        flat = np.concatenate(rows) if len(rows) else np.zeros(0)
        return cls(flat.astype(np.int32), starts)

    def __len__(self) -> int:
        """How many texts."""
        return len(self.starts) - 1

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """[texts] int32, in memory."""
        return np.diff(self.starts).astype(np.int32)

    def padded(self, text_b: np.ndarray, length: int) -> np.ndarray:
        """The tokens [B, length] of these texts, none of which is longer; 0 beyond each."""
        place_bt = self.starts[text_b][:, None] + np.arange(length)
        inside_bt = place_bt < self.starts[text_b + 1][:, None]
        return np.where(inside_bt, self.flat[np.where(inside_bt, place_bt, 0)], 0)


def tokens_of(
    texts: Iterable[str],
    tokenizer: Tokenizer,
    max_length: int,
    *,
    cache: str = "",
    source: str = "",
    total: int | None = None,
) -> Tokens:
    """The token ids of texts that need not fit in memory, from the cache or into it.

    Args:
      texts: read once and in order; not at all if the cache has their tokens.
      max_length: tokens that a text is cut to.
      cache: folder of `array_cache.stored`; "": the tokens are in memory.
      source: identifies the texts in the cache.
      total: how many texts there are, for the bar.

    Raises:
      UsageError: there is no room for a token between the marks.
      DataError: the folder cannot be written; and what reading the texts raises.
    """
    facts = {
        "source": source,
        "tokenizer": hashlib.sha256(tokenizer.content.encode()).hexdigest(),
        "tokenizers": tokenizers.__version__,
        "marks": tokenizer.marks,
        "max_length": max_length,
    }

    def write(parts: Parts):
        parts.append("starts", np.zeros(1, np.int64))
        parts.append("flat", np.zeros(0, np.int32))
        end = 0
        with tqdm(desc="tokenising", total=total, unit="text", disable=None, delay=2) as bar:
            for part in _in_parts(texts):
                ids = tokenizer.encode(part, max_length)
                parts.append("flat", np.concatenate(ids))
                ends = end + np.cumsum([len(ids_t) for ids_t in ids], dtype=np.int64)
                parts.append("starts", ends)
                end = int(ends[-1])
                bar.update(len(part))
        return facts, {}

    arrays = stored(cache, "tokens", lambda: facts, write).arrays
    return Tokens(arrays["flat"], arrays["starts"])


def _in_parts(texts: Iterable[str]) -> Iterator[list[str]]:
    part, letters = [], 0
    for text in texts:
        part.append(text)
        letters += len(text)
        if len(part) == PART or letters >= PART_LETTERS:
            yield part
            part, letters = [], 0
    if part:
        yield part


def vocabulary_of(
    texts: Iterable[str], vocab_size: int, *, marks: bool = True, cache: str = "", source: str = ""
) -> Tokenizer:
    """A tokenizer made from texts by `Tokenizer.train`, from the cache or into it.

    `cache` and `source` as of `tokens_of`.

    Raises:
      UsageError: the vocabulary has no room for more than special tokens.
      DataError: the folder cannot be written.
    """
    facts = {"source": source, "tokenizers": tokenizers.__version__, "vocab_size": vocab_size}

    def write(parts: Parts):
        return facts, {"tokenizer": Tokenizer.train(texts, vocab_size).raw.to_str()}

    content = stored(cache, "vocabulary", lambda: facts, write).values["tokenizer"]
    return Tokenizer(tokenizers.Tokenizer.from_str(content), marks=marks)


def vectors_of(
    texts: Sequence[str],
    embed: Callable[[Sequence[str]], np.ndarray],
    *,
    cache: str = "",
    source: str = "",
) -> np.ndarray:
    """The embeddings [N, any] float32 of N >= 1 texts, from the cache or into it.

    `cache` as of `tokens_of`; `source` identifies the texts and `embed` in it.

    Raises:
      DataError: the folder cannot be written.
    """
    facts = {"source": source}

    def write(parts: Parts):
        with tqdm(desc="teacher", total=len(texts), unit="text", disable=None, delay=2) as bar:
            for first in range(0, len(texts), PART_VECTORS):
                part = texts[first : first + PART_VECTORS]
                z_nd = np.asarray(embed(part), np.float32)
                parts.append("vectors", z_nd.ravel())
                bar.update(len(part))
        return facts, {}

    arrays = stored(cache, "vectors", lambda: facts, write).arrays
    return arrays["vectors"].reshape(len(texts), -1)
