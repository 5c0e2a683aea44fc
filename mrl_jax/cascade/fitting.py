"""Finding thresholds on held-out examples: by the reference's rule, and jointly.

Arrays are [G, N]: the largest softmax probability of each of N examples at each of G dims, and
whether the answer given there is right. The cost of an example is counted in dims: under "final"
the dim where it stops (the paper's), under "cumulative" the sum of the policy's dims up to there,
which is the work where every dim has a classifier of its own.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

from mrl_jax.cascade.policy import Policy, apply, outcome
from mrl_jax.nesting import Nesting

Accounting = Literal["final", "cumulative"]

# The reference's thresholds, for every dim but the last.
GREEDY_GRID = np.linspace(0.1, 1, 100)
# Candidate thresholds of a dim: all that lie between confidences, or this many quantiles.
_MAX_CUTS = 256
# Prices of a dim that the joint search pays, in right answers per example.
_PRICES = 24
# Confidences are told apart up to this odds ratio.
_SURE = 1e-4
# Numbers that differ by less are equal; without this an ascent might never end.
_ROUNDING = 1e-6


class Fitted(NamedTuple):
    """A policy that a search has found.

    Attributes:
      policy: thresholds.
      promised: accuracy that calibrated confidences expect of it on the fitting examples.
      cost: mean over the fitting examples, in dims.
    """

    policy: Policy
    promised: float
    cost: float


def _checked(
    dims: Sequence[int], confidence_gn: np.ndarray, right_gn: np.ndarray
) -> tuple[tuple[int, ...], np.ndarray, np.ndarray]:
    dims = Nesting(tuple(dims)).dims
    confidence_gn, right_gn = np.asarray(confidence_gn), np.asarray(right_gn, bool)
    if confidence_gn.shape != right_gn.shape or len(dims) != len(right_gn) or not right_gn.size:
        raise ValueError(
            f"confidences and rights must be [{len(dims)} dims, >= 1 examples], got "
            f"{confidence_gn.shape} and {right_gn.shape}"
        )
    # NaN stops nowhere, like a confidence of 0.
    confidence_gn = np.nan_to_num(confidence_gn.astype(np.float64), nan=0.0)
    if confidence_gn.min() < 0 or confidence_gn.max() > 1 + _ROUNDING:
        raise ValueError(
            f"confidences are probabilities, got {confidence_gn.min()} to {confidence_gn.max()}"
        )
    return dims, np.minimum(confidence_gn, 1), right_gn


def _sums_above(level_n: np.ndarray, gain_n: np.ndarray, count: int) -> np.ndarray:
    """For k = 0 ... count - 1 the sum of the gains of those whose level is above k."""
    sums = np.bincount(level_n, weights=gain_n, minlength=count + 1)
    return np.cumsum(sums[::-1])[::-1][1 : count + 1]


def fit_greedy(dims: Sequence[int], confidence_gn: np.ndarray, right_gn: np.ndarray) -> Policy:
    """The reference's rule: each dim's threshold is found beside the next dim alone.

    The smallest of `GREEDY_GRID` that gives a cascade of the two its highest accuracy on all
    examples. `Policy.capped` gives its points of lower cost.
    """
    dims, confidence_gn, right_gn = _checked(dims, confidence_gn, right_gn)
    thresholds = []
    for confidence_n, here_n, next_n in zip(confidence_gn, right_gn, right_gn[1:], strict=False):
        level_n = np.searchsorted(GREEDY_GRID, confidence_n)  # of how many it is above
        gain_n = here_n.astype(np.float64) - next_n
        best = _sums_above(level_n, gain_n, len(GREEDY_GRID)).argmax()
        thresholds.append(GREEDY_GRID[best])
    return Policy(dims, (*thresholds, 0.0))


class _Candidates:
    """Policies as tuples of G indices k: dim g stops what is above its k-th cut.

    Cut 0 stops all, so later dims are never reached; the last one, at 1, stops nothing, so the dim
    is left out. The last dim has k = 0.
    """

    def __init__(self, dims: tuple[int, ...], confidence_gn: np.ndarray, greedy: Policy):
        self.dims = dims
        self.cuts, self.greedy = [], []
        for confidence_n, threshold in zip(confidence_gn[:-1], greedy.thresholds, strict=False):
            values = np.unique(confidence_n)
            if len(values) > _MAX_CUTS:
                share = np.linspace(0, 1, _MAX_CUTS)
                values = np.unique(np.quantile(confidence_n, share, method="lower"))
            cuts = np.append((values[1:] + values[:-1]) / 2, threshold)
            # Any others stop all or nothing, as the first and the last do.
            cuts = cuts[(cuts >= confidence_n.min()) & (cuts < confidence_n.max())]
            self.cuts.append(np.unique(np.concatenate([[0.0], cuts, [1.0]])))
            stops_none = threshold >= confidence_n.max()
            self.greedy.append(
                len(self.cuts[-1]) - 1
                if stops_none
                else int(np.searchsorted(self.cuts[-1], threshold, side="right")) - 1
            )
        self.cuts.append(np.array([0.0, 1.0]))
        # How many cuts a confidence is above; cut 0 stops NaN as well.
        self.level_gn = np.stack(
            [np.searchsorted(c, x) for c, x in zip(self.cuts, confidence_gn, strict=True)]
        ).clip(1)
        self.never = tuple(len(c) - 1 for c in self.cuts)

    def stopping(self, last: int, choice: Sequence[int]) -> list[int]:
        """The choice that goes no further than the dim of index `last`."""
        return [*choice[:last], *[0] * (len(self.dims) - last)]

    def policy(self, choice: Sequence[int]) -> Policy:
        """Without the dims that stop nothing or are never reached."""
        last = list(choice).index(0)
        used = [g for g in range(last) if choice[g] != self.never[g]]
        return Policy(
            tuple(self.dims[g] for g in (*used, last)),
            (*(float(self.cuts[g][choice[g]]) for g in used), 0.0),
        )


def chances(confidence_gn: np.ndarray, right_gn: np.ndarray) -> np.ndarray:
    """How likely each answer is to be right, given what all dims are confident of: [G, N].

    A logistic regression per dim on the log odds of all confidences, and their squares. Thresholds
    that are fitted to these instead of to single right and wrong answers follow less noise: with
    2,000 examples of CIFAR-10, cascades that come near the accuracy of the full width were 0.2
    points more accurate on other examples.
    """
    # Imported here because it takes a second, which commands without a cascade need not spend.
    from sklearn.linear_model import LogisticRegression

    confidence_ng = np.clip(confidence_gn.T, _SURE, 1 - _SURE)
    odds_ng = np.log(confidence_ng / (1 - confidence_ng))
    odds_ng = (odds_ng - odds_ng.mean(0)) / (odds_ng.std(0) + 1e-9)
    features_nf = np.concatenate([odds_ng, odds_ng**2], 1)
    chance_gn = right_gn.astype(np.float64)
    for g, right_n in enumerate(right_gn):
        if 0 < right_n.mean() < 1:
            # Converged so far that the mean chance is the accuracy.
            model = LogisticRegression(C=0.3, solver="newton-cholesky", tol=1e-8)
            chance_gn[g] = model.fit(features_nf, right_n).predict_proba(features_nf)[:, 1]
    return chance_gn


def _undominated(chance: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Indices by rising cost, of those that have a higher chance than all that cost no more."""
    order = np.lexsort((-chance, cost))
    ahead = np.maximum.accumulate(chance[order])
    return order[np.concatenate([[True], ahead[1:] > ahead[:-1] + _ROUNDING])]


class _Found(NamedTuple):
    choice: tuple[int, ...]
    chance: float  # totals
    cost: float


class _Search:
    """Coordinate ascent over thresholds that remembers the best of all policies it looked at.

    Chances of being right and costs are totals over the examples.
    """

    def __init__(self, candidates: _Candidates, chance_gn: np.ndarray, accounting: Accounting):
        self.candidates, self.chance_gn = candidates, chance_gn
        dims_g = np.array(candidates.dims, np.float64)
        final = accounting == "final"
        # What stopping at a dim costs, and what looking at it does.
        self.stop_g, self.look_g = (dims_g, 0 * dims_g) if final else (0 * dims_g, dims_g)
        self.seen = []

    def _arriving(self, choice: list[int]) -> list[tuple]:
        """For each dim: which examples arrive there, chance and cost of all that stopped before."""
        at, chance, cost = np.arange(self.chance_gn.shape[1]), 0.0, 0.0
        found = []
        for g, (k, never) in enumerate(zip(choice[:-1], self.candidates.never, strict=False)):
            found.append((at, chance, cost))
            stops = self.candidates.level_gn[g][at] > k
            chance += self.chance_gn[g][at[stops]].sum()
            cost += stops.sum() * self.stop_g[g] + (len(at) * self.look_g[g] if k != never else 0)
            at = at[~stops]
        return found

    def sweep(self, choice: list[int], price: float | None) -> None:
        """From the last threshold to the first, sets each to the best for the others as they are.

        Best is most chance - price * cost; with no price nothing is changed. One pass over the
        examples gives the totals of all cuts of a dim; the undominated ones are remembered.
        """
        chance_n = self.chance_gn[-1]
        cost_n = np.full(len(chance_n), self.stop_g[-1] + self.look_g[-1])
        arriving = self._arriving(choice)
        for g in reversed(range(len(choice) - 1)):
            at, chance, cost = arriving[g]
            level_n, never = self.candidates.level_gn[g], self.candidates.never[g]
            gain_n, saving_n = self.chance_gn[g] - chance_n, self.stop_g[g] - cost_n
            chance_k = chance + chance_n[at].sum() + _sums_above(level_n[at], gain_n[at], never + 1)
            cost_k = cost + cost_n[at].sum() + _sums_above(level_n[at], saving_n[at], never + 1)
            cost_k[:never] += self.look_g[g] * len(at)
            keep = _undominated(chance_k, cost_k)
            self.seen.append((tuple(choice), g, keep, chance_k[keep], cost_k[keep]))
            if price is not None:
                worth_k = chance_k - price * cost_k
                if worth_k.max() > worth_k[choice[g]] + _ROUNDING:
                    choice[g] = int(worth_k.argmax())
            if choice[g] != never:
                stops_n = level_n > choice[g]
                chance_n = np.where(stops_n, self.chance_gn[g], chance_n)
                cost_n = np.where(stops_n, self.stop_g[g], cost_n) + self.look_g[g]

    def improve(self, start: tuple[int, ...], price: float) -> tuple[int, ...]:
        """Sweeps until no single threshold can be better."""
        choice, before = list(start), None
        while choice != before:
            before = list(choice)
            self.sweep(choice, price)
        return tuple(choice)

    def best(self) -> list[_Found]:
        """The undominated ones of all policies that were looked at, by rising cost."""
        pass_of = np.repeat(np.arange(len(self.seen)), [len(keep) for _, _, keep, *_ in self.seen])
        cut, chance, cost = (np.concatenate([entry[i] for entry in self.seen]) for i in (2, 3, 4))
        found = []
        for i in _undominated(chance, cost):
            choice, g, *_ = self.seen[pass_of[i]]
            found.append(_Found((*choice[:g], int(cut[i]), *choice[g + 1 :]), chance[i], cost[i]))
        return found

    def run(self, prices: np.ndarray) -> list[_Found]:
        """Ascends at every price from the best of all that was seen, until that is settled."""
        settled = set()
        while True:
            best = self.best()
            chance, cost = (np.array([found[i] for found in best]) for i in (1, 2))
            starts = [(best[(chance - price * cost).argmax()].choice, price) for price in prices]
            starts = [start for start in starts if start not in settled]
            if not starts:
                return best
            for choice, price in starts:
                settled |= {(choice, price), (self.improve(choice, price), price)}


def _prices(dims: Sequence[int], n: int) -> np.ndarray:
    """From where no example is worth a second dim to where all dims of all cost 1/4 of a right."""
    return np.geomspace(1 / (dims[1] - dims[0]), 1 / (4 * dims[-1] * n), _PRICES)


def _with_greedy(
    frontier: list[Fitted],
    greedy: Policy,
    data: tuple[tuple[int, ...], np.ndarray, np.ndarray],
    chance_gn: np.ndarray,
    accounting: Accounting,
) -> list[Fitted]:
    """The frontier, and greedy policies where it has nothing as often right at their cost."""
    dims, confidence_gn, _ = data
    for m in dims[1:]:
        policy = greedy.capped(m)
        accuracy, *costs = outcome(policy, *data)
        cost = costs[get_args(Accounting).index(accounting)]
        if outcome(within(frontier, cost).policy, *data).accuracy < accuracy:
            promised = float(apply(policy, dims, confidence_gn, chance_gn)[0].mean())
            frontier = sorted([*frontier, Fitted(policy, promised, cost)], key=lambda f: f.cost)
    return frontier


def fit_frontier(
    dims: Sequence[int],
    confidence_gn: np.ndarray,
    right_gn: np.ndarray,
    accounting: Accounting = "final",
) -> list[Fitted]:
    """Policies by rising cost: each the most accurate found that costs no more.

    Accuracy is that which calibrated confidences promise (`chances`). For each of a series of
    prices per dim the search maximises (accuracy - price * cost) over all thresholds at once, by
    coordinate ascent from the best policy known so far: single dims, the reference's, what other
    prices found. Guaranteed, on these examples:

    - `within` the cost of any of the reference's policies, capped or not, there is one that is
      right as often: where the search has none, the reference's own is put in the list.
    - At each of the prices the best policy here cannot be improved by changing one threshold, to
      any candidate; leaving a dim out is such a change. Changing two at once may improve it.
    - With two dims it is the exact frontier of the candidates: of all thresholds where there are
      up to 256 different confidences, of as many quantiles where there are more.

    Args:
      dims: the G prefixes. A policy may use any of them.
      confidence_gn: [G, N].
      right_gn: [G, N].
      accounting: what is cost.

    Raises:
      ValueError: shapes that do not fit, confidences beyond [0, 1], or another accounting.
    """
    dims, confidence_gn, right_gn = data = _checked(dims, confidence_gn, right_gn)
    if accounting not in get_args(Accounting):
        raise ValueError(f"accounting must be final or cumulative, got {accounting!r}")
    chance_gn = chances(confidence_gn, right_gn)
    if len(dims) == 1:
        return [Fitted(Policy(dims, (0.0,)), float(chance_gn.mean()), float(dims[0]))]
    greedy = fit_greedy(*data)
    candidates = _Candidates(dims, confidence_gn, greedy)
    search = _Search(candidates, chance_gn, accounting)
    for g in range(len(dims)):
        search.sweep(candidates.stopping(g, candidates.never), None)
        search.sweep(candidates.stopping(g, candidates.greedy), None)
    n = right_gn.shape[1]
    frontier = [
        Fitted(candidates.policy(choice), float(chance / n), float(cost / n))
        for choice, chance, cost in search.run(_prices(dims, n))
    ]
    return _with_greedy(frontier, greedy, data, chance_gn, accounting)


def within(frontier: Sequence[Fitted], budget: float) -> Fitted:
    """The best of a frontier that costs no more than `budget`, or else the cheapest."""
    affordable = [fitted for fitted in frontier if fitted.cost <= budget + _ROUNDING]
    return affordable[-1] if affordable else frontier[0]


def reaching(frontier: Sequence[Fitted], accuracy: float) -> Fitted:
    """The cheapest of a frontier that promises this accuracy, or else what promises most."""
    good = [fitted for fitted in frontier if fitted.promised >= accuracy - _ROUNDING]
    return good[0] if good else max(frontier, key=lambda fitted: fitted.promised)
