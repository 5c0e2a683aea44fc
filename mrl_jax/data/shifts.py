"""Other test sets of the classes a model was trained on: ImageNetV2, -A, -R, -Sketch, your own.

A shift is a folder FOLDER/CLASS/*.jpg. Its class folders are called

- as training classes are; not all of those need to be there;
- or 0, 1, 2, ...: the place of the class among the sorted training classes (ImageNetV2), unless
  training classes themselves are called by numbers;
- or anything that FOLDER/classes.json maps to a class: {"folder": "training class"}. Several
  folders may be one class, and null leaves a folder out.

Some names of shifts are a promise that is checked: imagenet_a and imagenet_r have exactly their 200
classes, imagenet_v2 and imagenet_sketch have every training class.
"""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from mrl_jax.data.folder import class_folders, listing, records_of
from mrl_jax.data.imagenet_classes import IMAGENET_A, IMAGENET_R
from mrl_jax.data.labelled_images import Options, Split
from mrl_jax.data.remarks import Remarks, same_letters
from mrl_jax.data.stream import Stream
from mrl_jax.errors import DataError, shown
from mrl_jax.store import json_files

CLASSES = "classes.json"
# What must be there; None = every training class.
_PROMISED = {
    "imagenet_a": IMAGENET_A,
    "imagenet_r": IMAGENET_R,
    "imagenet_v2": None,
    "imagenet_sketch": None,
}


class Shift(NamedTuple):
    """Images from elsewhere, labelled with training classes, and which classes those are."""

    split: Split | Stream
    classes: tuple[int, ...]


def _renamed(path: pathlib.Path, folders: list[str], class_names: Sequence[str]) -> dict:
    """The class, or None, of every folder that classes.json names; {} without such a file."""
    try:
        content = json_files.read(path)
    except json_files.MissingError:
        return {}
    if not isinstance(content, dict):
        raise DataError(f'{path} must be {{"folder": "training class" or null, ...}}')
    for folder, name in content.items():
        if folder not in folders:
            raise DataError(f"{path}: {shown(folder)} is not a folder beside it")
        if name is not None and name not in class_names:
            raise DataError(
                f"{path} maps {shown(folder)} to {shown(name)}; "
                f"legal are training classes, such as {class_names[0]!r}, and null"
                f"{same_letters(name, class_names) if isinstance(name, str) else ''}"
            )
    return content


def _labels(root: pathlib.Path, class_names: Sequence[str], remarks: Remarks) -> dict[str, int]:
    """The label of every class folder that is not left out."""
    folders = class_folders(root, remarks, besides=(CLASSES,))
    name_of = {name: name for name in class_names}
    numbered = not any(name.isdecimal() for name in class_names)
    if numbered:
        name_of.update((str(k), name) for k, name in enumerate(sorted(class_names)))
    name_of.update(_renamed(root / CLASSES, folders, class_names))
    unknown = [folder for folder in folders if folder not in name_of]
    if unknown:
        raise DataError(
            f"{root} has folder {unknown[0]!r}; legal are training classes, "
            f"such as {class_names[0]!r}"
            + (f", their places 0 to {len(class_names) - 1}" if numbered else "")
            + f", and what {CLASSES} in it maps to one{same_letters(unknown[0], class_names)}"
        )
    index = {name: i for i, name in enumerate(class_names)}
    return {f: index[name_of[f]] for f in folders if name_of[f] is not None}


def _check_promise(name: str, root: pathlib.Path, found: set[str], class_names: Sequence[str]):
    if name not in _PROMISED:
        return
    promised = set(_PROMISED[name] or class_names)
    missing, others = sorted(promised - found), sorted(found - promised)
    if missing or others:
        problem = f"lacks class {missing[0]!r}" if missing else f"has class {others[0]!r} besides"
        raise DataError(
            f"{root} {problem}: {name} has {len(promised)} classes (give a part another name)"
        )


def open_shift(
    name: str,
    folder: pathlib.Path,
    class_names: Sequence[str],
    options: Options,
    remarks: Remarks | None = None,
) -> Shift:
    """Opens a test set whose class folders are training classes, see the module.

    Args:
      name: some names promise certain classes.
      folder: with the class folders.
      class_names: of training; labels index them.
      options: how images are read; as for the training data.
      remarks: collects what is not read.

    Raises:
      DataError: a folder that is not a training class or has no images, an image in a place or of
        a format that is not read, other classes than the name promises; names the path.
    """
    root, remarks = pathlib.Path(folder), remarks or Remarks()
    with listing():
        label_of = _labels(root, class_names, remarks)
        classes = tuple(sorted(set(label_of.values())))
        _check_promise(name, root, {class_names[k] for k in classes}, class_names)
        records = records_of(root, label_of, remarks)
    return Shift(options.opened(name, records), classes)
