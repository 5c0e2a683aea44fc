"""Which examples of a data set of TFDS a split is, and that no two splits share any."""

import hashlib
import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from mrl_jax.config import default_config, override
from mrl_jax.data import load
from mrl_jax.errors import DataError, UsageError


class Scans(tfds.core.GeneratorBasedBuilder):
    """So many images per split, each with a grey of its own."""

    VERSION = tfds.core.Version("1.0.0")
    sizes, unlabelled = {}, ()

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=["healthy", "ill"]),
        }
        features = tfds.features.FeaturesDict(features)
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, manager):
        greys = iter(range(256))
        return {name: self._generate_examples(name, greys) for name in self.sizes}

    def _generate_examples(self, name, greys):
        for i in range(self.sizes[name]):
            file = io.BytesIO()
            Image.new("RGB", (4, 4), (next(greys),) * 3).save(file, "PNG")
            label = -1 if name in self.unlabelled else i % 2
            yield i, {"image": io.BytesIO(file.getvalue()), "label": label}


def prepare(folder, sizes, unlabelled=()):
    """The folder of a data set of these."""
    Scans.sizes, Scans.unlabelled = sizes, unlabelled
    Scans(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return str(folder / "scans" / "1.0.0")


def greys(data):
    return {name: set(split.image[:, 0, 0, 0].tolist()) for name, split in data.splits.items()}


def opened(path, *parts, **options):
    return load("tfds", path=path, splits=parts, image_size=4, **options)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    sizes = {"train": 40, "val": 12, "test": 20, "extra": 7}
    return prepare(tmp_path_factory.mktemp("scans"), sizes)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("two"), {"train": 30, "test": 10})


def test_a_split_is_what_its_name_says_and_others_are_named(scans):
    data = opened(scans)
    first, *rest = np.cumsum([0, 40, 12, 20]).tolist()
    bounds = zip(("train", "val", "test"), (first, *rest[:-1]), rest, strict=True)
    assert greys(data) == {name: set(range(a, b)) for name, a, b in bounds}
    assert data.notes == (
        f"{scans}: 2 classes, images: train 40, val 12, test 20",
        "not read (other splits): 1, the first is extra (7 images)",
    )


@pytest.mark.parametrize("name", ["valid", "validation", "dev"])
def test_validation_has_many_names(tmp_path, name):
    data = opened(prepare(tmp_path, {"train": 4, name: 3, "eval": 2, "blind": 2}, ("blind",)))
    assert greys(data) == {"train": {0, 1, 2, 3}, "val": {4, 5, 6}, "test": {7, 8}}
    assert f"train 4, val 3 ({name}), test 2 (eval)" in data.notes[0]


def test_a_split_without_labels_is_named(tmp_path):
    path = prepare(tmp_path, {"train": 4, "validation": 3, "test": 2}, unlabelled=("test",))
    data = opened(path)
    assert sorted(data.splits) == ["train", "val"]
    assert data.notes[1:] == ("not read (without labels): 1, the first is split test (2 images)",)
    with pytest.raises(DataError, match="the examples of test=test have no labels"):
        opened(path, "train=train", "val=validation", "test=test")


def test_checkpoints_of_older_releases_had_test_as_val(two):
    data = opened(two)
    digest = hashlib.sha256(repr(data.class_names).encode())
    for name in ("test", "train", "val"):
        digest.update(name.encode())
        data.splits["test" if name == "val" else name].update(digest)
    assert data.fingerprint() == digest.hexdigest()[:16]


@pytest.mark.parametrize("stream", [False, True])
def test_without_validation_examples_there_is_no_val(two, stream):
    data = opened(two, stream=stream)
    assert {name: split.examples for name, split in data.splits.items()} == {
        "train": 30,
        "test": 10,
    }
    assert "no val split: only test is measured, once, at the end" in data.notes[1]


def test_parts_are_taken_as_tfds_writes_them(two):
    data = opened(two, "train=train[:90%]", "val=train[90%:]", "test=test")
    found = greys(data)
    assert {name: len(values) for name, values in found.items()} == {
        "train": 27,
        "val": 3,
        "test": 10,
    }
    assert found["train"] | found["val"] == set(range(30))
    assert found["test"] == set(range(30, 40))
    assert "train 27 (train[:90%]), val 3 (train[90%:]), test 10" in data.notes[0]
    only = opened(two, "train=train[:10]+train[20:]", "test=train[10:20]", stream=True)
    assert {name: split.examples for name, split in only.splits.items()} == {
        "train": 20,
        "test": 10,
    }
    assert only.notes[-1].endswith("the first is test (10 images)")
    # What is trained on is part of a checkpoint, what is measured is not.
    assert opened(two, "train=train[:90%]", "test=test").training_fingerprint() == (
        data.training_fingerprint()
    )
    assert opened(two).training_fingerprint() != data.training_fingerprint()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("val=train[90%:]",), "needs a train split and a validation or test split"),
        (("train=train[:90%]", "val=train[80%:]"), "3 examples are in both train=train.* and val="),
        (("train=train", "val=test", "test=test[:2]"), "2 examples are in both val=test and test="),
        (("train=train", "val=away"), r"val=away: Unknown split 'away'.* \(there are train \(30\)"),
        (("train=train", "val=test[:"), "data.splits: val=test"),
        (("train=train", "val=test[:0]"), "has no examples"),
        (("train=train", "val=test[50%:40%]"), "has no examples"),
        (("train=train", "train=test"), "each at most once"),
        (("training=train",), "SPLIT one of train, val, test"),
        (("train",), "must be SPLIT=PART"),
    ],
)
def test_parts_that_cannot_be_meant(two, parts, message):
    with pytest.raises((UsageError, DataError), match=message):
        opened(two, *parts)


def test_training_examples_alone_say_how_to_hold_some_out(tmp_path):
    path = prepare(tmp_path, {"train": 10})
    with pytest.raises(DataError, match=r"has train \(10\); data.splits chooses"):
        opened(path)
    data = opened(path, "train=train[:90%]", "val=train[90%:]")
    assert [data.splits[name].examples for name in ("train", "val")] == [9, 1]


def test_the_key_is_read_from_a_command_line():
    words = "--config.data.splits=train=train[:90%],val=train[90%:],test=test"
    assert override(default_config(), [words]).data.splits == (
        "train=train[:90%]",
        "val=train[90%:]",
        "test=test",
    )
    with pytest.raises(UsageError, match=r"for data\.source tfds only; data\.source is digits"):
        load("digits", splits=("train=train",))


def test_what_is_measured_needs_no_training_files(tmp_path):
    path = prepare(tmp_path, {"train": 6, "test": 4})
    whole = opened(path)
    for file in (tmp_path / "scans" / "1.0.0").glob("*train*"):
        file.unlink()
    rest = opened(path, class_names=("healthy", "ill"))
    assert list(rest.splits) == ["test"]
    assert rest.training_fingerprint() is None
    assert rest.fingerprint("test") == whole.fingerprint("test")
    with pytest.raises(DataError, match=r"has 2 classes, .* trained with 3; .* is 'dead'"):
        opened(path, class_names=("healthy", "ill", "dead"))
    with pytest.raises(DataError):
        opened(path)
