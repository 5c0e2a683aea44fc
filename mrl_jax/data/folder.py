"""Image folders: FOLDER/train/CLASS/*.jpg and the same for val and, where there is one, test."""

import dataclasses
import hashlib
import os
import pathlib
from typing import NamedTuple

import numpy as np

from mrl_jax.data.images import IMAGE_SUFFIXES
from mrl_jax.errors import DataError

SPLITS = ("train", "val", "test")


class Record(NamedTuple):
    """One example as it is stored: the image file's bytes, its class, its name in messages."""

    data: bytes
    label: int
    where: str


@dataclasses.dataclass(frozen=True)
class FolderRecords:
    """The image files of one split, in order of class and name.

    Attributes:
      root: folder of the split.
      names: of the files, "CLASS/FILE".
      size: [N] bytes of each.
      label: [N] int32, index of the class.
    """

    root: pathlib.Path
    names: tuple[str, ...]
    size: np.ndarray
    label: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, row: int) -> Record:
        path = self.root / self.names[row]
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"cannot read image {path}: {error.strerror}") from error
        return Record(data, int(self.label[row]), str(path))

    def fingerprint(self) -> str:
        """Sixteen hex digits over names, sizes and classes; no file is opened."""
        digest = hashlib.sha256("\0".join(self.names).encode())
        digest.update(self.size.astype("<i8"))
        digest.update(self.label.astype("<i4"))
        return digest.hexdigest()[:16]


def _classes(root: pathlib.Path) -> tuple[str, ...]:
    layout = f"expected {root}/train/CLASS/*.jpg and {root}/val/CLASS/*.jpg (test is optional)"
    if not (root / "train").is_dir() or not (root / "val").is_dir():
        raise DataError(f"image folder {root} lacks a train or val folder; {layout}")
    classes = tuple(sorted(p.name for p in (root / "train").iterdir() if p.is_dir()))
    if len(classes) < 2:
        raise DataError(f"{root}/train has {len(classes)} class folders, needs two; {layout}")
    return classes


def _records(root: pathlib.Path, classes: tuple[str, ...]) -> FolderRecords:
    unknown = sorted({p.name for p in root.iterdir() if p.is_dir()} - set(classes))
    if unknown:
        raise DataError(f"{root} has class {unknown[0]!r}, which train has not")
    names, size, label = [], [], []
    for index, name in enumerate(classes):
        if not (root / name).is_dir():
            continue
        with os.scandir(root / name) as entries:
            found = sorted(
                (entry.name, entry.stat().st_size)
                for entry in entries
                if os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES
            )
        names += [f"{name}/{file}" for file, _ in found]
        size += [count for _, count in found]
        label += [index] * len(found)
    if not names:
        raise DataError(f"{root} has no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return FolderRecords(root, tuple(names), np.array(size, np.int64), np.array(label, np.int32))


def open_folder(root: pathlib.Path) -> tuple[dict[str, FolderRecords], tuple[str, ...]]:
    """Lists an image folder: (records by split, class names); no image is opened.

    Raises:
      DataError: train or val missing, fewer than two classes, a class that train has not, a split
        without images.
    """
    classes = _classes(root)
    splits = {name: _records(root / name, classes) for name in SPLITS if (root / name).is_dir()}
    return splits, classes
