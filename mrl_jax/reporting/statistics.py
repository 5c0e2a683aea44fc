"""The few formulas of a report: mean and spread over seeds, paired differences, Holm."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

LEVEL = 0.95
# Accuracies are multiples of 1/n; a spread below this is rounding of floats, not spread.
NO_SPREAD = 1e-12


@dataclasses.dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (None for one value) of `n` values."""

    mean: float
    sd: float | None
    n: int


def summarize(values: Sequence[float]) -> Summary:
    """Mean and sample standard deviation (n - 1 in the denominator) of at least one value."""
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Summary(float(np.mean(values)), sd, len(values))


@dataclasses.dataclass(frozen=True)
class Difference:
    """A mean paired difference over `n` seeds, its 95% t interval and two-sided p value.

    `low` and `high` are None where no interval exists: one seed, or the same difference in every
    seed, from which the t distribution would conclude an impossible certainty. p is then 1.
    """

    mean: float
    low: float | None
    high: float | None
    p: float
    n: int

    @property
    def verdict(self) -> str:
        """In words, from the interval alone."""
        if self.low is None:
            return "one seed" if self.n == 1 else "same in every seed"
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "no clear difference"


def paired_difference(a: Mapping[int, float], b: Mapping[int, float]) -> Difference | None:
    """`a - b` over the seeds that both have; None where they share none."""
    seeds = sorted(a.keys() & b.keys())
    if not seeds:
        return None
    summary = summarize([a[seed] - b[seed] for seed in seeds])
    mean, n = summary.mean, summary.n
    if summary.sd is None or summary.sd < NO_SPREAD:
        return Difference(mean, None, None, 1.0, n)
    error = summary.sd / math.sqrt(n)
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, n - 1))
    return Difference(mean, mean - half, mean + half, p, n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values, in the order given: reject where <= 1 - LEVEL."""
    adjusted = [1.0] * len(p_values)
    running = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted
