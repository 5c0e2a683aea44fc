"""Labelled images that no training has to know, with their classes in words: for zero-shot.

FOLDER/CLASS/*.jpg; or FOLDER/test/CLASS/*.jpg (or val) and, where nearest neighbours are looked for
as well, FOLDER/train/CLASS/*.jpg. A class is called what its folder is called, with blanks for
underscores, or what FOLDER/classes.json maps that to: {"folder": "class in words"}. Several folders
may be one class.
"""

import pathlib
import re
from typing import Any, NamedTuple

import numpy as np

from mrl_jax.data.folder import class_folders, listing, records_of
from mrl_jax.data.labelled_images import Options, Split
from mrl_jax.data.named import SPLITS
from mrl_jax.data.remarks import Remarks, entries
from mrl_jax.data.stream import Stream
from mrl_jax.errors import DataError, shown
from mrl_jax.store import json_files

CLASSES = "classes.json"
_WORDNET = r"n\d{8}"


class Labelled(NamedTuple):
    """Images [N] and their classes [N] int32."""

    images: Split | Stream
    label_n: np.ndarray


class NamedClasses(NamedTuple):
    """Images to classify, others whose class is known (or None), and the classes in words."""

    test: Labelled
    train: Labelled | None
    names: tuple[str, ...]

    def update(self, digest: Any) -> None:
        """Adds classes and images to a hash."""
        digest.update(repr(self.names).encode())
        for part in filter(None, (self.test, self.train)):
            part.images.update(digest)


def _parts(root: pathlib.Path, remarks: Remarks) -> dict[str, pathlib.Path]:
    """Where the class folders of "test" and "train" are."""
    # A class may be called train, or val: a split holds folders.
    splits = {name: root / name for name in SPLITS if (root / name).is_dir()}
    splits = {
        name: path for name, path in splits.items() if any(p.is_dir() for p in path.iterdir())
    }
    asked = splits.get("test", splits.get("val"))
    if asked is None:
        return {"test": root}
    used = {"test": asked} | ({"train": splits["train"]} if "train" in splits else {})
    for entry in entries(root, remarks):
        if entry.name != CLASSES and root / entry.name not in used.values():
            remarks.add("not read (beside the splits)", entry.path)
    return used


def _words(root: pathlib.Path, folders: list[str]) -> dict[str, str]:
    """What each folder's class is called."""
    path = root / CLASSES
    try:
        given = json_files.read(path)
    except json_files.MissingError:
        given = {}
    if not isinstance(given, dict):
        raise DataError(f'{path} must be {{"folder": "class in words", ...}}')
    for folder, words in given.items():
        if folder not in folders:
            raise DataError(f"{path}: {shown(folder)} is not a class folder of {root}")
        if not isinstance(words, str) or not words.strip():
            raise DataError(f"{path} maps {shown(folder)} to {shown(words)}, which is no name")
    found = {}
    for folder in folders:
        found[folder] = given.get(folder, folder.replace("_", " ")).strip()
        if re.fullmatch(_WORDNET, found[folder]):
            raise DataError(
                f"{root} has class folder {folder!r}, which no text calls so: {CLASSES} in {root} "
                f'says what it is called, {{"{folder}": "class in words"}}'
            )
    return found


def open_classes(
    name: str, folder: pathlib.Path, options: Options, remarks: Remarks
) -> NamedClasses:
    """Opens labelled images, see the module.

    Args:
      name: for a progress bar.
      folder: with the class folders.
      options: how images are read.
      remarks: collects what is not read.

    Raises:
      DataError: the folder or its classes are missing or cannot be read, a class folder has no
        images, or an id of WordNet is not called anything; names the path.
    """
    root = pathlib.Path(folder)
    with listing():
        parts = _parts(root, remarks)
        folders = {
            split: class_folders(path, remarks, besides=(CLASSES,)) for split, path in parts.items()
        }
        words = _words(root, sorted({folder for found in folders.values() for folder in found}))
        names = tuple(dict.fromkeys(words.values()))
        records = {
            split: records_of(parts[split], {f: names.index(words[f]) for f in found}, remarks)
            for split, found in folders.items()
        }
    opened = {
        split: Labelled(options.opened(f"{name} {split}", found), found.label)
        for split, found in records.items()
    }
    return NamedClasses(opened["test"], opened.get("train"), names)
