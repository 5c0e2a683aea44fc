"""Runs are averaged, compared and ranked only where all that they read agrees."""

import dataclasses
import json

import folders
import pytest
from studies import make_run, series, top1

from mrl_jax.record import runs
from mrl_jax.record.results import Series
from mrl_jax.reporting import methods, sheet, tables


def labels(*found):
    return {m.label: sorted(m.runs) for m in methods.group(found)}


def reading(kind, seed, value=0.5, *, dims=(2, 8), data="", read=(), places=(), **config):
    run = make_run(kind, dims, seed, top1(d2=value, d8=value), data=data, **config)
    return dataclasses.replace(run, read=dict(read), places=dict(places))


def test_two_data_sets_are_two_columns():
    at = {"data": "/a/easy"}, {"data": "/b/noise"}
    found = [
        reading("separate", 0, 0.9, data="d1", places=at[0]),
        reading("separate", 1, 0.2, data="d2", places=at[1]),
        reading("separate", 0, 0.3, data="d2", places=at[1]),
        reading("fixed", 0, 0.95, dims=(8,), data="d1", places=at[0]),
        reading("fixed", 0, 0.1, dims=(8,), data="d2", places=at[1]),
    ]
    assert labels(*found) == {
        "MRL, data=easy": [0],
        "MRL, data=noise": [0, 1],
        "FF-8, data=easy": [0],
        "FF-8, data=noise": [0],
    }
    table = tables.build(methods.group(found), series("test", "top1"))
    # Each is compared with the baseline on its own data, and wins or loses there.
    means = {c.curve.label: c.by_dim[8].mean for c in table.comparisons}
    assert means == pytest.approx({"MRL, data=easy": -0.05, "MRL, data=noise": 0.2})
    assert {*table.best(8)} == {"MRL, data=noise", "FF-m, data=easy"}


def test_data_that_moved_are_the_same_and_changed_ones_are_not():
    moved = [reading("separate", s, data="d1", places={"data": f"/{s}/x"}) for s in (0, 1)]
    assert labels(*moved) == {"MRL": [0, 1]}
    changed = [reading("separate", s, data=f"{s}" * 16, places={"data": "/a/x"}) for s in (0, 1)]
    apart = {"MRL, data=00000000": [0], "MRL, data=11111111": [1]}
    assert labels(*changed) == apart
    # Also beside another variant whose runs agree.
    found = [
        reading("separate", s, data=data[s] * 16, places={"data": "/a/x"}, **{"text.max_length": n})
        for n, data in ((64, "01"), (128, "00"))
        for s in (0, 1)
    ]
    assert labels(*found) == {
        "MRL, max_length=64, data=00000000": [0],
        "MRL, max_length=64, data=11111111": [1],
        "MRL, max_length=128, data=00000000": [0, 1],
    }


@pytest.mark.parametrize(
    "key", ["hierarchy", "shifts.v2", "sts.stsb", "retrieval.q", "classification.c", "clustering.k"]
)
def test_other_files_under_one_name_are_columns_of_their_own(key):
    short = key.rpartition(".")[2]
    where = [{key: "/a/one.csv"}, {key: "/a/two.csv"}]
    found = [reading("separate", s, data="d", read={key: "ab"[s]}, places=where[s]) for s in (0, 1)]
    assert labels(*found) == {f"MRL, {short}=one.csv": [0], f"MRL, {short}=two.csv": [1]}
    same = [reading("separate", s, data="d", read={key: "a"}, places=where[s]) for s in (0, 1)]
    assert labels(*same) == {"MRL": [0, 1]}
    # Runs that measured no such set agree in what there is.
    assert labels(same[0], reading("separate", 1, data="d")) == {"MRL": [0, 1]}
    # Older runs have no digests: where it lay is what there is, also beside newer ones.
    older = [reading("separate", s, data="d", places=where[s]) for s in (0, 1)]
    assert labels(*older) == labels(*found)
    assert labels(older[0], dataclasses.replace(found[1], places=where[0])) == {"MRL": [0, 1]}


def test_what_the_config_says_already_is_not_said_again():
    found = [
        reading("separate", seed, data=f"cut at {length}", **{"text.max_length": length})
        for seed in (0, 1)
        for length in (64, 128)
    ]
    assert labels(*found) == {"MRL, max_length=64": [0, 1], "MRL, max_length=128": [0, 1]}


def test_evaluation_keys_that_change_numbers_are_part_of_a_method():
    key = "eval.ignore_identical_ids"
    found = [reading("separate", s, data="d", **{key: ["q"] * s}) for s in (0, 1)]
    assert labels(*found) == {
        "MRL, ignore_identical_ids=[]": [0],
        'MRL, ignore_identical_ids=["q"]': [1],
    }
    found = [reading("separate", s, data="d", **{"eval.dims": [2, s]}) for s in (0, 1)]
    assert labels(*found) == {"MRL": [0, 1]}


def test_frozen_vectors_are_a_column_for_each_data_set():
    found = []
    for seed in (0, 1):
        values = {("spearman", 2): 0.5, (("spearman", "cut"), 2): 0.1 * (seed + 1)}
        run = make_run("separate", (2,), seed, values, data=f"{seed}" * 16, task="adaptor")
        found.append(run)
    table = tables.build(methods.group(found), series("test", "spearman"))
    frozen = {c.label: c.summary(2).mean for c in table.curves if c.label.startswith("frozen")}
    assert list(frozen.values()) == pytest.approx([0.1, 0.2])
    assert len({*frozen}) == 2


def test_results_say_what_was_read(tmp_path):
    values = folders.make_results("separate", (2, 8), 0)
    values["config"]["task"] = "sentence_pairs"
    values["config"]["eval"] = {"sts": ["stsb=/a/b.tsv", "gone=/x"]}
    row = {"dim": 2, "value": 0.5, "stderr": 0.1, "n": 9}
    values["results"].append(folders.entry("stsb", "", "spearman", **row))
    folders.write_run(tmp_path / "old", values)
    old = runs.read_run(tmp_path / "old", "old")
    assert old.read == {}
    assert old.places == {"data": "", "sts.stsb": "/a/b.tsv"}
    values["read"] = {"sts.stsb": "0123"}
    folders.write_run(tmp_path / "new", values)
    assert runs.read_run(tmp_path / "new", "new").read == {"sts.stsb": "0123"}
    values["read"] = {"sts.stsb": 7}
    (tmp_path / "new" / "results.json").write_text(json.dumps(values))
    with pytest.raises(runs.DataError, match="field 'read' must hold texts"):
        runs.read_run(tmp_path / "new", "new")


def test_a_hierarchy_is_read_where_superclasses_were_measured(tmp_path):
    values = folders.make_results("separate", (2, 8), 0)
    values["config"]["eval"] = {"hierarchy": "/a/h.csv"}
    folders.write_run(tmp_path / "without", values)
    assert runs.read_run(tmp_path / "without", "x").places == {"data": ""}
    row = {"dim": 2, "value": 0.5, "stderr": 0.1, "n": 9}
    values["results"].append(folders.entry("", "test", "superclass", **row))
    folders.write_run(tmp_path / "with", values)
    assert runs.read_run(tmp_path / "with", "x").places == {"data": "", "hierarchy": "/a/h.csv"}


def test_the_standard_error_is_that_of_what_is_shown():
    def result(metric, dim, stderr, n, space="trained"):
        return Series("", "test", metric, space).result(dim, 0.5, stderr, n)

    nested = make_run("separate", (2, 8), 0, {})
    fixed = make_run("fixed", (8,), 0, {})
    nested = dataclasses.replace(
        nested,
        results=(result("1nn", 2, 0.02, 100), result("1nn", 2, 0.5, 7, "pca")),  # no column of it
    )
    fixed = dataclasses.replace(
        fixed, results=(result("1nn", 8, 0.03, 100), result("1nn", 2, 0.04, 90, "pca"))
    )
    table = tables.build(methods.group([nested, fixed]), series("test", "1nn"))
    assert (table.frame.stderr.max(), {*table.frame.n}) == (0.04, {90, 100})
    shown = table.only(("mrl", "ff"))
    assert (shown.frame.stderr.max(), {*shown.frame.n}) == (0.03, {100})
    assert "90 and 100 test examples, standard error of a run 2.00 to 4.00" in (
        sheet.of_table(table).note
    )


@pytest.mark.parametrize("judged", [False, True])
def test_of_unequal_seeds_those_that_pair_are_named(judged, tmp_path):
    from studies import flags, judged_run

    if judged:
        right = {0: flags((50, True), (50, False)), 1: flags((90, True), (10, False))}
        nested = [
            judged_run(tmp_path / f"{s}", "separate", (2,), s, {("top1", 2): right[s]})
            for s in (0, 1)
        ]
        fixed = judged_run(
            tmp_path / "f", "fixed", (2,), 1, {("top1", 2): flags((60, True), (40, False))}
        )
    else:
        nested = [make_run("separate", (2,), s, top1(d2=(0.5, 0.9)[s])) for s in (0, 1)]
        fixed = make_run("fixed", (2,), 1, top1(d2=0.6))
    table = tables.build(methods.group([*nested, fixed]), series("test", "top1"))
    (comparison,) = table.comparisons
    assert comparison.by_dim[2].mean == pytest.approx(0.3)
    row = sheet.of_table(table).rows[0]
    assert row.cells[0].text.startswith("70.00 ±")
    assert row.cells[-1].below == ("▲ ‡, seed 1 only" if judged else "seed 1 only")
    assert ("better ‡ at 2" in sheet.lead(table)) == judged
