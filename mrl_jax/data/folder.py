"""Image folders: FOLDER/train/CLASS/*.jpg and the same for val and, where there is one, test."""

import collections
import contextlib
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mrl_jax.data.images import IMAGE_SUFFIXES, LEGAL, OTHER_SUFFIXES
from mrl_jax.data.named import SPLITS
from mrl_jax.data.remarks import Remarks, composed, entries, same_letters
from mrl_jax.errors import DataError
from mrl_jax.store import inputs

_UINT64 = 2**64 - 1


class Record(NamedTuple):
    """One example as it is stored: the image file's bytes, its class, and its name in messages."""

    data: bytes
    label: int
    where: str


class File(NamedTuple):
    """What is kept of an image file's `stat_result`, which is far larger; there may be millions.

    Size in bytes, nanoseconds of the last change, and as `place` the device and inode in 64 bits,
    equal for links to one file.
    """

    size: int
    modified: int
    place: int

    @classmethod
    def of(cls, about: os.stat_result) -> "File":
        """From the result of `os.stat`."""
        place = (about.st_dev << 48 ^ about.st_ino) & _UINT64
        return cls(about.st_size, about.st_mtime_ns, place)


@dataclasses.dataclass(frozen=True)
class FolderRecords:
    """The N image files of one split, in order of class and name: "CLASS/FILE" below `root`.

    `size` and `modified` [N] int64 and `place` [N] uint64 are those of `File`, `label` [N] int32
    the index of the class.
    """

    root: pathlib.Path
    names: Sequence[str]
    size: np.ndarray
    modified: np.ndarray
    label: np.ndarray
    place: np.ndarray

    @classmethod
    def of(cls, root: pathlib.Path, found: Sequence[tuple[str, File, int]]) -> "FolderRecords":
        """From the name, the file and the class of each image, in order."""
        return cls(
            root,
            tuple(name for name, _, _ in found),
            np.array([file.size for _, file, _ in found], np.int64),
            np.array([file.modified for _, file, _ in found], np.int64),
            np.array([label for _, _, label in found], np.int32),
            np.array([file.place for _, file, _ in found], np.uint64),
        )

    @property
    def part(self) -> str:
        """The name of the split, for messages."""
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
        """Hex digits over the names and classes of all images, in order."""
        return self._digest(self.label.astype("<i4"))

    def fingerprint(self) -> str:
        """Sixteen hex digits over names, sizes and classes; no file is opened."""
        return self._digest(self.size.astype("<i8"), self.label.astype("<i4"))[:16]

    def _digest(self, *arrays: np.ndarray) -> str:
        digest = hashlib.sha256("\0".join(self.names).encode("utf-8", "surrogateescape"))
        for array in arrays:
            digest.update(array)
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Some records of others, by their rows [N]; the label of each is its own number, 0 to N - 1.

    A row may come several times.
    """

    records: Any
    row_n: np.ndarray

    def __len__(self) -> int:
        return len(self.row_n)

    def __getitem__(self, row: int) -> Record:
        return self.records[int(self.row_n[row])]._replace(label=int(row))

    @property
    def place(self) -> np.ndarray:
        """See `FolderRecords`."""
        return self.records.place[self.row_n]

    def order(self) -> str:
        """Hex digits over the rows, and what all records are."""
        return self._digest(self.records.order())

    def fingerprint(self) -> str:
        """Sixteen hex digits over the rows, and what all records are."""
        return self._digest(self.records.fingerprint())[:16]

    def _digest(self, about: str) -> str:
        digest = hashlib.sha256(about.encode())
        digest.update(np.ascontiguousarray(self.row_n, "<i8"))
        return digest.hexdigest()


@contextlib.contextmanager
def listing() -> Iterator[None]:
    """Turns an OSError while folders are listed into a DataError that names the path."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}") from error


def class_folders(root: pathlib.Path, remarks: Remarks, besides: Collection[str] = ()) -> list[str]:
    """The names of the class folders in `root`, sorted.

    `remarks` collects everything else in it, except the files in `besides`, which the caller reads.

    Raises:
      DataError: an image lies beside the class folders, or a link is broken.
    """
    found = []
    for entry in entries(root, remarks):
        if entry.is_dir():
            found.append(entry.name)
        elif pathlib.Path(entry.name).suffix.lower() in IMAGE_SUFFIXES:
            raise DataError(f"{entry.path} lies beside the class folders, not in one")
        elif entry.name not in besides:
            remarks.add("not read (beside the class folders)", entry.path)
    return found


def _classes(root: pathlib.Path, remarks: Remarks) -> tuple[str, ...]:
    classes = tuple(class_folders(root / "train", remarks))
    if len(classes) < 2:
        raise DataError(f"{root}/train has {len(classes)} class folders, needs two; {layout(root)}")
    forms = collections.Counter(map(composed, classes))
    for name in classes:
        if forms[composed(name)] > 1:
            remarks.add("warning: classes whose names differ only in their Unicode form", name)
    return classes


def layout(root: pathlib.Path) -> str:
    """What an image folder looks like, for messages."""
    return f"expected {root}/train/CLASS/*.jpg and {root}/val/CLASS/*.jpg (test is optional)"


def image_files(folder: pathlib.Path, remarks: Remarks) -> list[tuple[str, File]]:
    """The image files of one folder, sorted by name.

    Raises:
      DataError: there is a folder inside, an image of a format that is not read, or an image
        that is not named like one: no image is left out.
    """
    found = []
    for entry in entries(folder, remarks):
        if entry.is_dir():
            raise DataError(f"{entry.path} is a folder; images lie directly in {folder}")
        if file := image_file(entry, remarks):
            found.append((entry.name, file))
    return found


def image_file(entry: os.DirEntry, remarks: Remarks) -> File | None:
    """A file that is named like an image; None, and a remark, for another; raises as above."""
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix in OTHER_SUFFIXES:
        raise DataError(f"{entry.path} has an unsupported file type (supported: {LEGAL})")
    if suffix not in IMAGE_SUFFIXES:
        remarks.add_file(entry.path, LEGAL)
        return None
    inputs.check_file(entry.path)
    return File.of(entry.stat())


def records_of(root: pathlib.Path, label_of: Mapping[str, int], remarks: Remarks) -> FolderRecords:
    """The images of class folders that have these labels.

    Raises:
      DataError: a class folder has no images, or as `image_files`.
    """
    found = []
    for folder, label in label_of.items():
        files = image_files(root / folder, remarks)
        if not files:
            raise DataError(f"class folder {root / folder} has no images ({LEGAL})")
        found += [(f"{folder}/{file_name}", file, label) for file_name, file in files]
    if not found:
        raise DataError(f"{root} has no class folders with images ({LEGAL})")
    return FolderRecords.of(root, found)


def _records(
    root: pathlib.Path, classes: tuple[str, ...], remarks: Remarks, *, complete: bool
) -> FolderRecords:
    """The images of a split; `complete`: its class folders are the classes, none of them empty."""
    # A complete folder was listed to find the classes; listing it again would double its remarks.
    folders = set(classes if complete else class_folders(root, remarks))
    for name in sorted(folders.difference(classes)):
        raise DataError(
            f"{root} has class {name!r}, which is not a class of the training data"
            f"{same_letters(name, classes)}"
        )
    found = []
    for label, name in enumerate(classes):
        files = image_files(root / name, remarks) if name in folders else []
        if not files and complete:
            raise DataError(f"class folder {root / name} has no images ({LEGAL})")
        if not files:
            remarks.add(f"classes without images in {root.name}", name)
        found += [(f"{name}/{file_name}", file, label) for file_name, file in files]
    if not found:
        raise DataError(f"{root} has no images ({LEGAL})")
    return FolderRecords.of(root, found)


def open_folder(
    root: pathlib.Path, remarks: Remarks, class_names: Sequence[str] | None = None
) -> tuple[dict[str, FolderRecords], tuple[str, ...]]:
    """Lists an image folder: (records by split, class names); no image is opened.

    Args:
      root: with a folder for each split.
      remarks: collects what is not read.
      class_names: of a trained model, to measure it: the train folder may then be missing, and no
        class needs to have images. None: the classes are those of the train folder.

    Raises:
      DataError: splits, classes or images are missing, in the wrong place or cannot be read.
    """
    with listing():
        found = {}
        for entry in entries(root, remarks) if root.is_dir() else ():
            if entry.name not in SPLITS:
                remarks.add("not read (beside the splits)", entry.path)
            elif entry.is_dir():
                found[entry.name] = pathlib.Path(entry.path)
            else:
                raise DataError(f"{entry.path} is not a folder; {layout(root)}")
        if class_names is None:
            if "train" not in found or "val" not in found:
                raise DataError(f"image folder {root} lacks a train or val folder; {layout(root)}")
            classes = _classes(root, remarks)
        elif "val" not in found and "test" not in found:
            raise DataError(f"image folder {root} has neither val nor test, nothing to measure")
        else:
            classes = tuple(class_names)
        splits = {}
        for name in (name for name in SPLITS if name in found):
            complete = class_names is None and name == "train"
            splits[name] = _records(found[name], classes, remarks, complete=complete)
    return splits, classes
