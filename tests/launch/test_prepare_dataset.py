import importlib.util
import io
import os
import shutil
import sys

import commands
import numpy as np
import pytest
from PIL import Image

from mrl_jax.data import load
from mrl_jax.errors import DataError, UsageError

SCRIPT = [sys.executable, str(commands.ROOT / "launch" / "prepare_dataset.py")]
spec = importlib.util.spec_from_file_location("prepare_dataset", SCRIPT[1])
prepare_dataset = importlib.util.module_from_spec(spec)
spec.loader.exec_module(prepare_dataset)


@pytest.fixture
def folder(tmp_path):
    """Two classes; images of 60x40 and one of 20x10 pixels."""
    rng = np.random.default_rng(0)
    root = tmp_path / "images"
    for split, count in (("train", 5), ("val", 3)):
        for i in range(count):
            directory = root / split / ("cat", "dog")[i % 2]
            directory.mkdir(parents=True, exist_ok=True)
            small = rng.integers(0, 256, (4, 6, 3)).astype(np.uint8)
            Image.fromarray(small).resize((60, 40)).save(directory / f"{i}.png")
    Image.new("L", (20, 10), 77).save(root / "train" / "cat" / "z.jpg")
    return root


def test_a_folder_is_prepared_once_and_reads_like_itself(folder, tmp_path, capsys):
    arguments = ["folder", str(folder), "--out", str(tmp_path / "out")]
    prepare_dataset.main(arguments)
    printed = capsys.readouterr().out
    assert "train          6 images" in printed
    assert "val            3 images" in printed
    assert "2 classes, fingerprint" in printed
    path = tmp_path / "out" / "images" / "1.0.0"
    assert f"--config.data.path={path}" in printed
    streamed = load("tfds", path=str(path), stream=True)
    assert f"fingerprint {streamed.training_fingerprint()}" in printed
    prepared = load("tfds", path=str(path), image_size=32)
    plain = load("image_folder", path=str(folder), image_size=32)
    assert prepared.class_names == plain.class_names == ("cat", "dog")

    def by_content(split):
        return sorted((image.tobytes(), int(label)) for image, label in zip(*split, strict=True))

    for name in ("train", "val"):
        # TFDS shuffles once while it writes; nothing else changes.
        assert by_content(prepared.splits[name]) == by_content(plain.splits[name])

    before = {p: p.stat().st_mtime_ns for p in path.rglob("*")}
    capsys.readouterr()
    prepare_dataset.main(arguments)
    again = capsys.readouterr().out
    assert "holds this folder already" in again
    # The report is the same; before it is what was done.
    assert again.splitlines()[-4:] == printed.splitlines()[-4:]
    assert {p: p.stat().st_mtime_ns for p in path.rglob("*")} == before

    # Other pixels in a file of the same name and size.
    changed = folder / "val" / "dog" / "1.png"
    changed.write_bytes(changed.read_bytes())
    with pytest.raises(DataError, match="holds another data set; give another --out"):
        prepare_dataset.main(arguments)


def test_images_are_made_smaller_but_never_larger(folder, tmp_path):
    # In a process, so that one shows the whole command; the other tests call its main.
    argv = [*SCRIPT, "folder", str(folder), "--out", str(tmp_path / "out"), "--short_side", "16"]
    done = commands.run(argv)
    assert done.returncode == 0, done.stderr
    stream = load("tfds", path=str(tmp_path / "out/images/1.0.0"), image_size=32, stream=True)
    sizes = {Image.open(io.BytesIO(stream.splits["train"].records[i].data)).size for i in range(6)}
    assert sizes == {(24, 16), (20, 10)}


NAMES = {
    "cat ": "class folder 'cat ' would become 'cat' in TFDS",
    "\u00a0cat": r"'\\xa0cat' would become 'cat'",
    "ca\nt": r"'ca\\nt' would become 'ca', 't'",
    "ca\rt": r"'ca\\rt' would become 'ca', 't'",
    " ": "' ' would become none",
    os.fsdecode(b"caf\xe9"): r"class folder 'caf\\udce9' is not UTF-8",
}


@pytest.mark.parametrize("name", NAMES)
def test_class_names_that_would_change_are_refused(folder, tmp_path, name):
    for split in ("train", "val"):
        (folder / split / "cat").rename(folder / split / name)
    (folder / "train" / "dog" / "broken.png").write_bytes(b"no image is opened before")
    with pytest.raises(DataError, match=NAMES[name]):
        prepare_dataset.prepare_folder(folder, tmp_path / "out", 0)
    assert not (tmp_path / "out").exists()


def test_class_names_are_kept_as_they_are(folder, tmp_path):
    """Those that differ in case, in accents or in their Unicode form only stay apart."""
    names = ("A  b", "a b", "caf\u00e9", "cafe\u0301", "x\u2028y", "\U0001f431", "'\"#", "-1")
    for split in ("train", "val"):
        shutil.copytree(folder / split / "dog", folder / "one")
        shutil.rmtree(folder / split)
        for name in names:
            shutil.copytree(folder / "one", folder / split / name)
        shutil.rmtree(folder / "one")
    path = prepare_dataset.prepare_folder(folder, tmp_path / "out", 0)
    assert load("tfds", path=str(path), stream=True).class_names == tuple(sorted(names))
    labels = path / "label.labels.txt"
    labels.write_text(labels.read_text().replace("a b\n", "c\n"))
    with pytest.raises(DataError, match="has different class names than the folder: remove it"):
        prepare_dataset.prepare_folder(folder, tmp_path / "out", 0)


def test_a_name_that_is_not_utf8_ends_in_one_line(folder, tmp_path):
    """Zip files of older systems hold them. Training from the folder itself takes such names."""
    name = os.fsdecode(b"th\xe9")
    for split in ("train", "val"):
        (folder / split / "cat").rename(folder / split / name)
    line = commands.fail([*SCRIPT, "folder", str(folder), "--out", str(tmp_path / "out")], 3)
    assert line == r"error: the name of class folder 'th\udce9' is not UTF-8"


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: (f / "train" / "cat" / "x.jpg").write_bytes(b"no"), "cannot read image .*x.jpg"),
        (lambda f: (f / "val").rename(f / "other"), "lacks a train or val folder"),
    ],
)
def test_what_is_wrong_is_said(folder, tmp_path, harm, message):
    harm(folder)
    with pytest.raises(DataError, match=message):
        prepare_dataset.main(["folder", str(folder), "--out", str(tmp_path / "out")])
    # A second try does not find half a data set.
    assert not (tmp_path / "out" / "images" / "1.0.0" / "dataset_info.json").exists()


def test_what_a_killed_run_left_is_named(folder, tmp_path, capsys):
    left = tmp_path / "out" / "images" / "incomplete.AB12_1.0.0"
    left.mkdir(parents=True)
    prepare_dataset.main(["folder", str(folder), "--out", str(tmp_path / "out")])
    assert f"{left} was left by a run that was killed" in capsys.readouterr().out


def test_an_out_that_cannot_be_written_is_refused_at_once(folder, tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "under"):
        with pytest.raises(UsageError, match=f"cannot write into --out {out}: "):
            prepare_dataset.main(["folder", str(folder), "--out", str(out)])


@pytest.mark.slow
def test_an_image_too_long_for_a_jpeg_is_named(folder, tmp_path):
    Image.new("L", (3, 9000)).save(folder / "val" / "cat" / "long.png")
    argv = [*SCRIPT, "folder", str(folder), "--out", str(tmp_path / "out"), "--short_side", "2"]
    assert commands.run(argv).returncode == 0
    Image.new("L", (3, 99000)).save(folder / "val" / "cat" / "long.png")
    done = commands.run([*argv[:-3], str(tmp_path / "other"), *argv[-2:]])
    assert done.returncode == 3
    assert "long.png would become 2 x 66000 pixels" in done.stderr


def test_bad_arguments(tmp_path):
    with pytest.raises(UsageError, match="short_side must be >= 0"):
        prepare_dataset.main(["folder", "x", "--out", str(tmp_path), "--short_side", "-1"])
    with pytest.raises(UsageError, match="required"):
        prepare_dataset.main(["folder", "x"])
