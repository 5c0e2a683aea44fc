"""Which columns there are, what stands in their cells, and what is said about them."""

import re

import pytest
from reporting.studies import cells, make_run, series, top1

from mrl_jax import printing
from mrl_jax.errors import DataError
from mrl_jax.reporting import charts, methods, sheet, tables, text
from mrl_jax.reporting.content import Cell


@pytest.fixture
def study():
    """MRL at 2, 4, 8; MRL-E also between; FF-2 and FF-8, the latter cut. Three seeds."""
    runs = []
    for seed, shift in enumerate((-0.01, 0.0, 0.01)):
        values = top1(d2=0.80 + shift, d4=0.89 + shift, d8=0.895 + shift)
        runs.append(make_run("separate", (2, 4, 8), seed, values))
        values = top1(d2=0.70 + shift, d3=0.75, d4=0.88, d6=0.88, d8=0.91)
        runs.append(make_run("shared", (2, 4, 8), seed, values))
        # MRL - FF at 2: 0.09, 0.10, 0.11. At 8: -0.02, 0, 0.02.
        runs.append(make_run("fixed", (2,), seed, top1(d2=0.70)))
        values = top1(d2=0.30, d3=0.35, d4=0.50, d6=0.60, d8=0.895 - shift)
        runs.append(make_run("fixed", (8,), seed, values))
    return methods.group(runs)


def test_columns_rows_and_cells(study):
    rendered = sheet.of_table(tables.build(study, series("test", "top1")))
    assert rendered.columns == ("dim", "MRL", "MRL-E", "FF-m", "FF-8, first m dims", "MRL − FF")
    assert [row.head for row in rendered.rows] == ["2", "3 ○", "4", "6 ○", "8"]
    assert [row.faint for row in rendered.rows] == [False, True, False, True, False]
    assert cells(rendered, 2)["MRL"] == Cell("80.00 ± 1.00", "", True)
    assert cells(rendered, 2)["FF-m"] == Cell("70.00 ± 0.00", "", False)
    assert cells(rendered, 2)["FF-8, first m dims"].text == "30.00 ± 0.00"
    assert cells(rendered, 3)["MRL"] == Cell()
    assert cells(rendered, 3)["MRL-E"].best
    assert cells(rendered, 4)["FF-m"] == Cell()
    # The baseline's column wins where its mean is highest.
    assert cells(rendered, 8)["MRL-E"].best
    assert not cells(rendered, 8)["MRL"].best


def test_difference_column(study):
    rendered = sheet.of_table(tables.build(study, series("test", "top1")))
    # Mean 10 points, sd 1, half width 4.302653 / sqrt(3) = 2.48414; t = 10 sqrt(3), p = 0.0033.
    assert cells(rendered, 2)["MRL − FF"] == Cell("+10.00 [+7.52, +12.48]", "▲ ‡")
    # Mean 0, sd 2, half width 4.96828.
    difference = cells(rendered, 8)["MRL − FF"]
    assert difference == Cell("0.00 [−4.97, +4.97]")
    assert cells(rendered, 4)["MRL − FF"] == Cell()


def test_the_lead_is_one_sentence_of_what_the_table_carries(study):
    table = tables.build(study, series("test", "top1"))
    reach, best, difference = sheet.lead(table).removesuffix(".").split("; ")
    assert reach == "MRL reaches 89.50% at 8 dims and loses at most one point from 4 on"
    assert best == "highest mean: MRL at 2 and 4, MRL-E at 8"
    assert difference == "MRL − FF: 0.00 to +10.00 points, better ‡ at 2"
    # Differences 0.49, 0.50, 0.51 and 0.38, 0.39, 0.40.
    (cut,) = table.rivals
    assert (cut.against.short, cut.dims("better")) == ("first m dims", [2, 4])
    assert cut.dims("worse") == []


def test_ranks_are_neither_percent_nor_points():
    metric, runs = "text_to_image_median_rank", []
    for seed in (0, 1, 2):
        values = {(metric, 2): 12.0 + seed, (metric, 4): 3.5, (metric, 8): 3.0}
        runs.append(make_run("separate", (2, 4, 8), seed, values))
        runs.append(make_run("fixed", (2,), seed, {(metric, 2): 8.0}))
        runs.append(make_run("fixed", (8,), seed, {(metric, 4): 60.0, (metric, 8): 3.0}))
    table = tables.build(methods.group(runs), series("test", metric))
    rendered = sheet.of_table(table)
    assert rendered.title == "Text to image, median rank, test"
    assert cells(rendered, 2)["MRL"] == Cell("13.00 ± 1.00")
    assert cells(rendered, 2)["FF-m"] == Cell("8.00 ± 0.00", "", True)  # lower is better
    # Mean 5, sd 1: half width 2.48414.
    assert cells(rendered, 2)["MRL − FF"] == Cell("+5.00 [+2.52, +7.48]", "▼ ‡")
    assert rendered.note.startswith("Cells: median rank, mean ± sample sd of 3 seeds; 100 test ph")
    assert "standard error of a run 0.01; MRL − FF: 95% t intervals over 3 seeds" in rendered.note
    reach, best, difference = sheet.lead(table).removesuffix(".").split("; ")
    assert reach == "MRL reaches 3.00 at 8 dims and loses at most 1 from 4 on"
    assert best == "lowest mean: FF-m at 2 and 8, MRL at 4 and 8"
    assert difference == "MRL − FF: 0.00 to +5.00, worse ‡ at 2"
    chart = charts.of_table(table)
    assert (chart.title, chart.below_title, chart.scale) == (table.title, "MRL − FF", 1)


def test_a_verdict_may_fall_to_holm():
    # Differences 0.04, 0.05, 0.06 at ten dims: p = 0.0131 each, 0.131 after Holm.
    dims = tuple(range(2, 12))
    runs = []
    for seed, value in enumerate((0.54, 0.55, 0.56)):
        values = {("top1", dim): value for dim in dims}
        runs.append(make_run("separate", dims, seed, values))
        runs += [make_run("fixed", (dim,), seed, {("top1", dim): 0.5}) for dim in dims]
    table = tables.build(methods.group(runs), series("test", "top1"))
    assert {d.verdict for d in table.comparisons[0].by_dim.values()} == {"better"}
    assert table.comparisons[0].dims("better") == []
    assert {cells(sheet.of_table(table), dim)["MRL − FF"].below for dim in dims} == {"▲"}
    assert "MRL − FF: +5.00 points, no clear difference" in sheet.lead(table)


def test_a_losing_mrl_is_called_worse():
    runs = []
    for seed, shift in enumerate((-0.01, 0.0, 0.01)):
        runs.append(make_run("separate", (2, 8), seed, top1(d2=0.50 + shift, d8=0.60)))
        runs.append(make_run("fixed", (2,), seed, top1(d2=0.70)))
    table = tables.build(methods.group(runs), series("test", "top1"))
    assert cells(sheet.of_table(table), 2)["MRL − FF"].below == "▼ ‡"
    assert cells(sheet.of_table(table), 2)["FF-m"].best
    assert sheet.lead(table).startswith("MRL reaches 60.00% at 8 dims; highest")
    assert "MRL − FF: −20.00 points, worse ‡ at 2" in sheet.lead(table)


def test_one_seed_makes_no_claim():
    runs = [
        make_run("separate", (2, 8), 0, top1(d2=0.80, d8=0.90)),
        make_run("fixed", (2,), 0, top1(d2=0.70)),
    ]
    table = tables.build(methods.group(runs), series("test", "top1"))
    rendered = sheet.of_table(table)
    assert cells(rendered, 2)["MRL"].text == "80.00"
    assert cells(rendered, 2)["MRL − FF"] == Cell("+10.00", "")
    assert "MRL − FF: +10.00 points, no test of one seed" in sheet.lead(table)
    assert "1 seed, without intervals" in rendered.note


def test_cells_over_fewer_seeds_say_so(study):
    short = [m for m in study if m.kind != "shared"]
    shared = next(m for m in study if m.kind == "shared")
    del shared.runs[2]
    rendered = sheet.of_table(tables.build([*short, shared], series("test", "top1")))
    assert cells(rendered, 4)["MRL-E"].below == "n = 2"
    assert cells(rendered, 4)["MRL"].below == ""
    assert "mean ± sample sd of 3 seeds" in rendered.note


def test_nearest_neighbour_columns():
    pca, random = ("1nn", "pca"), ("1nn", "random")
    values = {("1nn", 2): 0.4, ("1nn", 8): 0.9, (pca, 2): 0.8, (random, 2): 0.3}
    values |= {(random, 8): 0.9, (pca, 8): 0.92}
    runs = [
        make_run("separate", (2, 8), 0, {("1nn", 2): 0.7, ("1nn", 8): 0.8, (pca, 2): 0.99}),
        make_run("fixed", (2,), 0, {("1nn", 2): 0.6, (pca, 2): 0.98}),
        make_run("fixed", (8,), 0, values),
    ]
    table = tables.build(methods.group(runs), series("test", "1nn"))
    rendered = sheet.of_table(table)
    found = {label: cell.text for label, cell in cells(rendered, 2).items()}
    assert found == {
        "MRL": "70.00",
        "FF-m": "60.00",
        "FF-8, first m dims": "40.00",
        "FF-8, PCA to m": "80.00",
        "FF-8, random m dims": "30.00",
        "MRL − FF": "+10.00",
    }
    assert cells(rendered, 2)["FF-8, PCA to m"].best
    # At full width the cut and the random choice are FF-m again and no rivals of their own; PCA
    # is one, because it centres.
    assert cells(rendered, 8)["FF-8, PCA to m"].best
    compared = {c.against.label: list(c.by_dim) for c in table.rivals}
    assert compared == {
        "FF-8, first m dims": [2],
        "FF-8, PCA to m": [2, 8],
        "FF-8, random m dims": [2],
    }
    assert not cells(rendered, 8)["FF-8, first m dims"].best
    assert not cells(rendered, 8)["FF-8, random m dims"].best


def test_varying_keys_become_labels():
    runs = []
    for rate in (0.1, 0.02):
        for kind, dims in (("separate", (2, 8)), ("fixed", (8,))):
            values = top1(d8=0.9 if kind == "separate" else 0.8)
            config = {"optimizer.learning_rate": rate, "mesh.data": round(rate), "eval.every": rate}
            runs.append(make_run(kind, dims, 0, values, **config))
    found = methods.group(runs)
    assert [m.label for m in found] == [
        "MRL, learning_rate=0.02",
        "MRL, learning_rate=0.1",
        "FF-8, learning_rate=0.02",
        "FF-8, learning_rate=0.1",
    ]
    table = tables.build(found, series("test", "top1"))
    labels = ["MRL − FF, learning_rate=0.02", "MRL − FF, learning_rate=0.1"]
    assert [c.label for c in table.comparisons] == labels


def test_labels_of_unlike_configs_show_what_tells_them_apart():
    unlike = {"towers.locked": ("both", "image"), "batch_size": (512, 256), "steps": (1171, 117)}
    unlike |= {"optimizer.learning_rate": (1e-3, 2e-4), "optimizer.warmup_steps": (117, 11)}
    runs = [
        make_run(kind, dims, 0, top1(d8=0.5), **{key: two[i] for key, two in unlike.items()})
        for i in (0, 1)
        for kind, dims in (("separate", (2, 8)), ("fixed", (8,)))
    ]
    assert [m.label for m in methods.group(runs)] == [
        "MRL, locked=both",
        "MRL, locked=image",
        "FF-8, locked=both",
        "FF-8, locked=image",
    ]
    # Two that share the word are told apart by one of the numbers.
    other = {key: two[1] for key, two in unlike.items()} | {"optimizer.learning_rate": 0.5}
    runs.append(make_run("separate", (2, 8), 0, top1(d8=0.5), **other))
    assert [m.label for m in methods.group(runs) if m.kind == "separate"] == [
        "MRL, locked=both, learning_rate=0.001",
        "MRL, locked=image, learning_rate=0.0002",
        "MRL, locked=image, learning_rate=0.5",
    ]


def test_short_labels_stay_unambiguous():
    runs = [
        make_run("separate", (2,), 0, top1(d2=0.5), **{"model.name": name, "optimizer.name": opt})
        for name, opt in (("cnn", "sgd"), ("mlp", "adamw"))
    ]
    assert [m.label for m in methods.group(runs)] == [
        "MRL, model.name=cnn, optimizer.name=sgd",
        "MRL, model.name=mlp, optimizer.name=adamw",
    ]


def test_nesting_may_vary_and_all_is_compared_with_the_one_ff():
    runs = [
        make_run("separate", (2, 8), 0, top1(d8=0.9)),
        make_run("separate", (4, 8), 0, top1(d8=0.8)),
        make_run("fixed", (8,), 0, top1(d8=0.7)),
    ]
    table = tables.build(methods.group(runs), series("test", "top1"))
    assert [c.label for c in table.comparisons] == [
        "MRL − FF, dims=[2, 8]",
        "MRL − FF, dims=[4, 8]",
    ]


def test_a_never_trained_prefix_is_not_compared():
    values = {("1nn", 2): 0.5, ("1nn", 3): 0.6, ("1nn", 4): 0.7}
    runs = [
        make_run("separate", (2, 4), 0, values),
        make_run("fixed", (3,), 0, values),
        make_run("fixed", (4,), 0, values),
    ]
    (comparison,) = tables.build(methods.group(runs), series("test", "1nn")).comparisons
    assert list(comparison.by_dim) == [4]


def test_other_data_is_no_rival():
    runs = [
        make_run("separate", (8,), 0, top1(d8=0.9), **{"data.source": "digits"}),
        make_run("fixed", (8,), 0, top1(d8=0.7), **{"data.source": "tfds"}),
    ]
    assert tables.build(methods.group(runs), series("test", "top1")).comparisons == ()


def test_the_same_run_twice_is_refused():
    runs = [make_run("separate", (8,), 0, {}, **{"mesh.data": n}) for n in (1, 2)]
    with pytest.raises(DataError, match=r"separate-8-0-1 and separate-8-0-2 .* seed 0"):
        methods.group(runs)


def test_no_numbers_no_table(study):
    assert tables.build(study, series("test", "1nn")) is None
    assert tables.build(study, series("val", "top1")) is None


def test_text_table_is_aligned_ascii(study):
    printed = sheet.to_text(sheet.of_table(tables.build(study, series("test", "top1"))))
    assert printed.isascii()
    assert re.search(r"^ +2   80\.00 \+- 1\.00 \*", printed, re.MULTILINE)
    assert "+10.00 [+7.52, +12.48]   better (Holm)" in printed
    assert re.search(r"^ *3 o ", printed, re.MULTILINE)


def test_plain_text_drops_control_characters():
    assert printing.plain("a\x1b[31m\nb−1") == "a?[31m?b-1"


def test_an_error_that_is_lower_is_better():
    runs = []
    for seed, shift in enumerate((-0.001, 0.0, 0.001)):
        values = {("ece", 2): 0.02 + shift, ("ece", 8): 0.05}
        runs.append(make_run("separate", (2, 8), seed, values))
        runs.append(make_run("fixed", (2,), seed, {("ece", 2): 0.04}))
        runs.append(make_run("fixed", (8,), seed, {("ece", 8): 0.03 + shift}))
    table = tables.build(methods.group(runs), series("test", "ece"))
    rendered = sheet.of_table(table)
    assert cells(rendered, 2)["MRL − FF"].below == "▲ ‡"
    assert cells(rendered, 8)["MRL − FF"].below == "▼ ‡"
    assert cells(rendered, 2)["MRL"].best
    assert not cells(rendered, 8)["MRL"].best
    assert "lowest mean: MRL at 2, FF-m at 8" in sheet.lead(table)
    assert "reaches 5.00% at 8 dims and loses at most one point from 2 on" in sheet.lead(table)


def test_spans_draw_neighbours_together():
    among = (8, 16, 32, 64, 128)
    assert text.spans((8, 16, 32, 128), among) == "8 to 32 and 128"
    assert text.spans((8, 16), among) == "8 and 16"
    assert text.spans((), among) == "none"
