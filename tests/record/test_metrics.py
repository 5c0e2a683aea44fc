"""The table of metrics has a row for everything that is measured, and reading needs no JAX."""

import subprocess
import sys

import pytest

from mrl_jax.evaluators import few_shot, long_tail, preservation, retrieval, text_retrieval
from mrl_jax.record import metrics
from mrl_jax.record.results import Series, headline

HEAVY = ("jax", "cv2", "grain", "flax", "sklearn", "tensorboardX", "matplotlib")
LIGHT = ("folder", "results", "runs", "artefacts", "metrics", "finding", "names", "schema1")


def test_importing_the_records_loads_nothing_heavy():
    modules = ", ".join(f"mrl_jax.record.{name}" for name in LIGHT)
    code = f"import sys, {modules}; print([m for m in {HEAVY} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


MEASURED = (
    *("top1", "top5", "top1_flip", "top5_flip", "1nn", "probe", "ece", "oracle", "vote"),
    *("superclass", "superclass_reject", "top1_clean", "match", "spearman", "pearson"),
    *("retention", "logreg", "knn10", "v_measure", "cosine_spearman"),
    *("masked_accuracy", "masked_probability", metrics.KNN(retrieval.VOTERS)),
    *(f(k) for f in (metrics.MAP, metrics.PRECISION, metrics.RECALL) for k in retrieval.CUTOFFS),
    *(setting.metric for n in (5, 30) for setting in few_shot.settings(12, n)),
    *long_tail.GROUPS,
    metrics.OVERLAP(preservation.NEAREST),
    *(f(text_retrieval.CUTOFF) for f in (metrics.NDCG, metrics.NDCG_KEPT, metrics.MRR)),
    *(metrics.FOUND(k) for k in (text_retrieval.CUTOFF, text_retrieval.DEPTH)),
    metrics.MAP(text_retrieval.DEPTH),
)


@pytest.mark.parametrize("name", MEASURED)
def test_every_metric_has_a_row(name):
    row = metrics.row(name)
    assert row.family
    assert "{" not in row.title + row.noun
    assert row.allows(0.5)


def test_families_read_what_they_make():
    assert metrics.row("ncm_5way_1shot").title == "Few-shot class means, 5-way 1-shot"
    assert metrics.row("ncm_allway_3shot").title == "Few-shot class means, all classes, 3-shot"
    assert metrics.row("tail_novel_head").title == "Long tail, novel head"
    assert (metrics.row("p25").title, metrics.row("p25").noun) == (
        "Retrieval, precision@25",
        "precision@25",
    )
    assert [metrics.row("tail_novel_head").unit, metrics.row("map10").unit] == [
        "streams",
        "examples",
    ]
    for name in ("p", "purity", "map", "mapx", "tail_x", "ncm_way_1shot", "top1_cut", ""):
        assert metrics.row(name) is None


def test_ranges():
    assert not metrics.row("top1").allows(1.01)
    assert metrics.row("pearson").allows(-1)
    assert not metrics.row("pearson").allows(-1.01)
    assert metrics.row("retention").allows(-7)
    assert metrics.row("ndcg10_retention").allows(3)
    assert metrics.describe("own").allows(1e9)
    assert metrics.describe("own", {"own": metrics.Metric("Own")}).title == "Own"


def test_headlines_are_of_the_trained_space_after_all_layers():
    at = Series("", "test", "top1")
    also = (at.of("top5"), at.of("top1", "pca"), at._replace(layer=2))
    results = [series.result(8, 0.5, 0.1, 9) for series in (at, *also, Series("v2", "", "top1"))]
    assert [r.name for r in headline(results)] == ["test/top1", "v2/top1"]
