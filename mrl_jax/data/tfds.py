"""Data sets of TensorFlow Datasets stored as ArrayRecord: random access without TensorFlow."""

import dataclasses
import hashlib
import pathlib
from typing import Any

from mrl_jax.data.folder import Record
from mrl_jax.errors import DataError

# Names in TFDS and ours.
_SPLITS = {"train": "train", "validation": "val", "test": "test"}


@dataclasses.dataclass(frozen=True)
class TfdsRecords:
    """One split, image files as they were put in.

    Attributes:
      source: random-access data source that leaves images encoded.
      classes: number of classes.
      where: what the split is called in messages.
      identity: name, version, shards and bytes, for the fingerprint.
    """

    source: Any
    classes: int
    where: str
    identity: str

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, row: int) -> Record:
        where = f"{self.where}[{row}]"
        image, label = _read(self.source, row, where)
        if not 0 <= label < self.classes:
            raise DataError(f"{where} has label {label}, legal are 0 to {self.classes - 1}")
        return Record(image, label, where)

    def order(self) -> str:
        """How many examples there are; what they are called or their classes, only they say."""
        return str(len(self))

    def fingerprint(self) -> str:
        """Sixteen hex digits over name, version, shard lengths and bytes; no image is read."""
        return hashlib.sha256(self.identity.encode()).hexdigest()[:16]


def _read(source: Any, row: int, where: str) -> tuple[bytes, int]:
    """Image file and label of one example; a damaged or missing shard is a DataError."""
    try:
        example = source[int(row)]
        return bytes(example["image"]), int(example["label"])
    except Exception as error:  # ArrayRecord and TFDS raise several kinds
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"cannot read {where}: {reason}") from error


def open_builder(name: str, path: str) -> Any:
    """The TFDS builder of a prepared data set.

    Args:
      name: as "mnist" or "cifar10:3.0.2"; "" if `path` is the data set's own folder, that with
        dataset_info.json in it.
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


def _identity(builder: Any, split: str) -> str:
    info = builder.info.splits[split]
    return repr((builder.info.full_name, split, info.shard_lengths, info.num_bytes))


def open_tfds(name: str, path: str) -> tuple[dict[str, TfdsRecords], tuple[str, ...]]:
    """Opens the splits of a prepared data set: (records by split, class names).

    A split without labels (TFDS writes -1) is left out. Many data sets have a train and a test
    split only; their test split then is "val" as well, for there is nothing else to tune on.

    Raises:
      DataError: not prepared, not in ArrayRecord, or without encoded images and class labels.
    """
    import tensorflow_datasets as tfds

    prepare = (
        'prepare it once (pip install "mrl_jax[tf]"): tfds build '
        f"{name} --file_format=array_record" + (f" --data_dir={path}" if path else "")
    )
    try:
        builder = open_builder(name, path)
        features = dict(builder.info.features.items())
        sources = {
            split: builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
            for split in _SPLITS
            if split in builder.info.splits
        }
    except DataError:
        raise
    except Exception as error:  # TFDS raises many kinds for "not there" and "wrong format"
        reason = str(error).strip().partition("\n")[0][:200]
        raise DataError(f"TFDS data set {name!r}: {reason}; {prepare}") from error
    if not sources:
        raise DataError(f"TFDS data set {name!r} is not prepared in {builder.data_dir}; {prepare}")
    for key, kind in (("image", tfds.features.Image), ("label", tfds.features.ClassLabel)):
        if not isinstance(features.get(key), kind):
            raise DataError(
                f"TFDS data set {name!r} has no feature {key!r} of kind {kind.__name__};"
                f" its features are {', '.join(features)}"
            )
    classes = tuple(features["label"].names)
    splits = {
        _SPLITS[split]: TfdsRecords(
            source, len(classes), f"{name}:{split}", _identity(builder, split)
        )
        for split, source in sources.items()
        if len(source) and _read(source, 0, f"{name}:{split}[0]")[1] >= 0
    }
    if "train" not in splits or len(splits) < 2:
        raise DataError(f"TFDS data set {name!r} needs a train and a validation or test split")
    splits.setdefault("val", splits.get("test"))
    return splits, classes
