"""Plots: their pixels, their labels and what happens to hostile or crowded names."""

import dataclasses
import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from reporting.studies import series

from mrl_jax import plots
from mrl_jax.plots import Chart, Line, Point
from mrl_jax.record import metrics
from mrl_jax.reporting import charts, tables
from mrl_jax.reporting.tables import Curve, Table


def make_table(curves):
    about = metrics.describe("top1")
    at = (2, 3, 4), frozenset({2, 4})
    return Table(series("test", "top1"), tuple(curves), (), *at, about)


def make_curve(label, role="mrl", trained=(2, 4), level=0.8):
    rows = [(seed, dim, level + 0.02 * seed, 0.01, 9) for dim in (2, 3, 4) for seed in (0, 1)]
    frame = pd.DataFrame(rows, columns=["seed", "dim", "value", "stderr", "n"])
    return Curve(label, role, (), frozenset(trained), frame)


def draw(table, theme=plots.LIGHT):
    return plots.draw(charts.of_table(table), theme)


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def count_color(image, color):
    rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(image - rgb).sum(-1) < 30).sum())


def test_png_has_the_stated_size_and_is_the_same_every_time():
    table = make_table([make_curve("MRL")])
    png = draw(table)
    assert png == draw(table)
    image = pixels(png)
    assert image.shape[1] == round(plots.WIDTH * plots.DPI)
    assert image[0, 0].tolist() == [255, 255, 255]


def test_dark_theme_is_dark():
    assert pixels(draw(make_table([make_curve("MRL")]), plots.DARK))[0, 0].max() < 40


def test_untrained_dims_are_hollow():
    color = plots.LIGHT.roles["mrl"]
    filled = pixels(draw(make_table([make_curve("MRL", trained=(2, 3, 4))])))
    hollow = pixels(draw(make_table([make_curve("MRL", trained=())])))
    assert count_color(hollow, color) < count_color(filled, color)


def test_names_never_run_off_the_figure_or_get_parsed():
    names = ["MRL", r"FF-8, path=$\frac{$" + "x" * 60, "snow ☃ 雪"]
    image = pixels(draw(make_table([make_curve(name) for name in names])))
    # Nothing is drawn in the last columns, nor in the first and last rows.
    for edge in (image[:, -8:], image[:4], image[-4:]):
        assert edge.min() == 255


def test_many_curves_leave_out_what_was_not_trained():
    trained = [make_curve(f"MRL, a={i}") for i in range(charts.MOST_LINES)]
    cut = make_curve("FF-4, first m dims", role="ff_cut")
    assert charts.shown(make_table([*trained, cut])) == trained
    assert charts.shown(make_table([trained[0], cut])) == [trained[0], cut]


def test_a_single_dim_can_be_drawn():
    table = make_table([make_curve("FF-m", "ff")])
    curve = table.curves[0]
    curve = dataclasses.replace(curve, frame=curve.frame.query("dim == 4"))
    assert draw(dataclasses.replace(table, curves=(curve,), dims=(4,))).startswith(b"\x89PNG")


def test_differences_have_a_panel_of_their_own():
    mrl, fixed = make_curve("MRL", level=0.8), make_curve("FF-m", "ff", level=0.7)
    comparison = tables.compare(mrl, fixed, "MRL - FF", lower_is_better=False)
    table = make_table([mrl, fixed])
    compared = dataclasses.replace(table, comparisons=tables.corrected([comparison]))
    chart = charts.of_table(compared)
    assert [(p.x, round(p.y, 9)) for p in chart.below[0].points] == [(2, 0.1), (4, 0.1)]
    added = pixels(draw(compared)).shape[0] - pixels(draw(table)).shape[0]
    assert added == pytest.approx(plots.BELOW * plots.DPI, abs=1)


def test_bands_points_and_large_numbers():
    points = tuple(Point(2.0e6 * 2**i, 0.5, 0.4, 0.6) for i in range(4))
    band, alone = Line("band", "mrl", points, band=True), Line("alone", "ff", points[:1], None)
    image = pixels(plots.draw(Chart("x", "products", (band, alone), (2e6, 16e6))))
    blue = np.array([204, 226, 239])  # the band's colour at its opacity on white
    assert (np.abs(image - blue).sum(-1) < 24).sum() > 10_000
    labels = [plots.short(x) for x in (8, 2048, 32768, 2.6e6, 81920, 1.5e9, 2.6e11)]
    assert labels == ["8", "2048", "33k", "2.6M", "82k", "1.5G", "260G"]


def test_overlays_pair_mrl_with_ff_and_leave_it_out_of_many():
    table = make_table([make_curve("MRL"), make_curve("FF-m", "ff")])
    two = charts.overlay("x", [("a", table), ("b", table)])
    assert [line.label for line in two.lines] == ["a", "a, FF-m", "b", "b, FF-m"]
    assert [line.dashes for line in two.lines] == [0, 1, 0, 1]
    assert two.lines[0].role == two.lines[1].role != two.lines[2].role
    many = charts.overlay("x", [(str(i), table) for i in range(7)])
    assert [line.label for line in many.lines] == list("0123456")


def test_spread_labels_keep_order_gap_and_bounds():
    placed = plots.spread_labels([0.98, 0.99, 0.97, 0.2], 0.1, 0.0, 1.0)
    assert placed == pytest.approx([0.9, 1.0, 0.8, 0.2])
    crowded = plots.spread_labels([0.5] * 21, 0.1, 0.0, 1.0)
    assert min(crowded) >= -1e-9
    assert max(crowded) <= 1 + 1e-9
    assert np.diff(sorted(crowded)) == pytest.approx(np.full(20, 0.05))
