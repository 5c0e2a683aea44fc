import numpy as np
import pytest
from evaluators.subjects import texts_by
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import v_measure_score
from sklearn.neighbors import KNeighborsClassifier

from mrl_jax.data.labelled_text import LabelledTexts
from mrl_jax.errors import DataError
from mrl_jax.evaluators import text_classification, text_clustering
from mrl_jax.evaluators.text_common import rivals
from mrl_jax.record.results import Series

WIDTH, DIMS = 6, (1, 3, 6)


def data(seed=0, count=90):
    rng = np.random.default_rng(seed)
    labels = [("news", "sport", "art")[i % 3] for i in range(count)]
    centre = {c: 3 * rng.normal(size=WIDTH) for c in ("news", "sport", "art")}
    table = {f"t{i}": centre[c] + 2 * rng.normal(size=WIDTH) for i, c in enumerate(labels)}

    def embed(texts):
        return np.stack([table[t] for t in texts])

    return embed, LabelledTexts(list(table), labels)


def parts():
    embed, (texts, labels) = data()
    train, test = LabelledTexts(texts[:60], labels[:60]), LabelledTexts(texts[60:], labels[60:])
    return embed, train, test


def unit(z_nd, dim):
    z_nd = z_nd.astype(np.float32)
    z_nd = z_nd / np.linalg.norm(z_nd, axis=1, keepdims=True)
    return z_nd[:, :dim] / np.linalg.norm(z_nd[:, :dim], axis=1, keepdims=True)


def test_accuracies_are_those_of_scikit_learn_on_cut_and_scaled_vectors():
    embed, train, test = parts()
    finding = text_classification.measure(texts_by(embed, DIMS), Series("topic"), (train, test))
    found = {(r.name, r.dim): r.value for r in finding.results}
    for dim in DIMS:
        x, y = (unit(embed(s.texts), dim) for s in (train, test))
        expected = LogisticRegression(max_iter=1000).fit(x, train.labels).score(y, test.labels)
        assert found["topic/logreg", dim] == pytest.approx(expected)
    # Where the vote is clear it is scikit-learn's, too; at one dim all cosines tie.
    for g, dim in enumerate(DIMS):
        if dim == 1:
            continue
        x, y = (unit(embed(s.texts), dim) for s in (train, test))
        peer = KNeighborsClassifier(10).fit(x, train.labels)
        votes = np.sort(peer.predict_proba(y), 1)
        clear = votes[:, -1] > votes[:, -2]
        right = peer.predict(y) == np.array(test.labels)
        assert clear.mean() > 0.8
        np.testing.assert_array_equal(
            finding.examples["topic/knn10"].right_gn[g][clear], right[clear]
        )
    assert found["topic/logreg", 1] < found["topic/logreg", WIDTH]


def test_votes_that_tie_go_to_the_nearest():
    table = {"a": [1, 0.1], "b": [1, 0.5], "c": [1, -0.5], "d": [1, 0.4], "q": [1, 0.1]}
    train = LabelledTexts(["a", "b", "c", "d"], ["x", "x", "y", "y"])
    found = text_classification.measure(
        texts_by(lambda texts: np.array([table[t] for t in texts]), (2,)),
        Series("t"),
        (train, LabelledTexts(["q"], ["x"])),
    )
    assert next(r.value for r in found.results if r.name == "t/knn10") == 1


def test_rivals_are_measured_beside():
    embed, train, test = parts()
    spaces = rivals(embed(train.texts), seed=0)
    found = text_classification.measure(
        texts_by(embed, DIMS, spaces=spaces), Series("t"), (train, test)
    )
    assert {r.name for r in found.results} == {
        f"t/{m}{s}" for m in ("logreg", "knn10") for s in ("", "_rotation", "_pca")
    }
    plain, turned = (found.examples[f"t/knn10{s}"].right_gn[-1] for s in ("", "_rotation"))
    np.testing.assert_array_equal(plain, turned)


def test_v_measure_is_that_of_scikit_learn():
    embed, texts = data()
    found = text_clustering.measure(texts_by(embed, DIMS, seed=3), Series("topic"), texts)
    for result in found.results[1:]:  # of one dim there are but two different vectors
        x = unit(embed(texts.texts), result.dim)
        values = [
            v_measure_score(texts.labels, KMeans(3, n_init=1, random_state=3 + i).fit_predict(x))
            for i in range(5)
        ]
        np.testing.assert_allclose(result.value, np.mean(values), atol=1e-6)
        np.testing.assert_allclose(result.stderr, np.std(values, ddof=1) / np.sqrt(5), atol=1e-6)
    assert found.results[0].value < found.results[-1].value - 0.1


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ((["a", "b"], ["x", "x"]), (["c"], ["x"]), "needs at least 2 classes .* got 1 and 1"),
        ((["a", "b"], ["x", "y"]), ([], []), "got 2 and 0"),
        ((["a", "b"], ["x", "y"]), (["c"], ["z"]), "no training text has the test label 'z'$"),
        ((["a", "b"], ["\u00e9", "y"]), (["c"], ["e\u0301"]), "have the same letters in"),
    ],
)
def test_texts_that_cannot_be_classified_are_refused(train, test, message):
    with pytest.raises(DataError, match=message):
        text_classification.measure(
            texts_by(lambda t: np.eye(len(t)), (2,)),
            Series("t"),
            (LabelledTexts(*train), LabelledTexts(*test)),
        )


@pytest.mark.parametrize("labels", [["x", "x", "x"], ["x", "y", "z"]])
def test_texts_that_cannot_be_clustered_are_refused(labels):
    with pytest.raises(DataError, match="needs at least 2 classes, and as many different texts"):
        text_clustering.measure(
            texts_by(lambda t: np.eye(len(t)), (2,)),
            Series("t"),
            LabelledTexts(["a", "b", "b"], labels),
        )
