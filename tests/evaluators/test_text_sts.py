import json

import numpy as np
import pytest
import scipy.stats
from evaluators.subjects import texts_by

from mrl_jax.errors import DataError
from mrl_jax.evaluators import text_sts
from mrl_jax.evaluators.text_common import RESAMPLES, resamples, rivals
from mrl_jax.evaluators.text_sts import Scored
from mrl_jax.record.results import Series

PAIRS, WIDTH = 60, 8
DIMS = (1, 3, WIDTH)


def data(seed=0, noise=1.0):
    """Embeddings by text; scores, in steps with ties, follow the full cosine."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(PAIRS, WIDTH)) * np.arange(WIDTH, 0, -1)
    b = a * rng.uniform(-1, 1, (PAIRS, 1)) + noise * rng.normal(size=(PAIRS, WIDTH))
    table = {f"a{i}": a[i] for i in range(PAIRS)} | {f"b{i}": b[i] for i in range(PAIRS)}
    pairs = [f"a{i}" for i in range(PAIRS)], [f"b{i}" for i in range(PAIRS)]
    score_n = np.round(2.5 + 2.5 * cosines(a, b, WIDTH) + 0.3 * rng.normal(size=PAIRS), 0)
    return (lambda texts: np.stack([table[t] for t in texts])), pairs, score_n, (a, b)


def cosines(a, b, dim):
    a, b = (x[:, :dim] / np.linalg.norm(x[:, :dim], axis=1, keepdims=True) for x in (a, b))
    return (a * b).sum(1)


def measure(embed, at, pairs, score_n, dims, **options):
    return text_sts.measure(texts_by(embed, dims, **options), at, Scored(*pairs, score_n))


def values(found):
    return {(r.name, r.dim): r for r in found.results}


def test_correlations_are_those_of_scipy_at_every_prefix():
    embed, pairs, score_n, (a, b) = data()
    found = values(measure(embed, Series("sts"), pairs, score_n, DIMS, seed=0))
    full = scipy.stats.spearmanr(cosines(a, b, WIDTH), score_n).statistic
    for dim in DIMS:
        cosine_n = cosines(a, b, dim) if dim > 1 else np.sign(a[:, 0] * b[:, 0])  # ties
        spearman = scipy.stats.spearmanr(cosine_n, score_n).statistic
        pearson = scipy.stats.pearsonr(cosine_n, score_n).statistic
        np.testing.assert_allclose(found["sts/spearman", dim].value, spearman, rtol=1e-5)
        np.testing.assert_allclose(found["sts/pearson", dim].value, pearson, rtol=1e-5)
        np.testing.assert_allclose(found["sts/retention", dim].value, spearman / full, rtol=1e-5)
        assert found["sts/spearman", dim].n == PAIRS
    assert found["sts/spearman", 1].value < 0.95 * found["sts/spearman", WIDTH].value
    whole = found["sts/retention", WIDTH]
    assert (whole.value, whole.stderr) == (1, 0)


def test_intervals_are_those_of_the_resamples_and_retention_is_paired():
    embed, pairs, score_n, (a, b) = data()
    finding = measure(embed, Series("sts"), pairs, score_n, DIMS, seed=4)
    content = json.loads(finding.files["sts_sts.json"])
    intervals = {
        (f"sts/{i['metric']}", i["dim"]): (i["low"], i["high"]) for i in content["intervals"]
    }
    weight_rn = np.concatenate(list(resamples(PAIRS, 4)))
    expected = {"spearman": [], "pearson": [], "retention": []}
    for weight_n in weight_rn:
        index = np.repeat(np.arange(PAIRS), weight_n.astype(int))
        short, full = (cosines(a, b, dim)[index] for dim in (3, WIDTH))
        spearman = scipy.stats.spearmanr(short, score_n[index]).statistic
        expected["spearman"].append(spearman)
        expected["pearson"].append(scipy.stats.pearsonr(short, score_n[index]).statistic)
        whole = scipy.stats.spearmanr(full, score_n[index]).statistic
        expected["retention"].append(spearman / whole)
    found = values(finding)
    for metric, value_r in expected.items():
        assert len(value_r) == RESAMPLES == content["resamples"]
        key = f"sts/{metric}", 3
        np.testing.assert_allclose(found[key].stderr, np.std(value_r, ddof=1), rtol=1e-4)
        np.testing.assert_allclose(intervals[key], np.quantile(value_r, [0.025, 0.975]), rtol=1e-4)
        assert intervals[key][0] < found[key].value < intervals[key][1]


def test_rivals_are_measured_beside_and_a_rotation_keeps_the_full_width():
    embed, pairs, score_n, (a, _) = data()
    spaces = rivals(a, seed=1)
    found = values(measure(embed, Series("sts"), pairs, score_n, (3, WIDTH), seed=0, spaces=spaces))
    plain, turned = (found[f"sts/spearman{s}", WIDTH].value for s in ("", "_rotation"))
    np.testing.assert_allclose(plain, turned, rtol=1e-4)
    assert found["sts/spearman_rotation", 3].value != found["sts/spearman", 3].value
    np.testing.assert_allclose(
        found["sts/retention_pca", 3].value, found["sts/spearman_pca", 3].value / plain, rtol=1e-6
    )


def test_length_of_embeddings_and_their_order_do_not_matter():
    embed, pairs, score_n, _ = data()
    first = measure(embed, Series("sts"), pairs, score_n, DIMS, seed=0).results
    scaled = measure(lambda t: 7 * embed(t), Series("sts"), pairs, score_n, DIMS, seed=0).results
    for one, other in zip(first, scaled, strict=True):
        np.testing.assert_allclose(one[6:8], other[6:8], rtol=1e-5)  # value, stderr


def test_constant_embeddings_agree_with_nothing_and_have_no_retention():
    _, pairs, score_n, _ = data()
    found = measure(lambda t: np.ones((len(t), 4)), Series("sts"), pairs, score_n, (2, 4), seed=0)
    assert [r.value for r in found.results] == [0] * 4
    assert not any("retention" in r.name for r in found.results)


@pytest.mark.parametrize(
    ("pairs", "scores", "message"),
    [
        ((["a", "b"], ["c", "d"]), [1, 2], "needs at least 3 pairs, got 2"),
        ((["a", "b", "c"], ["c", "d"]), [1, 2, 3], "got 3 scores for 3 and 2 texts"),
        ((["a", "b", "c"], ["c", "d", "e"]), [1, 1, 1], r"all 3 scores are equal \(1\)"),
        ((["a", "b", "c"], ["c", "d", "e"]), [1, np.nan, 1], "finite"),
    ],
)
def test_pairs_that_cannot_be_correlated_are_refused(pairs, scores, message):
    with pytest.raises(DataError, match=message):
        measure(lambda t: np.eye(len(t)), Series("sts"), pairs, np.array(scores), (2,), seed=0)


def test_interface_needs_one_call_of_the_network(monkeypatch):
    calls = []
    embed, pairs, score_n, _ = data()
    measure(
        lambda t: (calls.append(len(t)), embed(t))[1], Series("sts"), pairs, score_n, DIMS, seed=0
    )
    assert calls == [2 * PAIRS]
