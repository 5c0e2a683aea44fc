import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrl_jax.data.boxes import ATTEMPTS, centre_box, random_box


def test_centre():
    assert centre_box(30, 10) == (10, 0, 20, 10)
    assert centre_box(256, 512, 0.5) == (64, 192, 192, 320)


@pytest.mark.parametrize("size", [(32, 32), (500, 375), (1, 1), (3, 200), (200, 3)])
def test_random_boxes_are_inside_and_of_legal_shape(size):
    width, height = size
    uniform = np.random.default_rng(0).random((2000, ATTEMPTS, 4))
    left, top, right, bottom = random_box(uniform, width, height)
    for edges in (left, top, right, bottom):
        np.testing.assert_array_equal(edges, np.round(edges))
    assert left.min() >= 0
    assert top.min() >= 0
    assert right.max() <= width
    assert bottom.max() <= height
    w, h = right - left, bottom - top
    assert min(w.min(), h.min()) >= 1
    share = w * h / (width * height)
    if min(size) >= 32:
        assert 0.06 < share.min() < 0.15
        assert share.max() > 0.9
        # Places are as often on one side as on the other.
        assert (left / np.maximum(width - w, 1)).mean() == pytest.approx(0.5, abs=0.05)


def one_by_one(uniform, width, height):
    """Torchvision's loop, for one image, fed with given random numbers."""
    for share, ratio, x, y in uniform:
        area = width * height * (0.08 + share * 0.92)
        ratio = math.exp(math.log(3 / 4) + ratio * (math.log(4 / 3) - math.log(3 / 4)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = math.floor(x * (width - w + 1)), math.floor(y * (height - h + 1))
            return left, top, left + w, top + h
    return None


@pytest.mark.parametrize("size", [(32, 32), (500, 375), (90, 200)])
def test_random_boxes_are_those_of_a_loop_over_tries(size):
    uniform = np.random.default_rng(3).random((500, ATTEMPTS, 4))
    found = np.stack(random_box(uniform, *size), 1)
    expected = [one_by_one(tries, *size) for tries in uniform]
    compared = [(a, b) for a, b in zip(found.tolist(), expected, strict=True) if b]
    assert len(compared) > 490
    assert all(tuple(a) == b for a, b in compared)


def test_an_image_that_no_box_fits_gives_its_middle():
    uniform = np.random.default_rng(1).random((50, ATTEMPTS, 4))
    left, top, right, bottom = random_box(uniform, 400, 4, area=(0.9, 1.0))
    assert set(zip(left, top, right, bottom, strict=True)) == {(197.0, 0.0, 202.0, 4.0)}


def test_numpy_and_jax_choose_the_same():
    uniform = np.random.default_rng(2).random((200, ATTEMPTS, 4)).astype(np.float32)
    found = jax.jit(lambda uniform: random_box(uniform, 64, 48, xp=jnp))(uniform)
    expected = random_box(uniform, 64, 48)
    np.testing.assert_array_equal(np.array(found), np.array(expected))
