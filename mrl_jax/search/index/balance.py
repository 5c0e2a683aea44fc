"""Whether the plan still suits the rows: what a query reads now, beside what it read at first.

Rows of another kind than those that the clusters were made of crowd in few lists, so that queries
like them read these long lists: recall stays, the search becomes slower.
"""

import logging
import pathlib

import numpy as np

from mrl_jax.search.index import clusters
from mrl_jax.search.index.segment import Alive, Segment, Shared
from mrl_jax.search.plan import Plan

FEWEST_ROWS = 10_000  # fewer are compared sooner than a plan is made
STEP = 1.5  # so many times slower than what was said last is said again
_DRAWN = 256  # rows that stand for queries
_log = logging.getLogger(__name__)


def share_read(segments: tuple[Segment, ...], shared: Shared, plan: Plan, width: int) -> float:
    """The share of all rows in the lists that a query reads, on average over queries like the rows.

    Queries are some of the rows. The centroids of their lists could not stand for them: rows of
    another kind are far from these. DataError if files are damaged.
    """
    rows = Alive(segments, width)
    query_bd = shared.short(rows.sample(min(rows.rows, _DRAWN), 0))[:, : plan.list_dim]
    rows_l = np.sum([part.rows_of_lists() for part in segments], axis=0)
    list_bp = clusters.looked_into(
        query_bd, shared.centroid_ld, plan.probes, plan.metric, rows_l, 1, 1
    )
    return float(np.append(rows_l, 0)[list_bp].sum(1).mean() / rows_l.sum())


def say_slower(folder: pathlib.Path, slowdown: float) -> None:
    """Logs how many times as many rows a query reads as at first, and what mends it."""
    _log.warning(
        "%s: vectors are of another kind than those that its clusters were made of: a query like "
        "them reads %.1f times as many as then. `compact(recluster=True)`, or the command "
        "compact --recluster, makes clusters of all vectors that it holds now.",
        folder, slowdown,
    )  # fmt: skip


def say_many(folder: pathlib.Path, rows: int) -> None:
    """Logs that a plan that compares all rows is slow for so many, and what mends it."""
    _log.warning(
        "%s: all of its %d vectors are compared, as when they were few. A plan that is measured is "
        "faster: `Index.build(FOLDER, index.vectors, attributes=index.vectors.attributes)`.",
        folder, rows,
    )  # fmt: skip
