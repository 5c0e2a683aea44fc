"""The plan of an index for which none is given: measured on its own vectors."""

import logging
from typing import Any

import numpy as np

from mrl_jax.errors import UsageError
from mrl_jax.search.index.balance import FEWEST_ROWS
from mrl_jax.search.index.rows import InMemory, Source
from mrl_jax.search.plan import Plan
from mrl_jax.search.planner import promises, propose
from mrl_jax.search.schedule import Schedule

TARGET_RECALL = 0.99
_SHARE = 10  # of the rows, a tenth at most, are drawn as queries
_log = logging.getLogger(__name__)


class _Others:
    """The rows of a source without some."""

    def __init__(self, source: Source, gone_n: np.ndarray):
        self._source, self._row_n = source, np.delete(np.arange(source.rows), gone_n)
        self.rows, self.width = len(self._row_n), source.width

    def read(self, first: int, last: int) -> np.ndarray:
        """Rows first to last - 1."""
        row_n = self._row_n[first:last]
        return self._source.read(row_n[0], row_n[-1] + 1)[row_n - row_n[0]]


def choose(
    source: Source, queries: Source | None, wanted: dict[str, Any], seed: int, progress: bool
) -> Plan:
    """The plan that `propose` finds, or exact search where there are few rows.

    Without queries these are rows, which are left out of those that are searched: each would find
    itself.

    Args:
      source: the rows.
      queries: of the kind that will be asked.
      wanted: what `promises.Wanted` is told beside its defaults.
      seed: of all random choices.
      progress: whether to show bars.

    Raises:
      UsageError, DataError: as `propose.propose`.
    """
    wanted = promises.Wanted(**{"target_recall": TARGET_RECALL, "seed": seed, **wanted})
    exact = Plan(Schedule.exact(source.width), wanted.metric)
    fits = wanted.memory is None or 4 * source.rows * source.width <= wanted.memory
    if fits and wanted.latency_ms is None and (source.rows < FEWEST_ROWS or wanted.k > source.rows):
        return exact
    if queries is None:
        _log.warning(
            "the plan is made for queries like the vectors themselves: where others will be asked, "
            "such as texts that ask for photos, give some as queries"
        )
        # So many more than promise the target if nothing is missed let a plan miss something.
        enough = 2 * (promises.queries_needed(wanted) or promises.MOST_QUERIES)
        drawn = min(source.rows // _SHARE, enough, promises.MOST_QUERIES)
        if drawn < promises.FEWEST_QUERIES:
            raise UsageError(
                f"a plan of {source.rows} vectors needs queries: give {promises.FEWEST_QUERIES} "
                "or more"
            )
        rng = np.random.default_rng((seed, 2))
        row_n = np.sort(rng.choice(source.rows, drawn, replace=False, shuffle=False))
        query_bd = np.concatenate([source.read(row, row + 1) for row in row_n.tolist()])
        queries, source = InMemory(query_bd), _Others(source, row_n)
    return propose.propose(source, queries, wanted, progress=progress).chosen.plan
