import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mrl_jax.data import Augmentation
from mrl_jax.data.augment import _weights
from mrl_jax.data.boxes import ATTEMPTS, random_box


def batch(count=64, size=16):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3)).astype(np.uint8)


def test_nothing_is_changed_by_default():
    image = batch()
    found = jax.jit(Augmentation())(jax.random.key(0), image)
    np.testing.assert_array_equal(found, image)
    assert found.dtype == np.uint8


def test_flips_half_of_the_images_whole():
    image = batch(400, 4)
    found = np.asarray(jax.jit(Augmentation(flip=True))(jax.random.key(1), image))
    same = (found == image).all((1, 2, 3))
    flipped = (found == image[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ flipped).all()
    assert 150 < flipped.sum() < 250


def test_shifts_repeat_the_edge():
    image = batch(200, 6)
    found = np.asarray(jax.jit(Augmentation(shift=2))(jax.random.key(2), image))
    padded = np.pad(image, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    offsets = set()
    for old, new in zip(padded, found, strict=True):
        places = [
            (y, x) for y in range(5) for x in range(5) if (old[y : y + 6, x : x + 6] == new).all()
        ]
        assert places
        offsets.update(places[:1])
    assert len(offsets) == 25


def test_crops_are_what_pillow_makes_of_the_same_box():
    """Enlarging a box is bilinear interpolation of its pixels and of those around it."""
    size, image = 16, batch(32)
    key = jax.random.key(3)
    augmentation = Augmentation(crop=0.2)
    found = np.asarray(jax.jit(augmentation)(key, image))

    @jax.jit
    def draw(key):
        uniform = jax.random.uniform(jax.random.split(key, 3)[1], (32, ATTEMPTS, 4))
        return random_box(uniform, size, size, (0.2, 1.0), xp=jnp)

    boxes = np.stack(draw(key), 1)
    assert len(np.unique(boxes, axis=0)) > 25
    for picture, box, crop in zip(image, boxes, found, strict=True):
        expected = Image.fromarray(picture).resize(
            (size, size), Image.Resampling.BILINEAR, tuple(map(float, box))
        )
        # Pillow rounds twice, once per axis.
        np.testing.assert_allclose(crop, np.asarray(expected), atol=1.01)


def test_a_flipped_crop_is_the_mirrored_crop():
    low, high = np.float32([2, 2]), np.float32([9, 9])
    plain, flipped = jax.jit(_weights, static_argnums=2)(low, high, 12, np.array([False, True]))
    np.testing.assert_allclose(flipped, plain[::-1])


def test_crop_and_flip_together_flip_half():
    image = np.broadcast_to(np.arange(16, dtype=np.uint8)[None, None, :, None], (300, 16, 16, 1))
    found = jax.jit(Augmentation(crop=0.3, flip=True))(jax.random.key(4), image)
    found = np.asarray(found)
    rising = found[:, 8, 12, 0] > found[:, 8, 3, 0]
    assert 110 < rising.sum() < 190


def test_mixup_keeps_at_least_half_of_the_own_image():
    share = jax.jit(Augmentation(mixup=0.4).share)
    shares = [float(share(jax.random.key(i))) for i in range(50)]
    assert min(shares) >= 0.5
    assert max(shares) <= 1
    assert np.std(shares) > 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": 1.5}, r"random_crop must be in \[0, 1\], got 1.5"),
        ({"shift": -1}, "random_shift must be >= 0, got -1"),
        ({"mixup": -0.1}, "mixup must be >= 0 and finite, got -0.1"),
        ({"mixup": float("nan")}, "mixup must be >= 0 and finite, got nan"),
    ],
)
def test_bad_values_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**options)
