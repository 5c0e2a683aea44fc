import collections

import jax
import numpy as np
import pytest

from mrl_jax.data import Batches, Split, padded_batches, train_rows
from mrl_jax.runtime.mesh import batch_sharding, make_mesh


def test_every_example_once_per_epoch_none_dropped():
    examples, batch = 53, 8
    stream = np.concatenate([train_rows(0, step, batch, examples) for step in range(60)])
    for epoch in range(len(stream) // examples):
        rows = stream[epoch * examples : (epoch + 1) * examples]
        assert sorted(rows) == list(range(examples))
    orders = stream[: 2 * examples].reshape(2, examples)
    assert (orders[0] != orders[1]).any()


def test_is_a_pure_function_of_seed_and_step():
    forward = [train_rows(3, step, 16, 100) for step in range(20)]
    backward = [train_rows(3, step, 16, 100) for step in reversed(range(20))]
    np.testing.assert_array_equal(forward, backward[::-1])
    assert (train_rows(4, 0, 16, 100) != forward[0]).any()


def test_a_batch_may_be_larger_than_the_data():
    counts = collections.Counter(train_rows(0, 0, 25, 10).tolist())
    assert set(counts.values()) == {2, 3}
    assert len(counts) == 10


def split(n):
    label = np.arange(n, dtype=np.int32)
    return Split(np.repeat(label, 12).astype(np.uint8).reshape(n, 2, 2, 3), label)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2), (1, 1, 8)])
def test_batches_are_the_same_on_every_mesh(sizes):
    sharding = batch_sharding(make_mesh(*sizes))
    batch = Batches(split(40)._asdict(), 16, seed=7, sharding=sharding)(step=3)
    rows = train_rows(7, 3, 16, 40)
    np.testing.assert_array_equal(batch["label"], rows)
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], rows)
    np.testing.assert_array_equal(batch["mask"], 1)
    assert batch["image"].shape == (16, 2, 2, 3)
    assert batch["image"].sharding == sharding
    assert batch["image"].dtype == np.uint8


@pytest.mark.parametrize("n", [1, 8, 13, 16])
def test_padded_batches_show_every_row_once(n):
    image, label = split(n)
    seen = []
    for batch in padded_batches({"image": image, "label": label}, 8, batch_sharding(make_mesh())):
        batch = jax.device_get(batch)
        assert batch["image"].shape == (8, 2, 2, 3)
        valid = batch["mask"] > 0
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["label"])
        assert (batch["label"][~valid] == 0).all()
        seen += batch["label"][valid].tolist()
    assert seen == list(range(n))
