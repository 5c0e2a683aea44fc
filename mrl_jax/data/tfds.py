"""Data sets of TensorFlow Datasets stored as ArrayRecord: random access without TensorFlow."""

import dataclasses
import hashlib
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from mrl_jax.data import named
from mrl_jax.data.folder import Record
from mrl_jax.data.remarks import Remarks
from mrl_jax.errors import DataError, UsageError

# The names that data sets give to splits; the first one found is used.
_NAMES = {
    "train": ("train",),
    "val": ("validation", "val", "valid", "dev"),
    "test": ("test", "eval"),
}


@dataclasses.dataclass(frozen=True)
class TfdsRecords:
    """One split, image files as they were put in.

    Attributes:
      source: random-access data source that leaves images encoded.
      classes: how many there are; 0: examples have no labels, and get label 0.
      name: of the data set, for messages.
      part: which of its examples these are, as TFDS writes it.
      identity: name, version, shards and bytes, for the fingerprint.
      place: [N] uint64, unique to each example of the data set.
    """

    source: Any
    classes: int
    name: str
    part: str
    identity: str
    place: np.ndarray

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, row: int) -> Record:
        where = f"{self.name}:{self.part}[{row}]"
        example = self.example(row)
        label = int(example["label"]) if self.classes else 0
        if self.classes and not 0 <= label < self.classes:
            raise DataError(f"{where} has label {label}, legal are 0 to {self.classes - 1}")
        return Record(bytes(example["image"]), label, where)

    def example(self, row: int) -> dict[str, Any]:
        """All features of an example; a damaged or missing shard is a DataError."""
        try:
            return self.source[int(row)]
        except Exception as error:  # ArrayRecord and TFDS raise several kinds
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"cannot read {self.name}:{self.part}[{row}]: {reason}") from error

    def order(self) -> str:
        """The number of examples; nothing else is known before they are read."""
        return str(len(self))

    def fingerprint(self) -> str:
        """Sixteen hex digits over name, version, shard lengths and bytes; no image is read."""
        return hashlib.sha256(self.identity.encode()).hexdigest()[:16]


def open_builder(name: str, path: str) -> Any:
    """The TFDS builder of a prepared data set.

    Args:
      name: such as "mnist" or "cifar10:3.0.2"; "" if `path` is the data set's own folder, which
        has a dataset_info.json.
      path: folder of data sets, "" for TFDS's default.

    Raises:
      DataError: `path` is the folder of a data set with another name, or there is no name.
    """
    import tensorflow_datasets as tfds

    if path and (pathlib.Path(path) / "dataset_info.json").is_file():
        builder = tfds.builder_from_directory(path)
        if name and name.partition(":")[0].partition("/")[0] != builder.name:
            raise DataError(f"{path} holds the data set {builder.name!r}, not {name!r}")
        return builder
    if not name:
        raise DataError(
            f"{path} has no dataset_info.json: give the folder NAME/VERSION that has one, or "
            "--config.data.dataset=NAME"
        )
    return tfds.builder(name, data_dir=path or None)


def _pieces(builder: Any, part: str) -> Sequence[Any]:
    """The files that a part is read from, and the range of examples in each (skip, take)."""
    return builder.info.splits[part].file_instructions


def _has_files(builder: Any, part: str) -> bool:
    """Whether all files of a part are there, which being listed as a split does not say."""
    return all(epath.Path(piece.filename).exists() for piece in _pieces(builder, part))


def _identity(builder: Any, part: str) -> str:
    info = builder.info.splits[part]
    # `in` alone would be true of slices as well.
    if part not in list(builder.info.splits):
        pieces = _pieces(builder, part)
        slices = [(pathlib.Path(piece.filename).name, piece.skip, piece.take) for piece in pieces]
        return repr((builder.info.full_name, slices))
    return repr((builder.info.full_name, part, info.shard_lengths, info.num_bytes))


def _places(builder: Any, part: str) -> np.ndarray:
    """A number [N] uint64 for each example, the same in every part that contains it."""
    found = []
    for piece in _pieces(builder, part):
        name = hashlib.blake2b(str(piece.filename).encode(), digest_size=8).digest()
        first = np.frombuffer(name, "<u8") + np.uint64(piece.skip)
        found.append(first + np.arange(piece.take, dtype=np.uint64))
    return np.concatenate(found)


def parse_parts(entries: Sequence[str]) -> dict[str, str]:
    """The part of the data set by split, from "SPLIT=PART" strings; raises as `named.pairs`."""
    return dict(named.pairs("data.splits", entries, _NAMES, "SPLIT=PART", once=True))


def _parts(builder: Any, given: Sequence[str]) -> dict[str, str]:
    """The part of the data set that makes up each split: as given, or by name.

    Raises:
      UsageError: a string is not of this form, or the data set has no such part.
    """
    import tensorflow_datasets as tfds

    there, sizes = builder.info.splits, _sizes(builder)
    if not given:
        found = {
            split: next((n for n in names if n in there and there[n].num_examples), "")
            for split, names in _NAMES.items()
        }
        return {split: name for split, name in found.items() if name}
    parts = parse_parts(given)
    for split, part in parts.items():
        entry = f"{split}={part}"
        try:
            # Checked piece by piece: TFDS reads a slice that ends before it begins as another one.
            pieces = tfds.core.ReadInstruction.from_spec(part).to_absolute(there)
            sizes_of = [there[piece.splitname].num_examples for piece in pieces]
            spans = [
                (size if piece.to is None else piece.to) - (piece.from_ or 0)
                for piece, size in zip(pieces, sizes_of, strict=True)
            ]
        except Exception as error:  # TFDS raises several kinds for bad or unknown parts
            reason = " ".join(str(error).split())[:200]
            raise UsageError(f"data.splits: {entry}: {reason} (there are {sizes})") from error
        if min(spans) < 1:
            raise UsageError(f"data.splits: {entry} has no examples (there are {sizes})")
    return parts


def _sizes(builder: Any) -> str:
    return ", ".join(f"{name} ({i.num_examples:,})" for name, i in builder.info.splits.items())


def _check_apart(records: Mapping[str, TfdsRecords]) -> None:
    """Refuses splits that share examples, as what is fitted on one is measured on another."""
    for split, other in itertools.combinations(records, 2):
        shared = np.isin(records[split].place, records[other].place).sum()
        if shared:
            raise UsageError(
                f"data.splits: {shared:,} examples are in both {split}={records[split].part} and "
                f"{other}={records[other].part}"
            )


def open_parts(
    name: str, path: str, parts: Sequence[str], features: Mapping[str, str], *, train: bool
) -> tuple[Any, dict[str, TfdsRecords]]:
    """Opens the splits of a prepared data set: (builder, records by split), with images encoded.

    Args:
      name, path: as of `open_builder`.
      parts: "SPLIT=PART" strings with the part as TFDS writes it, such as "train=train[:90%]"; ():
        the split called train; the one called validation, val, valid or dev; the one called test
        or eval. Without validation examples there is then no val: no other split takes its place.
      features: that it must have, each with its kind in `tfds.features`.
      train: whether training examples are needed. If not, the files of that split may be missing.

    Raises:
      UsageError: a part does not exist.
      DataError: the data set is not prepared, not in ArrayRecord, or lacks one of the features.
    """
    import tensorflow_datasets as tfds

    label = name or path
    prepare = (
        'prepare it once (pip install "mrl_jax[tf]"): tfds build '
        f"{name} --file_format=array_record" + (f" --data_dir={path}" if path else "")
    )
    try:
        builder = open_builder(name, path)
        there = dict(builder.info.features.items())
        if not builder.info.splits:
            raise DataError(
                f"TFDS data set {label!r} is not prepared in {builder.data_dir}; {prepare}"
            )
        decoders = {"image": tfds.decode.SkipDecoding()}
        sources = {
            split: (part, builder.as_data_source(part, decoders=decoders))
            for split, part in _parts(builder, parts).items()
            if train or split != "train" or _has_files(builder, part)
        }
    except (DataError, UsageError):
        raise
    except Exception as error:  # TFDS raises many kinds for "not there" and "wrong format"
        reason = str(error).strip().partition("\n")[0][:200]
        raise DataError(f"TFDS data set {label!r}: {reason}; {prepare}") from error
    for key, kind in features.items():
        if not isinstance(there.get(key), getattr(tfds.features, kind)):
            raise DataError(
                f"TFDS data set {label!r} has no feature {key!r} of kind {kind};"
                f" its features are {', '.join(there)}"
            )
    classes = len(there["label"].names) if "label" in features else 0
    records = {}
    for split, (part, source) in sources.items():
        about = _identity(builder, part), _places(builder, part)
        records[split] = TfdsRecords(source, classes, label, part, *about)
    return builder, records


def check_parts(
    builder: Any,
    opened: Mapping[str, TfdsRecords],
    kept: Mapping[str, TfdsRecords],
    remarks: Remarks,
    *,
    train: bool,
    needed: str,
) -> None:
    """Refuses splits that are missing or share examples; remarks on those that were not opened.

    Args:
      builder, opened: from `open_parts`, called with `train`.
      kept: those that have what they need, and what that is called: `needed`.

    Raises:
      UsageError: two splits share examples.
      DataError: there is no train split although it is needed, or nothing to measure.
    """
    if (train and "train" not in kept) or not kept.keys() - {"train"}:
        raise DataError(
            f"TFDS data set {builder.name!r} needs {'a train split and ' * train}a validation or "
            f"test split with {needed}, but has {_sizes(builder)}; data.splits chooses the "
            "examples of each, for example data.splits=train=train[:90%],val=train[90%:]"
        )
    _check_apart(kept)
    parts = [records.part for records in opened.values()]
    used = {piece.filename for part in parts for piece in _pieces(builder, part)}
    for name, info in builder.info.splits.items():
        if not any(piece.filename in used for piece in _pieces(builder, name)):
            remarks.add("not read (other splits)", f"{name} ({info.num_examples:,} images)")


def open_tfds(
    name: str, path: str, parts: Sequence[str], remarks: Remarks, *, train: bool = True
) -> tuple[dict[str, TfdsRecords], tuple[str, ...]]:
    """Opens the splits of a prepared data set of labelled images: (records by split, class names).

    Args:
      name, path, parts, train: as of `open_parts`.
      remarks: collects the splits that are not read, such as those without labels (label -1).

    Raises:
      UsageError: a part does not exist, or parts share examples.
      DataError: as `open_parts`; or there is no train split although it is needed, or nothing to
        measure.
    """
    features = {"image": "Image", "label": "ClassLabel"}
    builder, opened = open_parts(name, path, parts, features, train=train)
    records = {}
    for split, found in opened.items():
        if int(found.example(0)["label"]) >= 0:
            records[split] = found
        elif parts:
            raise DataError(f"data.splits: the examples of {split}={found.part} have no labels")
        else:
            remarks.add("not read (without labels)", f"split {found.part} ({len(found):,} images)")
    check_parts(builder, opened, records, remarks, train=train, needed="labels")
    return records, tuple(builder.info.features["label"].names)
