"""Labelled images: the built-in digits, image folders and TFDS; in memory or streamed."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from mrl_jax.data.folder import open_folder
from mrl_jax.data.images import centre_square
from mrl_jax.data.loader import Batches, padded_batches
from mrl_jax.data.named import SPLITS
from mrl_jax.data.rand_augment import RandAugment
from mrl_jax.data.remarks import Remarks, printable
from mrl_jax.data.stream import Resolutions, Stream
from mrl_jax.data.tfds import open_tfds, parse_parts
from mrl_jax.errors import DataError, UsageError, shown

SOURCES = ("digits", "image_folder", "tfds")


class Split(NamedTuple):
    """Examples in memory: `image` [N, H, W, C] uint8 and `label` [N] int32.

    `Stream` offers the same: examples, update, pin, contents, places, batches and padded.
    """

    image: np.ndarray
    label: np.ndarray

    @property
    def examples(self) -> int:
        """How many there are."""
        return len(self.image)

    def check(self, where: str, shape: tuple[int, ...], classes: int) -> None:
        """Raises a DataError that names `where`, see `Dataset`."""
        image, label = self
        if not len(image):
            raise DataError(f"{where} has no examples")
        if image.dtype != np.uint8 or image.ndim != 4 or image.shape[1:] != shape:
            raise DataError(
                f"{where} must hold uint8 images of shape {shape}, "
                f"got {image.dtype} {image.shape[1:]}"
            )
        if label.dtype != np.int32 or label.shape != (len(image),):
            raise DataError(f"{where} must have one int32 label per image, got {label.shape}")
        if label.min() < 0 or label.max() >= classes:
            raise DataError(
                f"{where} has labels from {label.min()} to {label.max()}, "
                f"legal are 0 to {classes - 1}"
            )

    def update(self, digest: Any) -> None:
        """Adds the content to a hash."""
        digest.update(f"{self.image.shape}".encode())
        digest.update(np.ascontiguousarray(self.image))
        digest.update(np.ascontiguousarray(self.label))

    pin = update  # everything that training reads is in memory

    def contents(self) -> np.ndarray:
        """A number [N] uint64 per image, equal for equal images."""
        coded = [hashlib.blake2b(image, digest_size=8).digest() for image in self.image]
        return np.frombuffer(b"".join(coded), "<u8")

    def places(self) -> np.ndarray:
        """As `contents`: for images in memory, comparing pixels is cheap enough."""
        return self.contents()

    def batches(self, batch_size: int, seed: int, sharding: jax.sharding.Sharding) -> Batches:
        """Training batches by step."""
        return Batches(self._asdict(), batch_size, seed, sharding)

    def padded(
        self, batch_size: int, sharding: jax.sharding.Sharding
    ) -> Iterator[dict[str, jax.Array]]:
        """All examples once, in order; the last batch is filled up with zeros of mask 0."""
        return padded_batches(self._asdict(), batch_size, sharding)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A labelled image data set, called `name` in messages and checked once, here.

    Labels index `class_names`; `notes` are lines for the log on what was found or is not read.

    Raises:
      DataError: an empty split, images that are not uint8 of one shape, or labels that are not
        int32 in [0, number of classes). Streamed splits were checked when they were opened.
    """

    name: str
    splits: dict[str, Split | Stream]
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        for name, split in self.splits.items():
            if isinstance(split, Split):
                split.check(f"{self.name}: split {name}", self.image_shape, len(self.class_names))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image in evaluation; and in training, unless resolutions differ."""
        split = next(iter(self.splits.values()))
        if isinstance(split, Split):
            return split.image.shape[1:]
        return split.size, split.size, 3

    @functools.cached_property
    def _training_digest(self) -> str | None:
        if "train" not in self.splits:
            return None
        digest = hashlib.sha256(repr(self.class_names).encode())
        self.splits["train"].pin(digest)
        return digest.hexdigest()[:16]

    def fingerprint(self, *names: str) -> str:
        """Sixteen hex digits over the classes and these splits (by default all)."""
        # Older releases used the test split as val where there was no val split.
        splits = {"val": self.splits.get("test"), **self.splits}
        digest = hashlib.sha256(repr(self.class_names).encode())
        for name in sorted(names or splits):
            digest.update(name.encode())
            splits[name].update(digest)
        return digest.hexdigest()[:16]

    def training_fingerprint(self) -> str | None:
        """Sixteen hex digits over the classes and the train split; a checkpoint remembers them.

        None without a train split.

        Raises:
          DataError: an image cannot be read, see `Stream.pin`.
        """
        return self._training_digest


@dataclasses.dataclass(frozen=True)
class Options:
    """Which images are read, and how: the keys of the config below `data`, see `keys.py`.

    Attributes:
      eval_crop: share of the short side that is kept of images in evaluation; in memory, and in
        a stream without `random_crop`, of training images as well.
      random_crop: of a stream, see `Stream`. In memory it happens on the device.
      rand_augment: of a stream, (changes, strength), see `RandAugment`; () = none.

    Raises:
      UsageError, ValueError: a value that is not legal, or a key missing that the source needs.
    """

    source: str
    path: str = ""
    dataset: str = ""
    splits: Sequence[str] = ()
    image_size: int = 32
    eval_crop: float = 1.0
    stream: bool = False
    random_crop: float = 0.0
    resolutions: Resolutions = ()
    rand_augment: tuple[int, float] | tuple[()] = ()
    threads: int = 0

    def __post_init__(self):
        source, stream, changes = self.source, self.stream, self.rand_augment
        legal = {
            f"source must be one of {', '.join(SOURCES)}; got {shown(source)}": source in SOURCES,
            f"image_size must be >= 1, got {self.image_size}": self.image_size >= 1,
            f"eval_crop must be in (0, 1], got {self.eval_crop}": 0 < self.eval_crop <= 1,
            f"threads must be >= 0, got {self.threads}": self.threads >= 0,
            "resolutions needs data.stream=True": stream or not self.resolutions,
            "rand_augment needs data.stream=True": stream or not changes,
            f"rand_augment must be (changes, strength), got {changes}": len(changes) in (0, 2),
            f"splits is for data.source tfds only; data.source is {source}": (
                source == "tfds" or not self.splits
            ),
            "stream needs image files, digits are in memory": not (source == "digits" and stream),
            "source image_folder needs --config.data.path=...": (
                source != "image_folder" or self.path
            ),
            "source tfds needs --config.data.dataset=... or data.path": (
                source != "tfds" or self.dataset or self.path
            ),
        }
        for rule, kept in legal.items():
            if not kept:
                raise UsageError(f"config.data.{rule}")
        if stream:
            self.opened("", ())  # checks the rest
        parse_parts(self.splits)

    def opened(self, name: str, records: Any) -> Split | Stream:
        """A split of these records, in memory or as a stream; the name is for a progress bar."""
        if not self.stream:
            return _decoded(name, records, self.image_size, self.eval_crop, self.threads)
        return Stream(
            records,
            self.image_size,
            eval_crop=self.eval_crop,
            random_crop=self.random_crop,
            resolutions=self.resolutions,
            rand_augment=RandAugment(*self.rand_augment) if self.rand_augment else None,
            threads=self.threads,
        )


def load(source: str, *, class_names: Sequence[str] | None = None, **options: Any) -> Dataset:
    """Opens a data set.

    Args:
      source, options: see `Options`.
      class_names: of a trained model, to measure it: the train split may then be missing, and a
        folder need not have every class. None: the data say which classes there are.

    Raises:
      UsageError, ValueError: see `Options`.
      DataError: data missing, unreadable or inconsistent, or of other classes; names the path.
    """
    o = Options(source, **options)
    if source == "digits":
        dataset = _digits()
        _check_classes("digits", dataset.class_names, class_names)
        return dataset
    remarks = Remarks()
    if source == "image_folder":
        name = o.path
        records, classes = open_folder(pathlib.Path(name), remarks, class_names)
    else:
        name = o.dataset or o.path
        train = class_names is None
        records, classes = open_tfds(o.dataset, o.path, o.splits, remarks, train=train)
        _check_classes(name, classes, class_names)
    splits = {split: o.opened(split, found) for split, found in records.items()}
    sizes = [
        f"{split} {len(found):,}" + (f" ({found.part})" if found.part != split else "")
        for split, found in records.items()
    ]
    notes = [f"{printable(name)}: {len(classes):,} classes, images: {', '.join(sizes)}"]
    if "val" not in splits and class_names is None:
        notes.append(
            "no val split: only test is measured, once, at the end; to hold some examples out: "
            "data.splits=train=train[:90%],val=train[90%:],test=test"
        )
    notes += overlaps(splits) + remarks.lines()
    return Dataset(name, splits, classes, tuple(notes))


def _check_classes(name: str, found: Sequence[str], wanted: Sequence[str] | None) -> None:
    """Refuses classes other than those of the trained model, if there is one."""
    if wanted is not None and tuple(found) != tuple(wanted):
        other = set(found).symmetric_difference(wanted) or found
        raise DataError(
            f"{name} has {len(found)} classes, the model was trained with {len(wanted)}; the first "
            f"that differs is {shown(min(other))}"
        )


def overlaps(splits: Mapping[str, Split | Stream]) -> list[str]:
    """A warning for every pair of splits that share images, as far as that is cheap to see."""
    place_n = {name: split.places() for name, split in splits.items()}
    found = []
    for name, other in (("val", "train"), ("test", "train"), ("test", "val")):
        if name in splits and other in splits:
            same = int(np.isin(place_n[name], place_n[other]).sum())
            if same:
                found.append(
                    f"warning: {same:,} of {splits[name].examples:,} images of {name} are in "
                    f"{other} as well"
                )
    return found


def _decoded(name: str, records: Any, size: int, share: float, threads: int) -> Split:
    """All images of a split as squares in memory."""
    try:
        image = np.empty((len(records), size, size, 3), np.uint8)
    except MemoryError as error:
        gib = len(records) * size * size * 3 / 2**30
        raise DataError(f"{name} needs {gib:.0f} GiB of memory; take data.stream=True") from error
    label = np.empty(len(records), np.int32)

    def decode(row):
        record = records[row]
        image[row] = centre_square(record.data, record.where, size, share)
        label[row] = record.label

    rows = range(len(records))
    with concurrent.futures.ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        # disable=None: shown on a terminal only, and for sets that take a while.
        quiet = None if len(records) >= 5000 and jax.process_index() == 0 else True
        for _ in tqdm(
            pool.map(decode, rows), f"decoding {name}", len(rows), unit="img", disable=quiet
        ):
            pass
    return Split(image, label)


def _digits() -> Dataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    # Pixels are 0 to 16.
    image = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    label = digits.target.astype(np.int32)
    # Fixed for all seeds of a study: 60 % train, 20 % val, 20 % test, each class in proportion.
    train, rest = train_test_split(
        np.arange(len(label)), train_size=0.6, stratify=label, random_state=0
    )
    val, test = train_test_split(rest, train_size=0.5, stratify=label[rest], random_state=0)
    rows = dict(zip(SPLITS, (train, val, test), strict=True))
    splits = {name: Split(image[i], label[i]) for name, i in rows.items()}
    return Dataset("digits", splits, tuple(str(k) for k in range(10)))
