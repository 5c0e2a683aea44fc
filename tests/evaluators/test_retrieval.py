"""Neighbours and retrieval against brute force in float64."""

import itertools
import json
import math

import jax
import numpy as np
import pytest
from evaluators.subjects import clusters, subject_of
from sklearn.decomposition import PCA

from mrl_jax.errors import NonFiniteError
from mrl_jax.evaluators import ranking, retrieval
from mrl_jax.runtime.mesh import make_mesh

# Not at 1 dim: there every cosine is 1 or -1, and rounding picks among the ties.
DIMS = (2, 3, 8)


def one_device():
    return make_mesh(1, 1, 1, devices=jax.devices()[:1])


def subject(train=(150, 1), test=(41, 2), *, mesh=None, measured=DIMS):
    embedded = {
        name: clusters(n, 8, spread=0.8, seed=seed)
        for name, (n, seed) in (("train", train), ("test", test))
    }
    return embedded_as(embedded["train"], embedded["test"], mesh, measured)


def embedded_as(train, test, mesh=None, measured=DIMS):
    embedded = {"train": train, "test": test}
    return subject_of(embedded, measured=measured, seed=5, mesh=mesh or one_device())


def coordinates(of):
    """The embeddings in every space, fitted anew, float64: {space: (database, query)}."""
    database, query = (of.embedded(split).z_nd.astype(np.float64) for split in ("train", "test"))
    width = database.shape[1]
    pca = PCA(width).fit(database)
    rng = np.random.default_rng(of.seed)
    order = rng.permutation(width)
    q, r = np.linalg.qr(rng.normal(size=(width, width)))
    svd, _, _ = np.linalg.svd(np.float64(of.kernel_and_bias[0]), full_matrices=False)
    turned = q * np.sign(np.diag(r))
    spaces = {
        "trained": np.eye(width),
        "random": np.eye(width)[:, order],
        "rotation": turned,
        "svd": svd,
    }
    found = {space: (database @ basis, query @ basis) for space, basis in spaces.items()}
    return {**found, "pca": (pca.transform(database), pca.transform(query))}


def ranked(database, query, m):
    """All rows of the database, the nearest first: [N, K]."""
    a, b = (x[:, :m] / np.linalg.norm(x[:, :m], axis=1, keepdims=True) for x in (query, database))
    return np.argsort(-a @ b.T, axis=1, kind="stable")


def vote(labels):
    """By counting, one query: of equally frequent labels the first to occur."""
    counted = labels.tolist()
    return max(dict.fromkeys(counted), key=counted.count)


def expected_values(of):
    """{(metric, dim): values over queries}, each by its definition."""
    label_n, database_label = of.embedded("test").label_n, of.embedded("train").label_n
    expected = {}
    for space, (database, query) in coordinates(of).items():
        suffix = "" if space == "trained" else f"_{space}"
        for m in of.dims:
            if m > database.shape[1]:
                continue
            labels_nk = database_label[ranked(database, query, m)]
            voted = np.array([vote(row) for row in labels_nk[:, :20]])
            expected[f"1nn{suffix}", m] = labels_nk[:, 0] == label_n
            expected[f"knn20{suffix}", m] = voted == label_n
            for k in (10, 25, 50, 100):
                metrics = {"map": [], "p": [], "r": []}
                depth = min(k, len(database_label))
                if suffix and k != 10:
                    continue
                for row, label in zip(labels_nk.tolist(), label_n.tolist(), strict=True):
                    hits = [int(x == label) for x in row[:depth]]
                    counts = itertools.accumulate(hits)
                    precisions = [count / (i + 1) for i, count in enumerate(counts)]
                    summed = sum(p * hit for p, hit in zip(precisions, hits, strict=True))
                    metrics["map"].append(summed / depth)
                    metrics["p"].append(sum(hits) / depth)
                    if relevant := int((database_label == label).sum()):
                        metrics["r"].append(sum(hits) / relevant)
                for name, values in metrics.items():
                    if not suffix or name == "map":
                        expected[f"{name}{k}{suffix}", m] = np.array(values)
    return expected


def check(of):
    findings = [retrieval.neighbours(of, "test"), retrieval.retrieval(of, "test")]
    results = {(r.name, r.dim): r for finding in findings for r in finding.results}
    expected = {(f"test/{name}", m): v for (name, m), v in expected_values(of).items() if len(v)}
    assert results.keys() == expected.keys()
    for key, value_n in expected.items():
        found, n = results[key], len(value_n)
        assert found.n == n
        assert found.value == pytest.approx(value_n.mean(), abs=1e-12), key
        binary = "nn" in key[0]
        stderr = value_n.std(ddof=0 if binary else 1) / math.sqrt(n)
        assert found.stderr == pytest.approx(stderr, abs=1e-12), key
    examples = {k: v for finding in findings for k, v in finding.examples.items()}
    assert examples.keys() == {name for name, _ in expected if "nn" in name}
    for name, (dims, right_gn) in examples.items():
        for m, right_n in zip(dims, right_gn, strict=True):
            np.testing.assert_array_equal(right_n, expected[name, m])
    return {key: r.value for key, r in results.items()}


def test_every_metric_equals_its_definition():
    of = subject()
    values = check(of)
    # Far from chance, and more dims help: the comparison was not of noise with noise.
    assert values["test/1nn", 8] > values["test/1nn", 2] > 0.2
    assert values["test/map10", 8] > values["test/map100", 8] > 0.1
    assert values["test/p10", 8] > values["test/r10", 8]
    files = retrieval.retrieval(of, "test").files
    assert json.loads(files["test_retrieval.json"])["database"] == 150


@pytest.mark.parametrize(
    ("sizes", "measure"),
    [((8, 1, 1), retrieval.neighbours), ((2, 2, 2), retrieval.retrieval)],
)
def test_results_are_the_same_on_any_mesh(sizes, measure):
    alone, split = (measure(subject(mesh=mesh), "test") for mesh in (None, make_mesh(*sizes)))
    assert alone.results == split.results


def test_a_database_smaller_than_k():
    check(subject(train=(13, 1), measured=(8,)))


def test_recall_leaves_out_queries_of_a_class_without_examples():
    whole = subject()
    (z_nd, label_n), query = whole.embedded("train"), whole.embedded("test")
    other_n = (label_n + 1) % (label_n.max() + 1)
    train = z_nd, np.where(label_n == query.label_n[0], other_n, label_n)
    of = embedded_as(train, query)
    check(of)
    counts = {r.name: r.n for r in retrieval.retrieval(of, "test").results}
    assert counts["test/r10"] == (query.label_n != query.label_n[0]).sum()
    assert counts["test/map10"] == counts["test/p10"] == 41
    # Without any such query, there is no recall.
    one = embedded_as(train, (query.z_nd[:1], query.label_n[:1]))
    finding = retrieval.retrieval(one, "test")
    assert not [r for r in finding.results if r.name.startswith("test/r")]
    assert {(r.value, r.stderr, r.n) for r in finding.results} == {(0, 0, 1)}


def test_neighbours_vote_and_the_nearest_of_equal_classes_wins():
    label_nk = np.array([[3, 1, 1, 3, 0], [5, 2, 2, 2, 5], [4, 6, 6, 7, 8], [9, 8, 7, 6, 5]])
    np.testing.assert_array_equal(ranking.majority(label_nk), [3, 2, 6, 9])


def test_large_labels_stay_different():
    # In float16, 2048 and 2049 are one number.
    classes = 2051
    z_nd = np.eye(8, dtype=np.float32)[:4].repeat(30, 0)
    train = np.array([2050, 2048, 2049, 0], np.int32).repeat(30)
    test = np.array([2049, 2048, 2050, 0], np.int32).repeat(30)
    embedded = {"train": (z_nd, train), "test": (z_nd, test)}
    of = subject_of(embedded, measured=(8,), classes=classes, mesh=one_device())
    for measure in (retrieval.neighbours, retrieval.retrieval):
        for r in measure(of, "test").results:
            if r.name in ("test/1nn", "test/knn20", "test/map10", "test/p10"):
                assert r.value == 0.5


def test_embeddings_that_are_no_numbers_are_refused():
    of = subject(measured=(8,))
    of.embedded("test").z_nd[3, 2] = np.nan
    with pytest.raises(NonFiniteError, match="embeddings of test hold NaN or an infinity"):
        retrieval.neighbours(of, "test")
