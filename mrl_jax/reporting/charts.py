"""From the tables of a study to the charts that show them."""

import itertools
from collections.abc import Sequence

from mrl_jax.plots import ROLES, Chart, Line, Point
from mrl_jax.reporting.tables import NESTED, TRAINED, Comparison, Curve, Table

MOST_LINES = 8


def shown(table: Table) -> list[Curve]:
    """The curves a chart has room for; all that were trained, however many."""
    ordered = sorted(table.curves, key=lambda curve: [*ROLES].index(curve.role))
    trained = sum(curve.role in TRAINED for curve in ordered)
    kept = ordered[: max(MOST_LINES, trained)]
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
    for dim, d in comparison.by_dim.items():
        here = d.networks
        inner = (here.low, here.high) if here and here.low is not None else None
        points.append(Point(scale * dim, d.mean, d.low, d.high, d.stands, inner))
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
    percent, points = (", %", ", points") if table.about.percent else ("", "")
    return Chart(
        f"{table.title}{noun}{percent}",
        x_label,
        tuple(line(c, dashes=variants.index(c.variant), scale=scale) for c in curves),
        tuple(scale * dim for dim in sorted(ticks)),
        tuple(_differences(c, variants.index(c.curve.variant), scale) for c in table.comparisons),
        f"{' and '.join(names)}{points}",
        tuple(scale * dim for dim in table.dims),
        table.about.scale,
    )


def overlay(title: str, named: Sequence[tuple[str, Table]]) -> Chart:
    """Several tables in one chart: a colour per table, the first nested method beside FF-m.

    FF-m is dashed, and left out where there are too many tables.
    """
    lines, dims = [], set()
    for role, (name, table) in zip(itertools.cycle(ROLES), named, strict=False):
        curves = [first_nested(table), next((c for c in table.curves if c.role == "ff"), None)]
        for curve, dashes in zip(curves, (0, 1), strict=True):
            if curve and not (dashes and 2 * len(named) > MOST_LINES + 2):
                label = name if dashes == 0 else f"{name}, {curve.label}"
                lines.append(line(curve, label, dashes)._replace(role=role))
                dims |= curve.trained & curve.values.keys()
    return Chart(title, "dims m", tuple(lines), tuple(sorted(dims)))
