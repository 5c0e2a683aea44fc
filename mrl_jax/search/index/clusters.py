"""Clusters of the first dims: which lists hold a row, and which a query should look into."""

import numpy as np

from mrl_jax import extras
from mrl_jax.errors import DataError
from mrl_jax.runtime.forks import with_openmp
from mrl_jax.search.index import loops
from mrl_jax.search.schedule import Metric

ITERATIONS = 10
# Of k-means, for each cluster if there are so many: the most that faiss advises. With 64, queries
# of a million rows have to look into more lists for the same recall.
EXAMPLES = 256
_GROUP = 8  # lists, of which the nearest is looked at first


def faiss():
    """The library; UsageError if it is not installed."""
    with extras.needed("search", "an index"):
        import faiss
    return faiss


@with_openmp
def fit(z_nd: np.ndarray, lists: int, metric: Metric, seed: int) -> np.ndarray:
    """Centroids [lists, d] of k-means on examples [N, d], which are at least as many.

    They have unit length, except for l2.
    """
    if len(z_nd) < lists:
        raise DataError(f"{lists} lists need as many rows at least, there are {len(z_nd)}")
    spherical = metric != "l2"
    examples_nd = directions(z_nd, metric)
    means = faiss().Kmeans(
        z_nd.shape[1],
        lists,
        niter=ITERATIONS,
        seed=seed + 1,  # faiss takes 0 for its own default
        spherical=spherical,
        min_points_per_centroid=1,
        max_points_per_centroid=max(EXAMPLES, -(-len(z_nd) // lists)),
    )
    means.train(examples_nd)
    return means.centroids


def directions(z_nd: np.ndarray, metric: Metric) -> np.ndarray:
    """What is clustered: for l2 the vectors themselves, otherwise their directions."""
    z_nd = np.ascontiguousarray(z_nd, np.float32)
    return z_nd if metric == "l2" else loops.directions(z_nd)


def nearest(z_bd: np.ndarray, centroid_ld: np.ndarray, probes: int, metric: Metric) -> np.ndarray:
    """The `probes` nearest lists of every row, [B, probes] int64, in no order."""
    return _best(_scores(z_bd, centroid_ld, metric), probes)


def looked_into(
    z_bd: np.ndarray,
    centroid_ld: np.ndarray,
    probes: int,
    metric: Metric,
    rows_l: np.ndarray,
    least: int,
    enough: int,
    all_l: np.ndarray | None = None,
) -> np.ndarray:
    """The `probes` nearest lists of every query that are not empty, or more if these hold too few.

    Where rows are hidden, the nearest of the others lie in more lists: a query goes on until it has
    as many rows to compare as the `probes` nearest lists would give it with nothing hidden.

    Args:
      z_bd: [B, d] queries.
      centroid_ld: [lists, d].
      probes: how many, if they hold `least` rows.
      metric: that makes them near.
      rows_l: [lists] how many rows of each list may be found; not all 0.
      least: a query whose lists hold fewer rows goes on to the next lists,
      enough: until they hold so many, or there are no more.
      all_l: [lists] how many rows each list has, hidden ones included; None: `rows_l`.

    Returns:
      [B, >= 1] int64, in no order; where a query looks into fewer, the number of lists fills up.
    """
    score_bl = _scores(z_bd, centroid_ld, metric)
    planned_b = np.zeros(len(z_bd), np.int64)
    if all_l is not None and (all_l != rows_l).any():
        there_bl = np.where(all_l > 0, score_bl, -np.inf)
        planned_b = all_l[_best(there_bl, min(probes, np.count_nonzero(all_l)))].sum(1)
    filled = np.count_nonzero(rows_l)
    if filled < len(rows_l):
        score_bl[:, rows_l == 0] = -np.inf
    list_bp = _best(score_bl, min(probes, filled))
    held_b = rows_l[list_bp].sum(1)
    few_m = np.flatnonzero(held_b < np.maximum(planned_b, least))
    if len(few_m) and list_bp.shape[1] < filled:
        enough_b = np.where(held_b < least, np.maximum(planned_b, enough), planned_b)
        order_ml = np.argsort(-score_bl[few_m], 1, kind="stable")[:, :filled]
        before_ml = np.cumsum(rows_l[order_ml], 1) - rows_l[order_ml]
        needed_ml = before_ml < enough_b[few_m, None]
        more = max(int(needed_ml.sum(1).max()) - list_bp.shape[1], 0)
        list_bp = np.pad(list_bp, ((0, 0), (0, more)), constant_values=len(rows_l))
        order_ml = np.where(needed_ml, order_ml, len(rows_l))
        list_bp[few_m] = order_ml[:, : list_bp.shape[1]]
    return list_bp


def _scores(z_bd: np.ndarray, centroid_ld: np.ndarray, metric: Metric) -> np.ndarray:
    """How near the lists are to every row, [B, lists]."""
    score_bl = directions(z_bd, metric) @ centroid_ld.T
    if metric == "l2":
        score_bl -= np.square(centroid_ld).sum(1) / 2
    return score_bl


def _best(score_bl: np.ndarray, probes: int) -> np.ndarray:
    """The lists with the largest scores, [B, probes] int64, in no order."""
    if probes == 1:
        return score_bl.argmax(1)[:, None]
    queries, lists = score_bl.shape
    found = loops.Candidates.none(queries, min(2 * probes + 64, lists))
    groups = lists // _GROUP
    if groups > probes:
        # As many lists are at least as near as the nearest of some groups: most need no comparison.
        whole_bl = score_bl[:, : groups * _GROUP]
        loops.bounds(whole_bl.reshape(queries, _GROUP, groups).max(1), probes, found.bound_b)
    one_l, one_b, alive_l = (np.ones(*x) for x in ((lists, "f4"), (queries, "f4"), (lists, bool)))
    loops.take_products(loops.INNER, score_bl, 0, one_l, one_l, alive_l, one_b, probes, found)
    loops.keep_best(found, probes)
    return found.place_bc[:, :probes]
