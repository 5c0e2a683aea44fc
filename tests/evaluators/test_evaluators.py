import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evaluators.subjects import (
    CLASSES,
    DIMS,
    random_dataset,
    random_params,
    subject_of,
    task_of,
)

from mrl_jax.evaluators import MEASURES, chosen, classification
from mrl_jax.runtime.mesh import make_mesh
from mrl_jax.tasks.classification.measure import ClassificationEvaluation


@pytest.mark.parametrize("kind", ["separate", "shared", "fixed"])
@pytest.mark.parametrize("n", [21, 24])
def test_accuracy_equals_brute_force(kind, n):
    task = task_of(kind)
    params, _ = random_params(task)
    rng = np.random.default_rng(0)
    z_nd = rng.normal(size=(n, 8)).astype(np.float32)
    label_n = rng.integers(0, CLASSES, n).astype(np.int32)
    dims = (1, 2, 3, 5, 8)
    subject = subject_of({"val": (z_nd, label_n)}, kind, measured=dims, params=params)
    finding = classification.measure(subject, "val")
    results = finding.results
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
        found_dims, right_gn = finding.examples[r.name]
        assert right_gn[found_dims.index(r.dim)].mean() == r.value


def test_ties_and_nan_are_never_right():
    task = task_of("fixed")
    params, _ = task.init(jax.random.key(0))
    label_n = np.zeros(5, np.int32)
    for value in (0.0, np.nan):
        head = jax.tree.map(lambda p, v=value: jnp.full_like(p, v), params["head"])
        subject = subject_of(
            {"val": (np.ones((5, 8), np.float32), label_n)},
            "fixed",
            measured=(8,),
            params={**params, "head": head},
        )
        results = classification.measure(subject, "val").results
        assert [r.value for r in results] == [0, 0]


def brute_force(database, labels, query, m):
    found = []
    for q in query[:, :m]:
        cosine = database[:, :m] @ q / (np.linalg.norm(database[:, :m], axis=1) * np.linalg.norm(q))
        found.append(labels[np.argmax(cosine)])
    return np.array(found)


@pytest.mark.parametrize("sizes", [pytest.param((8, 1, 1), marks=pytest.mark.slow), (2, 2, 2)])
def test_all_evaluators_on_a_mesh(sizes):
    dataset = random_dataset({"train": 50, "val": 13, "test": 30})
    splits = dataset.splits
    task = task_of("shared")
    params, model_state = random_params(task)
    evaluation = ClassificationEvaluation(
        task, make_mesh(*sizes), dataset, dims=(1, 2, 3, 8, 99), batch_size=8, seed=0
    )
    results = evaluation.run(params, model_state, ("val", "test")).results
    assert results == evaluation.run(params, model_state, ("val", "test")).results
    metrics = ("top1", "top5", "1nn", "1nn_pca", "1nn_random", "1nn_rotation", "1nn_svd")
    assert [(r.name, r.dim, r.n) for r in results] == [
        (f"{name}/{metric}", dim, n)
        for name, n in (("val", 13), ("test", 30))
        for metric in metrics
        for dim in (1, 2, 3, 8)
        # The classifier of 7 classes spans 7 dims.
        if (metric, dim) != ("1nn_svd", 8)
    ]
    # Neighbours are searched among the train split.
    images = {name: splits[name].image for name in ("train", "test", "val")}
    embed = jax.jit(
        lambda params: {k: task.embed(params, {}, {"image": x}) for k, x in images.items()}
    )
    z = jax.tree.map(np.asarray, embed(params))
    for m in (2, 3, 8):
        found = brute_force(z["train"], splits["train"].label, z["test"], m)
        nearest = next(r for r in results if (r.name, r.dim) == ("test/1nn", m))
        assert nearest.value == pytest.approx((found == splits["test"].label).mean())
    # The embeddings that were classified are those of the model, in the right order.
    logits_gbc = jax.jit(lambda params, z_nd: task.logits(params, z_nd, (8,)))(params, z["val"])
    top1 = (np.asarray(logits_gbc[0]).argmax(-1) == splits["val"].label).mean()
    assert next(r for r in results if (r.name, r.dim) == ("val/top1", 8)).value == top1


def test_measures_are_chosen_by_name():
    assert list(chosen(("neighbours", "accuracy"))) == ["accuracy", "neighbours"]
    assert chosen(("all",)) == MEASURES
    with pytest.raises(
        ValueError, match=r"measures are accuracy, .* all, or an import path .*; got 'top1'"
    ):
        chosen(("top1",))
    with pytest.raises(ValueError, match="at least one of accuracy"):
        chosen(())
