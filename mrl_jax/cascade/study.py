"""What cascades achieve on examples that their thresholds were not fitted on."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from mrl_jax.cascade.fitting import Fitted, fit_frontier, fit_greedy, reaching, within
from mrl_jax.cascade.policy import Policy, outcome

RESAMPLINGS = 30
FITTED = 0.2  # of the examples where one set has to do for both, as in the reference
INTERVAL = (0.025, 0.975)
BUDGETS = 25  # points on a joint frontier
LOSSES = (0.0, 0.005, 0.01)  # of accuracy against the full width, that a headline may promise


class Judged(NamedTuple):
    """Examples [G, N] as `fit_greedy` and `fit_frontier` take them."""

    dims: tuple[int, ...]
    confidence_gn: np.ndarray
    right_gn: np.ndarray

    def of(self, rows: np.ndarray) -> "Judged":
        """Some of them."""
        return Judged(self.dims, self.confidence_gn[:, rows], self.right_gn[:, rows])


class _Point(NamedTuple):
    about: dict[str, float]  # what the policy is the point for
    policy: Policy
    promised: dict[str, float]  # by the fitting examples, where anything is


_Curves = dict[str, list[_Point]]
_Numbers = dict[tuple[str, int], dict[str, float]]


def _joint(about: dict[str, float], fitted: Fitted) -> _Point:
    return _Point(about, fitted.policy, {"promised_accuracy": fitted.promised})


def _resampled(fit: Judged, test: Judged | None, seed: int) -> Iterator[tuple[Judged, Judged]]:
    """Pairs to fit and to test on: bootstraps of both, or disjoint parts of the one there is."""
    rng, n = np.random.default_rng(seed), fit.right_gn.shape[1]
    for _ in range(RESAMPLINGS):
        if test is None:
            order, first = rng.permutation(n), max(1, round(FITTED * n))
            yield fit.of(order[:first]), fit.of(order[first:])
        else:
            m = test.right_gn.shape[1]
            yield fit.of(rng.integers(0, n, n)), test.of(rng.integers(0, m, m))


def _curves(fit: Judged, shared: bool) -> _Curves:
    """All policies; nothing is known here of the examples that they will be tested on."""
    greedy, joint = fit_greedy(*fit), fit_frontier(*fit)
    capped = [greedy.capped(m) for m in fit.dims[1:]]
    budgets = [float(b) for b in np.geomspace(fit.dims[0], fit.dims[-1], BUDGETS).round(2)]
    full = float(fit.right_gn[-1].mean())
    curves = {
        "headline": [_joint({"loss": x}, reaching(joint, full - x)) for x in LOSSES],
        "greedy": [_Point({"cap": p.dims[-1]}, p, {}) for p in capped],
        "joint_for_greedy": [
            _joint({"cap": p.dims[-1]}, within(joint, outcome(p, *fit).expected_dim))
            for p in capped
        ],
        "joint": [_joint({"budget": b}, within(joint, b)) for b in budgets],
    }
    if not shared:
        frontier = fit_frontier(*fit, "cumulative")
        curves["joint_cumulative"] = [_joint({"budget": b}, within(frontier, b)) for b in budgets]
    return curves


def _measured(curves: _Curves, test: Judged, shared: bool) -> _Numbers:
    """The numbers of every point, by (curve, index), on the test examples."""
    full = float(test.right_gn[-1].mean())
    found = {}
    for curve, points in curves.items():
        for i, point in enumerate(points):
            accuracy, expected_dim, cumulative_dim = outcome(point.policy, *test)
            found[curve, i] = {
                "accuracy": accuracy,
                "expected_dim": expected_dim,
                "cumulative_dim": expected_dim if shared else cumulative_dim,
                "gain_on_full_width": accuracy - full,
                "full_width_by_expected_dim": test.dims[-1] / expected_dim,
                **point.promised,
            }
    for i, _ in enumerate(curves["greedy"]):
        gain = found["joint_for_greedy", i]["accuracy"] - found["greedy", i]["accuracy"]
        found["joint_for_greedy", i]["gain_on_greedy"] = gain
    for g, right_n in enumerate(test.right_gn):
        found["single", g] = {"accuracy": float(right_n.mean())}
    # What is never right may as well stop at the first dim.
    found["oracle", 0] = {
        "accuracy": float(test.right_gn.any(0).mean()),
        "expected_dim": float(np.array(test.dims)[test.right_gn.argmax(0)].mean()),
    }
    return found


def study(
    fit: Judged, test: Judged | None, *, shared: bool, seed: int
) -> tuple[dict[str, Any], Policy]:
    """Fits cascades on some examples and measures them on others, 30 times.

    With two sets of examples the saved policies are fitted on `fit` and measured on `test`, and
    bootstraps of both give intervals. With one, 30 random fifths of it are fitted on and the other
    four tested on, as in the reference; the saved policies are then those of all of it.

    A number is a dict: "value" (what the saved policies give; of fifths the mean), "mean" and the
    95 % percentile interval "low", "high" over the resamplings.

    Args:
      fit: at two dims or more.
      test: of the same dims, or None.
      shared: logits grow from dim to dim (MRL-E), so that the work is the final dim.
      seed: of the resamplings.

    Returns:
      content: of a JSON file.
        "single": for each dim its own accuracy. "oracle": accuracy and expected dim of the best
        choice of a dim for every example. "curves": lists of points with policy, accuracy,
        expected_dim, cumulative_dim, gain_on_full_width (of accuracy), full_width_by_expected_dim
        and, of joint ones, promised_accuracy, which calibrated confidences of the fitting examples
        expected. "greedy" has the reference's policies, by "cap"; "joint_for_greedy" what the joint
        frontier has within the cost of those, with gain_on_greedy; "joint" and, where not
        `shared`, "joint_cumulative" the frontiers, by "budget" in dims. "headline": points that
        take the fewest dims and promise no more than a "loss" of accuracy against the full width.
      policy: that of the headline with no loss.
    """
    fit, test = (
        part and part._replace(confidence_gn=np.nan_to_num(part.confidence_gn, nan=0.0))
        for part in (fit, test)  # NaN stops nowhere, like 0
    )
    curves = _curves(fit, shared)
    whole = None if test is None else _measured(curves, test, shared)
    drawn = [
        _measured(_curves(fit_r, shared), test_r, shared)
        for fit_r, test_r in _resampled(fit, test, seed)
    ]

    def numbers(curve: str, i: int) -> dict[str, dict[str, float]]:
        found = {}
        for name in drawn[0][curve, i]:
            values = [measured[curve, i][name] for measured in drawn]
            mean, (low, high) = float(np.mean(values)), np.quantile(values, INTERVAL)
            value = whole[curve, i][name] if whole else mean
            found[name] = {"value": value, "mean": mean, "low": float(low), "high": float(high)}
        return found

    points = {
        curve: [
            {**point.about, "policy": point.policy.to_dict(), **numbers(curve, i)}
            for i, point in enumerate(listed)
        ]
        for curve, listed in curves.items()
    }
    content = {
        "dims": list(fit.dims),
        "resamplings": RESAMPLINGS,
        "work": "expected_dim" if shared else "cumulative_dim",
        "single": [{"dim": m, **numbers("single", g)} for g, m in enumerate(fit.dims)],
        "oracle": numbers("oracle", 0),
        "headline": points.pop("headline"),
        "curves": points,
    }
    return content, curves["headline"][0].policy
