"""Charts as PNG: log axis in x, every line named at its end, themes for light and dark pages."""

import dataclasses
import functools
import io
import math
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from mrl_jax.printing import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes  # which takes long to import, so only who draws waits for it

DPI = 200
WIDTH = 4.6  # inches: narrow enough that the text stays readable on a phone
POINT = 1 / 72  # inches
BELOW = 1.75  # inches: the panel of differences with its title
LABEL_CHARACTERS = 20  # a longer name is broken into lines
TITLE_CHARACTERS = 52  # and a longer title


# Compared by identity, so that drawings can be kept by theme.
@dataclasses.dataclass(frozen=True, eq=False)
class Theme:
    """Colours of a page: paper, ink, faint lines, and one per role (Okabe and Ito's palette)."""

    paper: str
    ink: str
    faint: str
    roles: dict[str, str]


# On light and on dark pages; shape and dashes say the same as the colour, for those who see or
# print no colours. Of more lines than a chart has room for the first stay.
ROLES = {
    "mrl": ("#0072b2", "#56b4e9", "o"),
    "mrl_e": ("#00805b", "#2fc49b", "s"),
    "ff": ("#c94f00", "#ff8a47", "D"),
    "slim": ("#7d5bb5", "#b79af0", "P"),
    "ff_cut": ("#a87400", "#e6b23c", "v"),
    "ff_pca": ("#b0568c", "#e08fc0", "^"),
    "ff_svd": ("#8a4b2d", "#d39a76", ">"),
    "ff_probe": ("#4d6a8f", "#9db7d8", "X"),
    "ff_rotation": ("#8f8f5a", "#bdbd85", "d"),
    "ff_random": ("#6b7280", "#9aa3ad", "<"),
}
LIGHT = Theme(
    "#ffffff", "#24292f", "#d8dde3", {role: light for role, (light, _, _) in ROLES.items()}
)
DARK = Theme("#14171a", "#d9dee3", "#363c43", {role: dark for role, (_, dark, _) in ROLES.items()})
MARKERS = {role: marker for role, (_, _, marker) in ROLES.items()}
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))


class Point(NamedTuple):
    """A mean at x with what the bar around it spans, mostly as fractions; hollow if not `filled`.

    `inner` is the span of a second, thicker bar.
    """

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    filled: bool = True
    inner: tuple[float, float] | None = None


class Line(NamedTuple):
    """Points in order of x, joined by `dashes` (one of DASHES, by number) or not at all (None).

    `role` gives colour and marker. With `band` the span around the points is one shaded band and
    the points have no markers.
    """

    label: str
    role: str
    points: tuple[Point, ...]
    dashes: int | None = 0
    band: bool = False


class Chart(NamedTuple):
    """What a figure shows.

    Attributes:
      ticks: the values of x that may be written at the axis; `minor` ones are only marked.
      below: differences over the same x in a smaller panel under `below_title`, with a line at 0.
      scale: what values are multiplied by: fractions are drawn as percent.
    """

    title: str
    x_label: str
    lines: tuple[Line, ...]
    ticks: tuple[float, ...]
    below: tuple[Line, ...] = ()
    below_title: str = ""
    minor: tuple[float, ...] = ()
    scale: float = 100


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


def short(x: float) -> str:
    """A number for an axis: 64 -> "64", 32768 -> "33k", 2.6e9 -> "2.6G"."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if x >= factor:
            unit = 1e3 if letter == "k" else factor
            return f"{x / unit:.2g}{letter}" if x < 100 * unit else f"{x / unit:.0f}{letter}"
    return f"{x:.0f}"


def _ticks(candidates: Sequence[float], span: tuple[float, float], inches: float) -> list[float]:
    """Those that are written at the axis: from the largest down, as far as they fit."""
    octaves = math.log2(span[1] / span[0]) or 1.0
    kept: list[float] = []
    for tick in sorted(candidates, reverse=True):
        room = 0.08 * (len(short(tick)) + 1)  # inches at the font size of ticks
        if not kept or math.log2(kept[-1] / tick) / octaves * inches >= room:
            kept.append(tick)
    return kept


def _draw_line(axes: "Axes", line: Line, theme: Theme, scale: float) -> None:
    color = theme.roles[line.role]
    x = [point.x for point in line.points]
    y = [scale * point.y for point in line.points]
    if line.dashes is not None:
        dashes = DASHES[line.dashes % len(DASHES)]
        axes.plot(x, y, color=color, linestyle=dashes, linewidth=1.5, zorder=3)
    if line.band:
        low, high = (
            [
                scale * (p.y if end is None else end)
                for p, end in zip(line.points, ends, strict=True)
            ]
            for ends in ([p.low for p in line.points], [p.high for p in line.points])
        )
        axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0, zorder=1)
        return
    for point in line.points:
        if point.inner:
            ends = [scale * end for end in point.inner]
            axes.plot([point.x] * 2, ends, color=color, linewidth=3, alpha=0.7, zorder=3)
        bar = point.low is not None and point.high is not None and point.high > point.low
        ends = [[scale * (point.y - point.low)], [scale * (point.high - point.y)]] if bar else None
        axes.errorbar(
            [point.x],
            [scale * point.y],
            yerr=ends,
            color=color,
            marker=MARKERS[line.role],
            markersize=5,
            markerfacecolor=color if point.filled else theme.paper,
            markeredgewidth=1.2,
            elinewidth=1.1,
            capsize=2.5 if bar else 0,
            zorder=4,
        )


def _name_lines(axes: "Axes", lines: Sequence[Line], colors: Sequence[str], scale: float) -> None:
    """Writes each line's name right of the axes, joined to its end where it had to move."""
    figure = axes.figure
    names = [textwrap.fill(plain(line.label), LABEL_CHARACTERS) for line in lines]
    texts = [
        # A label may hold config text; "$" in it is no formula.
        axes.text(0, 0, name, color=color, fontsize=8.5, va="center", parse_math=False)
        for name, color in zip(names, colors, strict=True)
    ]
    # The axes get what the names leave of the width.
    widest = max(text.get_window_extent().width for text in texts) / figure.dpi
    left, bottom, _, height = axes.get_position().bounds
    axes.set_position((left, bottom, 1 - left - (widest + 0.42) / WIDTH, height))
    to_axes = axes.transAxes.inverted()
    inch = 1 / (axes.get_window_extent().width / figure.dpi)
    gap = max(text.get_window_extent().height for text in texts) + 1.5 * POINT * figure.dpi
    ends = [(line.points[-1].x, scale * line.points[-1].y) for line in lines]
    points = [to_axes.transform(axes.transData.transform(end)) for end in ends]
    # Lines that meet at their ends are named in the order in which they lie before.
    means = [scale * sum(p.y for p in line.points) / len(line.points) for line in lines]
    low, high = axes.get_ylim()
    heights = [
        0.8 * point[1] + 0.2 * (mean - low) / (high - low)
        for point, mean in zip(points, means, strict=True)
    ]
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


def _title_lines(title: str) -> list[str]:
    return textwrap.wrap(plain(title), TITLE_CHARACTERS)


def _style(axes: "Axes", title: str, theme: Theme) -> None:
    text = "\n".join(_title_lines(title))
    # It may hold the name of a test set; "$" in it is no formula.
    axes.set_title(text, color=theme.ink, fontsize=10, loc="left", pad=10, parse_math=False)
    axes.set_xscale("log", base=2)
    axes.tick_params(which="both", colors=theme.ink, labelsize=8.5)
    axes.tick_params(which="minor", length=2)
    axes.grid(axis="y", color=theme.faint, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(theme.faint)


def _limit(axes: "Axes", lines: Sequence[Line], scale: float) -> None:
    """Keeps thick bars readable where thin ones are many times longer: these leave the panel."""
    inner = [end for line in lines for point in line.points for end in point.inner or ()]
    if not inner:
        return
    low, high = min(0.0, *inner), max(0.0, *inner)
    room = 0.6 * (high - low)
    now = axes.get_ylim()
    axes.set_ylim(max(now[0], scale * (low - room)), min(now[1], scale * (high + room)))


def drawing(chart: Chart) -> Callable[[bool], bytes]:
    """Draws the chart, for a dark page if asked to; each of the two is drawn once."""
    return functools.cache(lambda dark: draw(chart, DARK if dark else LIGHT))


def draw(chart: Chart, theme: Theme = LIGHT) -> bytes:
    """The PNG of a chart. Same chart, same bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    # Where names need more lines than there is height for, the figure grows.
    rows = max(len(textwrap.wrap(line.label, LABEL_CHARACTERS)) for line in chart.lines)
    upper = max(2.7, (0.15 * rows + 0.03) * len(chart.lines))
    lower = BELOW if chart.below else 0.0
    height = upper + lower + 0.9 + 0.18 * (len(_title_lines(chart.title)) - 1)
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor=theme.paper)
    FigureCanvasAgg(figure)
    place = (0.095, (0.5 + lower) / height, 0.6, upper / height)
    panels = [(figure.add_axes(place, facecolor=theme.paper), chart.lines, chart.title)]
    if chart.below:
        place = (0.095, 0.5 / height, 0.6, (lower - 0.6) / height)
        axes = figure.add_axes(place, facecolor=theme.paper)
        panels.append((axes, chart.below, chart.below_title))
        axes.axhline(0, color=theme.ink, linewidth=0.8, zorder=2)
    x = [point.x for line in chart.lines for point in line.points]
    span = (min(x) / 1.12, max(x) * 1.1)
    for axes, lines, title in panels:
        _style(axes, title, theme)
        for line in lines:
            _draw_line(axes, line, theme, chart.scale)
        axes.set_xlim(*span)
        _limit(axes, lines, chart.scale)
    axes.set_xlabel(f"{chart.x_label} (log scale)", color=theme.ink, fontsize=9)

    axes = panels[0][0]
    colors = [theme.roles[line.role] for line in chart.lines]
    _name_lines(axes, chart.lines, colors, chart.scale)
    left, _, width, _ = axes.get_position().bounds
    labelled = _ticks(chart.ticks, span, width * WIDTH)
    for axes, _, _ in panels:
        _, bottom, _, tall = axes.get_position().bounds
        axes.set_position((left, bottom, width, tall))
        axes.xaxis.set_major_locator(FixedLocator(labelled))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(x)))
        axes.xaxis.set_minor_locator(FixedLocator(chart.minor))
        axes.xaxis.set_minor_formatter(NullFormatter())
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format="png", dpi=DPI, facecolor=theme.paper, metadata={"Software": None}
    )
    return buffer.getvalue()
