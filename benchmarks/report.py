"""The measured lines as a Markdown table and as a plot."""

import pathlib
from collections.abc import Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Line = dict[str, Any]
# Okabe and Ito's palette; the label of a bar says the same as its colour.
COLOURS = {"mrl_jax": "#0072b2", "jax": "#6b7280"}
OTHER_COLOUR = "#c94f00"
BAR_INCHES = 0.2
NOTES = """\
Time: median of one forward and backward pass. Ratio: time over the floor's (the first row) in the
same round, median and quartiles over rounds. Peak: growth of a fresh process while it runs the
step (VmHWM minus VmRSS before); temporary arrays and gradients, without inputs, parameters and
libraries. XLA temp: buffers XLA plans beside arguments and outputs. GFLOP by hand: the matrix
products the definition needs, without those that a form computes twice. XLA's own count has all
operations, but takes the body of a loop once, however often it runs.
"""
_COLUMNS = (
    "case",
    "time, ms",
    "ratio [quartiles]",
    "peak, MB",
    "XLA temp, MB",
    "GFLOP by hand",
    "GFLOP by XLA, loops once",
)


def _number(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _duration(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def _cells(line: Line) -> list[str]:
    low, high = line["ratio_quartiles"]
    return [
        line["case"],
        _number(1e3 * line["seconds_median"]),
        f"{line['ratio_median']:.2f} [{low:.2f}, {high:.2f}]",
        _number(line["peak_mb"]),
        _number(line["xla_temp_mb"]),
        _number(line["gflop_by_hand"]),
        _number(line["xla_gflop_loops_once"]),
    ]


def _settings(lines: Sequence[Line]) -> dict[str, list[Line]]:
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(line["title"], []).append(line)
    return groups


def conditions(line: Line) -> str:
    """Where, when and with what a line was measured."""
    versions = ", ".join(f"{k} {v}" for k, v in line["versions"].items() if v)
    return f"{line['device']}, {line['threads']} threads, {line['date'][:10]}, {versions}"


def markdown(lines: Sequence[Line], notes_on_columns: str = NOTES) -> str:
    """One table per setting, columns padded so that the text reads well, too.

    A column that has no value in a setting is left out.
    """
    parts = [f"{conditions(lines[0])}\n\n{notes_on_columns}"]
    for title, group in _settings(lines).items():
        measured = [line for line in group if not line["skipped"]]
        rows = [list(_COLUMNS), *map(_cells, measured)]
        filled = [i for i in range(len(_COLUMNS)) if any(row[i] for row in rows[1:])]
        rows = [[row[i] for i in filled] for row in rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

        def text(row, widths=widths):
            cells = [row[0].ljust(widths[0])]
            cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            return "| " + " | ".join(cells) + " |"

        rule = "| " + " | ".join(["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])])
        table = [text(rows[0]), rule + " |", *map(text, rows[1:])]
        notes = [f"{group[0]['rounds']} rounds; load before: {group[0]['load']}."]
        notes += [f"Skipped {x['case']}: {x['skipped']}." for x in group if x["skipped"]]
        parts.append("\n".join([f"### {title}\n", *notes, "", *table, ""]))
    return "\n".join(parts)


def plot(lines: Sequence[Line], path: pathlib.Path) -> None:
    """Bars of the ratio to the floor, a panel per setting, quartiles as whiskers."""
    groups = {
        title: [x for x in group if not x["skipped"]] for title, group in _settings(lines).items()
    }
    heights = [len(group) + 2.5 for group in groups.values()]
    figure = Figure((7.2, BAR_INCHES * sum(heights) + 0.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (title, group) in zip(panels, groups.items(), strict=True):
        ratios = [x["ratio_median"] for x in group]
        below = [x["ratio_median"] - x["ratio_quartiles"][0] for x in group]
        above = [x["ratio_quartiles"][1] - x["ratio_median"] for x in group]
        axes.barh(
            range(len(group)),
            ratios,
            xerr=(below, above),
            color=[COLOURS.get(x["case"].split("/")[0], OTHER_COLOUR) for x in group],
            error_kw={"lw": 0.8, "capsize": 2},
        )
        for index, line in enumerate(group):
            axes.annotate(
                f"{line['ratio_median']:.2f}  ({_duration(line['seconds_median'])})",
                (line["ratio_quartiles"][1], index),
                (5, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
                bbox={"fc": "white", "ec": "none", "pad": 0.5},
            )
        axes.axvline(1, color="black", lw=0.8, ls=":")
        axes.set_yticks(range(len(group)), [x["case"] for x in group], fontsize=7)
        axes.set_xlim(0, 1.25 * max(x["ratio_quartiles"][1] for x in group))
        axes.invert_yaxis()
        axes.tick_params(axis="x", labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(title, fontsize=8.5, loc="left")
    panels[-1].set_xlabel(
        "time over that of the first row (dotted), quartiles over rounds",
        fontsize=8,
    )
    figure.savefig(path)
