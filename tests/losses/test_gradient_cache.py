import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrl_jax import Nesting, nested
from mrl_jax.kernels import nested_info_nce
from mrl_jax.losses import pairs
from mrl_jax.losses.gradient_cache import embed_in_parts
from mrl_jax.runtime import mesh as meshes

NESTING = Nesting((4, 8, 16), (1.0, 0.5, 2.0))
BATCH, VOCABULARY = 24, 50


class Network(nn.Module):
    """Token table, a wide layer with dropout, mean over the tokens that are there."""

    hidden: int = 32
    dropout: float = 0.0

    @nn.compact
    def __call__(self, tokens_bt, lengths_b, train=False):
        x_btd = nn.Embed(VOCABULARY, 16)(tokens_bt)
        x_btd = nn.gelu(nn.Dense(self.hidden)(x_btd))
        x_btd = nn.Dropout(self.dropout, deterministic=not train)(x_btd)
        x_btd = nn.Dense(16)(x_btd)
        there_bt = jnp.arange(tokens_bt.shape[1])[None] < lengths_b[:, None]
        return (x_btd * there_bt[..., None]).sum(1) / jnp.maximum(lengths_b, 1)[:, None]


def sides(batch=BATCH, lengths=(5, 9, 3)):
    """Token arrays of sides of different T, each with lengths."""
    rng = np.random.default_rng(0)
    return [
        (
            rng.integers(0, VOCABULARY, (batch, t)).astype(np.int32),
            rng.integers(1, t + 1, batch).astype(np.int32),
        )
        for t in lengths
    ]


@functools.cache
def make(dropout=0.0, hidden=32):
    network = Network(hidden, dropout)
    params = jax.tree.map(np.asarray, jax.jit(network.init)(jax.random.key(0), *sides()[0]))

    def embed(params, side, key):
        rngs = None if key is None else {"dropout": key}
        return network.apply(params, *side, train=dropout > 0, rngs=rngs)

    return embed, params


def contrastive(z):
    anchor_bd, positive_bd, negative_bd = z
    return nested_info_nce(
        anchor_bd, positive_bd, NESTING, temperature=0.1, extra_negatives=negative_bd
    )


def scored(z):
    scores_b = jnp.arange(z[0].shape[0]) % 5
    return nested(pairs.cosent, NESTING)(z[0], z[1], scores_b=scores_b)


def relative_error(found, expected):
    def of_one(f, e):
        f, e = np.asarray(f), np.asarray(e)
        return np.abs(f - e).max() / np.abs(e).max()

    return max(jax.tree.leaves(jax.tree.map(of_one, found, expected)))


@functools.cache
def of_the_whole_batch(loss_fn, batch=BATCH):
    embed, params = make()

    def loss(params, inputs):
        return loss_fn([embed(params, side, None) for side in inputs])[0]

    return jax.jit(jax.value_and_grad(loss))(params, sides(batch))


@pytest.mark.parametrize(("loss_fn", "parts"), [(contrastive, 6), (contrastive, 24), (scored, 4)])
def test_loss_and_gradient_are_those_of_the_whole_batch(loss_fn, parts):
    embed, params = make()

    def loss(params, inputs):
        return loss_fn([embed_in_parts(embed, params, side, parts) for side in inputs])[0]

    found, expected = (
        jax.jit(jax.value_and_grad(loss))(params, sides()),
        of_the_whole_batch(loss_fn),
    )
    assert float(expected[0]) > 1
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    assert relative_error(found[1], expected[1]) < 1e-5  # sums in another order


def test_in_float64_the_gradient_is_equal_to_the_last_digits():
    with jax.enable_x64(True):
        embed, params = make()
        params = jax.tree.map(np.float64, params)

        def loss(params, in_parts):
            z = [
                embed_in_parts(embed, params, s, 6) if in_parts else embed(params, s, None)
                for s in sides()
            ]
            dots_bb = z[0] @ z[1].T - z[0] @ z[2].T
            return jax.nn.logsumexp(dots_bb, 1).sum()

        gradient = jax.jit(jax.grad(loss), static_argnums=1)
        found, expected = (gradient(params, in_parts) for in_parts in (True, False))
        assert jax.tree.leaves(found)[0].dtype == np.float64
        assert relative_error(found, expected) < 1e-13


def test_embeddings_keep_the_order_of_rows_and_any_structure():
    embed, params = make()
    names = ("a", "b", "c")
    inputs = dict(zip(names, sides(), strict=True))

    def embed_all(params, inputs, key):
        return {name: embed(params, side, key) for name, side in inputs.items()}

    @jax.jit
    def both(params, inputs):
        return embed_in_parts(embed_all, params, inputs, 6), embed_all(params, inputs, None)

    found, expected = both(params, inputs)
    assert list(found) == list(names)
    for name in names:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, atol=1e-7)


def test_dropout_is_the_same_in_both_passes_and_differs_between_parts_and_keys():
    embed, params = make(dropout=0.5)
    side, key, parts = sides()[0], jax.random.key(7), 4
    target_bd = np.random.default_rng(8).normal(size=(BATCH, 16)).astype(np.float32)

    def by_hand(params, side, key):
        z = [
            embed(params, [x[i::parts] for x in side], jax.random.fold_in(key, i))
            for i in range(parts)
        ]
        return jnp.stack(z, 1).reshape(BATCH, 16)

    def ours(params, side, key):
        return embed_in_parts(embed, params, side, parts, key)

    def embeddings_and_gradient(function):
        def loss(params, side, key):
            z_bd = function(params, side, key)
            return jnp.square(z_bd - target_bd).sum(), z_bd

        return jax.jit(jax.grad(loss, has_aux=True))

    ours, by_hand = embeddings_and_gradient(ours), embeddings_and_gradient(by_hand)
    (found, z_bd), (expected, by_hand_bd) = (f(params, side, key) for f in (ours, by_hand))
    np.testing.assert_allclose(z_bd, by_hand_bd, rtol=1e-6, atol=1e-6)
    assert relative_error(found, expected) < 1e-5
    assert not np.allclose(z_bd, ours(params, side, jax.random.key(9))[1])
    data = jax.random.key_data
    alone = embed_in_parts(lambda _params, _rows, key: data(key), None, side, 1, key)
    np.testing.assert_array_equal(alone, data(jax.random.fold_in(key, 0)))
    # One sentence in every row: dropout is not repeated from part to part.
    same = tuple(np.repeat(x[:1], BATCH, 0) for x in side)
    z_bd = np.asarray(ours(params, same, key)[1])
    assert not np.allclose(z_bd[:parts], z_bd[:1])


def test_inputs_that_are_numbers_get_gradients_too():
    rng = np.random.default_rng(0)
    weight_dd, x_bd = (rng.normal(size=(n, 6)).astype(np.float32) for n in (6, 8))

    def loss(x_bd, parts):
        z_bd = embed_in_parts(lambda w, x, _: jnp.tanh(x @ w), weight_dd, x_bd, parts)
        return jax.nn.logsumexp(z_bd @ z_bd.T)

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    np.testing.assert_allclose(gradient(x_bd, 4), gradient(x_bd, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", [{"data": 8}, {"data": 2, "fsdp": 4}])
def test_on_a_mesh_rows_stay_on_their_devices_and_nothing_changes(layout):
    embed, params = make()
    mesh = meshes.make_mesh(**layout)
    inputs = sides(batch=64)
    placed = jax.device_put(inputs, meshes.batch_sharding(mesh))

    def loss(params, inputs):
        z = [embed_in_parts(embed, params, side, 4) for side in inputs]
        loss, _ = nested_info_nce(
            z[0], z[1], NESTING, temperature=0.1, extra_negatives=z[2], mesh=mesh
        )
        return loss

    found = jax.jit(jax.value_and_grad(loss))(params, placed)
    expected = of_the_whole_batch(contrastive, batch=64)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    assert relative_error(found[1], expected[1]) < 5e-6
    embedded = jax.jit(lambda p, side: embed_in_parts(embed, p, side, 4))
    embedded = embedded.lower(params, placed[0]).compile()
    z_bd = embedded(params, placed[0])
    assert z_bd.sharding.is_equivalent_to(meshes.batch_sharding(mesh), 2)
    assert "all-gather" not in embedded.as_text()


@pytest.mark.slow
def test_memory_stays_that_of_a_part_when_the_batch_grows():
    embed, params = make(hidden=2048)

    def bytes_of(batch, parts):
        def loss(params, inputs):
            return contrastive([embed_in_parts(embed, params, side, parts) for side in inputs])[0]

        inputs = sides(batch, (16, 16, 16))
        compiled = jax.jit(jax.grad(loss)).lower(params, inputs).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small, large, whole = bytes_of(64, 4), bytes_of(512, 32), bytes_of(512, 1)
    activations = 512 * 16 * 2048 * 4
    assert whole > 3 * activations
    assert small < whole / 20
    assert large < 1.2 * small


@pytest.mark.parametrize(
    ("inputs", "parts", "message"),
    [
        (jnp.ones((6, 2)), 4, r"divide the 6 rows, got 4"),
        (jnp.ones((6, 2)), 0, r"parts must be >= 1 .*, got 0"),
        ((jnp.ones((6, 2)), jnp.ones(5)), 1, r"same number of rows, got \[5, 6\]"),
        ((), 1, r"got \[\]"),
    ],
)
def test_inputs_that_cannot_be_cut_are_refused(inputs, parts, message):
    with pytest.raises(ValueError, match=message):
        embed_in_parts(lambda *_: None, {}, inputs, parts)
