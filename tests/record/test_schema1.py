"""results.json as the release before wrote it: names take the place of fields."""

import pathlib

import pytest

from mrl_jax.errors import DataError
from mrl_jax.record.artefacts import Artefacts
from mrl_jax.record.results import Series
from mrl_jax.record.runs import read_run
from mrl_jax.record.schema1 import upgraded

FOLDER = pathlib.Path(__file__).parent / "schema1"


def test_spaces_sets_and_metrics_with_words_behind_them():
    run = read_run(FOLDER / "text_static", "run")
    assert {(r.series, r.dim) for r in run.results} == {
        (Series("", "val", "match"), 8),
        (Series("stsb", "", "spearman"), 16),
        (Series("stsb", "", "spearman", "pca"), 16),
        (Series("stsb", "", "retention"), 8),
        (Series("nf", "", "ndcg10", "rotation"), 64),
        (Series("nf", "", "ndcg10_retention"), 32),
        (Series("who", "", "logreg", "pca"), 8),
        (Series("who", "", "knn10"), 12),
        (Series("cl", "", "v_measure"), 64),
    }
    assert {*run.read} == {"sts.stsb", "retrieval.nf", "classification.who", "clustering.cl"}
    assert run.places["sts.stsb"] == "/data/scored/test.tsv"
    assert "stsb/spearman_pca" in {result.name for result in run.results}


def test_layers():
    run = read_run(FOLDER / "text_layers", "run")
    assert {(r.series, r.dim, r.name) for r in run.results} == {
        (Series("", "val", "spearman"), 16, "val/spearman"),
        (Series("", "val", "spearman", layer=1), 16, "val/spearman_layer1"),
        (Series("", "test", "spearman", layer=1), 64, "test/spearman_layer1"),
    }


@pytest.mark.parametrize("name", ["top1", "/top1", "test/", ""])
def test_what_is_no_name_of_a_result_is_refused(name):
    with pytest.raises(DataError, match=r"x: results\[0\]: name must be split/metric"):
        upgraded({"results": [{"name": name}]}, Artefacts(None), "x")
