import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.decomposition import PCA

from mrl_jax import NestedHead, Nesting
from mrl_jax.data import Dataset, Split
from mrl_jax.evaluators import Evaluation
from mrl_jax.evaluators.classification import Accuracy
from mrl_jax.evaluators.nearest_neighbour import neighbour_accuracy, neighbours
from mrl_jax.models import build
from mrl_jax.runtime.mesh import make_mesh
from mrl_jax.tasks import Classification

DIMS = (1, 3, 8)
CLASSES = 7


def task_of(kind):
    nesting = Nesting((8,)) if kind == "fixed" else Nesting(DIMS)
    return Classification(
        backbone=build("mlp", embedding_dim=8, width=8, depth=1),
        head=NestedHead(nesting, CLASSES, kind),
        image_shape=(4, 4, 1),
    )


def random_params(task):
    rng = np.random.default_rng(3)
    params, model_state = task.init(jax.random.key(0))
    head = jax.tree.map(lambda p: jnp.float32(rng.normal(size=p.shape)), params["head"])
    return {**params, "head": head}, model_state


@pytest.mark.parametrize("kind", ["separate", "shared", "fixed"])
@pytest.mark.parametrize("n", [21, 24])
def test_accuracy_equals_brute_force(kind, n):
    task = task_of(kind)
    params, _ = random_params(task)
    rng = np.random.default_rng(0)
    z_nd = rng.normal(size=(n, 8)).astype(np.float32)
    label_n = rng.integers(0, CLASSES, n).astype(np.int32)
    dims = (1, 2, 3, 5, 8)
    results = Accuracy(task, make_mesh(), dims, batch_size=8).run(params, z_nd, label_n, "val")
    # Separate heads classify the trained dims only, others any dim.
    expected_dims = DIMS if kind == "separate" else dims
    head = {name: np.asarray(p, np.float64) for name, p in params["head"].items()}
    expected = {}
    for m in expected_dims:
        suffix = f"_{m:04d}" if kind == "separate" else ""
        logits = z_nd[:, :m] @ head[f"kernel{suffix}"][:m] + head[f"bias{suffix}"]
        order = np.argsort(-logits, axis=1)
        for k in (1, 5):
            expected[f"val/top{k}", m] = (order[:, :k] == label_n[:, None]).any(1).mean()
    assert {(r.name, r.dim): r.value for r in results} == pytest.approx(expected)
    for r in results:
        assert r.n == n
        assert r.stderr == pytest.approx(math.sqrt(r.value * (1 - r.value) / n))


def test_ties_and_nan_are_never_right():
    task = task_of("fixed")
    params, _ = task.init(jax.random.key(0))
    label_n = np.zeros(5, np.int32)
    for value in (0.0, np.nan):
        head = jax.tree.map(lambda p, v=value: jnp.full_like(p, v), params["head"])
        results = Accuracy(task, make_mesh(), (8,), batch_size=8).run(
            {**params, "head": head}, np.ones((5, 8), np.float32), label_n, "val"
        )
        assert [r.value for r in results] == [0, 0]


def brute_force(database, labels, query, m):
    found = []
    for q in query[:, :m]:
        cosine = database[:, :m] @ q / (np.linalg.norm(database[:, :m], axis=1) * np.linalg.norm(q))
        found.append(labels[np.argmax(cosine)])
    return np.array(found)


def test_nearest_neighbour_equals_brute_force():
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(CLASSES, 8)) * 1.5
    labels, query_labels = rng.integers(0, CLASSES, 90), rng.integers(0, CLASSES, 41)
    database = (centres[labels] + rng.normal(size=(90, 8))).astype(np.float32)
    query = (centres[query_labels] + rng.normal(size=(41, 8))).astype(np.float32)
    # Not at 1 dim: there every cosine is 1 or -1, and rounding picks among the ties.
    dims = (2, 3, 8)
    results = neighbour_accuracy(database, labels, query, query_labels, dims, prefix="test", seed=5)
    pca = PCA(8).fit(database.astype(np.float64))
    order = np.random.default_rng(5).permutation(8)
    spaces = {
        "1nn": (database, query),
        "1nn_pca": (pca.transform(database), pca.transform(query)),
        "1nn_random": (database[:, order], query[:, order]),
    }
    expected = {
        (f"test/{name}", m): (brute_force(d, labels, q, m) == query_labels).mean()
        for name, (d, q) in spaces.items()
        for m in dims
    }
    assert {(r.name, r.dim): r.value for r in results} == pytest.approx(expected)
    # Far from chance, and more dims help: the comparison above is not of noise with noise.
    assert expected["test/1nn", 8] > expected["test/1nn", 2] > 0.2


def test_neighbours_do_not_depend_on_chunks(monkeypatch):
    rng = np.random.default_rng(2)
    database = rng.normal(size=(30, 8)).astype(np.float32)
    query = rng.normal(size=(17, 8)).astype(np.float32)
    dims = (2, 3, 8)  # at 1 dim all are ties, which rounding decides: it differs by chunk
    whole = neighbours(database, query, dims)
    monkeypatch.setattr("mrl_jax.evaluators.nearest_neighbour._MAX_SIMILARITIES", 3 * 30 * 4)
    np.testing.assert_array_equal(neighbours(database, query, dims), whole)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2)])
def test_all_evaluators_on_a_mesh(sizes):
    rng = np.random.default_rng(0)

    def split(n):
        image = rng.integers(0, 256, (n, 4, 4, 1)).astype(np.uint8)
        return Split(image, rng.integers(0, CLASSES, n).astype(np.int32))

    splits = {"train": split(50), "val": split(13), "test": split(30)}
    dataset = Dataset("x", splits, tuple("abcdefg"))
    task = task_of("shared")
    params, model_state = random_params(task)
    evaluation = Evaluation(
        task, make_mesh(*sizes), dataset, dims=(1, 2, 3, 8, 99), batch_size=8, seed=0
    )
    results = evaluation.run(params, model_state, ("val", "test"))
    assert results == evaluation.run(params, model_state, ("val", "test"))
    metrics = ("top1", "top5", "1nn", "1nn_pca", "1nn_random")
    assert [(r.name, r.dim, r.n) for r in results] == [
        (f"{name}/{metric}", dim, n)
        for name, n in (("val", 13), ("test", 30))
        for metric in metrics
        for dim in (1, 2, 3, 8)
    ]
    # Neighbours are searched among the train split.
    z_train = np.asarray(task.embed(params, model_state, {"image": splits["train"].image}))
    z_test = np.asarray(task.embed(params, model_state, {"image": splits["test"].image}))
    for m in (2, 3, 8):
        found = brute_force(z_train, splits["train"].label, z_test, m)
        nearest = next(r for r in results if (r.name, r.dim) == ("test/1nn", m))
        assert nearest.value == pytest.approx((found == splits["test"].label).mean())
    # The embeddings that were classified are those of the model, in the right order.
    z_nd = task.embed(params, model_state, {"image": splits["val"].image})
    logits_gbc = task.logits(params, z_nd, (8,))
    top1 = (np.asarray(logits_gbc[0]).argmax(-1) == splits["val"].label).mean()
    assert next(r for r in results if (r.name, r.dim) == ("val/top1", 8)).value == top1
