"""Whether queries are like those that a plan was made with, by how the best that they find scores.

A plan promises a recall to queries like those alone. Others lie elsewhere, so that what is nearest
to them is mostly farther, or nearer: texts that ask for photos, or vectors that find themselves.
"""

import collections
import functools
import logging
import pathlib
import threading
from typing import NamedTuple

import numpy as np

from mrl_jax.search.index import loops
from mrl_jax.search.plan import SHARES, Asked, places
from mrl_jax.search.schedule import Metric

FIRST_LOOK, LAST_LOOK = 256, 4096  # different queries, between which each look is at twice as many
_OF_BATCH = 1024  # queries at most that one search adds
_TOLD_APART = 16  # dims by which queries are told apart, beside their scores
# A share of queries that scores elsewhere by less than that is no other kind.
_LEAST = 0.15
# Beyond it chance alone leads at one end of one cut this rarely: at millions of looks hardly ever.
_CHANCE = 1e-9
_SHORT = np.finfo(np.float32).tiny  # the shortest query that scores are divided by
_ROUNDING = 1e-6  # of a score: the planner's and the index's may differ by less
_log = logging.getLogger(__name__)


class Unlike(NamedTuple):
    """Queries that score otherwise than those that the plan was made with.

    Attributes:
      queries: different ones that were looked at.
      median: of their scores, see `plan.Asked`.
      planned: the median of those of the plan.
    """

    queries: int
    median: float
    planned: float


@functools.lru_cache(64)
def limits(queries: int, planned: int) -> tuple[np.ndarray, np.ndarray]:
    """How many of so many queries score below each cut: what is too many, and too few.

    The r-th of m planned scores has a share of all queries below it that is distributed as
    Beta(r, m + 1 - r). So the number of new ones below it is beta-binomial, whatever the
    distribution; where scores are equal, those strictly below are fewer, those up to it are more.
    """
    factorial = np.append(0, np.cumsum(np.log(np.arange(1, queries + planned + 1))))

    def choices(n, m):
        return factorial[n] - factorial[m] - factorial[n - m]

    below = np.arange(queries + 1)
    many_s, few_s = np.empty(len(SHARES)), np.empty(len(SHARES))
    for s, r in enumerate(places(planned)):
        above = queries - below
        weights = choices(below + r - 1, below) + choices(above + planned - r, above)
        chance = np.exp(weights - choices(queries + planned, queries))
        many_s[s] = (np.cumsum(chance[::-1])[::-1] > _CHANCE).sum()
        few_s[s] = (np.cumsum(chance) <= _CHANCE).sum() - 1
    share_s = np.array(SHARES)
    return (
        np.maximum(many_s, queries * (share_s + _LEAST)),
        np.minimum(few_s, queries * (share_s - _LEAST)),
    )


class Watch:
    """Looks at the scores of searches by a plan, and says once if they are of another kind.

    Attributes:
      unlike: what the last look found; None if nothing.
    """

    def __init__(self, folder: pathlib.Path, asked: Asked, metric: Metric):
        self.unlike: Unlike | None = None
        self._folder, self._asked, self._inner = folder, asked, metric == "inner"
        self._score_s = np.array(asked.scores)
        # Threads add to it, and only that of them looks that finds no other one looking.
        self._taken: collections.deque = collections.deque()
        self._waiting = 0
        self._looking, self._said = threading.Lock(), False
        # Repeated queries, such as those of measurements, count once.
        self._seen: set[tuple[bytes, float]] = set()
        self._due = FIRST_LOOK

    def take(self, query_bd: np.ndarray, score_bk: np.ndarray) -> None:
        """Queries, and the scores of what they found, the best first."""
        if len(query_bd) > _OF_BATCH:
            step = -(-len(query_bd) // _OF_BATCH)
            query_bd, score_bk = query_bd[::step], score_bk[::step]
        score_b = score_bk[:, 0]
        if self._inner:
            score_b = (score_b / np.maximum(loops.lengths(query_bd), _SHORT)).astype(np.float32)
        # As bytes, which nobody changes and which are the fastest to make.
        self._taken.append((query_bd[:, :_TOLD_APART].tobytes(), score_b.tobytes()))
        self._waiting += len(score_b)  # threads may lose some, which are counted with the next
        if self._waiting >= FIRST_LOOK and self._looking.acquire(blocking=False):
            try:
                self._waiting = 0
                self._look()
            finally:
                self._looking.release()

    def _look(self) -> None:
        taken = [self._taken.popleft() for _ in range(len(self._taken))]
        if not taken:  # by a thread that looked a moment ago
            return
        told_apart, scores = map(b"".join, zip(*taken, strict=True))
        score_n = np.frombuffer(scores, np.float32)
        told_n = np.frombuffer(told_apart, f"V{len(told_apart) // len(score_n)}")
        there_n = np.isfinite(score_n)
        self._seen.update(zip(told_n[there_n].tolist(), score_n[there_n].tolist(), strict=True))
        if len(self._seen) < self._due:
            return
        self.unlike = self._found(np.sort([score for _, score in self._seen]))
        if self.unlike and not self._said:
            self._said = True
            _say(self._folder, self._asked, self.unlike)
        while self._due <= len(self._seen):
            self._due *= 2
        if self._due > LAST_LOOK:
            self._seen, self._due = set(), FIRST_LOOK

    def _found(self, score_n: np.ndarray) -> Unlike | None:
        """From rising scores."""
        rounding_s = _ROUNDING * np.abs(self._score_s)
        below_s = np.searchsorted(score_n, self._score_s - rounding_s, side="left")
        up_to_s = np.searchsorted(score_n, self._score_s + rounding_s, side="right")
        many_s, few_s = limits(len(score_n), self._asked.queries)
        # Where the plan misses the best of some queries, these score lower.
        missed = (1 - self._asked.recall) * len(score_n)
        if (below_s < many_s + missed).all() and (up_to_s > few_s).all():
            return None
        planned = float(self._score_s[SHARES.index(0.5)])
        return Unlike(len(score_n), float(np.median(score_n)), planned)


def _say(folder: pathlib.Path, asked: Asked, unlike: Unlike) -> None:
    _log.warning(
        "%s: queries score unlike those that its plan was made with: the best that each finds has "
        "a score of %.4g in the median of %d, of those it was %.4g. Its recall@%d of %.4g is "
        "promised only to queries like those: plan again with `queries=` as they are asked.",
        folder, unlike.median, unlike.queries, unlike.planned, asked.k, asked.recall,
    )  # fmt: skip
