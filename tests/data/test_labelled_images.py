import os
import shutil
import subprocess
import sys
import textwrap
import unicodedata

import commands
import numpy as np
import pytest
from PIL import Image

from mrl_jax.data import Dataset, Options, Split, load, shifts
from mrl_jax.errors import DataError, UsageError


def test_digits_are_split_60_20_20_and_stratified():
    digits = load("digits")
    sizes = {name: len(split.label) for name, split in digits.splits.items()}
    assert sizes == {"train": 1078, "val": 359, "test": 360}
    assert digits.image_shape == (8, 8, 1)
    for split in digits.splits.values():
        share = np.bincount(split.label, minlength=10) / len(split.label)
        assert share.min() > 0.09
        assert share.max() < 0.11
        # Pixels 0 to 16 of the source use the whole range of uint8.
        assert (split.image.min(), split.image.max()) == (0, 255)


def test_digits_splits_are_disjoint_and_complete():
    from sklearn.datasets import load_digits

    splits = load("digits").splits.values()
    rows = np.concatenate([s.image.reshape(len(s.image), -1) for s in splits])
    source = np.round(load_digits().data * (255 / 16)).astype(np.uint8)
    assert sorted(map(bytes, rows)) == sorted(map(bytes, source))


def test_fingerprint_follows_content():
    first, second = load("digits"), load("digits")
    assert first.fingerprint() == second.fingerprint()
    image, label = second.splits["val"]
    other_image, other_label = image.copy(), label.copy()
    other_image[5, 3, 3, 0] ^= 1
    other_label[5] = (label[5] + 1) % 10
    for split in (Split(other_image, label), Split(image, other_label)):
        changed = Dataset("digits", {**second.splits, "val": split}, second.class_names)
        assert changed.fingerprint() != first.fingerprint()


@pytest.fixture
def folder(tmp_path):
    """Two classes of 20x10 images whose middle third is of the class's colour."""
    colours = {"cat": (255, 0, 0), "dog": (0, 0, 255)}
    for split, count in (("train", 3), ("val", 2)):
        for label, colour in colours.items():
            directory = tmp_path / split / label
            directory.mkdir(parents=True)
            for i in range(count):
                picture = Image.new("RGB", (30, 10))
                picture.paste(colour, (10, 0, 20, 10))
                picture.save(directory / f"{i}.png")
    return tmp_path


def test_image_folder(folder):
    Image.new("L", (4, 4), 128).save(folder / "train" / "cat" / "grey.jpg")
    (folder / "train" / "cat" / "notes.txt").write_text("not an image")
    (folder / "train" / ".ipynb_checkpoints").mkdir()
    (folder / "train" / "cat" / "._0.png").write_bytes(b"what macOS leaves")
    data = load("image_folder", path=str(folder), image_size=8)
    assert data.class_names == ("cat", "dog")
    assert sorted(data.splits) == ["train", "val"]
    image, label = data.splits["train"]
    assert image.shape == (7, 8, 8, 3)
    assert label.tolist() == [0, 0, 0, 0, 1, 1, 1]
    # Cut from the middle: all of the class's colour.
    assert image[-1].reshape(-1, 3).mean(0) == pytest.approx((0, 0, 255), abs=30)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: (f / "val").rename(f / "validation"), "lacks a train or val folder; expected"),
        (lambda f: (f / "train" / "dog").rename(f / "dog"), "has 1 class folders, needs two"),
        (
            lambda f: (f / "val" / "cow").mkdir(),
            "has class 'cow', which is not a class of",
        ),
        (lambda f: (f / "train" / "cat" / "x.png").write_bytes(b"no"), r"cannot read .*cat/x.png"),
        (lambda f: [p.unlink() for p in f.glob("val/*/*")], "val has no images"),
        (lambda f: [p.unlink() for p in f.glob("train/dog/*")], "class folder .*train/dog has no"),
        (lambda f: (f / "train/cat/x.gif").touch(), r"unsupported file type \(supported: .bmp"),
        (lambda f: (f / "train/cat/more").mkdir(), r"cat/more is a folder; images lie directly in"),
        (lambda f: (f / "train/stray.png").touch(), "stray.png lies beside the class folders"),
        (lambda f: (f / "train/cat/x.png").symlink_to("away"), "cannot read .*x.png: No such file"),
        (lambda f: os.mkfifo(f / "train/cat/x.png"), "x.png is a pipe, where a file is needed"),
    ],
)
def test_image_folder_errors_name_the_place(folder, harm, message):
    harm(folder)
    with pytest.raises(DataError, match=message):
        load("image_folder", path=str(folder), image_size=8)


def test_a_link_that_leads_nowhere_is_no_missing_class(folder):
    for place in ("train/bird", "val/bird", "test", "train/cat/more"):
        (folder / place).symlink_to("/mnt/not_mounted")
        message = f"cannot read .*/{place}: No such file .*is a link to /mnt/not_mounted"
        with pytest.raises(DataError, match=message):
            load("image_folder", path=str(folder), image_size=8)
        (folder / place).unlink()
    (folder / "test").symlink_to(folder / "test")
    with pytest.raises(DataError, match=r"cannot read .*test: Too many levels of symbolic links"):
        load("image_folder", path=str(folder), image_size=8)


def test_what_is_not_read_is_named_once(folder):
    options = {"path": str(folder), "image_size": 8, "stream": True}
    assert load("image_folder", **options).notes == (
        f"{folder}: 2 classes, images: train 6, val 4",
    )
    for name in (".DS_Store", "train/cat/.0.png", "train/readme.txt", "notes.md", "testing"):
        (folder / name).write_text("no image")
    for i in range(30):
        (folder / f"train/dog/{i}.xml").write_text("<box/>")
    (folder / "val/dog/LICENSE\n").write_text("free")
    for path in (folder / "val/cat").iterdir():
        path.unlink()
    assert load("image_folder", **options).notes == (
        f"{folder}: 2 classes, images: train 6, val 2",
        f"not read (hidden): 2, the first is {folder}/.DS_Store",
        f"not read (beside the splits): 2, the first is {folder}/notes.md",
        f"not read (beside the class folders): 1, the first is {folder}/train/readme.txt",
        f"not read (not named like an image): 31, the first is {folder}/train/dog/0.xml",
        "classes without images in val: 1, the first is cat",
    )


@pytest.mark.parametrize("name", ["photo.jpg?w=640", "photo", "1.png~", "x.apng"])
def test_an_image_by_its_content_is_not_passed_over(folder, name):
    (folder / "train/dog/0.png").rename(folder / "train/dog" / name)
    with pytest.raises(DataError, match=r"is an image \(PNG\), but is not named like one"):
        load("image_folder", path=str(folder), image_size=8)


def test_grey_maps_are_images(folder):
    grey = Image.new("L", (8, 8), 77)
    for i, suffix in enumerate(("pgm", "PGM", "ppm", "pnm", "JPG")):
        grey.save(folder / "train/cat" / f"face{i}.{suffix}", "JPEG" if suffix == "JPG" else "PPM")
    data = load("image_folder", path=str(folder), image_size=8)
    assert data.splits["train"].examples == 11
    assert (data.splits["train"].image[3:8] == 77).all()


@pytest.mark.parametrize("stream", [False, True])
def test_images_in_two_splits_are_counted(folder, stream):
    (folder / "test").symlink_to(folder / "val")
    (folder / "train/cat/again.png").hardlink_to(folder / "val/cat/0.png")
    # Another colour, or all images of a class would be equal.
    for split in ("train", "val"):
        for i, path in enumerate(sorted(folder.glob(f"{split}/*/?.png"))):
            Image.new("RGB", (8, 8), (i, 9, len(split))).save(path)
    data = load("image_folder", path=str(folder), image_size=8, stream=stream)
    assert data.notes[1:] == (
        "warning: 1 of 4 images of val are in train as well",
        "warning: 1 of 4 images of test are in train as well",
        "warning: 4 of 4 images of test are in val as well",
    )


def test_names_that_differ_in_their_unicode_form_say_so(folder):
    composed, decomposed = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    for split, name in (("train", composed), ("val", decomposed)):
        (folder / split / "cat").rename(folder / split / name)
    with pytest.raises(DataError, match=r"data; 'caf\\xe9' and 'cafe\\u0301' have the same "):
        load("image_folder", path=str(folder), image_size=8)
    options = Options("image_folder", str(folder), image_size=8, stream=True)
    with pytest.raises(DataError, match=r"'caf\\xe9' and 'cafe\\u0301' have"):
        shifts.open_shift("x", folder / "val", ("dog", composed), options)
    (folder / "val" / decomposed).rename(folder / "val" / composed)
    shutil.copytree(folder / "train" / composed, folder / "train" / decomposed)
    notes = load("image_folder", path=str(folder), image_size=8, stream=True).notes
    assert notes[1] == (
        "warning: classes whose names differ only in their Unicode form: 2, the first is "
        f"{decomposed}"
    )


def test_a_name_that_is_no_unicode_is_legal(folder):
    path = os.fsencode(folder / "train" / "cat") + b"/\xe9.png"
    os.link(folder / "train" / "cat" / "0.png", path)
    stream = load("image_folder", path=str(folder), image_size=8, stream=True)
    assert stream.splits["train"].examples == 7
    assert len(stream.fingerprint()) == 16


def test_truncated_image_is_named(folder):
    path = folder / "val" / "dog" / "0.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"cannot read .*val/dog/0.png"):
        load("image_folder", path=str(folder), image_size=8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "mnist"}, "must be one of digits, image_folder, tfds; got 'mnist'"),
        ({"source": "image_folder"}, "needs --config.data.path"),
        ({"source": "tfds"}, "needs --config.data.dataset"),
        ({"source": "tfds", "dataset": "mnist", "image_size": 0}, "image_size must be >= 1"),
    ],
)
def test_usage_errors(arguments, message):
    with pytest.raises(UsageError, match=message):
        load(**arguments)


def test_tfds_that_is_not_prepared_says_how(tmp_path):
    with pytest.raises(DataError, match=r"tfds build mnist --file_format=array_record"):
        load("tfds", dataset="mnist", path=str(tmp_path))


def test_tfds_folder_without_a_data_set_says_what_is_missing(tmp_path):
    with pytest.raises(DataError, match=r"has no dataset_info.json: give the folder NAME/VERSION"):
        load("tfds", path=str(tmp_path))


def test_tfds_in_array_record_is_read_without_tensorflow(tmp_path):
    """A real data set of another process's making; this one must not import TensorFlow."""
    program = """
        import io, pathlib, sys
        import tensorflow_datasets as tfds
        from PIL import Image
        from mrl_jax.data import load
        from mrl_jax.errors import DataError

        def expect(message, **arguments):
            try:
                load("tfds", image_size=8, **arguments)
            except DataError as error:
                assert message in str(error), error
            else:
                raise AssertionError(message)

        class Tiny(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")
            def _info(self):
                features = {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(names=["dark", "bright"]),
                }
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features)
                )
            def _split_generators(self, manager):
                return {"train": self._generate_examples(6), "test": self._generate_examples(4)}
            def _generate_examples(self, count):
                for i in range(count):
                    file = io.BytesIO()
                    Image.new("RGB", (10, 8), (200 * (i % 2),) * 3).save(file, "PNG")
                    file.seek(0)
                    yield i, {"image": file, "label": i % 2}

        Tiny(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
        data = load("tfds", dataset="tiny", path=sys.argv[1], image_size=8)
        assert data.class_names == ("dark", "bright")
        sizes = {name: split.image.shape for name, split in data.splits.items()}
        assert sizes == {"train": (6, 8, 8, 3), "test": (4, 8, 8, 3)}, sizes
        for image, label in data.splits.values():
            assert (image == 200 * label[:, None, None, None]).all()
        folder = sys.argv[1] + "/tiny/1.0.0"
        assert load("tfds", dataset="tiny:1.0.0", path=folder, image_size=8).name == "tiny:1.0.0"
        expect("holds the data set 'tiny', not 'mnist'", dataset="mnist", path=folder)

        (shard,) = pathlib.Path(folder).glob("*train*")
        good = shard.read_bytes()
        shard.write_bytes(good[:100] + bytes(100) + good[200:])
        expect("cannot read tiny:train[", dataset="tiny", path=sys.argv[1])
        shard.unlink()
        expect("cannot read tiny:train[", dataset="tiny", path=sys.argv[1])
        assert "tensorflow" not in sys.modules
    """
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(program))
    argv = [sys.executable, str(path), str(tmp_path / "sets")]
    done = subprocess.run(
        argv, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(commands.ROOT)}
    )
    assert done.returncode == 0, done.stderr[-2000:]


GOOD = Split(np.zeros((3, 4, 4, 1), np.uint8), np.array([0, 1, 1], np.int32))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Split(GOOD.image[:0], GOOD.label[:0]), "split val has no examples"),
        (Split(GOOD.image.astype(np.float32), GOOD.label), "must hold uint8 images"),
        (Split(GOOD.image[:, :3], GOOD.label), r"shape \(4, 4, 1\), got uint8 \(3, 4, 1\)"),
        (Split(GOOD.image, GOOD.label[:2]), "one int32 label per image"),
        (Split(GOOD.image, GOOD.label.astype(np.float16)), "one int32 label per image"),
        (Split(GOOD.image, GOOD.label + 1), "labels from 1 to 2, legal are 0 to 1"),
        (Split(GOOD.image, GOOD.label - 1), "labels from -1 to 0"),
    ],
)
def test_bad_splits_are_refused(bad, message):
    with pytest.raises(DataError, match=message):
        Dataset("x", {"train": GOOD, "val": bad}, ("a", "b"))
