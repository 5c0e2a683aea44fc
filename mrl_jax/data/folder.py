"""Image folders: FOLDER/train/CLASS/*.jpg and the same for val and, where there is one, test."""

import collections
import contextlib
import dataclasses
import hashlib
import os
import pathlib
import stat
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mrl_jax.data.images import IMAGE_SUFFIXES, OTHER_SUFFIXES
from mrl_jax.data.remarks import Remarks, composed, entries, same_letters
from mrl_jax.errors import DataError

SPLITS = ("train", "val", "test")
_UINT64 = 2**64 - 1


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
      place: [N] uint64, where each lies: equal for links to one file.
    """

    root: pathlib.Path
    names: tuple[str, ...]
    size: np.ndarray
    modified: np.ndarray
    label: np.ndarray
    place: np.ndarray

    @classmethod
    def of(
        cls, root: pathlib.Path, found: Sequence[tuple[str, os.stat_result, int]]
    ) -> "FolderRecords":
        """From (name, what the system says of it, class), one after another."""
        names, about, label = zip(*found, strict=True)
        return cls(
            root,
            names,
            np.array([a.st_size for a in about], np.int64),
            np.array([a.st_mtime_ns for a in about], np.int64),
            np.array(label, np.int32),
            np.array([(a.st_dev << 48 ^ a.st_ino) & _UINT64 for a in about], np.uint64),
        )

    @property
    def part(self) -> str:
        """Which part of the data they are, for messages."""
        return self.root.name

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


def class_folders(
    root: pathlib.Path, remarks: Remarks, besides: Collection[str] = ()
) -> list[str]:
    """Class folders, by name.

    Args:
      root: what they lie in.
      remarks: is told what lies there as well, unless it is one of `besides`.
      besides: names of files that the caller reads.

    Raises:
      DataError: an image beside them, or a link to what is not there.
    """
    found = []
    for entry in entries(root, remarks):
        if entry.is_dir():
            found.append(entry.name)
        elif pathlib.Path(entry.name).suffix.lower() in IMAGE_SUFFIXES:
            raise DataError(f"{entry.path} lies beside the class folders, not in one")
        elif entry.name not in besides:
            remarks.add("not read, beside the class folders", entry.path)
    return found


def _classes(root: pathlib.Path, remarks: Remarks) -> tuple[str, ...]:
    classes = tuple(class_folders(root / "train", remarks))
    if len(classes) < 2:
        raise DataError(f"{root}/train has {len(classes)} class folders, needs two; {layout(root)}")
    forms = collections.Counter(map(composed, classes))
    for name in classes:
        if forms[composed(name)] > 1:
            remarks.add("warning: classes that another differs from in its Unicode form only", name)
    return classes


def layout(root: pathlib.Path) -> str:
    """What an image folder looks like, for messages."""
    return f"expected {root}/train/CLASS/*.jpg and {root}/val/CLASS/*.jpg (test is optional)"


def image_files(folder: pathlib.Path, remarks: Remarks) -> list[tuple[str, os.stat_result]]:
    """Image files of one folder with what the system says of them, by name.

    Raises:
      DataError: a folder inside, an image of a kind that is not read, or one that is not named as
        images are: none is left out.
    """
    found = []
    legal = ", ".join(sorted(IMAGE_SUFFIXES))
    for entry in entries(folder, remarks):
        if entry.is_dir():
            raise DataError(f"{entry.path} is a folder; images lie directly in {folder}")
        suffix = os.path.splitext(entry.name)[1].lower()
        if suffix in OTHER_SUFFIXES:
            raise DataError(f"{entry.path} is of a kind that is not read ({legal} are)")
        if suffix not in IMAGE_SUFFIXES:
            remarks.add_file(entry.path, legal)
            continue
        about = entry.stat()
        if not stat.S_ISREG(about.st_mode):
            raise DataError(f"{entry.path} is no file")
        found.append((entry.name, about))
    return found


def _records(root: pathlib.Path, classes: tuple[str, ...], remarks: Remarks) -> FolderRecords:
    # Those of train are known, and what lies beside them was counted.
    folders = classes if root.name == "train" else class_folders(root, remarks)
    for name in folders:
        if name not in classes:
            raise DataError(
                f"{root} has class {name!r}, which train has not{same_letters(name, classes)}"
            )
    legal = ", ".join(sorted(IMAGE_SUFFIXES))
    found = []
    for label, name in enumerate(classes):
        files = image_files(root / name, remarks) if name in folders else []
        if not files and root.name == "train":
            raise DataError(f"class folder {root / name} has no images ({legal})")
        if not files:
            remarks.add(f"classes without images in {root.name}", name)
        found += [(f"{name}/{file}", about, label) for file, about in files]
    if not found:
        raise DataError(f"{root} has no images ({legal})")
    return FolderRecords.of(root, found)


def open_folder(
    root: pathlib.Path, remarks: Remarks
) -> tuple[dict[str, FolderRecords], tuple[str, ...]]:
    """Lists an image folder: (records by split, class names); no image is opened.

    Args:
      root: with a folder for each split.
      remarks: is told what is not read.

    Raises:
      DataError: train or val missing, fewer than two classes, a class that train has not or has no
        images of, a split without images, images where or of a kind that is not read, a link to
        what is not there, anything that the system does not let us list.
    """
    with listing():
        found = {}
        for entry in entries(root, remarks) if root.is_dir() else ():
            if entry.name not in SPLITS:
                remarks.add("not read, beside the splits", entry.path)
            elif entry.is_dir():
                found[entry.name] = pathlib.Path(entry.path)
            else:
                raise DataError(f"{entry.path} is no folder; {layout(root)}")
        if "train" not in found or "val" not in found:
            raise DataError(f"image folder {root} lacks a train or val folder; {layout(root)}")
        classes = _classes(root, remarks)
        splits = {
            name: _records(found[name], classes, remarks) for name in SPLITS if name in found
        }
    return splits, classes
