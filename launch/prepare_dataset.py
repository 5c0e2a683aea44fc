"""Prepares a data set once, as the ArrayRecord files that training reads at random.

An image folder (FOLDER/train/CLASS/* and FOLDER/val/CLASS/*, test is optional):

    python launch/prepare_dataset.py folder FOLDER --out DIR [--short_side 256]
    then train with --config.data.source=tfds --config.data.path=DIR/images/1.0.0

A data set of TensorFlow Datasets, by name; needs pip install "mrl_jax[tf]":

    python launch/prepare_dataset.py tfds imagenet2012 --out DIR
    then train with --config.data.source=tfds --config.data.dataset=imagenet2012 \
        --config.data.path=DIR

Every image of a folder is opened once, so that a broken one is named here and not in the middle of
training; --short_side makes larger ones smaller, which makes reading them faster. Prints the number
of images and classes per split and the fingerprint that checkpoints of streamed runs remember.
"""

from mrl_jax import cli

if __name__ == "__main__":
    cli.start()  # before the imports below, which take seconds

import argparse
import hashlib
import io
import pathlib
import tempfile
from collections.abc import Iterator, Sequence

from PIL import Image

from mrl_jax.data import load
from mrl_jax.data.folder import open_folder
from mrl_jax.data.images import decode, dimensions, fit_short_side
from mrl_jax.data.remarks import Remarks
from mrl_jax.errors import DataError, UsageError

# What TFDS calls the splits.
_TFDS_NAMES = {"train": "train", "val": "validation", "test": "test"}
_JPEG_QUALITY = 95
_JPEG_LIMIT = 65_500


def _stored(record, short_side: int) -> bytes:
    """The image file as it is, or made smaller; the image is opened either way."""
    if short_side and min(dimensions(record.data, record.where)) > short_side:
        file = io.BytesIO()
        image = Image.fromarray(fit_short_side(record.data, record.where, short_side))
        if max(image.size) > _JPEG_LIMIT:
            raise DataError(
                f"image {record.where} would become {image.size[0]} x {image.size[1]} pixels, "
                f"a JPEG holds {_JPEG_LIMIT:,} at most per side"
            )
        image.save(file, "JPEG", quality=_JPEG_QUALITY)
        return file.getvalue()
    decode(record.data, record.where)
    return record.data


def _builder(records: dict, classes: tuple[str, ...], content: str, short_side: int):
    import tensorflow_datasets as tfds

    class Images(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Images in one folder per class."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(names=list(classes)),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                description=content,
                features=tfds.features.FeaturesDict(features),
            )

        def _split_generators(self, manager):
            del manager
            return {
                _TFDS_NAMES[split]: self._generate_examples(found)
                for split, found in records.items()
            }

        def _generate_examples(self, found) -> Iterator:
            for row in range(len(found)):
                record = found[row]
                image = io.BytesIO(_stored(record, short_side))
                yield row, {"image": image, "label": record.label}

    return Images


def prepare_folder(folder: pathlib.Path, out: pathlib.Path, short_side: int) -> pathlib.Path:
    """Writes an image folder as ArrayRecord; returns the folder to read it from.

    Raises:
      DataError: see `open_folder` and `check_names`; an image cannot be read; or `out` already
        holds another data set.
    """
    import tensorflow_datasets as tfds

    remarks = Remarks()
    records, classes = open_folder(folder, remarks)
    check_names(classes)
    for line in remarks.lines():
        print(line)
    digest = hashlib.sha256(repr((short_side, classes)).encode())
    for split, found in sorted(records.items()):
        digest.update(f"{split} {found.fingerprint()}".encode())
        # Pixels may change where names and sizes do not.
        digest.update(found.modified)
    content = f"Image folder with content {digest.hexdigest()[:16]}."
    target = out / "images" / "1.0.0"
    if (target / "dataset_info.json").is_file():
        if tfds.builder_from_directory(target).info.description != content:
            raise DataError(f"{out} holds another data set; give another --out, or remove it")
        check_written(target, records, classes)
        print(f"{target} holds this folder already")
        return target
    if target.is_dir() and (others := sorted(path.name for path in target.iterdir())):
        raise DataError(f"{target} holds {others[0]} but no data set; give another --out")
    for left in sorted(target.parent.glob("incomplete.*")):
        print(f"{left} was left by a run that was killed; remove it unless that run goes on")
    builder = _builder(records, classes, content, short_side)
    builder(data_dir=str(out), file_format="array_record").download_and_prepare()
    check_written(target, records, classes)
    return target


def check_names(classes: Sequence[str]) -> None:
    """Refuses class names that TFDS would read back changed: it stores them as lines of a file.

    Raises:
      DataError: names the first one, which may have a space at an end or contain a line break.
    """
    import tensorflow_datasets as tfds

    with tempfile.TemporaryDirectory() as place:
        for name in classes:
            read = tfds.features.ClassLabel()
            try:
                tfds.features.ClassLabel(names=[name]).save_metadata(place, "label")
                read.load_metadata(place, "label")
            except UnicodeEncodeError:
                raise DataError(f"the name of class folder {name!a} is not UTF-8") from None
            if read.names != [name]:
                others = ", ".join(map(ascii, read.names)) or "none"
                raise DataError(
                    f"class folder {name!a} would become {others} in TFDS, which stores "
                    "names as lines without surrounding spaces: rename it"
                )


def check_written(target: pathlib.Path, records: dict, classes: tuple[str, ...]) -> None:
    """Refuses a data set that does not read back as the folder it was made from.

    Raises:
      DataError: the class names or the numbers of images differ.
    """
    import tensorflow_datasets as tfds

    info = tfds.builder_from_directory(target).info
    there = tuple(info.features["label"].names)
    sizes = {split: part.num_examples for split, part in info.splits.items()}
    if there != classes:
        raise DataError(f"{target} has different class names than the folder: remove it")
    if sizes != {_TFDS_NAMES[split]: len(found) for split, found in records.items()}:
        raise DataError(f"{target} has different numbers of images than the folder: remove it")


def prepare_tfds(name: str, out: pathlib.Path) -> None:
    """Downloads and writes a data set of TFDS.

    Raises:
      UsageError: TensorFlow is missing.
      DataError: TFDS cannot prepare it.
    """
    try:
        import tensorflow  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f'preparing {name} needs TensorFlow: pip install "mrl_jax[tf]" (training does not)'
        ) from error
    import tensorflow_datasets as tfds

    try:
        tfds.builder(name, data_dir=str(out), file_format="array_record").download_and_prepare()
    except Exception as error:  # TFDS raises many kinds for what a download can meet
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"TFDS data set {name!r}: {reason}") from error


def check_writable(out: pathlib.Path) -> None:
    """Refuses a folder in which nothing can be written, before anything is read.

    Raises:
      UsageError: says why.
    """
    try:
        str(out).encode()
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UsageError(f"cannot write into --out {out}: {error.strerror}") from error
    except UnicodeEncodeError:
        raise UsageError(f"--out {str(out)!a} is not UTF-8: give another folder") from None


def _report(name: str, path: pathlib.Path, flags: str) -> None:
    try:
        dataset = load("tfds", dataset=name, path=str(path), stream=True)
    except DataError as error:  # the data set is prepared nevertheless
        print(f"prepared in {path}; to train with it: {error}")
        return
    for line in dataset.notes[1:]:
        print(line)
    for split, found in sorted(dataset.splits.items()):
        print(f"{split:<6} {found.examples:>9,} images")
    print(f"{len(dataset.class_names):,} classes, fingerprint {dataset.training_fingerprint()}")
    print(f"train with --config.data.source=tfds {flags}")


def main(argv: Sequence[str]) -> None:
    """Runs the command line; see the module's docstring."""
    parser = cli.ArgumentParser(
        "launch/prepare_dataset.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="kind", required=True)
    folder = commands.add_parser("folder", help="an image folder")
    folder.add_argument("folder", type=pathlib.Path)
    folder.add_argument("--short_side", type=int, default=0, help="pixels; 0 = as they are")
    named = commands.add_parser("tfds", help="a data set of TensorFlow Datasets")
    named.add_argument("name")
    for command in (folder, named):
        command.add_argument("--out", type=pathlib.Path, required=True, help="where to write")
    arguments = parser.parse_args(argv)
    check_writable(arguments.out)
    if arguments.kind == "tfds":
        prepare_tfds(arguments.name, arguments.out)
        flags = f"--config.data.dataset={arguments.name} --config.data.path={arguments.out}"
        _report(arguments.name, arguments.out, flags)
        return
    if arguments.short_side < 0:
        raise UsageError(f"--short_side must be >= 0, got {arguments.short_side}")
    path = prepare_folder(arguments.folder, arguments.out, arguments.short_side)
    _report("", path, f"--config.data.path={path}")


if __name__ == "__main__":
    cli.run(main)
