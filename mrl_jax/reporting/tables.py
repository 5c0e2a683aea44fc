"""Tables of a metric by dimension: which curves there are, their cells and what is compared."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from mrl_jax.record import metrics
from mrl_jax.record.artefacts import Units
from mrl_jax.record.results import Result
from mrl_jax.reporting import methods as methods_lib
from mrl_jax.reporting import statistics
from mrl_jax.reporting.methods import Method, series
from mrl_jax.reporting.statistics import Difference, Summary

SPLIT_NAMES = {"val": "validation", "test": "test"}
SIGNIFICANCE = 1 - statistics.LEVEL
ROLES = {"separate": "mrl", "shared": "mrl_e", "fixed": "ff", methods_lib.SLIM: "slim"}
NESTED, TRAINED = ("mrl", "mrl_e"), ("mrl", "mrl_e", "ff", "slim")


def _unknown(dim: int) -> Mapping[int, Units]:
    del dim
    return {}


@dataclasses.dataclass(frozen=True)
class Curve:
    """One column of a table and one line of a plot.

    Attributes:
      label: as in "FF-64, PCA to m"; `short` is "PCA to m".
      role: "mrl", "mrl_e", "ff", "slim", or that of an untrained rival (`metrics.Rival`).
      variant: config values in which the study's methods differ.
      trained: dims at which exactly this prefix was trained.
      values: {dim: {seed: value}}.
      units: by dim and then by seed, what the values are the means of, where known.
      same: dims at which this is the embedding it is made of, and no rival.
      results: the results that the values were taken from.
    """

    label: str
    role: str
    variant: methods_lib.Variant
    trained: frozenset[int]
    values: dict[int, dict[int, float]]
    units: Callable[[int], Mapping[int, Units]] = _unknown
    same: frozenset[int] = frozenset()
    short: str = ""
    results: tuple[Result, ...] = ()

    def summary(self, dim: int) -> Summary | None:
        """Mean and spread over seeds at `dim`; None where nothing was measured."""
        values = self.values.get(dim)
        return statistics.summarize(list(values.values())) if values else None


def _with_verdict(
    by_dim: Mapping[int, tuple[Difference, float]], verdict: str, holm: bool
) -> list[int]:
    return [
        dim
        for dim, (difference, p) in by_dim.items()
        if difference.verdict == verdict and (not holm or p <= SIGNIFICANCE)
    ]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A nested method against a baseline, dim by dim: the difference and Holm's p value.

    Attributes:
      unit: what the two were compared on one by one, "examples" say; "" where only means are known.
      networks: the same for these networks alone, where the intervals of `by_dim` speak of
        training again as well.
    """

    curve: Curve
    against: Curve
    label: str
    by_dim: dict[int, tuple[Difference, float]]
    unit: str = ""
    networks: dict[int, tuple[Difference, float]] = dataclasses.field(default_factory=dict)

    def dims(self, verdict: str, holm: bool = False) -> list[int]:
        """The dims with this verdict; with `holm`, those where it holds after the correction."""
        return _with_verdict(self.by_dim, verdict, holm)

    def dims_of_networks(self, verdict: str) -> list[int]:
        """The dims where these networks have this verdict after the correction."""
        return _with_verdict(self.networks, verdict, True)

    @property
    def has_verdicts(self) -> bool:
        """Whether there is an interval at any dim."""
        entries = (*self.by_dim.values(), *self.networks.values())
        return any(difference.low is not None for difference, _ in entries)

    def seeds(self, dim: int) -> tuple[int, ...]:
        """The seeds that both sides have at a dim, which are those compared."""
        return tuple(sorted(self.curve.values[dim].keys() & self.against.values[dim].keys()))

    def is_even(self, dim: int) -> bool:
        """Whether both sides have the same seeds at a dim."""
        return self.curve.values[dim].keys() == self.against.values[dim].keys()

    @property
    def one_seed(self) -> bool:
        """Whether it rests on one pair of networks at every dim."""
        return all(difference.n == 1 for difference, _ in self.by_dim.values())


@dataclasses.dataclass(frozen=True)
class Table:
    """The numbers of one metric on one split.

    Attributes:
      comparisons: of MRL with FF-m, Holm's correction over the dims of each.
      rivals: of MRL with all other baselines, one correction for all of them together.
    """

    metric: str
    split: str
    curves: tuple[Curve, ...]
    comparisons: tuple[Comparison, ...]
    dims: tuple[int, ...]
    trained: frozenset[int]
    rivals: tuple[Comparison, ...] = ()

    @property
    def n_seeds(self) -> int:
        """What most cells average over."""
        seeds = Counter(len(values) for curve in self.curves for values in curve.values.values())
        return max(seeds, key=lambda n: (seeds[n], n))

    @property
    def n_examples(self) -> tuple[int, ...]:
        """The distinct numbers of examples on which the values rest."""
        return tuple(sorted({result.n for curve in self.curves for result in curve.results}))

    @property
    def stderr(self) -> tuple[float, float]:
        """The smallest and the largest standard error of one run's value."""
        errors = [result.stderr for curve in self.curves for result in curve.results]
        return min(errors), max(errors)

    @property
    def about(self) -> metrics.Metric:
        """How the metric is read."""
        return metrics.describe(self.metric)

    @property
    def unit(self) -> str:
        """What a value is the mean of, as in "test examples"."""
        unit = "examples" if self.about.unit == "streams" else self.about.unit
        return f"{SPLIT_NAMES.get(self.split, self.split)} {unit}"

    @property
    def title(self) -> str:
        """As in "Linear top-1, test"."""
        return f"{self.about.title}, {SPLIT_NAMES.get(self.split, self.split)}"

    def only(self, roles: Sequence[str]) -> "Table":
        """The same with fewer columns."""
        return dataclasses.replace(self, curves=tuple(c for c in self.curves if c.role in roles))

    def best(self, dim: int) -> list[str]:
        """Labels of the curves with the best mean at `dim`, all that tie; [] without rivals.

        Only curves that were measured on the same data are rivals.
        """
        sign = -1 if self.about.lower_is_better else 1
        contests: dict[methods_lib.Variant, dict[str, float]] = {}
        for curve in self.curves:
            if dim in curve.values and dim not in curve.same:
                contest = contests.setdefault(methods_lib.read_of(curve.variant), {})
                contest[curve.label] = sign * curve.summary(dim).mean
        return [
            label
            for means in contests.values()
            for label, mean in means.items()
            # Equal values may differ in the last float digit.
            if len(means) > 1 and mean >= max(means.values()) - 1e-9
        ]


def names(methods: Sequence[Method], split: str) -> list[str]:
    """The metrics measured on a split, the most telling first, without those of rivals."""
    found = {
        result.metric
        for method in methods
        for run in method.runs.values()
        for result in run.results
        if result.series.place == split and result.space == metrics.TRAINED and result.layer is None
    }
    return sorted(found, key=metrics.order)


def _own_curve(method: Method, split: str, metric: str) -> Curve:
    of = series(split, metric)
    return Curve(
        method.label,
        ROLES[method.kind],
        method.variant,
        frozenset(method.dims),
        method.values(of),
        lambda dim: method.units(of, dim),
        results=tuple(method.measured(of)),
    )


def _families(methods: Sequence[Method], kind: str) -> list[list[Method]]:
    """The methods of one dim each (FF or Slim) of each variant, by dim."""
    families: dict[methods_lib.Variant, list[Method]] = {}
    for method in methods:
        if method.kind == kind:
            families.setdefault(method.variant, []).append(method)
    return list(families.values())


def _family_curve(family: Sequence[Method], split: str, metric: str) -> Curve:
    """FF-m: at every dim the runs that were trained at that dim alone."""
    of, members = series(split, metric), {method.dims[-1]: method for method in family}
    values = {dim: method.values(of).get(dim) for dim, method in members.items()}
    values = {dim: at_dim for dim, at_dim in values.items() if at_dim}
    return Curve(
        family[0].curve_label,
        ROLES[family[0].kind],
        family[0].variant,
        frozenset(values),
        values,
        lambda dim: members[dim].units(of, dim),
        results=tuple(
            result
            for dim, member in members.items()
            for result in member.measured(of)
            if result.dim == dim
        ),
    )


def _derived_curves(family: Sequence[Method], split: str, metric: str) -> list[Curve]:
    """What the widest FF gives at smaller dims without further training."""
    widest = family[-1]
    width = widest.dims[-1]
    # The cut is what the metric itself says of shorter prefixes, or else a measure of its own.
    own = series(split, metric)
    by_itself = widest.values(own).keys() - {width}
    measured = {
        own if space == "cut" and by_itself else own._replace(space=space): rival
        for space, rival in metrics.RIVALS.items()
    }
    guests = {series(split, *key): rival for key, rival in metrics.GUESTS.get(metric, {}).items()}
    curves = []
    for of, rival in (measured | guests).items():
        values = widest.values(of)
        centred = rival.centres and metrics.describe(metric).by_cosine
        other = of in guests or centred  # even at the full width
        if not other and not values.keys() - {width}:
            continue  # at its full width alone it is FF-m once more
        same = frozenset() if other else frozenset({width} & values.keys())
        curves.append(
            Curve(
                f"FF-{width}, {rival.label}{widest.suffix}",
                rival.role,
                widest.variant,
                same,
                values,
                lambda dim, of=of: widest.units(of, dim),
                same,
                rival.label + widest.suffix,
                tuple(widest.measured(of)),
            )
        )
    return curves


def _frozen_curves(methods: Sequence[Method], split: str, metric: str) -> list[Curve]:
    """What vectors give without an adaptor, once for each set of vectors."""
    adaptors = [
        m for m in methods if all(r.config.get("task") == "adaptor" for r in m.runs.values())
    ]
    first: dict[methods_lib.Variant, Method] = {}
    for method in adaptors:
        first.setdefault(methods_lib.read_of(method.variant), method)
    return [
        Curve(
            f"frozen vectors, {rival.label}{methods_lib.suffix(read, first)}",
            rival.role,
            read,
            frozenset(),
            values,
            short=rival.label,
            results=tuple(method.measured(series(split, metric, space))),
        )
        for read, method in first.items()
        for space, rival in metrics.RIVALS.items()
        if (values := method.values(series(split, metric, space)))
    ]


def _shared_units(a: Curve, b: Curve, dim: int) -> dict[int, tuple[Units, Units]]:
    """By seed what both are the means of, where these are the same units."""
    of_a, of_b = a.units(dim), b.units(dim)
    return {
        seed: (of_a[seed], of_b[seed])
        for seed in of_a.keys() & of_b.keys()
        if of_a[seed].key == of_b[seed].key
    }


def compare(curve: Curve, against: Curve, label: str, lower_is_better: bool) -> Comparison | None:
    """`curve - against` at the dims that `curve` was trained at; None where they share none.

    The p values are those of each dim alone, see `corrected`.
    """
    by_dim, unit = {}, ""
    for dim in sorted(curve.values.keys() & against.values.keys()):
        # A prefix that was never trained is no contest for a model trained at that dim.
        if dim not in curve.trained or dim in against.same:
            continue
        units = _shared_units(curve, against, dim)
        difference = statistics.paired_difference(
            curve.values[dim],
            against.values[dim],
            {seed: (of_a.value_n, of_b.value_n) for seed, (of_a, of_b) in units.items()},
            lower_is_better=lower_is_better,
        )
        if difference:
            by_dim[dim] = (difference, difference.p)
            if difference.units:
                unit = next(iter(units.values()))[0].noun
    networks = {dim: (d.networks, d.networks.p) for dim, (d, _) in by_dim.items() if d.networks}
    return Comparison(curve, against, label, by_dim, unit, networks) if by_dim else None


def corrected(comparisons: Sequence[Comparison | None]) -> tuple[Comparison, ...]:
    """The same comparisons with Holm's correction for all of them together."""
    found = [c for c in comparisons if c]

    def adjusted(every: Sequence[dict[int, tuple[Difference, float]]]) -> list[dict]:
        p = iter(statistics.holm([d.p for by_dim in every for d, _ in by_dim.values()]))
        return [{dim: (d, next(p)) for dim, (d, _) in by_dim.items()} for by_dim in every]

    parts = zip(
        found,
        adjusted([c.by_dim for c in found]),
        adjusted([c.networks for c in found]),
        strict=True,
    )
    return tuple(
        dataclasses.replace(c, by_dim=by_dim, networks=networks) for c, by_dim, networks in parts
    )


def _comparisons(
    methods: Sequence[Method], curves: Sequence[Curve], split: str, metric: str
) -> tuple[tuple[Comparison, ...], tuple[Comparison, ...]]:
    """MRL, or MRL-E in a study without it, against FF-m; and against all other baselines."""
    lower_is_better = metrics.describe(metric).lower_is_better
    compared = "separate" if any(m.kind == "separate" for m in methods) else "shared"
    by_label = {curve.label: curve for curve in curves}
    main, rivals = [], []
    for method in methods:
        curve = by_label.get(method.label)
        if method.kind != compared or not curve:
            continue
        against: list[Curve] = []
        if family := methods_lib.baseline(method, methods):
            name = f"{methods_lib.NAMES[compared]} − FF{method.suffix}"
            fixed = _family_curve(family, split, metric)
            main += corrected([compare(curve, fixed, name, lower_is_better)])
            against += _derived_curves(family, split, metric)
        if family := methods_lib.baseline(method, methods, methods_lib.SLIM):
            against.append(_family_curve(family, split, metric))
        rivals += [
            compare(curve, other, f"{method.label} − {other.label}", lower_is_better)
            for other in against
        ]
    return tuple(main), corrected(rivals)


def build(methods: Sequence[Method], split: str, metric: str) -> Table | None:
    """The table of `metric` on `split`; None where no run has such a number.

    The columns follow Tables 1 and 2 of the paper (arXiv 2205.13147).
    """
    curves = [_own_curve(m, split, metric) for m in methods if m.kind not in methods_lib.ONE_DIM]
    families = _families(methods, "fixed")
    for family in (*families, *_families(methods, methods_lib.SLIM)):
        curves.append(_family_curve(family, split, metric))
    for family in families:
        curves += _derived_curves(family, split, metric)
    curves += _frozen_curves(methods, split, metric)
    curves = [curve for curve in curves if curve.values]
    if not curves:
        return None
    comparisons, rivals = _comparisons(methods, curves, split, metric)
    return Table(
        metric=metric,
        split=split,
        curves=tuple(curves),
        comparisons=comparisons,
        dims=tuple(sorted({dim for curve in curves for dim in curve.values})),
        trained=frozenset().union(*(m.dims for m in methods)),
        rivals=rivals,
    )
