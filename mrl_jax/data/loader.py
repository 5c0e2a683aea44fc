"""Which examples make up a batch: a pure function of (seed, step), on any mesh.

There is no iterator state to save or lose. A resumed run, a run on another mesh or on another
number of processes reads exactly the same batches.
"""

import functools
from collections.abc import Iterator, Mapping

import jax
import numpy as np

from mrl_jax.runtime import watchdog


@functools.lru_cache(maxsize=4)  # a batch touches at most a few epochs
def _epoch_order(seed: int, epoch: int, examples: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox([seed, epoch])).permutation(examples)


def train_rows(seed: int, step: int, batch_size: int, examples: int) -> np.ndarray:
    """The examples of the batch of `step`, as row numbers [batch_size].

    The stream is one permutation of all examples after another, cut into batches without regard
    to where an epoch ends: every example is seen exactly once per epoch and none is dropped.
    """
    position = step * batch_size + np.arange(batch_size)
    epochs, within = np.divmod(position, examples)
    rows = np.empty(batch_size, np.int64)
    for epoch in range(epochs[0], epochs[-1] + 1):
        here = epochs == epoch
        rows[here] = _epoch_order(seed, epoch, examples)[within[here]]
    return rows


def put(arrays: Mapping[str, np.ndarray], sharding: jax.sharding.Sharding) -> dict[str, jax.Array]:
    """Global device arrays from host arrays that every process holds in full."""
    watchdog.beat()
    return {
        name: jax.make_array_from_callback(
            array.shape, sharding, lambda index, array=array: array[index]
        )
        for name, array in arrays.items()
    }


class Batches:
    """Training batches of arrays in memory: `batches(step)` -> dict of global device arrays."""

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        batch_size: int,
        seed: int,
        sharding: jax.sharding.Sharding,
    ):
        self._arrays = arrays
        self._examples = len(next(iter(arrays.values())))
        self._batch_size = batch_size
        self._seed = seed
        self._sharding = sharding
        self._mask_b = np.ones(batch_size, np.float32)

    def __call__(self, step: int) -> dict[str, jax.Array]:
        """The batch of `step` (counted from 0): the arrays' rows and an all-ones mask."""
        rows = train_rows(self._seed, step, self._batch_size, self._examples)

        def gather(array):
            # The callback gathers what one device holds, so a process copies its share only.
            shape = (self._batch_size, *array.shape[1:])
            return jax.make_array_from_callback(
                shape, self._sharding, lambda index: array[rows[index[0]]]
            )

        gathered = {name: gather(array) for name, array in self._arrays.items()}
        return {**gathered, **put({"mask": self._mask_b}, self._sharding)}


def padded_batches(
    arrays: Mapping[str, np.ndarray], batch_size: int, sharding: jax.sharding.Sharding
) -> Iterator[dict[str, jax.Array]]:
    """All rows once, in order; the last batch is filled up with zeros of mask 0."""
    count = len(next(iter(arrays.values())))
    for start in range(0, count, batch_size):
        rows = {name: array[start : start + batch_size] for name, array in arrays.items()}
        valid = len(next(iter(rows.values())))
        fill = batch_size - valid
        rows["mask"] = np.ones(valid, np.float32)
        if fill:
            rows = {
                name: np.concatenate([array, np.zeros((fill, *array.shape[1:]), array.dtype)])
                for name, array in rows.items()
            }
        yield put(rows, sharding)
