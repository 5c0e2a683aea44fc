import functools
import types

import jax
import numpy as np
import optax
import pytest

from mrl_jax import NestedHead, Nesting
from mrl_jax.data import Augmentation
from mrl_jax.models import build
from mrl_jax.runtime.step import evaluated, init_state, train_step
from mrl_jax.tasks.classification.task import Classification


def fresh_state(task, optimizer, **options):
    return jax.jit(lambda key: init_state(task, optimizer, key, **options))(jax.random.key(0))


@pytest.fixture(scope="module")
def setup():
    task = Classification(
        backbone=build("cnn", embedding_dim=8, width=4, depth=1),
        head=NestedHead(Nesting((2, 8), (1.0, 3.0)), 5),
        image_shape=(8, 8, 1),
        augmentation=Augmentation(shift=2),
    )
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (16, 8, 8, 1)).astype(np.uint8),
        "label": rng.integers(0, 5, 16).astype(np.int32),
        "mask": np.ones(16, np.float32),
    }
    # A rate of zero: whatever differs between steps does not come from the parameters.
    optimizer = optax.sgd(0.0)
    state = fresh_state(task, optimizer)
    step = jax.jit(functools.partial(train_step, task=task, optimizer=optimizer))
    return task, batch, state, step


def test_every_step_draws_its_own_random_numbers(setup):
    _, batch, state, step = setup
    key = jax.random.key(7)
    next_state, first = step(state, batch, key)
    assert int(next_state["step"]) == 1
    _, again = step(state, batch, key)
    _, second = step({**state, "step": next_state["step"]}, batch, key)
    _, other_run = step(state, batch, jax.random.key(8))
    assert first["loss"] == again["loss"]
    assert first["loss"] != second["loss"]
    assert first["loss"] != other_run["loss"]


def test_metrics_are_of_the_weighted_loss(setup):
    task, batch, state, step = setup
    key = jax.random.key(7)
    new_state, metrics = step(state, batch, key)
    loss_g = np.asarray(metrics["loss_g"])
    assert metrics["loss"] == pytest.approx(loss_g[0] + 3 * loss_g[1], rel=1e-6)
    grads = jax.jit(jax.grad(task.loss, has_aux=True))(
        state["params"], state["model_state"], batch, jax.random.fold_in(key, 0)
    )[0]
    squares = sum(float((np.asarray(g) ** 2).sum()) for g in jax.tree.leaves(grads))
    assert metrics["grad_norm"] == pytest.approx(squares**0.5, rel=1e-4)
    changed = jax.tree.map(
        lambda a, b: bool((a != b).any()), state["model_state"], new_state["model_state"]
    )
    assert all(jax.tree.leaves(changed))
    # Running means go a tenth of the way from 0: after two equal steps 0.1 and 0.19 of it.
    again, _ = step({**new_state, "step": state["step"]}, batch, key)
    once, twice = (
        [np.asarray(x["mean"]) for x in s["model_state"]["batch_stats"].values()]
        for s in (new_state, again)
    )
    assert len(once) == 2
    for of_one, of_two in zip(once, twice, strict=True):
        np.testing.assert_allclose(of_two, 1.9 * of_one, rtol=1e-5)


def test_a_batch_in_parts_gives_the_gradients_of_the_whole():
    """Without batch-norm and random shifts; rows that do not count are not spread evenly."""
    task = Classification(
        backbone=build("mlp", embedding_dim=8, width=8, depth=1),
        head=NestedHead(Nesting((2, 8), (1.0, 3.0)), 5),
        image_shape=(4, 4, 1),
    )
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (16, 4, 4, 1)).astype(np.uint8),
        "label": rng.integers(0, 5, 16).astype(np.int32),
        "mask": (np.arange(16) % 4 != 1).astype(np.float32),
    }
    optimizer = optax.sgd(1.0)
    state = fresh_state(task, optimizer)

    def run(parts):
        step = functools.partial(train_step, task=task, optimizer=optimizer, accumulate=parts)
        return jax.tree.map(np.asarray, jax.jit(step)(state, batch, jax.random.key(1)))

    whole, parts = run(1), run(4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), parts, whole)
    assert whole[1]["grad_norm"] > 0.1


def test_every_part_has_its_own_rows_and_random_numbers():
    """Part i of n is every n-th row from row i on, as rows of a batch are split over devices."""

    def loss(params, model_state, batch, key):
        return params * jax.random.normal(key) * batch["row"].mean(), (params[None], model_state)

    row_b = np.arange(12, dtype=np.float32)
    state = {"step": np.int32(5), "params": np.float32(1), "model_state": {}, "opt_state": ()}
    step = functools.partial(
        train_step, task=types.SimpleNamespace(loss=loss), optimizer=optax.identity(), accumulate=3
    )
    key = jax.random.key(0)
    _, metrics = jax.jit(step)(state, {"row": row_b, "mask": np.ones_like(row_b)}, key)

    @jax.jit
    def drawn(key):
        of_step = jax.random.fold_in(key, 5)
        return [jax.random.normal(jax.random.fold_in(of_step, i)) for i in range(3)]

    expected = np.mean([x * row_b[i::3].mean() for i, x in enumerate(drawn(key))])
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


def test_moving_averages_of_parameters_and_statistics(setup):
    task, batch, _, _ = setup
    optimizer = optax.sgd(0.1)
    states = [fresh_state(task, optimizer, ema=True)]
    step = jax.jit(functools.partial(train_step, task=task, optimizer=optimizer, ema_decay=0.15))
    for _ in range(2):
        states.append(step(states[-1], batch, jax.random.key(1))[0])
    for index, name in enumerate(("params", "model_state")):
        assert jax.tree.leaves(states[0][name])
        for start, one, two, average in zip(
            *(jax.tree.leaves(state[name]) for state in states),
            jax.tree.leaves(evaluated(states[-1])[index]),
            strict=True,
        ):
            # The first step keeps (1 + 0) / (10 + 0); the second would 2 / 11, but for the decay.
            expected = 0.15 * (0.1 * start + 0.9 * one) + 0.85 * two
            np.testing.assert_allclose(average, expected, atol=1e-6)
    assert evaluated({"params": 1, "model_state": 2}) == (1, 2)


def test_the_average_of_what_never_changes_is_that_itself():
    """As the parameters of a locked tower, which are model state."""

    def loss(params, model_state, batch, key):
        return params * 1.0, (params[None], model_state)

    kept = np.random.default_rng(0).normal(size=100).astype(np.float32)
    state = {"step": np.int32(0), "params": np.float32(1), "opt_state": ()}
    state |= {"model_state": kept, "ema_params": np.float32(1), "ema_model_state": kept}
    step = functools.partial(
        train_step,
        task=types.SimpleNamespace(loss=loss),
        optimizer=optax.identity(),
        ema_decay=0.999,
    )
    after, _ = jax.jit(
        lambda state: jax.lax.scan(
            lambda state, _: (step(state, {}, jax.random.key(0))[0], None), state, length=1000
        )
    )(state)
    np.testing.assert_array_equal(after["ema_model_state"], kept)
