"""Data sets that do not fit in memory: images are read, decoded and cropped when they are needed.

Threads of grain work ahead of the training. The batch of a step is a pure function of seed and
step, as in memory; each process reads the images of its own devices only.
"""

import concurrent.futures
import dataclasses
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from mrl_jax.data.boxes import ATTEMPTS, random_box
from mrl_jax.data.images import centre_square, render_fast
from mrl_jax.data.loader import train_rows
from mrl_jax.data.rand_augment import RandAugment
from mrl_jax.errors import shown
from mrl_jax.runtime import watchdog

# Images that a thread prepares at a time: grain costs 0.25 ms per element, an image 1 to 10 ms.
CHUNK = 16
# Training images whose content a checkpoint remembers: about half a second of decoding.
PINNED = 256

Batch = dict[str, jax.Array]
Resolutions = Sequence[tuple[int, int]]


def resolution_at(step: int, resolutions: Resolutions) -> int:
    """Pixels per side at a step: linear between (step, pixels) points, in multiples of 32.

    It is constant before the first point, after the last, and if there is only one.
    """
    if len(resolutions) == 1:
        return resolutions[0][1]
    steps, pixels = zip(*resolutions, strict=True)
    return round(float(np.interp(step, steps, pixels)) / 32) * 32


def check_resolutions(resolutions: Resolutions) -> None:
    """Raises a ValueError for a schedule that is not increasing (step, multiple of 32) pairs."""
    for point in resolutions:
        if not isinstance(point, tuple) or [type(number) for number in point] != [int, int]:
            raise ValueError(f"resolutions must be (step, pixels) pairs, got {shown(point)}")
        if point[1] < 32 or point[1] % 32:
            raise ValueError(f"resolutions must be multiples of 32 pixels, got {point[1]}")
    steps = [step for step, _ in resolutions]
    if steps != sorted(set(steps)):
        raise ValueError(f"the steps of resolutions must increase, got {steps}")


def local_positions(sharding: jax.sharding.Sharding, batch_size: int) -> np.ndarray:
    """Which positions of a global batch the devices of this process hold, in order."""
    parts = sharding.addressable_devices_indices_map((batch_size,)).values()
    held = np.zeros(batch_size, bool)
    for (part,) in parts:
        held[part] = True
    return np.flatnonzero(held)


def assemble(
    local: dict[str, np.ndarray],
    positions: np.ndarray,
    batch_size: int,
    sharding: jax.sharding.Sharding,
) -> Batch:
    """Global device arrays of which this process has the rows at `positions`."""
    watchdog.beat()

    def rows_of(array):
        def part(index):
            first, last, _ = index[0].indices(batch_size)
            start = np.searchsorted(positions, first)
            return array[start : start + last - first]

        shape = (batch_size, *array.shape[1:])
        return jax.make_array_from_callback(shape, sharding, part)

    return {name: rows_of(array) for name, array in local.items()}


def _ahead(load: Callable[[int], Any], first: int, last: int, threads: int, buffer: int):
    """load(first), load(first + 1), ... in order, prepared ahead by threads."""
    # Imported here, as data in memory do not need it.
    import grain

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(buffer, threads))
    return iter(grain.MapDataset.range(first, last).map(load).to_iter_dataset(options))


def _joined(chunks: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


@dataclasses.dataclass(frozen=True)
class Stream:
    """One split that is read while it is used.

    Attributes:
      records: random access to the image files, see `folder.FolderRecords`.
      size: pixels per side, in evaluation and in training without `resolutions`.
      eval_crop: share of the short side that evaluation keeps, from the middle.
      random_crop: smallest share of the area of a training image that is used; 0 = its middle as
        in evaluation.
      resolutions: (step, pixels) points of the sizes in training, see `resolution_at`.
      rand_augment: changes of training images after the crop.
      threads: that decode images; 0 = one per core.
    """

    records: Any
    size: int
    eval_crop: float = 1.0
    random_crop: float = 0.0
    resolutions: Resolutions = ()
    rand_augment: RandAugment | None = None
    threads: int = 0

    def __post_init__(self):
        check_resolutions(self.resolutions)
        if self.rand_augment:
            self.rand_augment.check()
        if not 0 <= self.random_crop <= 1:
            raise ValueError(f"random_crop must be in [0, 1], got {self.random_crop}")

    @property
    def examples(self) -> int:
        """How many there are."""
        return len(self.records)

    def update(self, digest: Any) -> None:
        """Adds what identifies the data to a hash; no image is read."""
        digest.update(self.records.fingerprint().encode())

    def pin(self, digest: Any) -> None:
        """Adds to a hash what must be unchanged when training resumes.

        That is the number, order and classes of the examples, and the content of some of them,
        spread evenly. The others are not opened and their sizes are not checked, so that an image
        that training could not read may be repaired. A DataError names one of the opened images
        that cannot be read.
        """
        digest.update(self.records.order().encode())
        rows = np.unique(np.linspace(0, self.examples - 1, PINNED).astype(int)).tolist()

        def content(row):
            record = self.records[row]
            self._evaluated(record, 0)  # decoded, so that no broken image is remembered
            return hashlib.sha256(record.data).digest() + record.label.to_bytes(4, "little")

        with concurrent.futures.ThreadPoolExecutor(self._workers) as pool:
            for found in pool.map(content, rows):
                digest.update(found)

    def contents(self) -> np.ndarray:
        """A number [N] uint64 per image, equal for equal files; reads all of them."""

        def content(row):
            return hashlib.blake2b(self.records[row].data, digest_size=8).digest()

        with concurrent.futures.ThreadPoolExecutor(self._workers) as pool:
            return np.frombuffer(b"".join(pool.map(content, range(self.examples))), "<u8")

    def places(self) -> np.ndarray:
        """A number [N] uint64 per image, equal for the same file; reads none of them."""
        return self.records.place

    def batches(
        self, batch_size: int, seed: int, sharding: jax.sharding.Sharding
    ) -> "StreamBatches":
        """Training batches by step."""
        return StreamBatches(self, batch_size, seed, sharding)

    def padded(self, batch_size: int, sharding: jax.sharding.Sharding) -> Iterator[Batch]:
        """All examples once, in order; the last batch is filled up with zeros of mask 0."""
        positions = local_positions(sharding, batch_size)
        chunks = math.ceil(len(positions) / CHUNK)

        def load(element):
            batch, chunk = divmod(element, chunks)
            rows = batch * batch_size + positions[chunk * CHUNK : (chunk + 1) * CHUNK]
            return self._examples(rows, self._evaluated)

        steps = math.ceil(self.examples / batch_size)
        elements = _ahead(load, 0, steps * chunks, self._workers, chunks)
        for _ in range(steps):
            local = _joined([next(elements) for _ in range(chunks)])
            yield assemble(local, positions, batch_size, sharding)

    @property
    def _workers(self) -> int:
        return self.threads or os.cpu_count() or 1

    def _evaluated(self, record: Any, _: int) -> np.ndarray:
        return centre_square(record.data, record.where, self.size, self.eval_crop)

    def _examples(self, rows: np.ndarray, pixels: Callable) -> dict[str, np.ndarray]:
        """Images, labels and mask of these rows; those beyond the last are padding."""
        images, labels = [], np.zeros(len(rows), np.int32)
        for i, row in enumerate(rows):
            if row < self.examples:
                record = self.records[row]
                labels[i] = record.label
                images.append(pixels(record, i))
            else:
                images.append(np.zeros((self.size, self.size, 3), np.uint8))
        mask = (rows < self.examples).astype(np.float32)
        return {"image": np.stack(images), "label": labels, "mask": mask}


class StreamBatches:
    """Training batches of a stream: `batches(step)` -> dict of global device arrays.

    Consecutive steps are prepared ahead; any other step starts anew, and its batch is the same.
    """

    def __init__(self, split: Stream, batch_size: int, seed: int, sharding: jax.sharding.Sharding):
        self._split, self._batch_size, self._seed = split, batch_size, seed
        self._sharding = sharding
        self._positions = local_positions(sharding, batch_size)
        self._chunks = math.ceil(len(self._positions) / CHUNK)
        self._next: int | None = None
        self._elements: Iterator[dict[str, np.ndarray]] = iter(())

    def image_size(self, step: int) -> int:
        """Pixels per side of the images of a step."""
        return resolution_at(step, self._split.resolutions or ((0, self._split.size),))

    def __call__(self, step: int) -> Batch:
        """The batch of `step` (counted from 0): image, label and an all-ones mask."""
        if step != self._next:
            # Two batches ahead; a range needs an end, which no run reaches.
            first, last = step * self._chunks, (step + 2**40) * self._chunks
            self._elements = _ahead(self._load, first, last, self._split._workers, 2 * self._chunks)
        local = _joined([next(self._elements) for _ in range(self._chunks)])
        self._next = step + 1
        return assemble(local, self._positions, self._batch_size, self._sharding)

    def _load(self, element: int) -> dict[str, np.ndarray]:
        step, chunk = divmod(element, self._chunks)
        positions = self._positions[chunk * CHUNK : (chunk + 1) * CHUNK]
        rows = train_rows(self._seed, step, self._batch_size, self._split.examples)[positions]
        size = self.image_size(step)

        def uniform(i, use, shape):
            # By the place in the stream of all examples: no mesh and no resume changes it.
            place = step * self._batch_size + int(positions[i])
            philox = np.random.Philox(key=self._seed, counter=[0, 0, use, place])
            return np.random.Generator(philox).random(shape)

        def cropped(record, i):
            if not self._split.random_crop:
                return centre_square(record.data, record.where, size, self._split.eval_crop)
            numbers = uniform(i, 0, (ATTEMPTS, 4))

            def crop(width, height):
                area = (self._split.random_crop, 1.0)
                box = tuple(float(e) for e in random_box(numbers, width, height, area))
                return box, (size, size)

            return render_fast(record.data, record.where, crop)

        def pixels(record, i):
            image, change = cropped(record, i), self._split.rand_augment
            return change(image, uniform(i, 1, (change.layers, 2))) if change else image

        return self._split._examples(rows, pixels)
