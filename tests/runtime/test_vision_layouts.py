"""Gradients of convolutional and transformer networks on every mesh layout against one device."""

import functools

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh

from mrl_jax import NestedHead, Nesting
from mrl_jax import config as configs
from mrl_jax.data import Augmentation
from mrl_jax.data.loader import put
from mrl_jax.models.resnet import ResNet
from mrl_jax.models.vit import ViT
from mrl_jax.runtime import mesh as meshes
from mrl_jax.runtime.step import init_state, train_step
from mrl_jax.tasks.classification.task import Classification

BATCH, CLASSES, SIZE = 16, 8, 8
NETWORKS = {
    "resnet": ResNet((1, 1), bottleneck=True, width=4, stem="small", embedding_dim=16),
    "resnet, batch-norm in groups": ResNet(
        (1, 1), bottleneck=False, width=4, stem="small", batch_norm_groups=4, blurpool=True
    ).clone(embedding_dim=16),
    "vit": ViT(4, 16, depth=2, heads=4, pool="cls"),
    "vit, again backwards": ViT(4, 16, depth=2, heads=4, remat=True),
}
LAYOUTS = {
    "8 data": (8, 1, 1),
    "8 fsdp": (1, 8, 1),
    "4x2 data x fsdp": (4, 2, 1),
    "4x2 data x tensor": (4, 1, 2),
    "2x4 fsdp x tensor": (1, 2, 4),
    "2x2x2": (2, 2, 2),
}
# Classes, heads of the attention and hidden units over tensor; all other kernels over fsdp.
RULES = configs.load("configs/imagenet_vit.py").sharding
RESNET_RULES = configs.default_config().sharding
OPTIMIZER = optax.sgd(1.0)


def mesh_of(sizes):
    devices = np.array(jax.devices()[: int(np.prod(sizes))]).reshape(sizes)
    return Mesh(devices, meshes.AXES, axis_types=(AxisType.Auto,) * 3)


def batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (BATCH, SIZE, SIZE, 3)).astype(np.uint8),
        "label": rng.integers(0, CLASSES, BATCH).astype(np.int32),
        "mask": (np.arange(BATCH) % 7 > 0).astype(np.float32),
    }


@functools.cache
def updated(network, sizes, form, accumulate=1):
    """Parameters before and after one step, the model state after it, and the losses."""
    mesh = mesh_of(sizes)
    task = Classification(
        backbone=NETWORKS[network],
        head=NestedHead(Nesting((2, 4, 16)), CLASSES, "separate"),
        image_shape=(SIZE, SIZE, 3),
        augmentation=Augmentation(crop=0.5, flip=True, mixup=0.5),
        loss_form=form,
        mesh=mesh,
    )
    rules = RULES if network.startswith("vit") else RESNET_RULES
    # The same initial parameters on all meshes: made on one device, then moved.
    one = jax.tree.map(
        np.asarray, jax.jit(lambda key: init_state(task, OPTIMIZER, key))(jax.random.key(0))
    )
    shardings = meshes.shardings(one, rules, mesh)
    step = jax.jit(
        functools.partial(train_step, task=task, optimizer=OPTIMIZER, accumulate=accumulate),
        out_shardings=(shardings, meshes.replicated(mesh)),
    )
    rows = put(batch(), meshes.batch_sharding(mesh))
    after, metrics = step(jax.device_put(one, shardings), rows, jax.random.key(5))
    gradients = jax.tree.map(lambda a, b: a - np.asarray(b), one["params"], after["params"])
    return gradients, after["model_state"], np.asarray(metrics["loss_g"]), shardings


# Every layout with a convolutional network and a transformer, every network on several layouts.
PAIRS = [
    ("8 data", "resnet"),
    ("8 data", "vit, again backwards"),
    ("8 fsdp", "resnet, batch-norm in groups"),
    ("8 fsdp", "vit"),
    ("4x2 data x fsdp", "resnet"),
    ("4x2 data x fsdp", "vit, again backwards"),
    ("4x2 data x tensor", "resnet, batch-norm in groups"),
    ("4x2 data x tensor", "vit"),
    ("2x4 fsdp x tensor", "resnet"),
    ("2x4 fsdp x tensor", "vit, again backwards"),
    ("2x2x2", "resnet, batch-norm in groups"),
    ("2x2x2", "vit"),
]


@pytest.mark.slow  # compiling takes a while
@pytest.mark.parametrize(("layout", "network"), PAIRS)
def test_gradients_equal_one_device(network, layout):
    form = "blockwise" if layout == "2x2x2" else "plain"
    gradients, model_state, loss_g, shardings = updated(network, LAYOUTS[layout], form)
    expected, expected_state, expected_g, _ = updated(network, (1, 1, 1), "plain")
    np.testing.assert_allclose(loss_g, expected_g, rtol=1e-5)
    size = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(expected)))
    for (path, one), mine in zip(
        jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(gradients), strict=True
    ):
        where = meshes.path_name(path)
        # Biases of keys have no gradient: the softmax does not see them.
        assert np.linalg.norm(mine - one) <= 2e-5 * max(np.linalg.norm(one), 0.01 * size), where
        assert np.linalg.norm(one) > 1e-6 * size or "key/bias" in where, where
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        model_state,
        expected_state,
    )
    _, fsdp, tensor = LAYOUTS[layout]
    axes = {
        axis
        for leaf in jax.tree.leaves(shardings["params"]["backbone"])
        for axis in leaf.spec
        if axis
    }
    split_tensor = tensor > 1 and network.startswith("vit")
    assert ("fsdp" in axes) == (fsdp > 1)
    assert ("tensor" in axes) == split_tensor


@pytest.mark.slow
@pytest.mark.parametrize("network", ["resnet, batch-norm in groups", "vit"])
def test_batch_in_parts_on_a_mesh_equals_one_device(network):
    gradients, _, loss_g, _ = updated(network, (2, 2, 2), "plain", accumulate=2)
    expected, _, expected_g, _ = updated(network, (1, 1, 1), "plain", accumulate=2)
    np.testing.assert_allclose(loss_g, expected_g, rtol=1e-5)
    size = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(expected)))
    difference = jax.tree.map(lambda a, b: np.linalg.norm(a - b), gradients, expected)
    assert max(jax.tree.leaves(difference)) <= 2e-5 * size
