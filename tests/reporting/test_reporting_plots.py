"""Plots: their pixels, their labels and what happens to hostile or crowded names."""

import io

import numpy as np
import pytest
from PIL import Image

from mrl_jax.reporting import plots
from mrl_jax.reporting.tables import Curve, Table


def make_table(curves):
    return Table("top1", "test", tuple(curves), (), (2, 3, 4), frozenset({2, 4}), 2, (100,), (0, 0))


def make_curve(label, role="mrl", trained=(2, 4), level=0.8):
    values = {dim: {0: level, 1: level + 0.02} for dim in (2, 3, 4)}
    return Curve(label, role, (), frozenset(trained), values)


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def count_color(image, color):
    rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(image - rgb).sum(-1) < 30).sum())


def test_png_has_the_stated_size_and_is_the_same_every_time():
    table = make_table([make_curve("MRL")])
    png = plots.draw(table)
    assert png == plots.draw(table)
    image = pixels(png)
    assert image.shape[1] == round(plots.WIDTH * plots.DPI)
    assert image[0, 0].tolist() == [255, 255, 255]


def test_dark_theme_is_dark():
    assert pixels(plots.draw(make_table([make_curve("MRL")]), plots.DARK))[0, 0].max() < 40


def test_untrained_dims_are_hollow():
    color = plots.LIGHT.roles["mrl"]
    filled = pixels(plots.draw(make_table([make_curve("MRL", trained=(2, 3, 4))])))
    hollow = pixels(plots.draw(make_table([make_curve("MRL", trained=())])))
    assert count_color(hollow, color) < count_color(filled, color)


def test_names_never_run_off_the_figure_or_get_parsed():
    names = ["MRL", r"FF-8, path=$\frac{$" + "x" * 60, "snow ☃ 雪"]
    image = pixels(plots.draw(make_table([make_curve(name) for name in names])))
    # Nothing is drawn in the last columns, nor in the first and last rows.
    for edge in (image[:, -8:], image[:4], image[-4:]):
        assert edge.min() == 255


def test_many_curves_leave_out_what_was_not_trained():
    trained = [make_curve(f"MRL, a={i}") for i in range(plots.MOST_CURVES)]
    cut = make_curve("FF-4, first m dims", role="ff_cut")
    assert plots.shown(make_table([*trained, cut])) == trained
    assert plots.shown(make_table([trained[0], cut])) == [trained[0], cut]


def test_a_single_dim_can_be_drawn():
    curve = Curve("FF-m", "ff", (), frozenset({8}), {8: {0: 0.9}})
    table = Table("top1", "test", (curve,), (), (8,), frozenset({8}), 1, (100,), (0, 0))
    assert plots.draw(table).startswith(b"\x89PNG")


def test_spread_labels_keep_order_gap_and_bounds():
    placed = plots.spread_labels([0.98, 0.99, 0.97, 0.2], 0.1, 0.0, 1.0)
    assert placed == pytest.approx([0.9, 1.0, 0.8, 0.2])
    crowded = plots.spread_labels([0.5] * 21, 0.1, 0.0, 1.0)
    assert min(crowded) >= -1e-9
    assert max(crowded) <= 1 + 1e-9
    assert np.diff(sorted(crowded)) == pytest.approx(np.full(20, 0.05))
