"""Tables of a metric by dimension: their curves, and which of these are compared."""

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from mrl_jax.config import tasks
from mrl_jax.record import metrics
from mrl_jax.record.artefacts import Units
from mrl_jax.record.metrics import Metric
from mrl_jax.record.results import Series
from mrl_jax.reporting import methods as methods_lib
from mrl_jax.reporting import statistics
from mrl_jax.reporting.methods import Method
from mrl_jax.reporting.statistics import Difference, Summary

SPLIT_NAMES = {"val": "validation", "test": "test"}
ROLES = {"separate": "mrl", "shared": "mrl_e", "fixed": "ff", methods_lib.SLIM: "slim"}
NESTED, TRAINED = ("mrl", "mrl_e"), ("mrl", "mrl_e", "ff", "slim")


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """One column of a table and one line of a plot.

    Attributes:
      label: as in "FF-64, PCA to m"; `short` is "PCA to m".
      role: "mrl", "mrl_e", "ff", "slim", or that of an untrained rival (`metrics.Rival`).
      variant: config values in which the study's methods differ.
      trained: dims at which exactly this prefix was trained.
      frame: the results, with at least the columns seed, dim, value, stderr and n.
      units: by dim and then by seed, what the values are the means of, where known.
      same: dims at which this is the embedding it is made of, and no rival.
    """

    label: str
    role: str
    variant: methods_lib.Variant
    trained: frozenset[int]
    frame: pd.DataFrame
    units: Callable[[int], Mapping[int, Units]] = lambda dim: {}
    same: frozenset[int] = frozenset()
    short: str = ""

    @functools.cached_property
    def values(self) -> dict[int, dict[int, float]]:
        """{dim: {seed: value}}."""
        by_dim = self.frame.groupby("dim")
        return {dim: dict(zip(rows.seed, rows.value, strict=True)) for dim, rows in by_dim}

    def summary(self, dim: int) -> Summary | None:
        """Mean and spread over seeds at `dim`; None where nothing was measured."""
        values = self.values.get(dim)
        return statistics.summarize(list(values.values())) if values else None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A nested method against a baseline, dim by dim.

    `unit` is what the two were compared on one by one, "examples" say; "" where only means are
    known.
    """

    curve: Curve
    against: Curve
    label: str
    by_dim: dict[int, Difference]
    unit: str = ""

    @property
    def networks(self) -> dict[int, Difference]:
        """For these networks alone, where those of `by_dim` speak of training again as well."""
        return {dim: d.networks for dim, d in self.by_dim.items() if d.networks}

    def dims(self, verdict: str, *, networks: bool = False) -> list[int]:
        """The dims with a verdict that stands after Holm's correction."""
        found = (self.networks if networks else self.by_dim).items()
        return [dim for dim, d in found if d.verdict == verdict and d.stands]

    @property
    def has_verdicts(self) -> bool:
        """Whether there is an interval at any dim."""
        return any(d.low is not None for d in (*self.by_dim.values(), *self.networks.values()))

    @property
    def one_seed(self) -> bool:
        """Whether it rests on one pair of networks at every dim."""
        return all(difference.n == 1 for difference in self.by_dim.values())


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """The numbers of one metric on one split or set.

    Attributes:
      comparisons: of MRL with FF-m, Holm's correction over the dims of each.
      rivals: of MRL with all other baselines, one correction for all of them together.
      about: how the metric is read.
    """

    series: Series
    curves: tuple[Curve, ...]
    comparisons: tuple[Comparison, ...]
    dims: tuple[int, ...]
    trained: frozenset[int]
    about: Metric
    rivals: tuple[Comparison, ...] = ()

    @functools.cached_property
    def frame(self) -> pd.DataFrame:
        """The results of all curves."""
        return pd.concat([curve.frame.assign(curve=curve.label) for curve in self.curves])

    @property
    def n_seeds(self) -> int:
        """How many seeds most cells average over; of two equally frequent numbers, the larger."""
        seeds = self.frame.groupby(["curve", "dim"]).seed.nunique()
        return int(seeds.mode().max())

    @property
    def place(self) -> str:
        """The split or set, as a heading has it."""
        return SPLIT_NAMES.get(self.series.place, self.series.place)

    @property
    def title(self) -> str:
        """As in "Linear top-1, test"."""
        space = metrics.RIVALS.get(self.series.space)
        return ", ".join([self.about.title, *([space.label] if space else []), self.place])

    def only(self, roles: Sequence[str]) -> "Table":
        """The same with fewer columns."""
        return dataclasses.replace(self, curves=tuple(c for c in self.curves if c.role in roles))

    def best(self, dim: int) -> list[str]:
        """Labels of the curves with the best mean at `dim`, all that tie; [] without rivals.

        Only curves that were measured on the same data are rivals.
        """
        sign = -1 if self.about.lower_is_better else 1
        contests: dict[methods_lib.Variant, dict[str, float]] = defaultdict(dict)
        for curve in self.curves:
            if dim in curve.values and dim not in curve.same:
                mean = sign * curve.summary(dim).mean
                contests[methods_lib.read_of(curve.variant)][curve.label] = mean
        return [
            label
            for means in contests.values()
            for label, mean in means.items()
            # Equal values may differ in the last float digit.
            if len(means) > 1 and mean >= max(means.values()) - 1e-9
        ]


def measured(methods: Sequence[Method], base: Series) -> list[Series]:
    """What was measured on the split or set of `base`, the most important metrics first.

    Other spaces are left out where the trained one was measured, and so are guests.
    """
    found = {s for m in methods for s in m.series if s.of("") == base.of("")}
    guests = {base.of(*guest) for of_metric in metrics.GUESTS.values() for guest in of_metric}
    own = {series for series in found - guests if series.space == metrics.TRAINED}
    alone = {s for s in found - guests if s.space != metrics.TRAINED and s.of(s.metric) not in own}
    return sorted(own | alone, key=lambda s: (metrics.order(s.metric), s.space))


def describe(methods: Sequence[Method], metric: str) -> Metric:
    """How a metric is read; the runs say so if it comes from outside the package."""
    rows = {name: row for m in methods for run in m.runs.values() for name, row in run.rows.items()}
    return metrics.describe(metric, rows)


def _own_curve(method: Method, series: Series) -> Curve:
    return Curve(
        method.label,
        ROLES[method.kind],
        method.variant,
        frozenset(method.dims),
        method.measured(series),
        functools.partial(method.units, series),
    )


def _families(methods: Sequence[Method], kind: str) -> list[list[Method]]:
    """The methods of one dim each (FF or Slim) of each variant, by dim."""
    families: dict[methods_lib.Variant, list[Method]] = defaultdict(list)
    for method in methods:
        if method.kind == kind:
            families[method.variant].append(method)
    return list(families.values())


def _family_curve(family: Sequence[Method], series: Series) -> Curve:
    """FF-m: at every dim the runs that were trained at that dim alone."""
    members = {method.dims[-1]: method for method in family}
    frame = pd.concat([m.measured(series).query("dim == @dim") for dim, m in members.items()])
    return Curve(
        family[0].curve_label,
        ROLES[family[0].kind],
        family[0].variant,
        frozenset(map(int, frame.dim)),
        frame,
        lambda dim: members[dim].units(series, dim),
    )


def _derived_curves(family: Sequence[Method], series: Series) -> list[Curve]:
    """What the widest FF gives at smaller dims without further training."""
    widest = family[-1]
    width = widest.dims[-1]
    spaces = {series.of(series.metric, space): rival for space, rival in metrics.RIVALS.items()}
    if {*widest.measured(series).dim} - {width}:
        # This metric covers shorter prefixes itself; for others they are a space of their own.
        spaces = {(series if s.space == "cut" else s): rival for s, rival in spaces.items()}
    guests = metrics.GUESTS.get(series.metric, {})
    spaces |= {series.of(*guest): rival for guest, rival in guests.items()}
    by_cosine = metrics.describe(series.metric).by_cosine
    curves = []
    for source, rival in spaces.items():
        frame = widest.measured(source)
        # Subtracting the mean changes cosines even at full width; guests are other measures.
        other = source.metric != series.metric or (rival.centres and by_cosine)
        if not other and not {*frame.dim} - {width}:
            continue  # at full width alone, this is FF-m again
        same = frozenset() if other else frozenset({width} & {*frame.dim})
        curves.append(
            Curve(
                f"FF-{width}, {rival.label}{widest.suffix}",
                rival.role,
                widest.variant,
                same,
                frame,
                functools.partial(widest.units, source),
                same,
                rival.label + widest.suffix,
            )
        )
    return curves


def _frozen_curves(methods: Sequence[Method], series: Series) -> list[Curve]:
    """What vectors give without an adaptor, once for each set of vectors."""
    first: dict[methods_lib.Variant, Method] = {}
    for method in methods:
        if all(tasks.keeps_inputs(run.config.get("task", "")) for run in method.runs.values()):
            first.setdefault(methods_lib.read_of(method.variant), method)
    return [
        Curve(
            f"frozen vectors, {rival.label}{methods_lib.suffix(read, first)}",
            rival.role,
            read,
            frozenset(),
            frame,
            short=rival.label,
        )
        for read, method in first.items()
        for space, rival in metrics.RIVALS.items()
        if len(frame := method.measured(series.of(series.metric, space)))
    ]


def compare(curve: Curve, against: Curve, label: str, lower_is_better: bool) -> Comparison | None:
    """`curve - against` at the dims that `curve` was trained at; None where they share none."""
    by_dim, unit = {}, ""
    for dim in sorted(curve.values.keys() & against.values.keys()):
        # A prefix that was never trained is no contest for a model trained at that dim.
        if dim not in curve.trained or dim in against.same:
            continue
        mine, its = curve.units(dim), against.units(dim)
        shared = [s for s in mine.keys() & its.keys() if mine[s].key == its[s].key]
        difference = statistics.paired_difference(
            curve.values[dim],
            against.values[dim],
            {seed: (mine[seed].value_n, its[seed].value_n) for seed in shared},
            lower_is_better=lower_is_better,
        )
        if difference:
            by_dim[dim] = difference
            unit = mine[shared[0]].noun if difference.units else unit
    return Comparison(curve, against, label, by_dim, unit) if by_dim else None


def corrected(comparisons: Sequence[Comparison | None]) -> tuple[Comparison, ...]:
    """The comparisons that there are, after Holm's correction for all of them together."""
    found = tuple(filter(None, comparisons))
    for part in ("by_dim", "networks"):
        every = [d for comparison in found for d in getattr(comparison, part).values()]
        for difference, p in zip(every, statistics.holm([d.p for d in every]), strict=True):
            difference.adjusted_p = p
    return found


def _comparisons(
    methods: Sequence[Method], curves: Sequence[Curve], series: Series, about: Metric
) -> tuple[tuple[Comparison, ...], tuple[Comparison, ...]]:
    """MRL, or MRL-E in a study without it, against FF-m; and against all other baselines."""
    lower_is_better = about.lower_is_better
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
            fixed = _family_curve(family, series)
            main += corrected([compare(curve, fixed, name, lower_is_better)])
            against += _derived_curves(family, series)
        if family := methods_lib.baseline(method, methods, methods_lib.SLIM):
            against.append(_family_curve(family, series))
        rivals += [
            compare(curve, other, f"{method.label} − {other.label}", lower_is_better)
            for other in against
        ]
    return tuple(main), corrected(rivals)


def build(methods: Sequence[Method], series: Series) -> Table | None:
    """The table of a metric on a split or set; None where no run has such a number.

    The columns follow Tables 1 and 2 of the paper (arXiv 2205.13147).
    """
    curves = [_own_curve(m, series) for m in methods if m.kind not in methods_lib.ONE_DIM]
    families = _families(methods, "fixed")
    for family in (*families, *_families(methods, methods_lib.SLIM)):
        curves.append(_family_curve(family, series))
    for family in families:
        curves += _derived_curves(family, series)
    curves += _frozen_curves(methods, series)
    curves = [curve for curve in curves if len(curve.frame)]
    if not curves:
        return None
    about = describe(methods, series.metric)
    comparisons, rivals = _comparisons(methods, curves, series, about)
    return Table(
        series=series,
        curves=tuple(curves),
        comparisons=comparisons,
        dims=tuple(sorted({dim for curve in curves for dim in curve.values})),
        trained=frozenset().union(*(m.dims for m in methods)),
        about=about,
        rivals=rivals,
    )
