"""Photos with captions: which pairs there are, and training batches of them."""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from mrl_jax.data import Options, Split, Stream
from mrl_jax.data.folder import File, FolderRecords, Record
from mrl_jax.data.images import IMAGE_SUFFIXES, LEGAL
from mrl_jax.data.loader import put, train_rows
from mrl_jax.data.strings import Strings
from mrl_jax.data.text_files import Row, find_files, read_rows
from mrl_jax.data.token_cache import Tokens
from mrl_jax.errors import DataError, shown
from mrl_jax.models.text.tokenizer import padded_length

# Names of the columns, the first that a row has.
PHOTO = ("image", "file_name", "filename", "filepath")
CAPTION = ("caption", "captions", "text", "title", "sentence")


@dataclasses.dataclass(frozen=True)
class Captioned:
    """One split: P photos and N pairs of a photo and a caption.

    Attributes:
      images: the photos, in memory or as a stream; their labels are their numbers.
      texts: the different captions.
      photo_n: [N] int32, the photo of each pair.
      text_n: [N] int32, its caption.
      names: of the photos.
    """

    images: Split | Stream
    texts: Strings
    photo_n: np.ndarray
    text_n: np.ndarray
    names: tuple[str, ...]

    @property
    def examples(self) -> int:
        """Pairs."""
        return len(self.photo_n)

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
    options: Options,
    path: str,
    files: tuple[str, ...],
    images: str,
    *,
    train: bool,
    paired: bool = True,
) -> dict[str, Captioned]:
    """All splits.

    Args:
      options: how photos are read.
      path, files, train: where the captions are, see `find_files`.
      images: folder of the photos; "" = that of the file that names them.
      paired: whether a stream of training photos goes from pair to pair, or from photo to photo.

    Raises:
      UsageError: neither `path` nor `files`, or both.
      DataError: captions or photos are missing or damaged; names the line or the file.
    """
    return {
        split: _read(
            split,
            found,
            options,
            pathlib.Path(images) if images else None,
            paired and options.stream and split == "train",
        )
        for split, found in find_files(path, files, train=train).items()
    }


def _read(
    split: str,
    files: list[pathlib.Path],
    options: Options,
    images: pathlib.Path | None,
    paired: bool,
) -> Captioned:
    photo_of: dict[pathlib.Path, int] = {}
    text_of: dict[str, int] = {}
    pairs = []
    for file in files:
        root = images or file.parent
        for row in read_rows(file):
            photo = root / _photo(row)
            number = photo_of.setdefault(photo, len(photo_of))
            for caption in _captions(row):
                pairs.append((number, text_of.setdefault(caption, len(text_of))))
    if not pairs:
        raise DataError(f"{files[0]}: there is no photo with a caption in it")
    photo_n, text_n = np.array(sorted(set(pairs)), np.int32).T
    found = []
    for photo, number in photo_of.items():
        try:
            found.append((str(photo), File.of(photo.stat()), number))
        except OSError as error:
            raise DataError(f"cannot read image {photo}: {error.strerror}") from error
    # Absolute names or names from here: the folder that they start from is no longer needed.
    records = FolderRecords.of(pathlib.Path(), found)
    names = tuple(name for name, _, _ in found)
    if paired:
        records = OfPairs(records, photo_n)
    return Captioned(
        options.opened(split, records), Strings.of(text_of), photo_n.copy(), text_n.copy(), names
    )


def _value(row: Row, columns: tuple[str, ...]) -> Any:
    for column in columns:
        if column in row.values:
            return row.values[column]
    raise DataError(f"{row.where}: needs one of the columns {', '.join(columns)}")


def _photo(row: Row) -> str:
    name = _value(row, PHOTO)
    if not isinstance(name, str) or pathlib.Path(name).suffix.lower() not in IMAGE_SUFFIXES:
        raise DataError(f"{row.where}: must name an image file ({LEGAL}), got {shown(name)}")
    return name


def _captions(row: Row) -> list[str]:
    value = _value(row, CAPTION)
    captions = value if isinstance(value, list) else [value]
    for caption in captions:
        if not isinstance(caption, str) or not caption.strip():
            raise DataError(f"{row.where}: a caption must be a text, got {shown(caption)}")
    if not captions:
        raise DataError(f"{row.where}: the photo has no caption")
    return captions


@dataclasses.dataclass(frozen=True)
class OfPairs:
    """The records of the photos of pairs, one for each pair, which is its label."""

    records: Any
    photo_n: np.ndarray

    def __len__(self) -> int:
        return len(self.photo_n)

    def __getitem__(self, pair: int) -> Record:
        return self.records[int(self.photo_n[pair])]._replace(label=int(pair))

    @property
    def place(self) -> np.ndarray:
        """See `FolderRecords`."""
        return self.records.place[self.photo_n]

    def order(self) -> str:
        """See `FolderRecords`; the pairs are counted elsewhere."""
        return self.records.order()

    def fingerprint(self) -> str:
        """See `FolderRecords`."""
        return self.records.fingerprint()


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
        images = source.pairs.images
        streamed = isinstance(images, Stream) and "image" not in self._vectors
        # A stream of pairs draws the rows of a step as this does.
        self._stream = images.batches(batch_size, seed, sharding) if streamed else None

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


def notes(splits: Mapping[str, Captioned]) -> Iterator[str]:
    """A line on what there is."""
    for name, split in splits.items():
        yield (
            f"{name}: {len(split.names):,} photos, {split.examples:,} pairs, "
            f"{len(split.texts):,} different captions"
        )
