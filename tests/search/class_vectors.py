"""Vectors of classes and subclasses whose information is front-loaded, as a Matryoshka network's.

A small relative of `benchmarks.search_vectors`.
"""

import numpy as np

CLASSES, SUBCLASSES = 60, 5


def vectors(rows: int, width: int, seed: int) -> np.ndarray:
    """[rows, width] float32 of unit length; all seeds share the classes."""
    octave_d = np.floor(np.log2(np.maximum(np.arange(width) / 4, 1)))
    between_d = 0.5 * 2.0 ** (-0.45 * octave_d)
    scale_d = 2.0 ** (-0.55 * octave_d)
    fixed, rng = np.random.default_rng(0), np.random.default_rng((1, seed))
    class_cd = fixed.standard_normal((CLASSES, width))
    subclass_csd = fixed.standard_normal((CLASSES, SUBCLASSES, width))
    c, s = rng.integers(0, CLASSES, rows), rng.integers(0, SUBCLASSES, rows)
    noise_n1 = np.exp(rng.normal(0, 0.25, (rows, 1)))
    z_nd = (
        rng.standard_normal((rows, width)) * noise_n1 * np.sqrt(np.maximum(1 - 2 * between_d, 0.05))
    )
    z_nd += (class_cd[c] + subclass_csd[c, s]) * np.sqrt(between_d)
    z_nd *= scale_d
    return (z_nd / np.linalg.norm(z_nd, axis=1, keepdims=True)).astype(np.float32)


def nearest(z_nd: np.ndarray, query_bd: np.ndarray, k: int) -> np.ndarray:
    """Rows of the k largest cosines, by brute force."""
    z_nd, query_bd = z_nd.astype(np.float64), query_bd.astype(np.float64)
    cosine_bn = query_bd @ (z_nd / np.linalg.norm(z_nd, axis=1, keepdims=True)).T
    return np.argsort(-cosine_bn, 1, kind="stable")[:, :k]


def recall(found_bk: np.ndarray, true_bk: np.ndarray) -> float:
    """The share of true ones that was found."""
    return float((true_bk[:, :, None] == found_bk[:, None, :]).any(2).mean())
