import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from mrl_jax.data import Options, Split, Stream, load
from mrl_jax.data.imagenet_classes import IMAGENET_A, IMAGENET_R
from mrl_jax.data.shifts import open_shift
from mrl_jax.errors import DataError
from mrl_jax.runtime.mesh import batch_sharding, make_mesh

NAMES = ("bird", "cat", "dog", "fish")


def fill(root, counts):
    """A folder of so many pictures per class folder, each with a grey of its own."""
    number = 0
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("RGB", (9, 6), (number, number, number)).save(root / folder / f"{i}.png")
            number += 1
    return root


def opened(root, names=NAMES, name="x", stream=False):
    options = Options("image_folder", str(root), image_size=4, stream=stream, threads=1)
    return open_shift(name, root, names, options)


@pytest.mark.parametrize("stream", [False, True])
def test_a_subset_of_the_classes(tmp_path, stream):
    fill(tmp_path, {"fish": 2, "cat": 3})
    (tmp_path / "README.md").write_text("no image")
    split, classes = opened(tmp_path, stream=stream)
    assert classes == (1, 3)
    assert isinstance(split, Stream if stream else Split)
    batch = next(split.padded(8, batch_sharding(make_mesh())))
    assert np.asarray(batch["mask"]).tolist() == [1] * 5 + [0] * 3
    # Cats were made after fish, so the greys say which picture has which label.
    assert np.asarray(batch["label"])[:5].tolist() == [1, 1, 1, 3, 3]
    assert np.asarray(batch["image"])[:5, 0, 0, 0].tolist() == [2, 3, 4, 0, 1]


def test_images_are_prepared_as_those_of_the_data_set(tmp_path):
    rng = np.random.default_rng(0)
    for part in ("train/a", "train/b", "val/a", "shift/a"):
        (tmp_path / part).mkdir(parents=True)
        pixels = rng.integers(0, 256, (30, 40, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / part / "0.png")
    source = (tmp_path / "val/a/0.png").read_bytes()
    (tmp_path / "shift/a/0.png").write_bytes(source)
    options = {"image_size": 8, "eval_crop": 0.5, "threads": 1, "stream": False}
    data = load("image_folder", path=str(tmp_path), **options)
    options = Options("image_folder", str(tmp_path), **options)
    split, _ = open_shift("x", tmp_path / "shift", data.class_names, options)
    np.testing.assert_array_equal(split.image, data.splits["val"].image)


def test_folders_are_renamed_joined_and_left_out(tmp_path):
    fill(tmp_path, {"hen": 1, "rooster": 2, "car": 1, "dog": 1})
    (tmp_path / "car" / "more").mkdir()  # nobody looks into what is left out
    mapping = {"rooster": "bird", "hen": "bird", "car": None}
    (tmp_path / "classes.json").write_text(json.dumps(mapping))
    split, classes = opened(tmp_path)
    assert classes == (0, 2)
    assert split.label.tolist() == [2, 0, 0, 0]  # dog, hen, rooster: by folder


def test_numbers_are_places_among_the_sorted_classes(tmp_path):
    fill(tmp_path, {"0": 1, "2": 1, "3": 1})
    names = ("fish", "bird", "dog", "cat")  # sorted: bird, cat, dog, fish
    split, classes = opened(tmp_path, names)
    assert classes == (0, 1, 2)
    assert split.label.tolist() == [1, 2, 0]
    # Where classes are called by numbers, a number is a name.
    split, classes = opened(tmp_path, ("3", "2", "1", "0"))
    assert split.label.tolist() == [3, 1, 0]
    with pytest.raises(DataError, match="has folder '0'; legal are training classes, such as '1'"):
        opened(tmp_path, ("1", "2", "3", "4"))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: (f / "cow").mkdir(), r"has folder 'cow'; .* 'bird', their places 0 to 3, and"),
        (lambda f: (f / "4").mkdir(), r"has folder '4'; legal are"),
        (lambda f: (f / "00").mkdir(), r"has folder '00'; legal are"),
        (lambda f: (f / "dog").mkdir(), "class folder .*dog has no images"),
        (lambda f: (f / "stray.png").touch(), "stray.png lies beside the class folders"),
        (lambda f: (f / "cat/more").mkdir(), "more is a folder; images lie directly in"),
        (lambda f: (f / "cat/x.gif").touch(), "x.gif has an unsupported file type"),
        (lambda f: (f / "cat/x.png").write_bytes(b"no"), "cannot read .*cat/x.png"),
        (lambda f: (f / "cat").rename(f / ".cat"), "has no class folders with images"),
        (lambda f: (f / "cat").rename(f.parent / "away") and f.rmdir(), "cannot read .*: No such"),
        (lambda f: (f / "classes.json").write_text("{"), "classes.json: not valid JSON"),
        (lambda f: (f / "classes.json").write_text('["cat"]'), "classes.json must be {"),
        (lambda f: (f / "classes.json").write_text('{"hen": "bird"}'), "'hen' is not a folder"),
        (lambda f: (f / "classes.json").write_text('{"cat": "cow"}'), "maps 'cat' to 'cow'; legal"),
        (lambda f: (f / "classes.json").write_text('{"cat": 1}'), "maps 'cat' to 1; legal"),
        (
            lambda f: (f / "classes.json").write_text('{"cat": "cat", "cat": null}'),
            "key 'cat' occurs twice",
        ),
        (lambda f: (f / "classes.json").write_text('{"cat": null}'), "has no class folders with"),
    ],
)
def test_errors_name_the_place(tmp_path, harm, message):
    root = fill(tmp_path / "set", {"cat": 1})
    harm(root)
    with pytest.raises(DataError, match=message):
        opened(root)


def test_lists_are_those_of_the_authors():
    for ids, digest in (
        (IMAGENET_A, "ff8c384504d3ec59"),
        (IMAGENET_R, "354baa0a46566aa6"),
    ):
        assert len(ids) == 200
        assert list(ids) == sorted(set(ids))
        assert hashlib.sha256(" ".join(ids).encode()).hexdigest()[:16] == digest


TRAINING = tuple(sorted({*IMAGENET_A, *IMAGENET_R}))
PLACES = tuple(map(str, range(len(TRAINING))))


@pytest.mark.parametrize(
    ("name", "folders"),
    [
        ("imagenet_a", IMAGENET_A),
        ("imagenet_r", IMAGENET_R),
        ("imagenet_v2", PLACES),
        ("imagenet_sketch", TRAINING),
    ],
)
def test_names_promise_classes(tmp_path, name, folders):
    def opened_streamed(name):
        # Streamed: what is in the files is not looked at yet.
        return opened(tmp_path, TRAINING, name, stream=True)

    def add(folder):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.jpg").touch()

    for folder in folders:
        add(folder)
    index = PLACES.index if name == "imagenet_v2" else TRAINING.index
    assert opened_streamed(name).classes == tuple(index(folder) for folder in folders)

    (tmp_path / "classes.json").write_text(json.dumps({folders[7]: None}))
    with pytest.raises(DataError, match=f"lacks class 'n.*{name} has {len(folders)} classes"):
        opened_streamed(name)
    assert len(opened_streamed("mine").classes) == len(folders) - 1  # which promises nothing

    (tmp_path / "classes.json").unlink()
    if len(folders) == 200:
        other = next(k for k in TRAINING if k not in folders)
        add(other)
        with pytest.raises(DataError, match=f"has class '{other}' besides: {name} has 200 "):
            opened_streamed(name)
