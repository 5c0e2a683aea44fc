"""Some rows of an index, looked up once and searched any number of times."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mrl_jax.search.index.snapshot import Snapshot, checked_threads


class Allowed:
    """The rows of an index that a filter allows; see `Index.allowing`.

    It sees the index as it was when it was made: what is added or deleted later does not matter.
    """

    def __init__(self, now: Snapshot):
        self._now = now

    @property
    def version(self) -> int:
        """Of the index that it sees, see `Index.version`."""
        return self._now.version

    def __len__(self) -> int:
        """How many rows may be found."""
        return self._now.rows

    def search(
        self,
        query_bd: Any,
        k: int,
        *,
        keeps: Sequence[int] | None = None,
        probes: int | None = None,
        parameters: str | None = None,
        threads: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best of these rows for each query, see `Index.search`."""
        effort = self._now.effort(k, keeps, probes, parameters, threads)
        return self._now.search(query_bd, effort)

    def search_batches(
        self, batches: Iterable[Any], k: int, **how: Any
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """What `search` gives for each batch of queries, which is read when its turn has come."""
        settings = {"keeps": None, "probes": None, "parameters": None, "threads": None, **how}
        effort = self._now.effort(k, **settings)
        return (self._now.search(query_bd, effort) for query_bd in batches)

    def range_search(
        self, query_bd: Any, least_score: float, *, threads: int | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All of these rows with a score of at least `least_score`, see `Index.range_search`."""
        if not isinstance(least_score, int | float | np.number) or math.isnan(least_score):
            raise ValueError(f"least_score must be a number, got {least_score!r}")
        return self._now.within(query_bd, float(least_score), checked_threads(threads))
