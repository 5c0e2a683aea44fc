import io

import jax
import numpy as np
import pytest
from PIL import Image

from mrl_jax.data import Split, load, train_rows
from mrl_jax.data import stream as streams
from mrl_jax.data.images import centre_square
from mrl_jax.data.rand_augment import RandAugment
from mrl_jax.data.stream import Stream, resolution_at
from mrl_jax.errors import DataError, UsageError
from mrl_jax.runtime.mesh import batch_sharding, make_mesh

COUNT = 37


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of noise, 40x30 and 30x40, three classes."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", COUNT), ("val", 11)):
        for i in range(count):
            directory = root / split / f"class{i % 3}"
            directory.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (8, 10, 3)).astype(np.uint8)
            picture = Image.fromarray(pixels).resize((40, 30) if i % 2 else (30, 40))
            picture.save(directory / f"{i:02d}.jpg", quality=95)
    return root


def sets(folder, **options):
    common = {"path": str(folder), "image_size": 32, "threads": 2}
    return load("image_folder", stream=True, **common, **options)


def host(batch):
    return {name: np.asarray(value) for name, value in batch.items()}


def test_without_a_random_crop_it_is_what_memory_holds(folder):
    memory = load("image_folder", path=str(folder), image_size=32)
    stream = sets(folder)
    assert isinstance(memory.splits["train"], Split)
    assert isinstance(stream.splits["train"], Stream)
    assert memory.image_shape == stream.image_shape == (32, 32, 3)
    assert memory.class_names == stream.class_names
    sharding = batch_sharding(make_mesh())
    ours = stream.splits["train"].batches(8, 3, sharding)
    theirs = memory.splits["train"].batches(8, 3, sharding)
    for step in (0, 1, 2, 7, 3, 3):
        found, expected = host(ours(step)), host(theirs(step))
        assert found.keys() == expected.keys()
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name])
            assert found[name].dtype == expected[name].dtype


@pytest.mark.parametrize("batch_size", [8, 16, 40])
def test_evaluation_shows_every_image_once(folder, batch_size):
    memory = load("image_folder", path=str(folder), image_size=32, eval_crop=0.75)
    sharding = batch_sharding(make_mesh())
    for split in ("train", "val"):
        found = [
            host(b) for b in sets(folder, eval_crop=0.75).splits[split].padded(batch_size, sharding)
        ]
        label = np.concatenate([b["label"] for b in found])
        mask = np.concatenate([b["mask"] for b in found])
        examples = memory.splits[split].examples
        assert len(label) % batch_size == 0
        np.testing.assert_array_equal(mask, np.arange(len(mask)) < examples)
        np.testing.assert_array_equal(label[:examples], memory.splits[split].label)
        image = np.concatenate([b["image"] for b in found])
        assert not image[examples:].any()
        np.testing.assert_array_equal(image[:examples], memory.splits[split].image)


def test_random_crops_are_a_function_of_seed_and_step_on_any_mesh(folder):
    def batches(sizes, seed=1, **options):
        split = sets(folder, random_crop=0.1, **options).splits["train"]
        return split.batches(16, seed, batch_sharding(make_mesh(*sizes)))

    first = batches((8, 1, 1))
    expected = [host(first(step)) for step in range(4)]
    for sizes in ((2, 2, 2), (1, 1, 8)):
        again = batches(sizes)
        for step in (2, 3, 0):
            found = host(again(step))
            for name in found:
                np.testing.assert_array_equal(found[name], expected[step][name])
    other = host(batches((8, 1, 1), seed=2)(0))
    assert (other["image"] != expected[0]["image"]).any()
    rows = np.concatenate([train_rows(1, step, 16, COUNT) for step in range(4)])
    label = np.concatenate([b["label"] for b in expected])
    records = sets(folder).splits["train"].records
    np.testing.assert_array_equal(label, records.label[rows])
    # The same image is cut another way when it comes again.
    image = np.concatenate([b["image"] for b in expected])
    again = [np.flatnonzero(rows == row) for row in range(COUNT)]
    pairs = [pair for pair in again if len(pair) == 2]
    assert pairs
    assert all((image[a] != image[b]).any() for a, b in pairs)


def test_every_image_is_cut_and_changed_by_numbers_of_its_own(folder, monkeypatch):
    cut, changed, box = [], [], streams.random_box
    change = RandAugment.__call__

    def cutting(numbers, *more):
        cut.append(numbers)
        return box(numbers, *more)

    def changing(self, image, numbers):
        changed.append(numbers)
        return change(self, image, numbers)

    monkeypatch.setattr(streams, "random_box", cutting)
    monkeypatch.setattr(RandAugment, "__call__", changing)

    def images(chunk):
        """Of one batch, prepared so many at a time."""
        monkeypatch.setattr(streams, "CHUNK", chunk)
        split = sets(folder, random_crop=0.1, rand_augment=(2, 0.5)).splits["train"]
        return host(split.batches(16, 1, batch_sharding(make_mesh()))(0))["image"]

    image = images(16)
    numbers = np.concatenate([x.ravel() for x in (*cut, *changed)])
    assert len(cut) >= 16 <= len(changed)
    assert len(np.unique(numbers)) == len(numbers)
    np.testing.assert_array_equal(images(3), image)


def test_every_process_reads_its_own_part_only(folder):
    split = sets(folder).splits["train"]
    half = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
    sharding = jax.sharding.NamedSharding(half, jax.sharding.PartitionSpec("data"))
    batches = split.batches(16, 0, sharding)
    assert batches._positions.tolist() == list(range(16))
    part = dict(list(sharding.addressable_devices_indices_map((16,)).items())[1:3])

    class Some:
        """Two of the four devices are here."""

        def addressable_devices_indices_map(self, shape):
            return part

    from mrl_jax.data.stream import local_positions

    assert local_positions(Some(), 16).tolist() == list(range(4, 12))


def test_resolution_follows_the_schedule(folder):
    points = ((0, 32), (4, 96))
    assert [resolution_at(step, points) for step in range(6)] == [32, 64, 64, 64, 96, 96]
    assert resolution_at(10**6, ((0, 160),)) == 160
    split = sets(folder, resolutions=points).splits["train"]
    batches = split.batches(8, 0, batch_sharding(make_mesh()))
    assert [batches(step)["image"].shape[1] for step in range(5)] == [32, 64, 64, 64, 96]
    assert next(split.padded(8, batch_sharding(make_mesh())))["image"].shape == (8, 32, 32, 3)


def test_a_broken_image_is_named_when_it_is_read(folder, tmp_path):
    import shutil

    copy = shutil.copytree(folder, tmp_path / "copy")
    broken = sorted((copy / "train" / "class1").iterdir())[2]
    broken.write_bytes(broken.read_bytes()[:50])
    batches = sets(copy).splits["train"].batches(40, 0, batch_sharding(make_mesh()))
    with pytest.raises(DataError, match=f"cannot read image .*train/class1/{broken.name}"):
        batches(0)


def test_fingerprint_needs_no_image_but_follows_names_sizes_and_classes(folder, tmp_path):
    import shutil

    copy = shutil.copytree(folder, tmp_path / "copy")
    assert sets(copy).fingerprint() == sets(folder).fingerprint()
    image = copy / "val" / "class0" / "00.jpg"
    image.write_bytes(image.read_bytes() + b"\0")
    assert sets(copy).fingerprint() != sets(folder).fingerprint()


def test_evaluation_keeps_the_middle(folder):
    stream = sets(folder, eval_crop=0.5).splits["val"]
    record = stream.records[0]
    batch = next(stream.padded(8, batch_sharding(make_mesh())))
    expected = centre_square(record.data, "x", 32, 0.5)
    np.testing.assert_array_equal(np.asarray(batch["image"])[0], expected)
    assert Image.open(io.BytesIO(record.data)).size in ((40, 30), (30, 40))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolutions": ((0, 30),)}, "multiples of 32 pixels, got 30"),
        ({"resolutions": ((5, 32), (5, 64))}, "steps of resolutions must increase"),
        ({"resolutions": (160,)}, r"must be \(step, pixels\) pairs, got 160"),
        ({"random_crop": -0.5}, r"random_crop must be in \[0, 1\], got -0.5"),
        ({"random_crop": float("nan")}, r"random_crop must be in \[0, 1\], got nan"),
    ],
)
def test_bad_schedules_are_refused(folder, options, message):
    with pytest.raises(ValueError, match=message):
        sets(folder, **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "digits", "stream": True}, "digits are in memory"),
        ({"source": "image_folder", "path": "x", "eval_crop": 0.0}, r"must be in \(0, 1\]"),
        ({"source": "image_folder", "path": "x", "threads": -1}, "threads must be >= 0"),
        ({"source": "image_folder", "path": "x", "resolutions": ((0, 32),)}, "needs data.stream"),
    ],
)
def test_usage_errors(arguments, message):
    with pytest.raises(UsageError, match=message):
        load(**arguments)
