"""Every supported mesh layout on eight devices against one device: gradients and loss curve."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh

from mrl_jax import NestedHead, Nesting
from mrl_jax import config as configs
from mrl_jax.data import Augmentation, load
from mrl_jax.data.loader import put
from mrl_jax.models import build
from mrl_jax.runtime import mesh as meshes
from mrl_jax.runtime.step import init_state, train_step
from mrl_jax.tasks.classification.task import Classification

STEPS, BATCH, CLASSES = 30, 32, 10
LAYOUTS = {
    "8 data": (8, 1, 1),
    "4x2 data x fsdp": (4, 2, 1),
    "4x2 data x tensor": (4, 1, 2),
    "2x2x2": (2, 2, 2),
}


def mesh_of(sizes):
    devices = np.array(jax.devices()[: int(np.prod(sizes))]).reshape(sizes)
    return Mesh(devices, meshes.AXES, axis_types=(AxisType.Auto,) * 3)


@functools.cache
def digits():
    return load("digits").splits["train"]


def batch_of(step):
    image, label = digits()
    rows = slice(step * BATCH, (step + 1) * BATCH)
    mask = (np.random.default_rng(step).random(BATCH) < 0.9).astype(np.float32)
    return {"image": image[rows], "label": label[rows], "mask": mask}


def make_task(kind, model, mesh, form):
    return Classification(
        backbone=build(model, embedding_dim=16, width=16, depth=1),
        head=NestedHead(Nesting((2, 4, 16)), CLASSES, kind),
        image_shape=(8, 8, 1),
        label_smoothing=0.1,
        augmentation=Augmentation(shift=1),
        loss_form=form,
        mesh=mesh,
    )


OPTIMIZER = optax.sgd(0.05, momentum=0.9)


@functools.cache
def fresh_state(kind, model):
    task = make_task(kind, model, mesh_of((1, 1, 1)), "plain")
    state = jax.jit(lambda key: init_state(task, OPTIMIZER, key))(jax.random.key(0))
    return jax.tree.map(np.asarray, state)


@functools.cache
def train(sizes, kind, model, form):
    """Loss curve, first gradients and which parameters were split, on a mesh."""
    mesh = mesh_of(sizes)
    task = make_task(kind, model, mesh, form)
    fresh = fresh_state(kind, model)
    shardings = meshes.shardings(fresh, configs.default_config().sharding, mesh)
    state = jax.device_put(fresh, shardings)
    split = {
        meshes.path_name(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state["params"])
        if any(leaf.sharding.shard_shape(leaf.shape)[i] != n for i, n in enumerate(leaf.shape))
    }
    step = jax.jit(
        functools.partial(train_step, task=task, optimizer=OPTIMIZER),
        donate_argnums=0,
        out_shardings=(shardings, meshes.replicated(mesh)),
    )
    losses, grads = [], None
    for i in range(STEPS):
        batch = put(batch_of(i), meshes.batch_sharding(mesh))
        state, metrics = step(state, batch, jax.random.key(0))
        losses.append(np.asarray(metrics["loss_g"]))
        if i == 0:
            # After one step the momentum is the gradient.
            grads = jax.tree.map(np.asarray, state["opt_state"][0].trace)
    return np.array(losses), grads, split


SLOW = pytest.mark.slow
# Every layout with both kinds of heads, and every form of the loss on split heads and parameters.
CASES = [
    ("8 data", "separate", "mlp", "blockwise"),
    ("4x2 data x fsdp", "shared", "mlp", "streamed"),
    ("4x2 data x tensor", "separate", "mlp", "blockwise"),
    ("2x2x2", "separate", "mlp", "blockwise"),
    ("2x2x2", "shared", "mlp", "streamed"),
    pytest.param("4x2 data x tensor", "shared", "mlp", "streamed", marks=SLOW),
    pytest.param("4x2 data x fsdp", "separate", "mlp", "plain", marks=SLOW),
    pytest.param("2x2x2", "separate", "mlp", "plain", marks=SLOW),
    pytest.param("8 data", "shared", "cnn", "plain", marks=SLOW),
    pytest.param("2x2x2", "shared", "cnn", "blockwise", marks=SLOW),
]


@pytest.mark.parametrize(("layout", "kind", "model", "form"), CASES)
def test_layout_equals_one_device_with_the_plain_loss(layout, kind, model, form):
    losses, grads, split = train(LAYOUTS[layout], kind, model, form)
    one_losses, one_grads, _ = train((1, 1, 1), kind, model, "plain")
    # Relative to the size of each gradient as a whole: single entries may be near zero.
    for path, one in jax.tree_util.tree_leaves_with_path(one_grads):
        mine = functools.reduce(lambda tree, key: tree[key.key], path, grads)
        assert np.linalg.norm(mine - one) <= 1e-5 * np.linalg.norm(one), path
        assert np.linalg.norm(one) > 1e-3, path
    np.testing.assert_allclose(losses, one_losses, rtol=1e-5)
    # The curve must go somewhere, or equality says little.
    assert losses[-5:].mean() < losses[:5].mean() - 0.1
    _, fsdp, tensor = LAYOUTS[layout]
    assert any("backbone" in name for name in split) == (fsdp > 1)
    assert any("head" in name for name in split) == (fsdp > 1 or tensor > 1)


def test_augmentation_moves_images_alike_on_every_layout():
    shift = Augmentation(shift=2)
    image = np.arange(BATCH * 64, dtype=np.float32).reshape(BATCH, 8, 8, 1)
    outputs = []
    for sizes in ((1, 1, 1), (2, 2, 2)):
        sharding = meshes.batch_sharding(mesh_of(sizes))
        moved = jax.jit(lambda x: shift(jax.random.key(3), x))(put({"x": image}, sharding)["x"])
        outputs.append(np.asarray(moved))
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert (outputs[0] != image).any()
    assert jnp.asarray(outputs[0]).shape == image.shape
