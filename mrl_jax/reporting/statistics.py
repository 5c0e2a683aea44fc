"""The few formulas of a report: mean and spread over seeds, paired differences, Holm."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 0.95
# Accuracies are multiples of 1/n; a spread below this is rounding of floats, not spread.
NO_SPREAD = 1e-12


class Summary(NamedTuple):
    """Mean and sample standard deviation (None for one value) of `n` values."""

    mean: float
    sd: float | None
    n: int


def summarize(values: Sequence[float]) -> Summary:
    """Mean and sample standard deviation (n - 1 in the denominator) of at least one value."""
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Summary(float(np.mean(values)), sd, len(values))


@dataclasses.dataclass
class Difference:
    """A mean paired difference, its 95% interval and two-sided p value.

    `low` and `high` are None where no interval exists: one seed of which only means are known, or
    the same difference in every seed, from which the t distribution would conclude an impossible
    certainty. p is then 1.

    Attributes:
      n: seeds.
      units: how many examples, or draws of them, the networks were compared on one by one; 0 where
        only their means are known. Then the interval speaks of other seeds. With units and one seed
        it speaks of other units and these networks, with more seeds of both.
      lower_is_better: as of an error.
      networks: with several seeds and units, the same difference for these networks alone.
      adjusted_p: p after Holm's correction, once it is made.
    """

    mean: float
    low: float | None
    high: float | None
    p: float
    n: int
    units: int = 0
    lower_is_better: bool = False
    networks: "Difference | None" = None
    adjusted_p: float = 1.0

    @property
    def verdict(self) -> str:
        """In words, from the interval alone."""
        if self.low is None:
            return "one seed" if self.n == 1 else "same in every seed"
        if self.low <= 0 <= self.high:
            return "no clear difference"
        return "worse" if (self.low > 0) == self.lower_is_better else "better"

    @property
    def stands(self) -> bool:
        """Whether it is significant after Holm's correction."""
        return self.adjusted_p <= 1 - LEVEL


def _interval(mean: float, variances: Sequence[tuple[float, int]], n: int, units: int = 0):
    """The difference whose variance is a sum of terms, each with its degrees of freedom.

    The squares of the half widths that the terms have alone add up, so the interval is never
    narrower than one of them; with one term it is Student's.
    """
    terms = [(variance, freedom) for variance, freedom in variances if variance > NO_SPREAD**2]
    if not terms:
        return Difference(mean, None, None, 1.0, n, units)

    from scipy import optimize, special  # takes long: only reports with intervals wait for it

    def half_width(p: float) -> float:
        return math.sqrt(
            sum(v * float(special.stdtrit(freedom, p / 2)) ** 2 for v, freedom in terms)
        )

    half, least = half_width(1 - LEVEL), 1e-100
    p = least  # the p value is where the interval just reaches zero
    if half_width(least) > abs(mean):
        p = float(optimize.brentq(lambda p: half_width(p) - abs(mean), least, 1, xtol=1e-15))
    return Difference(mean, mean - half, mean + half, p, n, units)


def _over_seeds(difference_s: np.ndarray) -> Difference:
    mean, sd, n = summarize(difference_s)
    return _interval(mean, [] if sd is None else [(sd**2 / n, n - 1)], n)


def _mcnemar(difference_n: np.ndarray) -> Difference:
    """Two networks on the same examples: the exact test of those that only one gets right.

    The interval is Clopper and Pearson's for the share of the first network among them, given how
    many they are: it leaves out zero exactly where p < 0.05.
    """
    examples = len(difference_n)
    first, second = int((difference_n > 0).sum()), int((difference_n < 0).sum())
    discordant = first + second
    mean = (first - second) / examples
    if not discordant:
        # This many examples may all agree even if that share of all others does not.
        most = 1 - ((1 - LEVEL) / 2) ** (1 / examples)
        return Difference(mean, -most, most, 1.0, 1, examples)
    from scipy import special  # not scipy.stats, which alone takes a second to import

    p = min(1.0, 2 * float(special.bdtr(min(first, second), discordant, 0.5)))
    tail = (1 - LEVEL) / 2
    low = float(special.betaincinv(first, second + 1, tail)) if first else 0.0
    high = float(special.betaincinv(first + 1, second, 1 - tail)) if second else 1.0
    low, high = ((2 * share - 1) * discordant / examples for share in (low, high))
    return Difference(mean, low, high, p, 1, examples)


def _over_both(difference_sn: np.ndarray) -> Difference:
    """Other seeds and other units, with the variance of the mean over either.

    Seeds and units are crossed (every network sees every unit), so their interaction is in both
    terms: the interval is too wide rather than too narrow, as the pigeonhole bootstrap's is (Owen,
    Annals of Applied Statistics 1, 2007).
    """
    (seeds, units), mean = difference_sn.shape, float(difference_sn.mean())
    of_units = (float(difference_sn.mean(0).var(ddof=1)) / units, units - 1)
    networks = _interval(mean, [of_units], seeds, units)
    if seeds == 1:
        return networks
    of_seeds = (float(difference_sn.mean(1).var(ddof=1)) / seeds, seeds - 1)
    spread = of_seeds[0] >= NO_SPREAD**2
    found = _interval(mean, [of_seeds, of_units] if spread else [], seeds, units)
    found.networks = networks
    return found


def paired_difference(
    a: Mapping[int, float],
    b: Mapping[int, float],
    units: Mapping[int, tuple[np.ndarray, np.ndarray]] | None = None,
    *,
    lower_is_better: bool = False,
) -> Difference | None:
    """`a - b` over the seeds that both have; None where they share none.

    Args:
      a, b: mean value by seed.
      units: by seed, what these are the means of, [N] of a and [N] of b, of the same units: bool
        where a unit is right or wrong. Used where it tells of every shared seed and of the same
        number of units, two or more.
      lower_is_better: of the value.
    """
    seeds = sorted(a.keys() & b.keys())
    if not seeds:
        return None
    pairs = [units[seed] for seed in seeds if units and seed in units]
    shapes = {part.shape for pair in pairs for part in pair}
    if len(pairs) == len(seeds) and len(shapes) == 1 and min(shapes) > (1,):
        binary = all(part.dtype == bool for pair in pairs for part in pair)
        difference_sn = np.stack([np.subtract(*pair, dtype=np.float64) for pair in pairs])
        one = binary and len(seeds) == 1
        found = _mcnemar(difference_sn[0]) if one else _over_both(difference_sn)
    else:
        found = _over_seeds(np.array([a[seed] - b[seed] for seed in seeds]))
    for each in filter(None, (found, found.networks)):
        each.lower_is_better = lower_is_better
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values, in the order given: reject where <= 1 - LEVEL."""
    adjusted = [1.0] * len(p_values)
    running = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted
