"""Vectors that are found like those of a Matryoshka network: classes, front-loaded information."""

import pathlib
from collections.abc import Iterator

import numpy as np

WIDTH = 2048
# Octaves: the first 8 dims, then as many again, up to the width.
OCTAVES = tuple(8 * 2**i for i in range(9))
CLASSES = 1000
SUBCLASSES = 30
# Chosen so that a shortlist by the first 32, 64, 128 of 2048 dims needs about as many of a million
# rows for 95 and 99 % of the ten nearest as ResNet-50 embeddings trained with MRL would: some
# 5,000, 850 and 250 for 99 %.
VARIANCE_FALL = 1.1  # of a dim, in powers of 2 per octave
BETWEEN = 0.5  # share of the first octave's variance that lies between classes, as much between
BETWEEN_FALL = 0.45  # the subclasses of a class, and its fall, in powers of 2 per octave
SPREAD = 0.25  # of the logarithm of an example's noise: some examples are clearer than others
CHUNK = 20_000


def vectors(rows: int, seed: int) -> Iterator[np.ndarray]:
    """Chunks [n, 2048] float32 of unit length; all seeds share the classes."""
    fixed = np.random.default_rng(0)
    octave_d = np.searchsorted(OCTAVES, np.arange(WIDTH), side="right")
    between_d = (BETWEEN * 2.0 ** (-BETWEEN_FALL * octave_d)).astype(np.float32)
    scale_d = (2.0 ** (-VARIANCE_FALL / 2 * octave_d)).astype(np.float32)
    noise_d = np.sqrt(np.maximum(1 - 2 * between_d, 0.02))
    class_cd = fixed.standard_normal((CLASSES, WIDTH), np.float32) * np.sqrt(between_d)
    subclass_csd = fixed.standard_normal((CLASSES, SUBCLASSES, WIDTH), np.float32)
    rng = np.random.default_rng((1, seed))
    for start in range(0, rows, CHUNK):
        n = min(CHUNK, rows - start)
        class_n, subclass_n = rng.integers(0, CLASSES, n), rng.integers(0, SUBCLASSES, n)
        z_nd = rng.standard_normal((n, WIDTH), np.float32) * noise_d
        z_nd *= np.exp(rng.normal(0, SPREAD, (n, 1))).astype(np.float32)
        z_nd += class_cd[class_n] + subclass_csd[class_n, subclass_n] * np.sqrt(between_d)
        z_nd *= scale_d
        yield z_nd / np.linalg.norm(z_nd, axis=1, keepdims=True)


def write(path: pathlib.Path, rows: int, seed: int) -> None:
    """Writes them as one .npy file; rows x 8 KiB."""
    array = np.lib.format.open_memmap(path, "w+", np.float32, (rows, WIDTH))
    start = 0
    for z_nd in vectors(rows, seed):
        array[start : start + len(z_nd)] = z_nd
        start += len(z_nd)
    array.flush()
