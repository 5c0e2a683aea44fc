import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh

from mrl_jax.data import Augmentation
from mrl_jax.data.loader import put
from mrl_jax.models import build
from mrl_jax.models.text import SentenceEncoder, Static
from mrl_jax.nesting import Nesting
from mrl_jax.runtime import mesh as meshes
from mrl_jax.runtime.step import init_state, train_step
from mrl_jax.tasks.image_text.task import MAX_SCALE, ImageText

NESTING = Nesting((2, 8), (1.0, 3.0))
ROWS, SIZE, WORDS = 16, 8, 50
TEXT = SentenceEncoder(Static(WORDS, 6))
MLP = build("mlp", embedding_dim=5, width=7, depth=1)
CNN = build("cnn", embedding_dim=5, width=3, depth=1)


def task(backbone=MLP, encoder=TEXT, **options):
    options = {"width": 8, "image_shape": (SIZE, SIZE, 3), "max_length": 6, **options}
    return ImageText(backbone, encoder, NESTING, **options)


def batch_of(task, padding=True):
    """Pairs 1 and 2 are of one photo, 3 and 4 have one caption; the last is padding."""
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (ROWS, SIZE, SIZE, 3)).astype(np.uint8),
        "text_tokens": rng.integers(1, WORDS, (ROWS, 6)).astype(np.int32),
        "text_lengths": rng.integers(1, 7, ROWS).astype(np.int32),
        "image_id": np.arange(ROWS, dtype=np.int32),
        "text_id": np.arange(ROWS, dtype=np.int32) + ROWS,
        "mask": np.ones(ROWS, np.float32),
    }
    for name in ("image", "image_id"):
        batch[name][2] = batch[name][1]
    for name in ("text_tokens", "text_lengths", "text_id"):
        batch[name][4] = batch[name][3]
    batch["mask"][-1] = 1 - padding
    vectors = {"image_vector": MLP.out_dim, "text_vector": TEXT.out_dim}
    for name, width in vectors.items():
        batch[name] = rng.normal(size=(ROWS, width)).astype(np.float32)
    return {name: batch[name] for name in task.batch_spec(ROWS)}


@functools.cache
def initial(task):
    return jax.jit(task.init)(jax.random.key(0))


def loss_and_gradients(task, batch, values=None):
    params, state = values or initial(task)
    graded = jax.value_and_grad(task.loss, has_aux=True)
    (loss, (loss_g, state)), grads = jax.jit(graded)(params, state, batch, jax.random.key(1))
    return loss, np.asarray(loss_g), state, grads


def embeddings(task, batch, values=None):
    params, state = values or initial(task)
    texts = {"tokens": batch["text_tokens"], "lengths": batch["text_lengths"]}
    return [task.embed(params, state, rows) for rows in ({"image": batch["image"]}, texts)]


def brute_force(task, batch, scale_g, bias_g):
    """By the definition, in float64."""
    z = [np.asarray(x, np.float64)[:-1] for x in embeddings(task, batch)]
    ids = [batch[name][:-1] for name in ("image_id", "text_id")]
    same = np.any([i[:, None] == i[None] for i in ids], 0) & ~np.eye(ROWS - 1, dtype=bool)
    found = []
    for dim, scale, bias in zip(NESTING.dims, scale_g, bias_g, strict=True):
        a, b = (x[:, :dim] / np.linalg.norm(x[:, :dim], axis=1, keepdims=True) for x in z)
        logits = scale * a @ b.T + bias
        logits[same] = -np.inf
        if task.loss_name == "sigmoid":
            sign = 2 * np.eye(ROWS - 1) - 1
            found.append(np.logaddexp(0, -sign * logits).sum(1).mean())
        else:
            ways = [np.logaddexp.reduce(x, 1) - np.diag(x) for x in (logits, logits.T)]
            found.append(np.mean(ways))
    return np.array(found)


@pytest.mark.parametrize("scales", ["shared", "separate"])
@pytest.mark.parametrize("loss_name", ["info_nce", "sigmoid"])
def test_loss_by_its_definition(loss_name, scales):
    two = task(loss_name=loss_name, scales=scales, temperature=0.2, bias=-1.5)
    params, state = initial(two)
    bias = params.get("bias", jnp.zeros(()))
    if scales == "separate":
        params = {**params, "log_scale": params["log_scale"] + jnp.array([0.0, 0.5])}
        bias = bias + jnp.array([0.0, 0.3])
    if loss_name == "sigmoid":
        params = {**params, "bias": bias}
    batch = batch_of(two)
    loss, loss_g, _, grads = loss_and_gradients(two, batch, (params, state))
    scale_g = np.broadcast_to(np.exp(params["log_scale"]), 2)
    expected_g = brute_force(two, batch, scale_g, np.broadcast_to(bias, 2))
    np.testing.assert_allclose(loss_g, expected_g, rtol=1e-5)
    np.testing.assert_allclose(loss, expected_g @ NESTING.weights, rtol=1e-5)
    for name in ("log_scale", *(["bias"] if loss_name == "sigmoid" else [])):
        assert np.shape(grads[name]) == (() if scales == "shared" else (2,))
        assert np.all(np.abs(grads[name]) > 1e-3)


def test_what_is_not_learned_is_no_parameter():
    fixed = task(learned=False, temperature=0.001)
    assert initial(fixed)[0].keys() == {"image", "text", "image_projection", "text_projection"}
    batch = batch_of(fixed)
    expected_g = brute_force(fixed, batch, [1000.0] * 2, [0.0] * 2)
    np.testing.assert_allclose(loss_and_gradients(fixed, batch)[1], expected_g, rtol=1e-4)


@pytest.mark.parametrize("beyond", [0.0, 1.0])
def test_a_learned_scale_ends_at_its_limit_and_comes_back(beyond):
    params, state = initial(task())
    limit, batch = math.log(MAX_SCALE), batch_of(task())
    found = []
    for log_scale in (limit + beyond, limit - 1e-4):
        values = ({**params, "log_scale": jnp.float32(log_scale)}, state)
        found.append(loss_and_gradients(task(), batch, values))
    expected_g = brute_force(task(), batch, [MAX_SCALE] * 2, [0.0] * 2)
    np.testing.assert_allclose(found[0][1], expected_g, 1e-4)
    at_limit, below = (grads["log_scale"] for *_, grads in found)
    assert below > 1
    np.testing.assert_allclose(at_limit, below, rtol=1e-2)


def test_the_scale_of_a_model_is_the_one_of_its_loss():
    limit = math.log(MAX_SCALE)
    assert task().log_scale({"log_scale": jnp.float32(limit + 0.1)}) == jnp.float32(limit)
    assert task(loss_name="sigmoid").log_scale({"log_scale": jnp.float32(5)}) == 5
    np.testing.assert_allclose(task(learned=False, temperature=0.1).log_scale({}), math.log(10))


def test_a_learned_scale_at_its_limit_rises_no_further():
    still = task(locked=("image", "text"))
    params, state = initial(still)
    # All pairs are found already, which a larger scale would make surer.
    angle_b = 2 * np.pi * np.arange(ROWS) / ROWS
    batch = batch_of(still) | {"image_id": np.arange(ROWS), "text_id": np.arange(ROWS) + ROWS}
    for tower in ("image", "text"):
        vector_bd = batch[f"{tower}_vector"] = np.zeros_like(batch[f"{tower}_vector"])
        vector_bd[:, 0], vector_bd[:, 1] = np.cos(angle_b), np.sin(angle_b)
        params = {**params, f"{tower}_projection": {"kernel": np.eye(vector_bd.shape[1], 8)}}
    limit, found = math.log(MAX_SCALE), []
    for log_scale in (limit - 1e-4, limit, limit + 1):
        values = ({**params, "log_scale": jnp.float32(log_scale)}, state)
        found.append(loss_and_gradients(still, batch, values)[3]["log_scale"])
    assert found[0] < 0
    assert found[1] == found[2] == 0


@pytest.mark.parametrize(("pairs", "shared"), [((1, 2), "image_id"), ((3, 4), "text_id")])
def test_pairs_of_one_photo_or_one_caption_are_not_each_others_negatives(pairs, shared):
    two = task()
    alone = batch_of(two) | {"mask": np.isin(np.arange(ROWS), pairs).astype(np.float32)}
    np.testing.assert_allclose(loss_and_gradients(two, alone)[1], 0, atol=1e-6)
    apart = alone | {shared: np.arange(ROWS, dtype=np.int32) + 100}
    assert (loss_and_gradients(two, apart)[1] > 0.5).all()


def test_padding_may_hold_anything():
    two = task()
    batch = batch_of(two)
    other = {name: array.copy() for name, array in batch.items()}
    other["image"][-1], other["text_tokens"][-1], other["text_lengths"][-1] = 255, 7, 0
    losses = [loss_and_gradients(two, x) for x in (batch, other)]
    np.testing.assert_array_equal(losses[0][1], losses[1][1])
    jax.tree.map(np.testing.assert_array_equal, losses[0][3], losses[1][3])


def close(mine, expected):
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(mine), jax.tree.leaves(expected), strict=True
    ):
        assert np.linalg.norm(a - b) <= 1e-5 * max(np.linalg.norm(b), 1e-3), path


def test_gradients_of_a_batch_in_parts_are_those_of_the_whole():
    batch = batch_of(task())
    whole, parts = (loss_and_gradients(task(micro_batch=m), batch) for m in (0, 4))
    np.testing.assert_allclose(parts[1], whole[1], rtol=1e-6)
    close(parts[3], whole[3])


def test_parts_of_a_batch_have_statistics_of_their_own():
    two = task(CNN, micro_batch=4)
    batch = batch_of(two, padding=False)
    params, state = initial(two)
    found = loss_and_gradients(two, batch)[2]["image"]["batch_stats"]["BatchNorm_0"]["mean"]
    means = []
    for first in range(4):
        part = {name: array[first::4] for name, array in batch.items()}
        ran = task(CNN).loss(params, state, part, jax.random.key(1))[1][1]
        means.append(ran["image"]["batch_stats"]["BatchNorm_0"]["mean"])
    np.testing.assert_allclose(found, np.mean(means, 0), rtol=1e-5)
    assert np.ptp(means, 0).max() > 1e-3


@pytest.mark.parametrize("locked", [("image",), ("text",), ("image", "text")])
def test_a_locked_tower_stays_and_its_vectors_stand_for_it(locked):
    free, still = task(), task(locked=locked)
    params, _ = initial(free)
    own = {tower: params[tower] for tower in locked}
    kept = {name: tree for name, tree in params.items() if name not in locked}
    values = (kept, {"locked": own})
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), values, initial(still))
    batch = batch_of(free)
    inputs = {"image": {"image": batch["image"]}}
    inputs["text"] = {"tokens": batch["text_tokens"], "lengths": batch["text_lengths"]}
    vectors = {f"{t}_vector": still.vectors(*values, inputs[t]) for t in locked}
    given = {**batch, **vectors}
    given = {name: given[name] for name in still.batch_spec(ROWS)}
    _, loss_g, state, grads = loss_and_gradients(still, given, values)
    _, expected_g, _, expected = loss_and_gradients(free, batch)
    np.testing.assert_allclose(loss_g, expected_g, rtol=1e-5)
    close(grads, {name: expected[name] for name in kept})
    jax.tree.map(np.testing.assert_array_equal, state["locked"], own)
    for mine, theirs in zip(embeddings(still, batch, values), embeddings(free, batch), strict=True):
        np.testing.assert_array_equal(mine, theirs)


LAYOUTS = {
    "8 data": (8, 1, 1),
    "8 fsdp": (1, 8, 1),
    "4x2 data x fsdp": (4, 2, 1),
    "4x2 data x tensor": (4, 1, 2),
    "2x4 fsdp x tensor": (1, 2, 4),
    "2x2x2": (2, 2, 2),
}
OPTIMIZER = optax.sgd(1.0)
RULES = (("kernel", "largest:fsdp"), ("embedding", "first:tensor"), (".*", "replicate"))


@functools.cache
def updated(sizes, loss_name, micro_batch):
    """Gradients, model state and losses of one step on a mesh."""
    devices = np.array(jax.devices()[: math.prod(sizes)]).reshape(sizes)
    mesh = Mesh(devices, meshes.AXES, axis_types=(AxisType.Auto,) * 3)
    two = task(
        build("cnn", embedding_dim=8, width=8, depth=1),
        SentenceEncoder(Static(48, 8)),  # sizes that can be split over devices
        loss_name=loss_name,
        micro_batch=micro_batch,
        augmentation=Augmentation(crop=0.5, flip=True),
        mesh=mesh,
    )
    make = jax.jit(lambda key: init_state(two, OPTIMIZER, key))
    one = jax.tree.map(np.asarray, make(jax.random.key(0)))
    places = meshes.shardings(one, RULES, mesh)
    step = jax.jit(
        functools.partial(train_step, task=two, optimizer=OPTIMIZER),
        out_shardings=(places, meshes.replicated(mesh)),
    )
    batch = batch_of(two)
    batch["text_tokens"] %= 48
    rows = put(batch, meshes.batch_sharding(mesh))
    after, metrics = step(jax.device_put(one, places), rows, jax.random.key(5))
    grads = jax.tree.map(lambda a, b: a - np.asarray(b), one["params"], after["params"])
    return grads, jax.device_get(after["model_state"]), np.asarray(metrics["loss_g"])


SLOW = pytest.mark.slow
CASES = [
    ("8 data", "info_nce", 0),
    ("2x2x2", "sigmoid", 0),
    *(
        pytest.param(layout, loss_name, micro, marks=SLOW)
        for number, layout in enumerate(LAYOUTS)
        for loss_name, micro in (("info_nce", 8 * (number % 2)), ("sigmoid", 8 * (1 - number % 2)))
    ),
]


@pytest.mark.parametrize(("layout", "loss_name", "micro_batch"), CASES)
def test_every_layout_gives_the_gradients_of_one_device(layout, loss_name, micro_batch):
    grads, state, loss_g = updated(LAYOUTS[layout], loss_name, micro_batch)
    expected, expected_state, expected_g = updated((1, 1, 1), loss_name, micro_batch)
    np.testing.assert_allclose(loss_g, expected_g, rtol=1e-5)
    for (path, mine), one in zip(
        jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(expected), strict=True
    ):
        assert np.linalg.norm(mine - one) <= 1e-5 * np.linalg.norm(one), path
        assert np.linalg.norm(one) > 1e-4, path
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), state, expected_state
    )
