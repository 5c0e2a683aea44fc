import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrl_jax.models import BACKBONES, build


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 7, 3)])
def test_embeds_images_of_any_shape(name, shape):
    model = build(name, embedding_dim=6, width=4, depth=2)
    x_bhwc = jnp.asarray(np.random.default_rng(0).normal(size=(3, *shape)), jnp.float32)
    variables = model.init(jax.random.key(0), x_bhwc)
    z_bd = model.apply(variables, x_bhwc)
    assert z_bd.shape == (3, 6)
    # Examples do not look at each other outside of training.
    np.testing.assert_allclose(model.apply(variables, x_bhwc[1:2]), z_bd[1:2], rtol=1e-5, atol=1e-6)
    # The embedding is linear: both signs appear.
    assert (np.asarray(z_bd) < 0).any()
    assert (np.asarray(z_bd) > 0).any()


def test_batch_statistics_are_learned_in_training_only():
    model = build("cnn", embedding_dim=6, width=4, depth=1)
    x_bhwc = 5 + jnp.asarray(np.random.default_rng(0).normal(size=(16, 8, 8, 1)), jnp.float32)
    variables = model.init(jax.random.key(0), x_bhwc)
    _, after = model.apply(variables, x_bhwc, train=True, mutable=["batch_stats"])
    before = jax.tree.leaves(variables["batch_stats"])
    assert any((a != b).any() for a, b in zip(before, jax.tree.leaves(after), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "vgg"}, "must be one of mlp, cnn; got 'vgg'"),
        ({"width": 0}, "model width must be >= 1, got 0"),
        ({"embedding_dim": -1}, "model embedding_dim must be >= 1, got -1"),
    ],
)
def test_bad_models_are_refused(change, message):
    arguments = {"name": "mlp", "embedding_dim": 4, "width": 4, "depth": 1, **change}
    with pytest.raises(ValueError, match=message):
        build(**arguments)
