import json

import numpy as np
import pytest
from PIL import Image

from mrl_jax.data import Options
from mrl_jax.data.class_folders import open_classes
from mrl_jax.data.remarks import Remarks
from mrl_jax.errors import DataError

OPTIONS = Options("image_folder", path="any", image_size=4)


def write(folder, *names, colour=(9, 9, 9)):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 6), colour).save(path)


def opened(folder):
    remarks = Remarks()
    return open_classes("pets", folder, OPTIONS, remarks), remarks.lines()


def test_folders_are_classes_in_words(tmp_path):
    write(tmp_path, "tabby_cat/1.png", "dog/1.png", "dog/2.png")
    (tmp_path / "notes.txt").write_text("")
    found, lines = opened(tmp_path)
    assert found.names == ("dog", "tabby cat")
    assert found.test.label_n.tolist() == [0, 0, 1]
    assert found.test.images.image.shape == (3, 4, 4, 3)
    assert found.train is None
    assert len(lines) == 1
    assert "notes.txt" in lines[0]


def test_a_file_says_what_classes_are_called_and_which_are_one(tmp_path):
    write(tmp_path, "n02084071/1.png", "n02121808/1.png", "n02124075/1.png")
    names = {"n02084071": "dog", "n02121808": "cat", "n02124075": " cat"}
    (tmp_path / "classes.json").write_text(json.dumps(names))
    found, lines = opened(tmp_path)
    assert (found.names, found.test.label_n.tolist(), lines) == (("dog", "cat"), [0, 1, 1], [])


@pytest.mark.parametrize("asked", ["test", "val"])
def test_a_train_split_beside_it(tmp_path, asked):
    """Its classes are among the answers too; a class may be called train, or val."""
    write(
        tmp_path, "train/cat/1.png", "train/dog/1.png", f"{asked}/dog/1.png", f"{asked}/train/1.png"
    )
    (tmp_path / "more").mkdir()
    found, lines = opened(tmp_path)
    assert found.names == ("cat", "dog", "train")
    assert found.test.label_n.tolist() == [1, 2]
    assert found.train.label_n.tolist() == [0, 1]
    assert lines == [f"not read (beside the splits): 1, the first is {tmp_path / 'more'}"]


def test_classes_that_are_called_as_splits_are(tmp_path):
    write(tmp_path, "train/1.png", "test/1.png")
    assert opened(tmp_path)[0].names == ("test", "train")


def test_digests_tell_images_names_and_splits_apart(tmp_path):
    import hashlib

    def digest(folder):
        found = hashlib.sha256()
        opened(folder)[0].update(found)
        return found.hexdigest()

    write(tmp_path / "a", "cat/1.png", "dog/1.png")
    write(tmp_path / "b", "cat/1.png", "dog/1.png", colour=(8, 9, 9))
    write(tmp_path / "c", "test/cat/1.png", "test/dog/1.png", "train/dog/1.png")
    write(tmp_path / "d", "cat/1.png", "cow/1.png")
    write(tmp_path / "e", "cat/1.png", "dog/1.png")
    digests = [digest(tmp_path / name) for name in "abcde"]
    assert len({*digests}) == 4
    assert digests[0] == digests[4]


@pytest.mark.parametrize(
    ("files", "names", "message"),
    [
        ((), None, "cannot read .*pets: No such file"),
        (
            ("n01440764/1.png",),
            None,
            "'n01440764', which no text calls so: classes.json in .* says",
        ),
        (("cat/1.png",), [], "must be"),
        (("cat/1.png",), {"dog": "a"}, "'dog' is not a class folder"),
        (("cat/1.png",), {"cat": " "}, "maps 'cat' to ' ', which is no name"),
        (("cat/1.png", "1.png"), None, "1.png lies beside the class folders"),
        (("train/cat/1.png",), None, "cat is a folder; images lie directly in"),
    ],
)
def test_what_is_not_read_is_named(tmp_path, files, names, message):
    root = tmp_path / "pets"
    write(root, *files)
    if names is not None:
        (root / "classes.json").write_text(json.dumps(names))
    with pytest.raises(DataError, match=message):
        opened(root)


def test_a_class_without_images(tmp_path):
    write(tmp_path, "cat/1.png")
    (tmp_path / "dog").mkdir()
    with pytest.raises(DataError, match=r"class folder .*dog has no images"):
        opened(tmp_path)


def test_a_stream_has_the_labels_too(tmp_path):
    write(tmp_path, "cat/1.png", "dog/1.png")
    options = Options("image_folder", path="any", image_size=4, stream=True)
    found = open_classes("pets", tmp_path, options, Remarks())
    np.testing.assert_array_equal(found.test.label_n, [0, 1])
    assert found.test.images.examples == 2
