"""Grad-CAM against class activation maps, gradients by hand and images with one thing in them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mrl_jax import NestedHead, Nesting
from mrl_jax.data import padded_batches
from mrl_jax.evaluators.grad_cam import grad_cam, neighbour_correlation, top_share
from mrl_jax.models.features import with_features
from mrl_jax.models.resnet import ResNet
from mrl_jax.models.vit import EPSILON, Block, ViT
from mrl_jax.runtime.mesh import batch_sharding, make_mesh
from mrl_jax.tasks.classification.task import Classification

DIMS, CLASSES, BATCH = (2, 3, 8), 5, 8
# Half the resolution in the map, so that it has to be enlarged.
RESNET = ResNet((1, 1), bottleneck=False, width=4, stem="small")


def task_of(backbone, kind="separate", shape=(8, 12, 3), **options):
    head = NestedHead(Nesting(DIMS), CLASSES, kind, **options)
    return Classification(backbone, head, shape)


@functools.cache
def random_values(task):
    """Random numbers of the right shapes; compiling the true initialisation takes seconds."""
    rng = np.random.default_rng(1)
    params, model_state = jax.eval_shape(task.init, jax.random.key(0))
    params = jax.tree.map(lambda p: rng.normal(size=p.shape, scale=0.5).astype(p.dtype), params)
    state = jax.tree.map(lambda p: rng.uniform(0.5, 2, p.shape).astype(p.dtype), model_state)
    return params, state


def batch_of(task, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (BATCH, *task.image_shape)).astype(np.uint8),
        "class_bg": rng.integers(0, CLASSES, (BATCH, len(DIMS))).astype(np.int32),
    }


def maps_of(task, batch, *values, mesh=None):
    """Maps of the random values, or of a part of them that is given."""
    mesh = mesh or make_mesh(1, 1, 1, devices=jax.devices()[:1])
    params, model_state = (*values, *random_values(task)[len(values) :])
    (placed,) = padded_batches(batch, BATCH, batch_sharding(mesh))
    return grad_cam(task, mesh, DIMS)(params, model_state, placed)


def normalised(map_gbhw):
    """Positive parts over the largest, of maps that need no enlarging; float64."""
    map_gbhw = np.maximum(np.asarray(map_gbhw, np.float64), 0)
    largest = map_gbhw.max((2, 3), keepdims=True)
    return map_gbhw / np.where(largest > 0, largest, 1)


def enlarged(map_gbhw, shape):
    """Bilinear between the centres of pixels, the outermost ones going on to the edge."""
    for axis, size in ((2, shape[0]), (3, shape[1])):
        count = map_gbhw.shape[axis]
        at = (np.arange(size) + 0.5) * count / size - 0.5
        map_gbhw = np.apply_along_axis(
            lambda line, at=at, count=count: np.interp(at, np.arange(count), line), axis, map_gbhw
        )
    return map_gbhw


def kernels(params, kind):
    head = {name: np.asarray(p, np.float64) for name, p in params["head"].items()}
    return [head[f"kernel_{m:04d}" if kind == "separate" else "kernel"][:m] for m in DIMS]


@functools.partial(jax.jit, static_argnums=0)
def features_of(task, params, model_state, batch):
    return with_features(lambda: task.embed(params, model_state, batch))[1]


@pytest.mark.parametrize("kind", ["separate", "shared"])
def test_equals_class_activation_maps_of_a_pooled_linear_network(kind):
    task = task_of(RESNET, kind)
    (params, model_state), batch = random_values(task), batch_of(task)
    features_bhwk = np.asarray(features_of(task, params, model_state, batch), np.float64)
    assert features_bhwk.shape[1:] == (4, 6, 8)
    expected = [
        # Zhou et al., arXiv 1512.04150: the classifier's own weights, the first m of them.
        np.einsum("bhwk,kb->bhw", features_bhwk[..., :m], kernel_mc[:, batch["class_bg"][:, g]])
        for g, (m, kernel_mc) in enumerate(zip(DIMS, kernels(params, kind), strict=True))
    ]
    expected = np.maximum(np.stack(expected), 0)
    expected = normalised(enlarged(expected, (8, 12)))
    found = np.asarray(maps_of(task, batch))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert (found.min((2, 3)) < 0.2).any()


@functools.partial(jax.jit, static_argnums=(0, 2))
def by_hand(task, batch, pool):
    """Gradients through the last block, norm and classifier written out: maps [G, B, H, W]."""
    params = jax.tree.map(jnp.asarray, random_values(task)[0])
    net = params["backbone"]
    image_bhwc = (batch["image"].astype(jnp.float32) - 127.5) / 127.5
    _, state = task.backbone.apply({"params": net}, image_bhwc, capture_intermediates=True)
    block = "block_00" if pool == "cls" else "block_01"
    tokens_btd = state["intermediates"][block]["__call__"][0]

    def logit(x_td, dim, label):
        if pool == "cls":
            x_td = Block(2).apply({"params": net["block_01"]}, x_td[None])[0, :1]
        z_d = x_td.mean(0)
        z_d = (z_d - z_d.mean()) / jnp.sqrt(z_d.var() + EPSILON)
        z_d = (z_d * net["norm"]["scale"] + net["norm"]["bias"])[:dim]
        return z_d / jnp.linalg.norm(z_d) @ params["head"][f"kernel_{dim:04d}"][:, label]

    def map_hw(dim, x_td, label):
        first = int(pool == "cls")
        weight_d = jax.grad(logit)(x_td, dim, label)[first:].mean(0)
        return (x_td[first:] @ weight_d).reshape(4, 6)

    return jnp.stack(
        [
            jax.vmap(functools.partial(map_hw, dim))(tokens_btd, batch["class_bg"][:, g])
            for g, dim in enumerate(DIMS)
        ]
    )


def vit_task(pool):
    vit = ViT(1, 8, depth=2, heads=2, pool=pool)
    return task_of(vit, normalize="prefix", shape=(4, 6, 1))


@pytest.mark.parametrize("pool", ["gap", "cls"])
def test_equals_gradients_by_hand_of_a_transformer(pool):
    # Patches of one pixel: the map needs no enlarging.
    task = vit_task(pool)
    batch = batch_of(task)
    expected = normalised(by_hand(task, batch, pool))
    found = np.asarray(maps_of(task, batch))
    np.testing.assert_allclose(found, expected, atol=2e-3)
    # Not the trivial answer: maps differ by granularity and have shades.
    assert np.abs(found[0] - found[-1]).mean() > 0.02
    assert ((found > 0.1) & (found < 0.9)).mean() > 0.1


def test_dims_beyond_a_prefix_have_no_influence():
    task = task_of(RESNET)
    batch, (params, _) = batch_of(task), random_values(task)
    # The last block's norms make channels 3 to 7, which are the dims here, something else.
    block = params["backbone"]["layer2_0"]
    norms = {
        name: jax.tree.map(lambda p: p + 0.7 * (np.arange(len(p)) > 2), block[name])
        for name in ("bn2", "downsample_bn")
    }
    backbone = {**params["backbone"], "layer2_0": {**block, **norms}}
    changed = {**params, "backbone": backbone}
    before, after = np.asarray(maps_of(task, batch)), np.asarray(maps_of(task, batch, changed))
    np.testing.assert_allclose(after[:2], before[:2], atol=1e-6)
    assert np.abs(after[2] - before[2]).max() > 0.1


def test_finds_the_one_thing_in_an_image():
    network = ResNet((1,), bottleneck=False, width=8, stem="small")
    task = dataclasses.replace(task_of(network, shape=(16, 16, 1)), mean=(127.0,))

    def without_offsets(path, p):
        return 0 * p if path[-1].key in ("bias", "mean") else p

    values = jax.tree.map_with_path(without_offsets, random_values(task))
    # The value in the middle of the scale is zero to the network, and so is all it makes of it.
    rng = np.random.default_rng(3)
    image = np.full((BATCH, 16, 16, 1), 127, np.uint8)
    image[:, 10:14, 2:6] = rng.integers(0, 256, (BATCH, 4, 4, 1))
    z_bd = jax.jit(task.embed)(*values, {"image": image})
    logits = jax.jit(functools.partial(task.logits, dims=DIMS))
    class_gb = np.asarray(logits(values[0], z_bd)).argmax(-1)
    found = np.asarray(maps_of(task, {"image": image, "class_bg": class_gb.T}, *values))
    # Three convolutions of 3x3 see three pixels around it.
    near_hw = np.zeros((16, 16), bool)
    near_hw[7:, :9] = True
    assert (found[:, :, ~near_hw] == 0).all()
    np.testing.assert_allclose(found.max((2, 3)), 1, rtol=1e-6)


def test_a_class_nothing_speaks_for_has_an_empty_map():
    task = task_of(RESNET)
    params, _ = random_values(task)
    head = jax.tree.map(lambda p: -np.abs(p), params["head"])
    found = np.asarray(maps_of(task, batch_of(task), {**params, "head": head}))
    assert (found == 0).all()
    assert np.isnan(top_share(found[:, 0])).all()
    assert np.isnan(neighbour_correlation(found[:, 0])).all()


@pytest.mark.parametrize("task", [task_of(RESNET), vit_task("cls")], ids=["resnet", "vit cls"])
def test_is_the_same_on_a_mesh_with_parameters_in_pieces(task):
    batch, (params, _) = batch_of(task), random_values(task)
    mesh = make_mesh(2, 2, 2)

    def pieces(p):
        axes = [None] * (p.ndim - 1) + ["fsdp"] if p.ndim and p.shape[-1] % 2 == 0 else []
        return jax.device_put(p, NamedSharding(mesh, PartitionSpec(*axes)))

    whole = np.asarray(maps_of(task, batch))
    on_mesh = dataclasses.replace(task, mesh=mesh)
    found = maps_of(on_mesh, batch, jax.tree.map(pieces, params), mesh=mesh)
    assert found.sharding.is_fully_replicated
    np.testing.assert_allclose(found, whole, atol=1e-4)


def test_a_map_of_one_pixel_is_none():
    task = task_of(RESNET, shape=(2, 2, 1))
    assert maps_of(task, batch_of(task)) is None


def test_numbers_equal_brute_force():
    rng = np.random.default_rng(0)
    map_ghw = rng.random((3, 4, 5)).astype(np.float32)
    map_ghw[1] = 0
    map_ghw[1, 2, 2:4] = 1
    share, correlation = top_share(map_ghw), neighbour_correlation(map_ghw)
    assert share[1] == 1
    for g in (0, 2):
        assert share[g] == pytest.approx(
            sorted(map_ghw[g].flat)[-4:] / map_ghw[g].sum() @ np.ones(4)
        )
    for g in (0, 1):
        expected = np.corrcoef(map_ghw[g].flat, map_ghw[g + 1].flat)[0, 1]
        assert correlation[g] == pytest.approx(expected)
    # Even maps: the share is that of the pixels, a correlation does not exist.
    even = np.full((2, 5, 5), 0.3, np.float32)
    np.testing.assert_allclose(top_share(even), 0.2)
    assert np.isnan(neighbour_correlation(even)).all()
