"""Batches of texts by length: a pure function of (seed, step), on any mesh, whatever came before.

The stream of examples is cut into windows. Those of a window are sorted by length and cut into
batches, which come in random order: the texts of a batch are about equally long, so little of it is
padding. Lengths are rounded up to a few values, so that few shapes are compiled.
"""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from mrl_jax.data.loader import put, train_rows
from mrl_jax.data.text import TextSplit
from mrl_jax.data.token_cache import Tokens
from mrl_jax.models.text.tokenizer import padded_length

WINDOW = 64  # batches that are sorted together


@dataclasses.dataclass(frozen=True)
class TrainTexts:
    """The train split with what turns it into batches.

    Attributes:
      tokens: gives, for a side, the token ids of all texts, at most `longest` of each.
      score_max: scores are divided by it.
      teacher: gives, for a side, the teacher's embeddings of all texts [texts, any]; None without
        a teacher.
    """

    split: TextSplit
    tokens: Callable[[str], Tokens]
    longest: int
    score_max: float = 1.0
    teacher: Callable[[str], np.ndarray] | None = None

    def batches(self, batch_size: int, seed: int, sharding: jax.sharding.Sharding) -> "TextBatches":
        """Training batches by step."""
        sides = tuple(self.split.sides) or ("anchor", "positive")  # groups are drawn as pairs
        teacher = {side: self.teacher(side) for side in sides} if self.teacher else {}
        tokens = {side: self.tokens(side) for side in sides}
        return TextBatches(self, tokens, teacher, batch_size, seed, sharding)


class TextBatches:
    """Training batches: `batches(step)` -> dict of global device arrays.

    Of every side `{side}_tokens` [B, T] int32, `{side}_lengths` [B] and `{side}_id` [B], equal for
    what is never told apart, and with a teacher `{side}_teacher` [B, any]; `score` [B] where pairs
    have one; and `mask` [B], all ones.
    """

    def __init__(
        self,
        source: TrainTexts,
        tokens: dict[str, Tokens],
        teacher: dict[str, np.ndarray],
        batch_size: int,
        seed: int,
        sharding: jax.sharding.Sharding,
    ):
        self._source, self._split = source, source.split
        self._tokens, self._teacher = tokens, teacher
        self._batch_size, self._seed, self._sharding = batch_size, seed, sharding
        self._window: tuple[int, list[dict[str, np.ndarray]]] = (-1, [])

    def __call__(self, step: int) -> dict[str, jax.Array]:
        """The batch of `step`, counted from 0."""
        return put(self.host_batch(step), self._sharding)

    def host_batch(self, step: int) -> dict[str, np.ndarray]:
        """The whole batch of `step` as it is on every process."""
        window, place = divmod(step, WINDOW)
        if self._window[0] != window:
            self._window = (window, self._plan(window))
        rows = self._window[1][place]
        text_b = {name: rows[name] for name in rows if name != "row"}
        longest = {
            side: padded_length(int(self._tokens[side].lengths[text].max()), self._source.longest)
            for side, text in text_b.items()
        }
        top = max(longest.values())
        batch = {"mask": np.ones(self._batch_size, np.float32)}
        for side, text in text_b.items():
            # Sides of one length go through the encoder together, and make fewer programs.
            length = top if 2 * longest[side] >= top else longest[side]
            batch[f"{side}_tokens"] = self._tokens[side].padded(text, length)
            batch[f"{side}_lengths"] = self._tokens[side].lengths[text]
            batch[f"{side}_id"] = self._split.same_t[text]
            if self._teacher:
                batch[f"{side}_teacher"] = self._teacher[side][text]
        if self._split.score_n is not None:
            batch["score"] = self._split.score_n[rows["row"]] / np.float32(self._source.score_max)
        return batch

    def _plan(self, window: int) -> list[dict[str, np.ndarray]]:
        """The rows of every batch of a window, and the texts of their sides."""
        size, split = WINDOW * self._batch_size, self._split
        rows = train_rows(self._seed, window, size, split.examples)
        random = np.random.Generator(np.random.Philox([self._seed, window, 1]))
        if split.starts is None:
            columns = {side: text_n[rows] for side, text_n in split.sides.items()}
        else:
            columns = self._draw(rows, random)
        # The longest side says what a batch is padded to; the others decide between equals.
        lengths = [self._tokens[side].lengths[text] for side, text in columns.items()]
        # Within an epoch, or both copies of an example would end up side by side.
        epochs = (window * size + np.arange(size)) // split.examples
        order = np.lexsort((sum(lengths), np.max(lengths, axis=0), epochs)).reshape(
            WINDOW, self._batch_size
        )
        columns["row"] = rows
        return [
            {name: column[order[batch]] for name, column in columns.items()}
            for batch in random.permutation(WINDOW)
        ]

    def _draw(self, rows: np.ndarray, random: np.random.Generator) -> dict[str, np.ndarray]:
        """Two different texts of each of these groups, in random order."""
        start = self._split.starts[rows]
        size = self._split.starts[rows + 1] - start
        first = random.integers(0, size)
        second = (first + random.integers(1, size)) % size
        members = self._split.members
        return {"anchor": members[start + first], "positive": members[start + second]}
