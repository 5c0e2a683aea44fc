"""Directions in which vectors differ most: for models whose first dims tell no more than others."""

import numpy as np

from mrl_jax.search.index import approximate
from mrl_jax.search.schedule import Metric

EXAMPLES = 50_000


def fit(z_nd: np.ndarray, dims: int, metric: Metric) -> np.ndarray:
    """The first principal directions of examples [N, D], as columns [D, dims] of unit length.

    Of all such rotations it keeps most of the products, or, by l2, of the distances between rows.
    So only for l2 the mean is taken off first: it has no part in distances.
    """
    compared_nd = approximate.compared(z_nd, metric)
    if metric == "l2":
        compared_nd = compared_nd - compared_nd.mean(0, dtype=np.float64).astype(np.float32)
    moments_dd = np.zeros((z_nd.shape[1],) * 2)
    for i in range(0, len(compared_nd), 8192):
        chunk_nd = compared_nd[i : i + 8192]
        moments_dd += chunk_nd.T @ chunk_nd
    _, direction_dd = np.linalg.eigh(moments_dd)
    return np.ascontiguousarray(direction_dd[:, ::-1][:, :dims], np.float32)
