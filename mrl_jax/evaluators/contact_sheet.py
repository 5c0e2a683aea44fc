"""Images in rows and, beside each, where it was looked at: heat maps over it, as PNG."""

import io
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DPI = 150
CELL = 1.2  # inches of an image's longer side
GAP = 0.08
CAPTION = 0.19  # over each image
LEFT = 0.3  # where rows are named
HEADER = 0.24
LINE = 0.14  # of the note
CHARACTER = 0.062  # its mean width, rounded up
HEAT, HEAT_ALPHA = "inferno", 0.7
PAPER, INK, RIGHT, WRONG = "#ffffff", "#24292f", "#00805b", "#c94f00"
LUMINANCE = np.array([0.299, 0.587, 0.114])  # of red, green and blue (ITU-R BT.601)
FONT = 7.5  # points
NAME_CHARACTERS = 16  # of a class name that are written


class Panel(NamedTuple):
    """A heat map [H, W] in [0, 1] over the row's image, for the class that is said there."""

    map_hw: np.ndarray
    said: str
    probability: float
    right: bool


class Row(NamedTuple):
    """An image [H, W, 1 or 3] uint8 with its class, what kind of row it is and its panels."""

    kind: str
    image_hwc: np.ndarray
    label: str
    panels: Sequence[Panel]


def _shortened(name: str) -> str:
    name = "".join(c if " " <= c <= "~" else "?" for c in name)  # fonts lack other letters
    return name if len(name) <= NAME_CHARACTERS else name[: NAME_CHARACTERS - 2] + ".."


def _draw_image(axes: Axes, image_hwc: np.ndarray, map_hw: np.ndarray | None) -> None:
    """The image; under a map in grey, so that colours are the map's alone."""
    rgb_hwc = np.broadcast_to(image_hwc, (*image_hwc.shape[:2], 3))
    if map_hw is None:
        axes.imshow(rgb_hwc, aspect="auto")
        return
    grey_hw = rgb_hwc @ LUMINANCE
    axes.imshow(grey_hw, aspect="auto", cmap="gray", vmin=0, vmax=255)
    heat = {"cmap": HEAT, "vmin": 0, "vmax": 1, "alpha": HEAT_ALPHA * map_hw}
    axes.imshow(map_hw, aspect="auto", interpolation="bilinear", **heat)


def draw(columns: Sequence[str], rows: Sequence[Row], note: str) -> bytes:
    """The PNG: each row's image and its panels, under the columns' names (the image's first).

    Right answers are green with a tick, wrong ones orange with a cross. Same input, same bytes.
    """
    height, width = rows[0].image_hwc.shape[:2]
    tall, wide = CELL * height / max(height, width), CELL * width / max(height, width)
    total_width = LEFT + len(columns) * (CELL + GAP)
    note_lines = textwrap.wrap(note, int((total_width - LEFT) / CHARACTER))
    note_top = HEADER + len(rows) * (CAPTION + tall + GAP)
    total_height = note_top + (len(note_lines) + 0.5) * LINE
    figure = Figure(figsize=(total_width, total_height), dpi=DPI, facecolor=PAPER)
    FigureCanvasAgg(figure)
    text = {"fontsize": FONT, "parse_math": False, "color": INK}

    def inches(x, y):
        return x / total_width, 1 - y / total_height

    def show(row, column, title, color, image_hwc, map_hw=None):
        left, top = LEFT + column * (CELL + GAP), HEADER + row * (CAPTION + tall + GAP) + CAPTION
        x, y = inches(left, top + tall)
        axes = figure.add_axes((x, y, wide / total_width, tall / total_height))
        _draw_image(axes, image_hwc, map_hw)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_color(color)
            spine.set_linewidth(1.2)
        written = figure.text(*inches(left, top - 0.05), title, **{**text, "color": color})
        # Wide letters are written smaller, not over the next cell.
        room = CELL * DPI / written.get_window_extent().width
        written.set_fontsize(FONT * min(1, room))

    for column, name in enumerate(columns):
        x, y = inches(LEFT + column * (CELL + GAP), HEADER - 0.07)
        figure.text(x, y, name, **{**text, "fontweight": "bold"})
    for i, row in enumerate(rows):
        middle = HEADER + i * (CAPTION + tall + GAP) + CAPTION + tall / 2
        x, y = inches(LEFT / 2, middle)
        kind = textwrap.fill(row.kind, 12)
        figure.text(x, y, kind, rotation=90, ha="center", va="center", **text)
        show(i, 0, _shortened(row.label), INK, row.image_hwc)
        for j, panel in enumerate(row.panels, 1):
            color = RIGHT if panel.right else WRONG
            mark = "\N{CHECK MARK}" if panel.right else "\N{BALLOT X}"
            title = f"{mark} {_shortened(panel.said)} ({panel.probability:.0%})"
            show(i, j, title, color, row.image_hwc, panel.map_hw)
    figure.text(*inches(LEFT, note_top), "\n".join(note_lines), va="top", **text)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor=PAPER, metadata={"Software": None})
    return buffer.getvalue()
