"""Accuracy against dims as PNG: log axis, every line named at its end, error bars over seeds."""

import dataclasses
import io
import math
import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from mrl_jax.reporting.sheet import plain
from mrl_jax.reporting.tables import Curve, Table

DPI = 200
WIDTH = 4.6  # inches: narrow enough that the text stays readable on a phone
POINT = 1 / 72  # inches
MOST_CURVES = 10
LABEL_CHARACTERS = 20  # a longer name is broken into lines


@dataclasses.dataclass(frozen=True)
class Theme:
    """Colours of a page: paper, ink, faint lines, and one per role (Okabe and Ito's palette)."""

    paper: str
    ink: str
    faint: str
    roles: dict[str, str]


LIGHT = Theme(
    paper="#ffffff",
    ink="#24292f",
    faint="#d8dde3",
    roles={
        "mrl": "#0072b2",
        "mrl_e": "#00805b",
        "ff": "#c94f00",
        "ff_cut": "#a87400",
        "ff_pca": "#b0568c",
        "ff_random": "#6b7280",
    },
)
DARK = Theme(
    paper="#14171a",
    ink="#d9dee3",
    faint="#363c43",
    roles={
        "mrl": "#56b4e9",
        "mrl_e": "#2fc49b",
        "ff": "#ff8a47",
        "ff_cut": "#e6b23c",
        "ff_pca": "#e08fc0",
        "ff_random": "#9aa3ad",
    },
)
# Shape and dashes say the same as the colour, for those who see or print no colours.
MARKERS = {
    "mrl": "o",
    "mrl_e": "s",
    "ff": "D",
    "ff_cut": "v",
    "ff_pca": "^",
    "ff_random": "<",
}
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))


def spread_labels(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near the `wanted` ones, in their order, at least `gap` apart, within [low, high].

    Too many labels for the space are spaced evenly over it.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    placed: list[float] = []
    for i in order:
        placed.append(max(wanted[i], placed[-1] + gap if placed else low))
    # Whatever was pushed out at the top moves back down, pushing its neighbours.
    limit = high
    for k in reversed(range(len(placed))):
        placed[k] = min(placed[k], limit)
        limit = placed[k] - gap
    positions = [0.0] * len(wanted)
    for i, position in zip(order, placed, strict=True):
        positions[i] = position
    return positions


def _ticks(dims: Sequence[int], trained: frozenset[int], span_inches: float) -> list[int]:
    """The dims written at the axis: trained ones, from the largest down, as far as they fit."""
    candidates = sorted((d for d in dims if d in trained), reverse=True) or list(dims)[::-1]
    octaves = math.log2(max(dims) / min(dims)) or 1.0
    kept: list[int] = []
    for dim in candidates:
        room = 0.08 * (len(str(dim)) + 1)  # inches at the font size of ticks
        if not kept or math.log2(kept[-1] / dim) / octaves * span_inches >= room:
            kept.append(dim)
    return kept


def _draw_curve(axes: Axes, curve: Curve, color: str, dashes, theme: Theme) -> float:
    """Draws one line with its markers; returns the height of its right end."""
    dims = sorted(curve.values)
    summaries = [curve.summary(dim) for dim in dims]
    means = [100 * s.mean for s in summaries]
    marker = MARKERS[curve.role]
    axes.plot(dims, means, color=color, linestyle=dashes, linewidth=1.5, zorder=3)
    for dim, summary, mean in zip(dims, summaries, means, strict=True):
        axes.errorbar(
            [dim],
            [mean],
            yerr=[100 * (summary.sd or 0.0)],
            color=color,
            marker=marker,
            markersize=5,
            markerfacecolor=color if dim in curve.trained else theme.paper,
            markeredgewidth=1.2,
            elinewidth=1.1,
            capsize=2.5 if summary.sd else 0,
            zorder=4,
        )
    return means[-1]


def _name_curves(axes: Axes, curves: Sequence[Curve], ends: Sequence[float], colors) -> None:
    """Writes each line's name right of the axes, joined to its end where it had to move."""
    figure = axes.figure
    names = [textwrap.fill(plain(curve.label), LABEL_CHARACTERS) for curve in curves]
    texts = [
        # A label may hold config text; "$" in it is no formula.
        axes.text(0, 0, name, color=color, fontsize=8.5, va="center", parse_math=False)
        for name, color in zip(names, colors, strict=True)
    ]
    figure.canvas.draw()
    # The axes get what the names leave of the width.
    widest = max(text.get_window_extent().width for text in texts) / figure.dpi
    left, bottom, _, height = axes.get_position().bounds
    axes.set_position((left, bottom, 1 - left - (widest + 0.42) / WIDTH, height))
    figure.canvas.draw()
    to_axes = axes.transAxes.inverted()
    inch = 1 / (axes.get_window_extent().width / figure.dpi)
    gap = max(text.get_window_extent().height for text in texts) + 1.5 * POINT * figure.dpi
    points = [
        to_axes.transform(axes.transData.transform((max(curve.values), end)))
        for curve, end in zip(curves, ends, strict=True)
    ]
    heights = [point[1] for point in points]
    placed = spread_labels(heights, gap / axes.get_window_extent().height, 0.0, 1.0)
    for text, point, at, color in zip(texts, points, placed, colors, strict=True):
        axes.plot(
            [point[0] + 0.05 * inch, 1 + 0.05 * inch, 1 + 0.2 * inch, 1 + 0.25 * inch],
            [point[1], point[1], at, at],
            transform=axes.transAxes,
            color=color,
            linewidth=0.6,
            alpha=0.6,
            clip_on=False,
            zorder=2,
        )
        text.set_transform(axes.transAxes)
        text.set_position((1 + 0.29 * inch, at))


def shown(table: Table) -> list[Curve]:
    """The curves a plot has room for: all of them, or only those that were trained."""
    trained = [curve for curve in table.curves if curve.role in ("mrl", "mrl_e", "ff")]
    return list(table.curves) if len(table.curves) <= MOST_CURVES or not trained else trained


def draw(table: Table, theme: Theme = LIGHT) -> bytes:
    """The PNG of a table: one line per curve, filled markers at the dims it was trained at.

    Error bars are +- one sample standard deviation over seeds. Same table, same bytes.
    """
    curves = shown(table)
    # Where names need more lines than there is height for, the figure grows.
    lines = max(len(textwrap.wrap(curve.label, LABEL_CHARACTERS)) for curve in curves)
    height = max(3.6, (0.15 * lines + 0.03) * len(curves) + 0.9)
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor=theme.paper)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.095, 0.5 / height, 0.6, 1 - 0.9 / height), facecolor=theme.paper)
    axes.set_xscale("log", base=2)
    variants = list(dict.fromkeys(curve.variant for curve in curves))
    colors = [theme.roles[curve.role] for curve in curves]
    ends = [
        _draw_curve(axes, curve, color, DASHES[variants.index(curve.variant) % len(DASHES)], theme)
        for curve, color in zip(curves, colors, strict=True)
    ]

    axes.set_xlim(min(table.dims) / 1.12, max(table.dims) * 1.06)
    axes.set_xlabel("dims m (log scale)", color=theme.ink, fontsize=9)
    axes.set_title(f"{table.title} accuracy, %", color=theme.ink, fontsize=10, loc="left", pad=10)
    axes.tick_params(which="both", colors=theme.ink, labelsize=8.5)
    axes.tick_params(which="minor", length=2)
    axes.grid(axis="y", color=theme.faint, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(theme.faint)

    _name_curves(axes, curves, ends, colors)
    span = axes.get_position().width * WIDTH
    labelled = _ticks(table.dims, table.trained, span)
    axes.xaxis.set_major_locator(FixedLocator(labelled))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f}"))
    axes.xaxis.set_minor_locator(FixedLocator(table.dims))
    axes.xaxis.set_minor_formatter(NullFormatter())
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format="png", dpi=DPI, facecolor=theme.paper, metadata={"Software": None}
    )
    return buffer.getvalue()
