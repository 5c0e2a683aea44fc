import jax
import numpy as np
import pytest
from PIL import Image

from mrl_jax.data import load
from mrl_jax.data.rand_augment import CHANGES, RandAugment
from mrl_jax.errors import UsageError
from mrl_jax.runtime.mesh import batch_sharding, make_mesh

NAMES = (
    *("identity", "autocontrast", "equalize", "solarize", "posterize", "rotate", "shear x"),
    *("shear y", "translate x", "translate y", "color", "contrast", "brightness", "sharpness"),
)


def picture(height=24, width=32):
    y, x = np.mgrid[:height, :width]
    return np.stack([40 + 4 * x, 60 + 5 * y, 90 + (x * y) % 64], -1).astype(np.uint8)


def change(name, strength, side=0.9, image=None):
    """One change; sides below one half are negative."""
    choice = (NAMES.index(name) + 0.5) / len(CHANGES)
    image = picture() if image is None else image
    return RandAugment(1, strength)(image, np.array([[choice, side]])).astype(int)


def test_there_are_the_fourteen_changes_of_the_paper():
    assert len(NAMES) == len(CHANGES) == 14


def test_without_strength_nothing_but_contrast_and_histogram_changes():
    for name in NAMES:
        same = (change(name, 0) == picture()).all()
        assert same == (name not in ("autocontrast", "equalize")), name
        assert change(name, 10).shape == picture().shape


def test_each_change_does_what_it_is_called():
    image = picture()
    stretched = change("autocontrast", 3)
    assert (stretched.min((0, 1)) == 0).all()
    assert (stretched.max((0, 1)) >= 254).all()
    np.testing.assert_array_equal(change("solarize", 10), 255 - image.astype(int))
    half = np.where(image < 128, image, 255 - image.astype(int))
    np.testing.assert_array_equal(change("solarize", 5), half)
    np.testing.assert_array_equal(change("posterize", 10), image // 16 * 16)
    # 45 % of 32 columns at full strength: 14.4, to the left where the number is positive.
    moved = change("translate x", 10)
    np.testing.assert_array_equal(moved[:, :17], image[:, 14:31])
    assert (moved[:, -14:] == 128).all()
    assert (change("translate y", 10, side=0.1)[:10] == 128).all()
    np.testing.assert_array_equal(change("brightness", 10, 0.1), (image * 0.1).astype(int))
    grey = np.ptp(change("color", 10, 0.1), -1).mean()
    assert (
        grey < 0.2 * np.ptp(image.astype(int), -1).mean() < np.ptp(change("color", 10), -1).mean()
    )
    assert change("contrast", 10, 0.1).std() < 0.2 * image.std()
    # The middle of an image stays where it is when it is sheared.
    for name in ("shear x", "shear y", "rotate"):
        for side in (0.1, 0.9):
            sheared = change(name, 10, side)
            assert np.abs(sheared[11:13, 15:17] - image[11:13, 15:17]).max() < 12
            assert (sheared == 128).all(-1).any()


def test_changes_follow_one_another():
    image = picture()
    numbers = np.array([[3.5 / 14, 0.9], [4.5 / 14, 0.9]])
    both = RandAugment(2, 5)(image, numbers)
    one = RandAugment(1, 5)(RandAugment(1, 5)(image, numbers[:1]), numbers[1:])
    np.testing.assert_array_equal(both, one)


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "val"):
        for i in range(8):
            directory = tmp_path / split / f"class{i % 2}"
            directory.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.roll(picture(32, 32), i, 1)).save(directory / f"{i}.png")
    return tmp_path


def test_a_stream_changes_training_images_by_seed_and_place(folder):
    def batches(devices, seed=1, augment=(2, 10.0)):
        data = load(
            "image_folder", path=str(folder), image_size=32, stream=True, rand_augment=augment
        )
        mesh = make_mesh(devices, 1, 1, devices=jax.devices()[:devices])
        return data, data.splits["train"].batches(8, seed, batch_sharding(mesh))

    (data, one), (_, eight) = batches(1), batches(8)
    first = np.asarray(one(3)["image"])
    np.testing.assert_array_equal(first, np.asarray(eight(3)["image"]))
    _, plain = batches(1, augment=())
    assert (first != np.asarray(plain(3)["image"])).any((1, 2, 3)).sum() >= 4
    assert (np.asarray(one(4)["image"]) != first).any()
    # Never in evaluation.
    (shown,) = data.splits["val"].padded(8, batch_sharding(make_mesh()))
    assert sorted(map(bytes, np.asarray(shown["image"]))) == sorted(
        bytes(np.roll(picture(32, 32), i, 1)) for i in range(8)
    )


@pytest.mark.parametrize(
    ("augment", "stream", "message"),
    [
        ((2, 10.0), False, "data.rand_augment needs data.stream=True"),
        ((2,), True, r"must be \(changes, strength\), got \(2,\)"),
        ((0, 10.0), True, "a whole number of changes, got 0"),
        ((2.5, 10.0), True, "a whole number of changes, got 2.5"),
        ((2, 11.0), True, "a strength from 0 to 10, got 11"),
        ((2, float("nan")), True, "a strength from 0 to 10, got nan"),
    ],
)
def test_bad_values_are_refused(folder, augment, stream, message):
    with pytest.raises((UsageError, ValueError), match=message):
        load("image_folder", path=str(folder), stream=stream, rand_augment=augment)
