"""Photos with captions: which pairs there are, and training batches of them."""

import collections
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mrl_jax.data import Options, Split, Stream
from mrl_jax.data.folder import Chosen
from mrl_jax.data.labelled_images import overlaps
from mrl_jax.data.loader import put, train_rows
from mrl_jax.data.remarks import Remarks
from mrl_jax.data.strings import Strings
from mrl_jax.data.token_cache import Tokens
from mrl_jax.models.text.tokenizer import padded_length
from mrl_jax.tasks.image_text import sources


@dataclasses.dataclass(frozen=True)
class Captioned:
    """One split: P photos and N pairs of a photo and a caption.

    Attributes:
      images: the photos [P], in memory or as a stream.
      names: of the photos: of files as they are given, else "SHARD/MEMBER" or "PART[ROW]".
      texts: the different captions.
      photo_n: [N] int32, the photo of each pair.
      text_n: [N] int32, its caption.
    """

    images: Split | Stream
    names: Sequence[str]
    texts: Strings
    photo_n: np.ndarray
    text_n: np.ndarray

    @property
    def examples(self) -> int:
        """Pairs."""
        return len(self.photo_n)

    def caption(self, pair: int) -> str:
        """The text of a pair."""
        return self.texts[int(self.text_n[pair])]

    def ids(self, pair_b: np.ndarray) -> dict[str, np.ndarray]:
        """[B] int32 of pairs, equal for those of one photo or one caption."""
        photo_b, text_b = self.photo_n[pair_b], self.text_n[pair_b]
        # Photos and texts share the numbers: an id says which of all things it is.
        return {"image_id": photo_b, "text_id": text_b + np.int32(len(self.names))}

    def update(self, digest: Any) -> None:
        """Adds what identifies the pairs to a hash."""
        self._pairs(digest)
        self.images.update(digest)

    def pin(self, digest: Any) -> None:
        """Adds to a hash what must be unchanged when training resumes; see `Stream.pin`."""
        self._pairs(digest)
        self.images.pin(digest)

    def _pairs(self, digest: Any) -> None:
        for array in (self.texts.flat, self.photo_n, self.text_n):
            digest.update(np.ascontiguousarray(array))


def load(
    options: Options, where: sources.Where, *, train: bool
) -> tuple[dict[str, Captioned], list[str]]:
    """All splits, and lines for the log on what was found and is not read.

    Args:
      options: how photos are read.
      where, train: see `sources.open_pairs`.

    Raises:
      UsageError, DataError: see `sources.open_pairs`; and a photo that cannot be read.
    """
    remarks = collections.defaultdict(Remarks)
    found, lines = sources.open_pairs(where, remarks, train=train)
    splits, notes = {}, []
    for name, (records, names, *pairs) in found.items():
        split = splits[name] = Captioned(options.opened(name, records), names, *pairs)
        notes.append(
            f"{name}: {len(names):,} photos, {split.examples:,} pairs, {len(split.texts):,} "
            "different captions"
        )
        notes += [f"{name}: {line}" for line in remarks[name].lines()]
    notes += overlaps({name: split.images for name, split in splits.items()})
    return splits, notes + lines


@dataclasses.dataclass(frozen=True)
class TrainPairs:
    """The train split with what turns it into batches.

    Attributes:
      pairs: the photos and captions.
      longest: tokens of a text at most.
      tokens: gives the token ids of all texts; not called where vectors of texts are given.
      vectors: by the name of a locked tower, gives what it makes of all photos [P, any] or of all
        texts [T, any], float32.
    """

    pairs: Captioned
    longest: int
    tokens: Callable[[], Tokens]
    vectors: Mapping[str, Callable[[], np.ndarray]]

    def batches(self, batch_size: int, seed: int, sharding: jax.sharding.Sharding) -> "PairBatches":
        """Training batches by step."""
        return PairBatches(self, batch_size, seed, sharding)


class PairBatches:
    """Training batches: `batches(step)` -> dict of global device arrays, see `task.ImageText`.

    The batch of a step is a pure function of seed and step.
    """

    def __init__(
        self, source: TrainPairs, batch_size: int, seed: int, sharding: jax.sharding.Sharding
    ):
        self._source, self._pairs = source, source.pairs
        self._batch_size, self._seed, self._sharding = batch_size, seed, sharding
        self._vectors = {tower: made() for tower, made in source.vectors.items()}
        images, self._stream = source.pairs.images, None
        if isinstance(images, Stream) and "image" not in self._vectors:
            # A stream of pairs draws the rows of a step as this does.
            of_pairs = Chosen(images.records, source.pairs.photo_n)
            images = dataclasses.replace(images, records=of_pairs)
            self._stream = images.batches(batch_size, seed, sharding)

    @functools.cached_property
    def _tokens(self) -> Tokens:
        return self._source.tokens()

    def __call__(self, step: int) -> dict[str, jax.Array]:
        """The batch of `step`, counted from 0."""
        pairs = self._pairs
        pair_b = train_rows(self._seed, step, self._batch_size, pairs.examples)
        photo_b, text_b = pairs.photo_n[pair_b], pairs.text_n[pair_b]
        batch = {**pairs.ids(pair_b), "mask": np.ones(self._batch_size, np.float32)}
        if "text" not in self._vectors:
            tokens = self._tokens
            length = padded_length(int(tokens.lengths[text_b].max()), self._source.longest)
            batch["text_tokens"] = tokens.padded(text_b, length)
            batch["text_lengths"] = tokens.lengths[text_b]
        placed = put(batch, self._sharding)
        for tower, row_b in (("image", photo_b), ("text", text_b)):
            if tower in self._vectors:
                placed[f"{tower}_vector"] = self._gathered(self._vectors[tower], row_b)
        if self._stream:
            placed["image"] = self._stream(step)["image"]
        elif "image" not in self._vectors:
            placed["image"] = self._gathered(pairs.images.image, photo_b)
        return placed

    def _gathered(self, array: np.ndarray, row_b: np.ndarray) -> jax.Array:
        """Those rows; a process gathers what its devices hold."""
        shape = (self._batch_size, *array.shape[1:])
        return jax.make_array_from_callback(
            shape, self._sharding, lambda index: array[row_b[index[0]]]
        )


def fingerprint(splits: Mapping[str, Captioned], about: str) -> str:
    """Sixteen hex digits over all pairs, and over a text about how they are read."""
    digest = hashlib.sha256(about.encode())
    for name in sorted(splits):
        digest.update(name.encode())
        splits[name].update(digest)
    return digest.hexdigest()[:16]
