"""Baselines: which there are, and what is said of MRL against them example by example."""

import pytest
from reporting.studies import cells, flags, judged_run, make_run, series, top1

from mrl_jax.errors import DataError
from mrl_jax.reporting import methods, sheet, tables
from mrl_jax.reporting.content import Cell


def rivals(table):
    return {c.against.label: c for c in table.rivals}


def test_every_baseline_has_a_column_and_a_comparison():
    values = {
        ("top1", 2): 0.3,
        ("top1", 8): 0.9,
        (("probe", "random"), 2): 0.5,
        (("probe", "random"), 8): 0.8,
    }
    for space, value in (("random", 0.2), ("rotation", 0.4), ("pca", 0.7), ("svd", 0.75)):
        values |= {(("top1", space), 2): value, (("top1", space), 8): 0.9}
    config = {"model.width": 64, "model.embedding_dim": 8}
    slim = {"model.width": 16, "model.embedding_dim": 2}
    runs = [
        make_run("separate", (2, 8), 0, top1(d2=0.7, d8=0.88), **config),
        make_run("fixed", (2,), 0, top1(d2=0.72), **config),
        make_run("fixed", (8,), 0, values, **config),
        make_run("fixed", (2,), 0, top1(d2=0.6), **slim),
    ]
    table = tables.build(methods.group(runs), series("test", "top1"))
    found = {label: cell.text for label, cell in cells(sheet.of_table(table), 2).items()}
    assert found == {
        "MRL": "70.00",
        "FF-m": "72.00",
        "Slim-m": "60.00",
        "FF-8, first m dims": "30.00",
        "FF-8, random m dims": "20.00",
        "FF-8, random rotation to m": "40.00",
        "FF-8, PCA to m": "70.00",
        "FF-8, SVD of head to m": "75.00",
        "FF-8, probe on random dims": "50.00",
        "MRL − FF": "−2.00",
    }
    assert cells(sheet.of_table(table), 2)["FF-8, SVD of head to m"].best
    differences = {label: list(c.by_dim) for label, c in rivals(table).items()}
    # At full width, a choice or rotation of all dims is FF-8 itself; a probe is not.
    assert differences == {
        "FF-8, first m dims": [2],
        "FF-8, random m dims": [2],
        "FF-8, random rotation to m": [2],
        "FF-8, PCA to m": [2],
        "FF-8, SVD of head to m": [2],
        "FF-8, probe on random dims": [2, 8],
        "Slim-m": [2],
    }
    differences = sheet.of_rivals(table)
    assert cells(differences, 2)["MRL − FF-8, SVD of head to m"] == Cell("−5.00")
    assert cells(differences, 8)["MRL − Slim-m"] == Cell()


def test_the_head_cut_short_stands_in_where_the_metric_has_no_shorter_prefix():
    values = {("top1", 8): 0.9, (("top1", "cut"), 2): 0.3, (("top1", "cut"), 8): 0.9}
    runs = [make_run("separate", (2, 8), 0, top1(d2=0.7)), make_run("fixed", (8,), 0, values)]
    table = tables.build(methods.group(runs), series("test", "top1"))
    assert cells(sheet.of_table(table), 2)["FF-8, first m dims"].text == "30.00"


def judged_pair(tmp_path, *, seeds=(0,), data=("d1", "d1"), only_mrl=12, only_ff=2):
    """MRL and FF-2 on 100 examples, of which so many are right in one of the two alone."""
    runs = []
    for seed in seeds:
        mrl = flags((60 + only_mrl, True), (40 - only_mrl, False))
        fixed = flags((60, True), (40 - only_ff, False), (only_ff, True))
        place = tmp_path / str(seed)
        runs.append(
            judged_run(place / "mrl", "separate", (2,), seed, {("top1", 2): mrl}, data=data[0])
        )
        runs.append(
            judged_run(place / "ff", "fixed", (2,), seed, {("top1", 2): fixed}, data=data[1])
        )
    return runs


def test_one_seed_is_judged_by_the_examples(tmp_path):
    table = tables.build(methods.group(judged_pair(tmp_path)), series("test", "top1"))
    (comparison,) = table.comparisons
    difference = comparison.by_dim[2]
    # 14 examples differ, 12 of them for MRL: p = 2 (1 + 14 + 91) / 2^14.
    assert difference.adjusted_p == pytest.approx(2 * 106 / 2**14)
    assert (difference.n, difference.units, comparison.unit) == (1, 100, "examples")
    cell = cells(sheet.of_table(table), 2)["MRL − FF"]
    assert (cell.text[:6], cell.below) == ("+10.00", "▲ ‡")
    note = sheet.of_table(table).note
    assert "95% intervals over 100 examples (McNemar's exact test), 1 seed each" in note
    assert "MRL − FF: +10.00 points, better ‡ at 2" in sheet.lead(table)


def test_several_seeds_are_judged_by_seeds_and_examples(tmp_path):
    table = tables.build(methods.group(judged_pair(tmp_path, seeds=(0, 1))), series("test", "top1"))
    difference = table.comparisons[0].by_dim[2]
    assert (difference.n, difference.units) == (2, 100)
    assert difference.verdict == "same in every seed"  # which is no evidence of anything
    assert "95% intervals over 2 seeds and 100 examples" in sheet.of_table(table).note


def test_unknown_examples_are_never_paired(tmp_path):
    table = tables.build(
        methods.group(judged_pair(tmp_path, data=("", ""))), series("test", "top1")
    )
    difference = table.comparisons[0].by_dim[2]
    assert (difference.units, difference.verdict) == (0, "one seed")


def test_other_data_are_never_compared(tmp_path):
    table = tables.build(
        methods.group(judged_pair(tmp_path, data=("d1", "d2"))), series("test", "top1")
    )
    assert table.comparisons == table.rivals == ()
    assert table.best(2) == []


def test_examples_that_are_not_those_of_the_result_are_refused(tmp_path):
    run = judged_run(tmp_path / "a", "separate", (2,), 0, {("top1", 2): flags((9, True))})
    wrong = make_run("separate", (2,), 0, top1(d2=0.5), data="d1", artefacts=run.artefacts)
    fixed = judged_run(tmp_path / "b", "fixed", (2,), 0, {("top1", 2): flags((9, True))})
    with pytest.raises(DataError, match=r"test/top1 at 2 dims is 0.5 .* evaluate the run again"):
        tables.build(methods.group([wrong, fixed]), series("test", "top1"))


def test_a_narrow_network_is_slim_only_if_all_of_it_is_used():
    def kinds(*fixed):
        runs = [
            make_run("separate", (2, 8), 0, {}, **{"model.width": 64, "model.embedding_dim": 8})
        ]
        for dim, width, embedding in fixed:
            config = {"model.width": width, "model.embedding_dim": embedding}
            runs.append(make_run("fixed", (dim,), 0, {}, **config))
        return [m.label for m in methods.group(runs)][1:]

    assert kinds((2, 64, 8), (2, 16, 2)) == ["FF-2", "Slim-2"]
    assert kinds((8, 64, 8), (4, 32, 4), (2, 16, 2)) == ["FF-8", "Slim-2", "Slim-4"]
    # A cut of a narrow network, or a wider one, is another variant and nothing else.
    assert not any("Slim" in label for label in kinds((2, 16, 8), (2, 128, 2)))
    # 0 stands for the network's own width, as of a ResNet.
    nested = make_run("separate", (8,), 0, {}, **{"model.width": 0, "model.embedding_dim": 0})
    slim = make_run("fixed", (4,), 0, {}, **{"model.width": 32, "model.embedding_dim": 0})
    assert [m.label for m in methods.group([nested, slim])] == ["MRL", "Slim-4"]
