import json
import math

import numpy as np
import pytest
from evaluators.subjects import texts_by
from sklearn.metrics import average_precision_score, ndcg_score

from mrl_jax.data.beir import Collection
from mrl_jax.evaluators import text_retrieval
from mrl_jax.evaluators.text_common import TextSubject, resamples, rivals
from mrl_jax.evaluators.text_retrieval import Searched
from mrl_jax.record.results import Series
from mrl_jax.runtime import mesh as meshes

DOCUMENTS, QUERIES, WIDTH = 40, 12, 8
DIMS = (2, 4, WIDTH)


def collection(seed=0, shared=()):
    """Random texts; `shared` queries have the id of a document."""
    rng = np.random.default_rng(seed)
    grades = {}
    for q in range(QUERIES):
        for d in rng.choice(DOCUMENTS, 1 + q % 5 * 4, replace=False):
            grades[q, int(d)] = int(rng.integers(1, 4))
    judged = np.array([(*key, grade) for key, grade in sorted(grades.items())]).T
    found = Collection(
        [f"d{i}" for i in range(DOCUMENTS)],
        [f"d{i}" for i in range(DOCUMENTS)],
        [f"q{i}" for i in range(QUERIES)],
        [f"d{i}" if i in shared else f"q{i}" for i in range(QUERIES)],
        *judged,
    )
    table = {
        text: rng.normal(size=WIDTH) * np.arange(WIDTH, 0, -1)
        for text in (*found.documents, *found.queries)
    }
    for (q, d), grade in grades.items():
        table[f"q{q}"] = table[f"q{q}"] + grade * table[f"d{d}"]  # so that there is much to find
    return found, table, grades


def embedder(table):
    return lambda texts: np.stack([table[text] for text in texts])


def measure(embed, at, data, dims, *, ignore_identical_ids=False, **options):
    searched = Searched(data, ignore_identical_ids)
    return text_retrieval.measure(texts_by(embed, dims, **options), at, searched)


def by_name(finding):
    return {(r.name, r.dim): r for r in finding.results}


def expected_of(table, grades, dim, shared=()):
    """Values of every query by sklearn and by hand."""

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    documents = unit(np.stack([table[f"d{i}"][:dim] for i in range(DOCUMENTS)]))
    found = {name: [] for name in ("ndcg10", "mrr10", "recall10", "recall100", "map100")}
    for q in range(QUERIES):
        score = documents @ unit(table[f"q{q}"][:dim])
        grade = np.array([grades.get((q, d), 0) for d in range(DOCUMENTS)])
        if q in shared:
            score[q] = -2
        order = np.argsort(-score)
        if q in shared:
            order = order[:-1]
        ranked = grade[order]
        discount = 1 / np.log2(np.arange(2, 12))
        ideal = (np.sort(grade)[::-1][:10] * discount).sum()
        found["ndcg10"].append((ranked[:10] * discount).sum() / ideal)
        hits = np.flatnonzero(ranked[:10])
        found["mrr10"].append(1 / (1 + hits[0]) if len(hits) else 0)
        found["recall10"].append((ranked[:10] > 0).sum() / (grade > 0).sum())
        found["recall100"].append((ranked > 0).sum() / (grade > 0).sum())
        precisions = [(ranked[: i + 1] > 0).mean() for i in np.flatnonzero(ranked)]
        found["map100"].append(sum(precisions) / (grade > 0).sum())
        if q not in shared:
            np.testing.assert_allclose(found["ndcg10"][-1], ndcg_score([grade], [score], k=10))
            average = average_precision_score(grade > 0, score)
            np.testing.assert_allclose(found["map100"][-1], average)
    return found


@pytest.mark.parametrize("on_mesh", [False, True])
def test_metrics_are_those_of_scikit_learn_at_every_prefix(on_mesh):
    data, table, grades = collection()
    mesh = meshes.make_mesh(data=8) if on_mesh else None
    finding = measure(embedder(table), Series("c"), data, DIMS, seed=0, mesh=mesh)
    found = by_name(finding)
    for dim in DIMS:
        for metric, value_q in expected_of(table, grades, dim).items():
            result = found[f"c/{metric}", dim]
            np.testing.assert_allclose(result.value, np.mean(value_q), rtol=1e-6)
            stderr = np.std(value_q, ddof=1) / math.sqrt(QUERIES)
            np.testing.assert_allclose(result.stderr, stderr, rtol=1e-6, atol=1e-12)
            assert result.n == QUERIES
    assert found["c/ndcg10", 2].value < found["c/ndcg10", WIDTH].value
    assert json.loads(finding.files["c_retrieval.json"])["database"] == DOCUMENTS


def test_graded_order_by_hand():
    data = Collection(["a", "b", "c"], ["1", "2", "3"], ["q"], ["q"], *np.array([
        [0, 0], [0, 2], [1, 3]]))  # fmt: skip
    table = {"a": [1.0, 0], "b": [0.9, 0.1], "c": [0.5, 0.5], "q": [1.0, 0]}
    embed = embedder({k: np.array(v) for k, v in table.items()})
    found = by_name(measure(embed, Series("c"), data, (2,), seed=0))
    # Ranks 1 and 3 hold grades 1 and 3; the best order is 3, 1.
    ndcg = (1 + 3 / 2) / (3 + 1 / math.log2(3))
    np.testing.assert_allclose(found["c/ndcg10", 2].value, ndcg, rtol=1e-6)
    assert found["c/mrr10", 2].value == 1
    np.testing.assert_allclose(found["c/map100", 2].value, (1 + 2 / 3) / 2, rtol=1e-6)
    assert found["c/map100", 2].stderr == 0


def test_relevant_documents_that_are_not_among_the_first_100_count_as_not_found():
    names = [f"d{i}" for i in range(102)]
    judged = np.array([[0, 0, 0], [0, 1, 101], [1, 1, 1]])
    angle = np.linspace(0, 1, 102)
    table = dict(zip(names, np.stack([np.cos(angle), np.sin(angle)], 1), strict=True))
    table["q"] = table["d0"]
    data = Collection(names, names, ["q"], ["q"], *judged)
    found = by_name(measure(embedder(table), Series("c"), data, (2,), seed=0))
    for metric in ("recall10", "recall100", "map100"):
        np.testing.assert_allclose(found[f"c/{metric}", 2].value, 2 / 3, rtol=1e-6)


def test_ids_that_are_equal_mean_nothing_unless_one_says_so():
    shared = (3, 7)
    data, table, grades = collection(shared=shared)
    finding = measure(embedder(table), Series("c"), data, DIMS, seed=0)
    assert json.loads(finding.files["c_retrieval.json"])["ignored"] == 0
    found = by_name(finding)
    for dim in DIMS:
        for metric, value_q in expected_of(table, grades, dim).items():
            np.testing.assert_allclose(found[f"c/{metric}", dim].value, np.mean(value_q), rtol=1e-6)


def test_document_with_the_id_of_a_query_is_not_shown_to_it_on_request():
    shared = (3, 7)
    data, table, grades = collection(shared=shared)
    for q in shared:  # each would be found first
        grades.pop((q, q), None)
        table[f"d{q}"] = table[f"q{q}"]
    judged = np.array([(*key, grade) for key, grade in sorted(grades.items())]).T
    data = data._replace(query_r=judged[0], document_r=judged[1], grade_r=judged[2])
    finding = measure(embedder(table), Series("c"), data, DIMS, seed=0, ignore_identical_ids=True)
    assert json.loads(finding.files["c_retrieval.json"])["ignored"] == 2
    found = by_name(finding)
    for dim in DIMS:
        for metric, value_q in expected_of(table, grades, dim, shared).items():
            np.testing.assert_allclose(found[f"c/{metric}", dim].value, np.mean(value_q), rtol=1e-6)


def test_equal_documents_tie_in_the_order_of_the_corpus():
    data = Collection(["a", "b"], ["1", "2"], ["q"], ["q"], *np.array([[0], [1], [1]]))
    found = by_name(measure(lambda t: np.ones((len(t), 2)), Series("c"), data, (2,), seed=0))
    assert found["c/mrr10", 2].value == 0.5


def test_retention_is_paired_over_queries():
    data, table, grades = collection()
    finding = measure(embedder(table), Series("c"), data, (2, 4), seed=5, spaces=None)
    found = by_name(finding)
    short, whole = (np.array(expected_of(table, grades, m)["ndcg10"]) for m in (4, WIDTH))
    weight_rq = np.concatenate(list(resamples(QUERIES, 5)))
    kept_r = (weight_rq @ short) / (weight_rq @ whole)
    result = found["c/ndcg10_retention", 4]
    np.testing.assert_allclose(result.value, short.mean() / whole.mean(), rtol=1e-6)
    np.testing.assert_allclose(result.stderr, kept_r.std(ddof=1), rtol=1e-6)
    intervals = json.loads(finding.files["c_retrieval.json"])["intervals"]
    of_four = next(i for i in intervals if i["dim"] == 4)
    expected = np.quantile(kept_r, [0.025, 0.975])
    np.testing.assert_allclose([of_four["low"], of_four["high"]], expected, rtol=1e-6)
    # The full width was measured for that alone.
    assert ("c/ndcg10", WIDTH) not in found


def test_queries_may_be_embedded_otherwise_and_rivals_are_beside():
    data, table, _ = collection()
    spaces = rivals(np.stack([table[d] for d in data.documents]), seed=0)
    embed = embedder(table)

    def by_role(texts, role):
        return embed([x.removeprefix("query: ") for x in texts] if role == "query" else texts)

    found = by_name(
        text_retrieval.measure(
            TextSubject(by_role, (4, WIDTH), spaces=spaces), Series("c"), Searched(data)
        )
    )
    plain = by_name(measure(embed, Series("c"), data, (4, WIDTH), seed=0))
    assert found["c/ndcg10", 4] == plain["c/ndcg10", 4]
    for metric in ("ndcg10", "map100"):
        np.testing.assert_allclose(
            found[f"c/{metric}_rotation", WIDTH].value, plain[f"c/{metric}", WIDTH].value, rtol=1e-5
        )
    assert ("c/ndcg10_retention_pca", 4) in found
