"""Which superclass a class belongs to, read from a file.

The end of the path says what it is:

- NAME.json: {"class": "superclass"} or {"superclass": ["class", ...]};
- NAME.csv, NAME.tsv: a line "class,superclass" (with a tab in .tsv) per class; a first line of just
  these two words is a heading;
- FILE:ID,ID,...: for classes that are called by WordNet ids, see `wordnet`. These ids are the
  superclasses of what lies below them; of two of which one lies below the other, the lower counts.

A class that the file does not mention has no superclass; a class that training does not know is
skipped.

The paper's 31 ways are the 30 superclasses that MadryLab's robustness package picks by
`ImageNetHierarchy(...).get_superclasses(30, "n00001740", balanced=False)`, and "none" for the other
533 classes: FILE is ImageNet's wordnet.is_a.txt, the ids are the first value it returns.
"""

import csv
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mrl_jax.data import wordnet
from mrl_jax.data.remarks import composed, same_letters
from mrl_jax.errors import DataError, shown
from mrl_jax.store import json_files


class Hierarchy(NamedTuple):
    """Superclass names, and for each of C classes the index of its own, -1 for none: [C] int32."""

    names: tuple[str, ...]
    group_c: np.ndarray


def read(path: str, class_names: Sequence[str]) -> Hierarchy:
    """The superclasses of these classes, see the module; those without a class are left out.

    Raises:
      DataError: the file is missing or has another format, a class is in two superclasses or its
        name has another Unicode form, no class has a superclass, or all classes are in one.
    """
    file, colon, ids = path.rpartition(":")
    if colon and not os.path.exists(path):  # pathlib's raises at names as long as thirty ids
        pairs = wordnet.lowest_above(pathlib.Path(file), ids.split(","), class_names)
    else:
        file, pairs = path, _listed(pathlib.Path(path))
    known, forms, group_of = set(class_names), set(map(composed, class_names)), {}
    for name, group in pairs:
        if name not in known and composed(name) in forms:
            raise DataError(
                f"{file} has {name!r}, which is not a class{same_letters(name, class_names)}"
            )
        if name in known and group_of.setdefault(name, group) != group:
            raise DataError(
                f"{file} has class {shown(name)} in two superclasses, {shown(group_of[name])} and "
                f"{shown(group)}"
            )
    if not group_of:
        raise DataError(
            f"{file} gives none of the {len(class_names)} classes a superclass; "
            f"they are called like {class_names[0]!r}"
        )
    groups = tuple(sorted(set(group_of.values())))
    if len(groups) == 1 and len(group_of) == len(class_names):
        raise DataError(f"{file} has all classes in one superclass, {shown(groups[0])}")
    index = {group: i for i, group in enumerate(groups)}
    group_c = [index[group_of[name]] if name in group_of else -1 for name in class_names]
    return Hierarchy(groups, np.array(group_c, np.int32))


def _listed(path: pathlib.Path) -> Iterator[tuple[str, str]]:
    """(class, superclass) pairs of a .json, .csv or .tsv file."""
    kind = path.suffix.lower()
    if kind not in (".json", ".csv", ".tsv"):
        raise DataError(
            f"hierarchy {path} must be NAME.json, NAME.csv, NAME.tsv or a WordNet file with the "
            f"superclasses, {path}:n02084071,n02121620"
        )
    return _json_pairs(path) if kind == ".json" else _table_pairs(path, kind)


def _json_pairs(path: pathlib.Path) -> Iterator[tuple[str, str]]:
    layout = '{"class": "superclass", ...} or {"superclass": ["class", ...], ...}'
    content = json_files.read(path)
    if not isinstance(content, dict):
        raise DataError(f"{path} must be {layout}")
    for key, value in content.items():
        if isinstance(value, str):
            yield key, value
        elif isinstance(value, list) and all(isinstance(name, str) for name in value):
            yield from ((name, key) for name in value)
        else:
            raise DataError(f"{path} must be {layout}; {shown(key)} has neither")


def _table_pairs(path: pathlib.Path, kind: str) -> Iterator[tuple[str, str]]:
    try:
        text = wordnet.read_text(path, "utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"hierarchy {path} is not UTF-8 text") from None
    lines = csv.reader(text.splitlines(), delimiter="," if kind == ".csv" else "\t")
    for number, row in enumerate(lines, 1):
        fields = [field.strip() for field in row]
        if not any(fields) or (number == 1 and fields == ["class", "superclass"]):
            continue
        if len(fields) != 2 or not all(fields):
            raise DataError(
                f"{path}, line {number}: must be class and superclass, got {shown(row)}"
            )
        yield fields[0], fields[1]
