"""Ranking by cosines that are known only up to rounding: those within it count as equal."""

from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from mrl_jax.search.device import exact, placement

# Embeddings have seven digits (float32), some of which are lost in a network's sums: the cosine of
# two texts varies by up to this with their places in a batch and with the processor. Cosines that
# are closer together than this would be ordered by chance.
ROUNDING = 1e-6


def tied(x_n: np.ndarray) -> np.ndarray:
    """The numbers [n], those within `ROUNDING` of each other replaced by their mean.

    They are grouped from the smallest up, and a group spans at most `ROUNDING`: no number is moved
    by more than that, however dense they are.
    """
    order_n = np.argsort(x_n, kind="stable")
    rising_n = x_n[order_n]
    gaps = np.flatnonzero(np.diff(rising_n) > ROUNDING) + 1
    first_r, last_r = np.r_[0, gaps], np.r_[gaps, len(x_n)]  # runs without a gap
    starts = first_r.tolist()
    for run in np.flatnonzero(rising_n[last_r - 1] - rising_n[first_r] > ROUNDING):
        run_n, start = rising_n[first_r[run] : last_r[run]], 0
        while (start := int(np.searchsorted(run_n, run_n[start] + ROUNDING, "right"))) < len(run_n):
            starts.append(int(first_r[run]) + start)
    starts.sort()
    size_v = np.diff(starts, append=len(x_n))
    mean_v = np.add.reduceat(rising_n, starts) / size_v
    found_n = np.empty_like(rising_n)
    found_n[order_n] = np.repeat(mean_v, size_v)
    return found_n


def nearest(
    database_nd: np.ndarray,
    query_bd: np.ndarray,
    dims: Sequence[int],
    k: int,
    *,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """The k rows of largest cosine at every prefix, [G, B, k]; ties go to the lowest row number.

    At one dim, where all cosines are 1 or -1, signs are compared. Else as `search.top_k`, but in
    one pass: where more rows than a few lie within the rounding of float32 of the k-th, as
    thousands may at two or three dims, rounding decides which of them are compared in float64.
    """
    dims = tuple(dims)

    def found(dims):
        placed, layout = placement.place(database_nd, dims, "cosine", mesh)
        return exact.search(placed, layout, query_bd, dims, k, look_again=False)[0]

    if dims[0] > 1:
        return found(dims)
    all_gbk = np.empty((len(dims), len(query_bd), k), np.int32)
    for sign in (-1, 0, 1):
        # All that have the largest cosine tie; comparing them one by one would take long.
        nearest_k = np.argsort(-sign * np.sign(database_nd[:, 0]), kind="stable")[:k]
        all_gbk[0, np.sign(query_bd[:, 0]) == sign] = nearest_k
    if len(dims) > 1:
        all_gbk[1:] = found(dims[1:])
    return all_gbk


def majority(label_nk: np.ndarray) -> np.ndarray:
    """The most frequent label of every row; of equally frequent ones the first to occur: [N]."""
    votes_nk = sum(
        (label_nk == label_nk[:, i : i + 1]).astype(int) for i in range(label_nk.shape[1])
    )
    return np.take_along_axis(label_nk, votes_nk.argmax(1)[:, None], 1)[:, 0]
