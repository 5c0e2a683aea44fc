"""How far prefixes keep what whole vectors say: nearest neighbours, and the order of cosines."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from jax.sharding import Mesh

from mrl_jax.evaluators.ranking import nearest, tied
from mrl_jax.evaluators.text_common import unit_rows
from mrl_jax.record import metrics
from mrl_jax.record.finding import Finding, Unmeasurable
from mrl_jax.record.results import Series

NEAREST = 10
QUERIES = 2000  # rows whose neighbours are looked for
PAIRS = 2**13
GROUPS = 50  # of pairs, one of which is left out at a time

# The name of a space, the prefixes that there are, and coordinates [N, E].
Coordinates = tuple[str, Sequence[int], np.ndarray]


def check(rows: int) -> None:
    """Raises Unmeasurable for so few rows that every other row is among the nearest."""
    if rows < NEAREST + 2:
        raise Unmeasurable(f"needs at least {NEAREST + 2} vectors, got {rows}")


def measure(
    compared: Iterable[Coordinates],
    whole_nd: np.ndarray,
    at: Series,
    *,
    seed: int,
    mesh: Mesh | None = None,
) -> Finding:
    """Prefixes of some vectors against whole ones of the same rows, by cosine.

    overlap10: of the 10 other rows nearest to a row by whole vectors, the share that is among the
    10 nearest by the prefix; the mean over all rows, or over 2,000 drawn ones. cosine_spearman:
    Spearman's correlation of cosines by the prefix with those by whole vectors, over 8,192 pairs of
    rows, or as many as there are with every row in one at most; 0 where all cosines are equal. Its
    standard error is the jackknife's over 50 groups of pairs. Rows are split over the mesh.

    Raises:
      Unmeasurable: see `check`.
      NonFiniteError: vectors hold NaN or infinity.
    """
    n = len(whole_nd)
    check(n)
    order_n = np.random.default_rng(seed).permutation(n)
    row_q, pairs = np.sort(order_n[:QUERIES]), min(PAIRS, n // 2)
    pair_2p = order_n[:pairs], order_n[pairs : 2 * pairs]
    whole_nd = unit_rows(whole_nd, at.place)
    width = whole_nd.shape[1]
    (near_qk,) = _nearest(whole_nd, row_q, (width,), mesh)
    (cosine_p,) = _cosines(whole_nd, pair_2p, (width,))
    found = Finding()
    for space, dims, z_nd in compared:
        z_nd = unit_rows(z_nd, at.place)
        overlap, order = at.of(metrics.OVERLAP(NEAREST), space), at.of("cosine_spearman", space)
        for dim, row_qk in zip(dims, _nearest(z_nd, row_q, tuple(dims), mesh), strict=True):
            share_q = (row_qk[:, :, None] == near_qk[:, None, :]).any(2).mean(1)
            found.results.append(overlap.mean(dim, share_q))
        for dim, mine_p in zip(dims, _cosines(z_nd, pair_2p, dims), strict=True):
            value, stderr = _spearman(mine_p, cosine_p), _jackknife(mine_p, cosine_p)
            found.results.append(order.result(dim, value, stderr, pairs))
    return found


def _nearest(z_nd: np.ndarray, row_q: np.ndarray, dims: tuple[int, ...], mesh) -> np.ndarray:
    """The nearest other rows at every prefix, [G, Q, NEAREST]."""
    row_gqk = nearest(z_nd, z_nd[row_q], dims, NEAREST + 1, mesh=mesh)
    # The row itself goes last and is cut off; where equal rows took its place, another one is.
    order_gqk = np.argsort(row_gqk == row_q[:, None], axis=-1, kind="stable")
    return np.take_along_axis(row_gqk, order_gqk, -1)[..., :NEAREST]


def _cosines(z_nd: np.ndarray, pair_2p, dims: Sequence[int]) -> Iterable[np.ndarray]:
    """Of every pair, at every prefix, [P] float64; equal if they differ only by rounding."""
    a_pd, b_pd = (z_nd[row_p].astype(np.float64) for row_p in pair_2p)
    dot_pd, a2_pd, b2_pd = (
        np.cumsum(x * y, 1) for x, y in ((a_pd, b_pd), (a_pd,) * 2, (b_pd,) * 2)
    )
    for dim in dims:
        length_p = np.sqrt(a2_pd[:, dim - 1] * b2_pd[:, dim - 1])
        yield tied(dot_pd[:, dim - 1] / np.where(length_p > 0, length_p, 1))


def _jackknife(x_p: np.ndarray, y_p: np.ndarray) -> float:
    """The standard error of `_spearman`, from leaving out one group of pairs at a time."""
    groups = min(GROUPS, len(x_p))
    group_p = np.arange(len(x_p)) % groups
    values = [_spearman(x_p[group_p != g], y_p[group_p != g]) for g in range(groups)]
    return float(np.std(values) * math.sqrt(groups - 1))


def _spearman(x_p: np.ndarray, y_p: np.ndarray) -> float:
    from scipy.stats import rankdata

    ranks = [rankdata(v) for v in (x_p, y_p)]
    if any(rank_p.std() == 0 for rank_p in ranks):
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])
