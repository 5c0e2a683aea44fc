"""Data sets that are only measured: the train split need not be there."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from mrl_jax.data import load, masked, text, vector_splits
from mrl_jax.errors import DataError
from mrl_jax.models.text.tokenizer import Tokenizer


@pytest.fixture
def images(tmp_path):
    """Three classes of grey images; val has one of them only."""
    for split, names in (("train", "abc"), ("val", "b"), ("test", "ac")):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            grey = (ord(name),) * 3
            Image.new("RGB", (4, 4), grey).save(tmp_path / split / name / "0.png")
    return tmp_path


@pytest.mark.parametrize("stream", [False, True])
def test_image_folders_have_the_classes_that_are_given(images, stream):
    options = {"path": str(images), "image_size": 4, "stream": stream}
    whole = load("image_folder", **options)
    same = load("image_folder", **options, class_names=list("abc"))
    assert same.training_fingerprint() == whole.training_fingerprint()
    assert same.fingerprint() == whole.fingerprint()
    shutil.rmtree(images / "train")
    with pytest.raises(DataError, match="lacks a train or val folder"):
        load("image_folder", **options)
    rest = load("image_folder", **options, class_names=("a", "b", "c"))
    assert list(rest.splits) == ["val", "test"]
    assert rest.class_names == whole.class_names
    assert rest.image_shape == whole.image_shape
    assert rest.training_fingerprint() is None
    assert rest.fingerprint("test") == whole.fingerprint("test")
    if not stream:
        assert rest.splits["val"].label.tolist() == [1]
        assert rest.splits["test"].label.tolist() == [0, 2]


def test_an_image_folder_of_other_classes_is_refused(images):
    shutil.rmtree(images / "train")
    with pytest.raises(DataError, match="val has class 'b', which is not a class of the training"):
        load("image_folder", path=str(images), class_names=("a", "c"))
    shutil.rmtree(images / "val")
    shutil.rmtree(images / "test")
    with pytest.raises(DataError, match="has neither val nor test"):
        load("image_folder", path=str(images), class_names=("a", "b", "c"))
    with pytest.raises(DataError, match=r"digits has 10 classes, .* trained with 2; .* is '0'"):
        load("digits", class_names=("a", "b"))


def test_texts(tmp_path):
    for name in ("train", "val"):
        rows = [{"query": f"{name} {i}", "answer": f"of {i}"} for i in range(3)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    whole = text.load(str(tmp_path))
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(DataError, match="has no train split"):
        text.load(str(tmp_path))
    listed = [f"{name}={tmp_path}/{name}.jsonl" for name in ("train", "val")]
    for rest in (
        text.load(str(tmp_path), train=False, drop=("only_in_train",)),
        text.load(files=listed, train=False),
    ):
        assert list(rest.splits) == ["val"]
        assert rest.splits["val"].digest == whole.splits["val"].digest
    (tmp_path / "val.jsonl").unlink()
    with pytest.raises(DataError, match="has no train or val or test split"):
        text.load(str(tmp_path), train=False)


def test_masked_texts(tmp_path):
    (tmp_path / "test.txt").write_text("to be or not to be\n" * 9)
    with pytest.raises(DataError, match="has no train split"):
        masked.open_documents(str(tmp_path))
    name, documents = masked.open_documents(str(tmp_path), train=False)
    tokenizer = Tokenizer.train(["to be or not"], 30)
    data = masked.tokenise(name, documents, tokenizer, length=8, rate=0.2)
    assert list(data.splits) == ["test"]
    assert data.training_fingerprint() is None


def test_vectors(tmp_path):
    z_nd = np.random.default_rng(0).standard_normal((5, 4), np.float32)
    for name in ("train", "train_positives", "test"):
        np.save(tmp_path / f"{name}.npy", z_nd)
    whole = vector_splits.load(str(tmp_path), ())
    for name in ("train", "train_positives"):
        (tmp_path / f"{name}.npy").unlink()
    with pytest.raises(DataError, match="has no train split"):
        vector_splits.load(str(tmp_path), ())
    names = ("train", "train_positives", "test")
    for rest in (
        vector_splits.load(str(tmp_path), (), train=False),
        vector_splits.load("", [f"{name}={tmp_path}/{name}.npy" for name in names], train=False),
    ):
        assert list(rest.splits) == ["test"]
        assert rest.width == 4
        assert rest.training_fingerprint() is None
        assert rest.fingerprint("test") == whole.fingerprint("test")
    (tmp_path / "test.npy").unlink()
    with pytest.raises(DataError, match="has no train or val or test split"):
        vector_splits.load(str(tmp_path), (), train=False)
