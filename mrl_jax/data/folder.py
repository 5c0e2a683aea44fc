"""Image folders: FOLDER/train/CLASS/*.jpg and the same for val and, where there is one, test."""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import stat
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mrl_jax.data.images import IMAGE_SUFFIXES, OTHER_SUFFIXES
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
      modified: [N] int64, when each was last written, in nanoseconds.
      label: [N] int32, index of the class.
    """

    root: pathlib.Path
    names: tuple[str, ...]
    size: np.ndarray
    modified: np.ndarray
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

    def order(self) -> str:
        """Hex digits over names and classes, one after another."""
        digest = hashlib.sha256("\0".join(self.names).encode("utf-8", "surrogateescape"))
        digest.update(self.label.astype("<i4"))
        return digest.hexdigest()

    def fingerprint(self) -> str:
        """Sixteen hex digits over names, sizes and classes; no file is opened."""
        digest = hashlib.sha256("\0".join(self.names).encode("utf-8", "surrogateescape"))
        digest.update(self.size.astype("<i8"))
        digest.update(self.label.astype("<i4"))
        return digest.hexdigest()[:16]


@contextlib.contextmanager
def listing() -> Iterator[None]:
    """Where folders are listed: what the system refuses becomes a DataError that names it."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}") from error


def class_folders(root: pathlib.Path) -> list[str]:
    """Class folders; those that begin with a dot belong to programs."""
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _classes(root: pathlib.Path) -> tuple[str, ...]:
    layout = f"expected {root}/train/CLASS/*.jpg and {root}/val/CLASS/*.jpg (test is optional)"
    if not (root / "train").is_dir() or not (root / "val").is_dir():
        raise DataError(f"image folder {root} lacks a train or val folder; {layout}")
    classes = tuple(class_folders(root / "train"))
    if len(classes) < 2:
        raise DataError(f"{root}/train has {len(classes)} class folders, needs two; {layout}")
    return classes


def image_files(folder: pathlib.Path) -> list[tuple[str, os.stat_result]]:
    """Image files of one folder with what the system says of them, by name.

    Raises:
      DataError: a folder inside, or an image of a kind that is not read: nothing is left out
        without a word. Files that are no images are no concern of ours.
    """
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                raise DataError(f"{entry.path} is a folder; images lie directly in {folder}")
            suffix = os.path.splitext(entry.name)[1].lower()
            legal = ", ".join(sorted(IMAGE_SUFFIXES))
            if suffix in OTHER_SUFFIXES:
                raise DataError(f"{entry.path} is of a kind that is not read ({legal} are)")
            if suffix not in IMAGE_SUFFIXES:
                continue
            about = entry.stat()
            if not stat.S_ISREG(about.st_mode):
                raise DataError(f"{entry.path} is no file")
            found.append((entry.name, about))
    return sorted(found, key=lambda item: item[0])


def _records(root: pathlib.Path, classes: tuple[str, ...]) -> FolderRecords:
    unknown = sorted(set(class_folders(root)) - set(classes))
    if unknown:
        raise DataError(f"{root} has class {unknown[0]!r}, which train has not")
    stray = [p for p in root.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]
    if stray:
        raise DataError(f"{stray[0]} lies beside the class folders, not in one")
    names, size, modified, label = [], [], [], []
    for index, name in enumerate(classes):
        found = image_files(root / name) if (root / name).is_dir() else []
        if not found and root.name == "train":
            legal = ", ".join(sorted(IMAGE_SUFFIXES))
            raise DataError(f"class folder {root / name} has no images ({legal})")
        names += [f"{name}/{file}" for file, _ in found]
        size += [about.st_size for _, about in found]
        modified += [about.st_mtime_ns for _, about in found]
        label += [index] * len(found)
    if not names:
        raise DataError(f"{root} has no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return FolderRecords(
        root,
        tuple(names),
        np.array(size, np.int64),
        np.array(modified, np.int64),
        np.array(label, np.int32),
    )


def open_folder(root: pathlib.Path) -> tuple[dict[str, FolderRecords], tuple[str, ...]]:
    """Lists an image folder: (records by split, class names); no image is opened.

    Raises:
      DataError: train or val missing, fewer than two classes, a class that train has not or has no
        images of, a split without images, images where or of a kind that is not read, anything
        that the system does not let us list.
    """
    with listing():
        classes = _classes(root)
        splits = {name: _records(root / name, classes) for name in SPLITS if (root / name).is_dir()}
    return splits, classes
