"""The last feature map of every backbone: read, replaced, and in nobody's way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrl_jax.models import build
from mrl_jax.models.features import with_features
from mrl_jax.models.resnet import ResNet
from mrl_jax.models.vit import ViT

SHAPE = (12, 8, 3)
NETWORKS = {  # with the (H, W, K) of its map
    "cnn": (build("cnn", embedding_dim=6, width=4, depth=1), (6, 4, 4)),
    "resnet": (ResNet((1, 1), bottleneck=False, width=4, stem="small"), (6, 4, 8)),
    "vit gap": (ViT(4, 8, depth=1, heads=2), (3, 2, 8)),
    "vit cls": (ViT(4, 8, depth=2, heads=2, pool="cls", remat=True), (3, 2, 8)),
}


def images(n=3):
    return np.random.default_rng(0).normal(size=(n, *SHAPE)).astype(np.float32)


def variables_of(model):
    """Random numbers of the right shapes; compiling the true initialisation takes seconds."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images(1))
    assert "features" not in str(shapes)
    values = jax.tree.map(lambda p: rng.normal(size=p.shape, scale=0.5).astype(p.dtype), shapes)
    # Variances are positive.
    return {**jax.tree.map(np.abs, values), "params": values["params"]}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_map_decides_the_embedding(name):
    model, shape = NETWORKS[name]
    x_bhwc = images()
    variables = variables_of(model)

    @jax.jit
    def run(change):
        z_bd, map_bhwk = with_features(lambda: model.apply(variables, x_bhwc))
        other_bd, _ = with_features(lambda: model.apply(variables, x_bhwc), map_bhwk + change)
        return model.apply(variables, x_bhwc), z_bd, map_bhwk, other_bd

    found = run(np.zeros((3, *shape), np.float32))
    plain_bd, z_bd, map_bhwk, same_bd = map(np.asarray, found)
    assert map_bhwk.shape == (3, *shape)
    np.testing.assert_array_equal(z_bd, plain_bd)
    np.testing.assert_allclose(same_bd, plain_bd, rtol=1e-5, atol=1e-6)
    # One pixel of the second image alone: its embedding differs, the others' do not.
    change = np.zeros(map_bhwk.shape, np.float32)
    change[1, -1, 0, 0] = 3.0
    moved_b = np.abs(run(change)[3] - plain_bd).max(1) > 1e-3
    np.testing.assert_array_equal(moved_b, [False, True, False])


def test_what_comes_before_a_replaced_map_is_not_computed():
    model, shape = NETWORKS["resnet"]
    variables = variables_of(model)

    def rest(x_bhwc, map_bhwk):
        return with_features(lambda: model.apply(variables, x_bhwc), map_bhwk)[0]

    map_bhwk = np.zeros((3, *shape), np.float32)
    compiled = jax.jit(rest).lower(images(), map_bhwk).compile()
    assert compiled.cost_analysis()["flops"] < 2 * map_bhwk.size


def test_resnet_pools_the_map_in_float32():
    model = NETWORKS["resnet"][0].clone(dtype=jnp.bfloat16)
    variables = variables_of(model)
    z_bd, map_bhwk = jax.jit(lambda: with_features(lambda: model.apply(variables, images())))()
    assert map_bhwk.dtype == jnp.float32
    np.testing.assert_allclose(z_bd, np.mean(map_bhwk, (1, 2)), rtol=1e-6)


def test_mlp_has_no_map():
    model = build("mlp", embedding_dim=6, width=4)
    variables = variables_of(model)
    found = jax.eval_shape(lambda: with_features(lambda: model.apply(variables, images())))
    assert found[1] is None
