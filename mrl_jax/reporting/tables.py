"""Tables of accuracy by dimension: which curves there are, their cells and what is compared."""

import dataclasses
from collections import Counter
from collections.abc import Sequence

from mrl_jax.reporting import methods as methods_lib
from mrl_jax.reporting import statistics
from mrl_jax.reporting.methods import Method
from mrl_jax.reporting.statistics import Difference, Summary

METRIC_NAMES = {"top1": "Linear top-1", "top5": "Linear top-5", "1nn": "1-NN"}
SPLIT_NAMES = {"val": "validation", "test": "test"}
SIGNIFICANCE = 1 - statistics.LEVEL


@dataclasses.dataclass(frozen=True)
class Curve:
    """One column of a table and one line of a plot: accuracies as {dim: {seed: value}}."""

    label: str
    role: str  # mrl | mrl_e | ff | ff_cut | ff_pca | ff_random
    variant: methods_lib.Variant
    trained: frozenset[int]  # dims at which exactly this prefix was trained
    values: dict[int, dict[int, float]]

    def summary(self, dim: int) -> Summary | None:
        """Mean and spread over seeds at `dim`; None where nothing was measured."""
        values = self.values.get(dim)
        return statistics.summarize(list(values.values())) if values else None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A nested method against FF-m, dim by dim: the paired difference and Holm's p value."""

    curve: Curve
    label: str
    by_dim: dict[int, tuple[Difference, float]]

    def dims(self, verdict: str, holm: bool = False) -> list[int]:
        """The dims with this verdict; with `holm`, those where it holds after the correction."""
        return [
            dim
            for dim, (difference, p) in self.by_dim.items()
            if difference.verdict == verdict and (not holm or p <= SIGNIFICANCE)
        ]


@dataclasses.dataclass(frozen=True)
class Table:
    """The numbers of one metric on one split. `n_seeds` is what most cells average over."""

    metric: str
    split: str
    curves: tuple[Curve, ...]
    comparisons: tuple[Comparison, ...]
    dims: tuple[int, ...]
    trained: frozenset[int]
    n_seeds: int
    n_examples: tuple[int, ...]
    stderr: tuple[float, float]  # smallest and largest binomial standard error

    @property
    def title(self) -> str:
        """As in "Linear top-1, test"."""
        return f"{METRIC_NAMES[self.metric]}, {SPLIT_NAMES.get(self.split, self.split)}"

    def best(self, dim: int) -> list[str]:
        """Labels of the curves with the highest mean at `dim`, all that tie; [] without rivals."""
        means = {
            curve.label: curve.summary(dim).mean
            for curve in self.curves
            # At full width, a choice of dims of FF is FF-m, which has a column of its own.
            if dim in curve.values
            and not (curve.role in ("ff_cut", "ff_random") and dim in curve.trained)
        }
        if len(means) < 2:
            return []
        # Equal accuracies may differ in the last float digit.
        return [label for label, mean in means.items() if mean >= max(means.values()) - 1e-9]


def _nested_curves(methods: Sequence[Method], split: str, metric: str) -> list[Curve]:
    roles = {"separate": "mrl", "shared": "mrl_e"}
    return [
        Curve(m.label, roles[m.kind], m.variant, frozenset(m.dims), m.values(split, metric))
        for m in methods
        if m.kind in roles
    ]


def _fixed_families(methods: Sequence[Method]) -> list[list[Method]]:
    """The FF methods of each variant, by dim."""
    families: dict[methods_lib.Variant, list[Method]] = {}
    for method in methods:
        if method.kind == "fixed":
            families.setdefault(method.variant, []).append(method)
    return list(families.values())


def _fixed_curve(family: Sequence[Method], split: str, metric: str) -> Curve:
    """FF-m: at every dim the runs that were trained at that dim alone."""
    values = {}
    for method in family:
        dim = method.dims[-1]
        at_dim = method.values(split, metric).get(dim)
        if at_dim:
            values[dim] = at_dim
    label = "FF-m" + family[0].suffix
    return Curve(label, "ff", family[0].variant, frozenset(values), values)


def _derived_curves(family: Sequence[Method], split: str, metric: str) -> list[Curve]:
    """What the widest FF gives at smaller dims without further training."""
    widest = family[-1]
    width = widest.dims[-1]
    name = f"FF-{width}"
    wanted = [("ff_cut", metric, f"{name}, first m dims")]
    if metric == "1nn":
        wanted.append(("ff_pca", "1nn_pca", f"{name}, PCA to m"))
        wanted.append(("ff_random", "1nn_random", f"{name}, random m dims"))
    curves = []
    for role, measured, label in wanted:
        values = widest.values(split, measured)
        # The cut at its full width alone is FF-m once more.
        if role != "ff_cut" or values.keys() - {width}:
            trained = frozenset({width} & values.keys()) if role != "ff_pca" else frozenset()
            curves.append(Curve(label + widest.suffix, role, widest.variant, trained, values))
    return curves


def _compare(curve: Curve, fixed: Curve, label: str) -> Comparison | None:
    by_dim = {}
    for dim in sorted(curve.values.keys() & fixed.values.keys()):
        # A prefix that was never trained is no contest for a model trained at that dim.
        if dim in curve.trained:
            difference = statistics.paired_difference(curve.values[dim], fixed.values[dim])
            if difference:
                by_dim[dim] = difference
    if not by_dim:
        return None
    adjusted = statistics.holm([difference.p for difference in by_dim.values()])
    pairs = zip(by_dim.items(), adjusted, strict=True)
    return Comparison(curve, label, {dim: (difference, p) for (dim, difference), p in pairs})


def build(methods: Sequence[Method], split: str, metric: str) -> Table | None:
    """The table of `metric` on `split`; None where no run has such a number.

    The columns follow Tables 1 and 2 of the paper (arXiv 2205.13147). Compared with FF-m is MRL,
    or MRL-E in a study without MRL.
    """
    families = _fixed_families(methods)
    curves = _nested_curves(methods, split, metric)
    curves += [_fixed_curve(family, split, metric) for family in families]
    for family in families:
        curves += _derived_curves(family, split, metric)
    curves = [curve for curve in curves if curve.values]
    if not curves:
        return None

    comparisons = []
    compared = "separate" if any(m.kind == "separate" for m in methods) else "shared"
    for method in methods:
        rivals = methods_lib.baseline(method, methods)
        curve = next((c for c in curves if c.label == method.label), None)
        if method.kind == compared and curve and rivals:
            label = f"{methods_lib.NAMES[compared]} − FF{method.suffix}"
            comparisons.append(_compare(curve, _fixed_curve(rivals, split, metric), label))

    measured = {metric} | ({"1nn_pca", "1nn_random"} if metric == "1nn" else set())
    results = [
        result
        for method in methods
        for run in method.runs.values()
        for result in run.results
        if result.split == split and result.metric in measured
    ]
    seeds = Counter(len(values) for curve in curves for values in curve.values.values())
    return Table(
        metric=metric,
        split=split,
        curves=tuple(curves),
        comparisons=tuple(c for c in comparisons if c),
        dims=tuple(sorted({dim for curve in curves for dim in curve.values})),
        trained=frozenset().union(*(m.dims for m in methods)),
        n_seeds=max(seeds, key=lambda n: (seeds[n], n)),
        n_examples=tuple(sorted({result.n for result in results})),
        stderr=(min(r.stderr for r in results), max(r.stderr for r in results)),
    )
