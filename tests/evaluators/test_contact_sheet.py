"""The contact sheet: its size, its colours and names that are not to be trusted."""

import io

import numpy as np
import pytest
from PIL import Image

from mrl_jax.evaluators import contact_sheet
from mrl_jax.evaluators.contact_sheet import Panel, Row


def sheet(shape=(8, 8, 1), title="cat", right=True, rows=2, panels=1, note="a note", level=0):
    image_hwc = np.full(shape, 128, np.uint8)
    map_hw = np.full(shape[:2], level, np.float32)
    row = Row("kind", image_hwc, title, [Panel(map_hw, title, 0.5, right)] * panels)
    columns = ["image", *(f"{m} dims" for m in range(panels))]
    png = contact_sheet.draw(columns, [row] * rows, note)
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def count_color(pixels, color):
    rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(pixels - rgb).sum(-1) < 30).sum())


@pytest.mark.parametrize("shape", [(8, 8, 1), (224, 224, 3), (12, 8, 3)])
def test_rows_and_columns_make_the_size(shape):
    small, tall, broad = sheet(shape), sheet(shape, rows=3), sheet(shape, panels=3)
    step = contact_sheet.DPI * (contact_sheet.CELL + contact_sheet.GAP)
    assert broad.shape[1] - small.shape[1] == pytest.approx(2 * step, abs=1)
    assert tall.shape[1] == small.shape[1]
    row = contact_sheet.DPI * (contact_sheet.CELL + contact_sheet.GAP + contact_sheet.CAPTION)
    assert tall.shape[0] - small.shape[0] == pytest.approx(row, abs=1)
    for edge in (small[:, :4], small[:, -4:], small[:4], small[-4:]):
        assert edge.min() == 255


def test_right_and_wrong_have_their_colours():
    green, orange = contact_sheet.RIGHT, contact_sheet.WRONG
    right, wrong = sheet(right=True), sheet(right=False)
    assert count_color(right, green) > 300 > count_color(right, orange)
    assert count_color(wrong, orange) > 300 > count_color(wrong, green)


def test_only_a_map_brings_colour():
    def coloured(pixels):
        inside = pixels[60:150, 260:400]
        return (np.ptp(inside, axis=-1) > 20).mean()

    assert coloured(sheet(level=0)) < 0.1 < 0.9 < coloured(sheet(level=0.5))


def test_hostile_names_and_long_notes_stay_inside():
    pixels = sheet(title=r"$\frac{$ 雪 " + "W" * 99, note="very long " * 40)
    wide = sheet(title="W" * 99)
    for edge in (pixels[:, :4], pixels[-4:], wide[:, -4:]):
        assert edge.min() == 255
    # Not even into the gap before the next image.
    step = contact_sheet.CELL + contact_sheet.GAP
    gap = (
        contact_sheet.LEFT + step - np.array([contact_sheet.GAP - 0.02, 0.02])
    ) * contact_sheet.DPI
    assert (
        wide[int(contact_sheet.HEADER * contact_sheet.DPI) :, slice(*gap.astype(int))].min() > 200
    )
