"""From the tables of a study to the charts that show them."""

import dataclasses
import itertools
from collections.abc import Sequence

from mrl_jax.plots import Chart, Line, Point
from mrl_jax.reporting.tables import NESTED, SIGNIFICANCE, TRAINED, Comparison, Curve, Table

MOST_LINES = 8
# Which curves a chart keeps if it has no room for all; random choices are the weakest rivals.
_PRIORITY = (*TRAINED, "ff_cut", "ff_pca", "ff_svd", "ff_probe", "ff_rotation", "ff_random")


def shown(table: Table) -> list[Curve]:
    """The curves a chart has room for; all that were trained, however many."""
    trained = [curve for curve in table.curves if curve.role in TRAINED]
    rest = [curve for curve in table.curves if curve.role not in TRAINED]
    rest.sort(key=lambda curve: _PRIORITY.index(curve.role))
    kept = trained + rest[: max(0, MOST_LINES - len(trained))]
    return [curve for curve in table.curves if curve in kept]


def first_nested(table: Table) -> Curve | None:
    """The curve of MRL, or else of MRL-E."""
    return next((curve for curve in table.curves if curve.role in NESTED), None)


def line(curve: Curve, label: str = "", dashes: int = 0, scale: float = 1) -> Line:
    """A curve with bars of one sample standard deviation over seeds; x is dims times `scale`."""
    points = []
    for dim in sorted(curve.values):
        summary = curve.summary(dim)
        ends = (summary.mean - (summary.sd or 0.0), summary.mean + (summary.sd or 0.0))
        points.append(Point(scale * dim, summary.mean, *ends, filled=dim in curve.trained))
    return Line(label or curve.short or curve.label, curve.role, tuple(points), dashes)


def _differences(comparison: Comparison, dashes: int, scale: float) -> Line:
    """Filled where the difference remains after Holm's correction; inside, these networks alone."""
    points = []
    for dim, (difference, p) in comparison.by_dim.items():
        low, high = difference.low, difference.high
        networks = difference.networks
        inner = (networks.low, networks.high) if networks and networks.low is not None else None
        filled = p <= SIGNIFICANCE and low is not None
        points.append(Point(scale * dim, difference.mean, low, high, filled, inner))
    return Line(comparison.label, comparison.curve.role, tuple(points), dashes)


def of_table(table: Table, x_label: str = "dims m", scale: float = 1) -> Chart:
    """A line per curve, filled markers at the dims it was trained at, dashes by variant.

    Below, the differences from FF-m with their intervals.
    """
    curves = shown(table)
    variants = list(dict.fromkeys(curve.variant for curve in curves))
    ticks = table.trained & {*table.dims} or table.dims
    noun = " accuracy" if table.about.noun == "accuracy" else ""
    names = sorted({c.label.partition(",")[0] for c in table.comparisons})
    return Chart(
        f"{table.title}{noun}, %",
        x_label,
        tuple(line(c, dashes=variants.index(c.variant), scale=scale) for c in curves),
        tuple(scale * dim for dim in sorted(ticks)),
        tuple(_differences(c, variants.index(c.curve.variant), scale) for c in table.comparisons),
        f"{' and '.join(names)}, points",
        tuple(scale * dim for dim in table.dims),
    )


def overlay(title: str, named: Sequence[tuple[str, Table]]) -> Chart:
    """Several tables in one chart: a colour per table, the first nested method beside FF-m.

    FF-m is dashed, and left out where there are too many tables.
    """
    lines, dims = [], set()
    for role, (name, table) in zip(itertools.cycle(TRAINED + _PRIORITY[4:]), named, strict=False):
        curves = [first_nested(table), next((c for c in table.curves if c.role == "ff"), None)]
        for curve, dashes in zip(curves, (0, 1), strict=True):
            if curve and not (dashes and 2 * len(named) > MOST_LINES + 2):
                label = name if dashes == 0 else f"{name}, {curve.label}"
                lines.append(dataclasses.replace(line(curve, label, dashes), role=role))
                dims |= curve.trained & curve.values.keys()
    return Chart(title, "dims m", tuple(lines), tuple(sorted(dims)))


def solid(named: Sequence[tuple[str, Table]]) -> str:
    """Which method the solid lines of `overlay` are."""
    labels = {curve.label for _, table in named if (curve := first_nested(table))}
    return " and ".join(sorted(labels)) or "none"
