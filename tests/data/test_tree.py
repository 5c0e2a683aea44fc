import os

import numpy as np
import pytest
from PIL import Image

from mrl_jax.data.tree import open_tree
from mrl_jax.errors import DataError


def paint(path, colour=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (colour, 0, 0)).save(path)


def test_all_images_at_any_depth_in_order_of_names(tmp_path):
    root = tmp_path / "root"
    names = ["a/b/c/1.png", "a/é.jpg", "a.bmp", "z/2.webp", "zz.JPEG"]
    for name in names:
        paint(root / name)
    for name in (".hidden/1.png", "a/.2.png"):
        paint(root / name)
    (root / "a" / "notes.txt").write_text("no image")
    paint(tmp_path / "elsewhere" / "3.png")
    os.symlink(tmp_path / "elsewhere", root / "linked")
    records = open_tree(root)
    assert records.names == tuple(sorted([*names, "linked/3.png"]))
    assert records.label.tolist() == [0] * 6
    assert records[1].data == (root / records.names[1]).read_bytes()
    before = records.fingerprint()
    assert open_tree(root).fingerprint() == before
    paint(root / "new.png")
    assert open_tree(root).fingerprint() != before


def test_refusals(tmp_path):
    def refused(message):
        with pytest.raises(DataError, match=message):
            open_tree(tmp_path / "root")

    refused("cannot read .*root")
    (tmp_path / "root" / "inner").mkdir(parents=True)
    refused("root has no images")
    paint(tmp_path / "root" / "inner" / "1.png")
    os.symlink(tmp_path / "root", tmp_path / "root" / "inner" / "up")
    refused("up is a link to a folder that it lies in")
    (tmp_path / "root" / "inner" / "up").unlink()
    for name, message in (
        ("2.gif", "2.gif has an unsupported file type"),
        ("two\nlines.png", "more than one line"),
        (os.fsdecode(b"\xff.png"), "is not UTF-8"),
    ):
        path = tmp_path / "root" / "inner" / name
        path.touch()
        refused(message)
        path.unlink()
    np.testing.assert_array_equal(open_tree(tmp_path / "root").names, ["inner/1.png"])
