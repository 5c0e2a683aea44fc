import functools

import jax
import numpy as np
import optax
import pytest

from mrl_jax import Nesting, nested
from mrl_jax.losses import preserve
from mrl_jax.losses.negatives import ids_mask
from mrl_jax.models import adaptors
from mrl_jax.runtime import mesh as meshes
from mrl_jax.runtime import step as steps
from mrl_jax.tasks.adaptor.task import AdaptorTask

WIDTH, BATCH = 12, 16
NESTING = Nesting((2, 4, WIDTH), (1.0, 0.5, 2.0))


def vectors(seed=0, batch=BATCH):
    """Directions of very unequal variance, in an order that prefixes do not follow."""
    rng = np.random.default_rng(seed)
    spread = np.array([0.2, 0.1, 0.1, 0.2, 3.0, 0.1, 0.3, 2.0, 0.1, 0.2, 1.0, 0.1])
    return np.float32(rng.normal(size=(batch, WIDTH)) * spread)


def batch_of(ranked=False, seed=0):
    found = {"vector": vectors(seed), "mask": np.float32(np.arange(BATCH) != 3)}
    if ranked:
        noise = 0.1 * np.random.default_rng(seed + 1).normal(size=(BATCH, WIDTH))
        found["positive"] = found["vector"] + np.float32(noise)
        found["vector_id"] = np.arange(BATCH, dtype=np.int32) + BATCH
        found["positive_id"] = np.arange(BATCH, dtype=np.int32) // 2
    return found


def moved(task):
    """Parameters near those that the task begins with, and its model state."""
    params, state = jax.jit(task.init)(jax.random.key(0))
    rng = np.random.default_rng(5)
    params = jax.tree.map(lambda p: np.float32(p + 0.1 * rng.normal(size=p.shape)), params)
    return params, state


preserve_pairs = jax.jit(preserve.preserve_pairs)


def test_loss_is_the_weighted_sum_of_its_terms():
    task = AdaptorTask(
        adaptors.Residual(8), NESTING, WIDTH, True, 0.5, 2.0, 3, reconstruction=0.3, ranking=0.7
    )
    params, _ = moved(task)
    batch = batch_of(ranked=True)
    loss, (loss_g, state) = jax.jit(task.loss)(params, {}, batch, jax.random.key(1))

    @jax.jit
    def by_hand(params, batch):
        mask_b = batch["mask"]
        x = [batch["vector"], batch["positive"]]
        z = [task.adaptor.apply({"params": params}, side) for side in x]
        total, total_g = 0.0, 0.0
        near = functools.partial(preserve.preserve_neighbours, neighbours=3)
        for weight, function in ((0.5, preserve.preserve_pairs), (2.0, near)):
            for adapted, source in zip(z, x, strict=True):
                value, value_g = nested(function, NESTING)(adapted, source_bd=source, mask_b=mask_b)
                total += weight * value / 2
                total_g += weight * value_g / 2
        keep_bb = ids_mask(batch["vector_id"], batch["positive_id"])
        value, value_g = nested(preserve.rank, NESTING)(*z, keep_bb=keep_bb, mask_b=mask_b)
        for adapted, source in zip(z, x, strict=True):
            total += 0.3 * preserve.reconstruct(adapted, source, mask_b=mask_b) / 2
        return total + 0.7 * value, total_g + 0.7 * value_g

    total, expected_g = by_hand(params, batch)
    np.testing.assert_allclose(loss, total, rtol=1e-5)
    np.testing.assert_allclose(loss_g, expected_g, rtol=1e-5)
    assert state == {}


@pytest.mark.parametrize(
    "adaptor", [adaptors.Linear(WIDTH), adaptors.Residual(32), adaptors.Rotation()]
)
def test_training_makes_prefixes_compare_as_whole_vectors_do(adaptor):
    task = AdaptorTask(adaptor, NESTING, WIDTH, reconstruction=0.0)
    optimizer = optax.adam(0.03)
    state = jax.jit(lambda key: steps.init_state(task, optimizer, key))(jax.random.key(0))
    train_step = jax.jit(functools.partial(steps.train_step, task=task, optimizer=optimizer))
    data = vectors(seed=1, batch=256)
    for i in range(40):
        rows = np.random.default_rng(i).choice(256, BATCH, replace=False)
        batch = {"vector": data[rows], "mask": np.ones(BATCH, np.float32)}
        state, metrics = train_step(state, batch, jax.random.key(1))
    assert metrics["loss_g"].shape == (3,)
    fresh = {"vector": vectors(seed=2, batch=64), "mask": np.ones(64, np.float32)}
    after = np.asarray(jax.jit(task.embed)(state["params"], {}, fresh))
    for dim in (2, 4):
        loss_before, loss_after = (
            preserve_pairs(z[:, :dim], source_bd=fresh["vector"]) for z in (fresh["vector"], after)
        )
        assert loss_after < 0.7 * loss_before


@pytest.mark.parametrize("ranked", [False, True])
def test_batches_are_as_specified(ranked):
    spec = AdaptorTask(adaptors.Rotation(), NESTING, WIDTH, ranked).batch_spec(BATCH)
    assert spec == {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch_of(ranked).items()}


@pytest.mark.slow
def test_a_mesh_changes_nothing():
    mesh = meshes.make_mesh(data=4, fsdp=2)
    here, split = (
        AdaptorTask(adaptors.Rotation(), NESTING, WIDTH, True, mesh=m) for m in (None, mesh)
    )
    batch = batch_of(ranked=True)
    params, _ = moved(here)
    placed = jax.device_put(batch, meshes.batch_sharding(mesh))

    def gradient(task, batch):
        return jax.jit(jax.grad(lambda p: task.loss(p, {}, batch, None)[0]))(params)["skew"]

    expected = gradient(here, batch)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(gradient(split, placed), expected, rtol=1e-4, atol=1e-5)
    found = jax.jit(split.embed)(params, {}, placed)
    np.testing.assert_allclose(found, here.embed(params, {}, batch), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": -1}, "pairs must be >= 0, got -1"),
        ({"pairs": 0, "neighbours": 0}, "one of pairs, neighbours and, if ranked, ranking"),
        ({"nearest": 0}, "nearest must be >= 1"),
        ({"adaptor": adaptors.Linear(8)}, r"nesting dim 12 is wider .* \(8 dims\)"),
        (
            {"adaptor": adaptors.Linear(8), "nesting": Nesting((4, 8))},
            "reconstruction must be 0 where vectors of 12 dims become 8, got 1.0",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AdaptorTask(
            **{"adaptor": adaptors.Rotation(), "nesting": NESTING, "width": WIDTH} | options
        )


def test_turned_vectors_are_what_is_adapted_and_compared_with():
    adaptor, rng = adaptors.Residual(8), np.random.default_rng(3)
    basis, _ = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))
    state = {"basis": np.float32(basis)}
    turned = AdaptorTask(adaptor, NESTING, WIDTH, ranked=True, turned=True)
    plain = AdaptorTask(adaptor, NESTING, WIDTH, ranked=True)
    params, fresh = moved(turned)
    np.testing.assert_array_equal(fresh["basis"], np.eye(WIDTH))
    assert jax.eval_shape(plain.init, jax.random.key(0))[1] == {}
    batch = batch_of(ranked=True)
    before = {**batch, **{side: batch[side] @ state["basis"] for side in ("vector", "positive")}}
    loss, (loss_g, same) = jax.jit(turned.loss)(params, state, batch, None)
    expected, (expected_g, _) = jax.jit(plain.loss)(params, {}, before, None)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(loss_g, expected_g, rtol=1e-5)
    np.testing.assert_array_equal(same["basis"], state["basis"])
    z_bd = jax.jit(turned.embed)(params, state, batch)
    expected_bd = jax.jit(plain.embed)(params, {}, before)
    np.testing.assert_allclose(z_bd, expected_bd, rtol=1e-5, atol=1e-5)
