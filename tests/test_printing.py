import pytest

from mrl_jax import printing
from mrl_jax.record.metrics import Metric
from mrl_jax.record.results import Series, table


def columns(text):
    """The columns of a table: what stands between blanks that go through all of its lines."""
    lines = text.splitlines()
    width = max(map(len, lines))
    lines = [line.ljust(width) for line in lines if set(line.strip()) != {"-"}]
    gaps = "".join(" " if {*chars} == {" "} else "x" for chars in zip(*lines, strict=True))
    starts = [i for i in range(width) if gaps[i] == "x" and (i == 0 or gaps[i - 2 : i] == "  ")]
    return [
        [line[start:end].strip() for line in lines]
        for start, end in zip(starts, [*starts[1:], width], strict=True)
    ]


@pytest.mark.parametrize("value", [-0.172, 0.0, 1.0, 2.3125, -123.456, 1e6])
@pytest.mark.parametrize("dim", [8, 2048, 1_000_000])
def test_columns_never_touch(value, dim):
    names = ("x/spearman", "a_set_with_a_very_long_name_indeed/spearman_layer12", "val/m")
    series = (
        Series("x", metric="spearman"),
        Series("a_set_with_a_very_long_name_indeed", metric="spearman", layer=12),
        Series("", "val", "m"),
    )
    results = [one.result(dim, value, 0.1812, 30) for one in series]
    cell = f"{100 * value:.2f} +- 18.12"
    assert columns(table(results)) == [["dim", str(dim)], *([name, cell] for name in names)]


def test_what_is_no_fraction_is_not_in_percent():
    ranks = Series("", "val", "text_to_image_median_rank").result(8, 3.5, 0.25, 30)
    own = Series("", "val", "my_lab").result(8, 2.0, 0.5, 30)
    rows = {"my_lab": Metric("Mine", high=None, percent=False)}
    cells = [column[1] for column in columns(table([ranks, own], rows))]
    assert cells == ["8", "3.50 +- 0.25", "2.00 +- 0.50"]


def test_many_metrics_go_on_below_and_gaps_stay_empty():
    results = [Series("", "val", f"m{i}").result(8, 0.5, 0.1, 4) for i in range(7)]
    results.append(Series("", "val", "m0").result(16, 0.25, 0.1, 4))
    first, second = table(results).split("\n\n")
    assert columns(first)[:3] == [
        ["dim", "8", "16"],
        ["val/m0", "50.00 +- 10.00", "25.00 +- 10.00"],
        ["val/m1", "50.00 +- 10.00", ""],
    ]
    assert columns(second) == [["dim", "8"], ["val/m6", "50.00 +- 10.00"]]


def test_cells_are_taken_literally_and_never_cut_or_coloured(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("FORCE_COLOR", "1")
    long = "x" * 300
    text = printing.table(
        ("n", "what,\nin words"), [("7", "[red]a[/red] :smile:"), ("10", long)], {1}
    )
    assert columns(text) == [
        ["", "n", "7", "10"],
        ["what,", "in words", "[red]a[/red] :smile:", long],
    ]
    assert "\x1b" not in text
    assert printing.pairs([("a", "1"), ("longer", "22")]) == "a       1\nlonger  22"
