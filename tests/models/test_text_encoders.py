import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import text_models

from mrl_jax.models.text import Bert, SentenceEncoder, Static
from mrl_jax.models.text.bert import distance_buckets

ROWS = np.random.default_rng(0).integers(5, 90, (3, 12)).astype(np.int32)
LENGTHS = np.array([12, 5, 0], np.int32)
MPNET = {"types": 0, "position_offset": 2, "relative": True}


@functools.partial(jax.jit, static_argnames=("module", "depth", "train", "method"))
def run(module, params, tokens_bt, lengths_b, rngs=None, **options):
    """Compiled once for all tests of a module."""
    return module.apply({"params": params}, tokens_bt, lengths_b, rngs=rngs, **options)


def apply(folder, tokens_bt, lengths_b, **options):
    return run(folder.encoder, folder.params, tokens_bt, lengths_b, **options)


def states(folder, tokens_bt, lengths_b, **options):
    backbone, params = folder.encoder.backbone, folder.params["backbone"]
    return run(backbone, params, tokens_bt, lengths_b, **options)


@pytest.mark.parametrize("fields", [{"layers": 2}, {"layers": 1, **MPNET}], ids=["bert", "mpnet"])
def test_what_is_beyond_the_length_changes_nothing(fields):
    folder = text_models.bert(**fields)
    longer_bt = np.pad(ROWS, ((0, 0), (0, 9)), constant_values=77)
    short, long = states(folder, ROWS, LENGTHS), states(folder, longer_bt, LENGTHS)
    alone = states(folder, ROWS[1:2, :5], LENGTHS[1:2])
    for a, b, c in zip(short, long, alone, strict=True):
        np.testing.assert_allclose(a[0], b[0, :12], atol=1e-5)
        np.testing.assert_allclose(a[1, :5], b[1, :5], atol=1e-5)
        np.testing.assert_allclose(a[1, :5], c[0], atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_pooling_and_projection_are_those_of_numpy(pooling):
    folder = text_models.bert(pooling=pooling, projection=7, layers=2)
    kernel, bias = (np.float64(folder.params["project"][k]) for k in ("kernel", "bias"))
    expected = []
    for x_btd in states(folder, ROWS, LENGTHS)[1:]:
        x_btd = np.float64(x_btd)
        pooled = np.zeros((3, 32))
        for b, n in enumerate(LENGTHS[:2]):
            x_td = x_btd[b, :n]
            pooled[b] = {"mean": x_td.mean(0), "cls": x_td[0], "last": x_td[-1]}[pooling]
        expected.append(pooled @ kernel + bias)
    z_lbd = apply(folder, ROWS, LENGTHS, method="every_layer")
    assert z_lbd.shape == (folder.encoder.layers, 3, folder.encoder.out_dim) == (2, 3, 7)
    np.testing.assert_allclose(z_lbd, expected, atol=1e-5)
    if pooling == "last":  # a call pools as `every_layer` does
        np.testing.assert_allclose(apply(folder, ROWS, LENGTHS), expected[-1], atol=1e-5)
        np.testing.assert_allclose(apply(folder, ROWS, LENGTHS, depth=1), expected[0], atol=1e-5)


def test_depth_needs_and_runs_only_its_layers():
    folder = text_models.bert(layers=2)
    whole = states(folder, ROWS, LENGTHS)
    params = {k: v for k, v in folder.params["backbone"].items() if k != "layer_01"}
    found = run(folder.encoder.backbone, params, ROWS, LENGTHS, depth=1)
    assert len(found) == 2
    np.testing.assert_allclose(found[-1], whole[1], atol=1e-5)

    def flops(depth):
        params = folder.params["backbone"]
        lowered = run.lower(folder.encoder.backbone, params, ROWS, LENGTHS, depth=depth)
        return lowered.cost_analysis()["flops"]

    assert flops(1) < 0.6 * flops(2)


def test_dropout_is_for_training_alone_and_of_both_rates():
    folder = text_models.bert(layers=1, dropout=0.5, attention_dropout=0.0)
    plain = apply(folder, ROWS, LENGTHS)

    def train(encoder, seed):
        rngs = None if seed is None else {"dropout": jax.random.key(seed)}
        return run(encoder, folder.params, ROWS, LENGTHS, rngs, train=True)

    first = train(folder.encoder, 0)
    assert abs(first - plain)[:2].max() > 0.05
    np.testing.assert_array_equal(first, train(folder.encoder, 0))
    assert abs(first - train(folder.encoder, 1))[:2].max() > 0.05
    of_attention = text_models.bert(layers=1, dropout=0.0, attention_dropout=0.5).encoder
    assert abs(train(of_attention, 0) - plain)[:2].max() > 0.01
    none = text_models.bert(layers=1, dropout=0.0, attention_dropout=0.0).encoder
    # Without rates, training takes no random key.
    np.testing.assert_allclose(train(none, None), plain, atol=1e-5)


@pytest.mark.slow
def test_gradients_are_finite_also_of_empty_rows_and_the_same_with_remat():
    def gradient(**fields):
        folder = text_models.bert(layers=1, **fields)

        def loss(params):
            rngs = {"dropout": jax.random.key(0)}
            z_bd = folder.encoder.apply({"params": params}, ROWS, LENGTHS, train=True, rngs=rngs)
            return (z_bd[:, :5] ** 2).sum()

        return jax.jit(jax.grad(loss))(folder.params)

    plain = gradient()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(plain))
    assert all(
        abs(leaf).max() > 0 for leaf in jax.tree.leaves(plain["backbone"]["layer_00"]["fc1"])
    )
    again = gradient(remat=True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), plain, again)


@pytest.mark.slow
def test_bfloat16_is_near_float32_and_gives_float32():
    exact = apply(text_models.bert(), ROWS, LENGTHS)
    folder = text_models.bert(dtype=jnp.bfloat16)
    assert {x.dtype for x in states(folder, ROWS, LENGTHS)} == {jnp.dtype("bfloat16")}
    found = apply(folder, ROWS, LENGTHS)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, exact, atol=0.05)
    assert abs(found - exact).max() > 1e-4


def test_names_tell_decayed_kernels_from_tables_norms_and_biases():
    folder = text_models.bert(projection=7)
    paths = jax.tree_util.tree_flatten_with_path(folder.params)[0]
    names = {(keys[-1].key, leaf.ndim) for keys, leaf in paths}
    assert names == {("kernel", 2), ("embedding", 2), ("scale", 1), ("bias", 1)}


@pytest.mark.parametrize("tokens", [1, 9, 40, 300])
def test_distances_are_put_in_the_buckets_of_t5(tokens):
    """Written out for one distance at a time, in integers: 8 * 2^(i/2) <= distance."""
    table = distance_buckets(tokens)
    for query in range(0, tokens, max(1, tokens // 7)):
        for key in range(tokens):
            distance = abs(key - query)
            bucket = distance
            if distance >= 8:
                # log(distance / 8) / log(16) * 8 = 2 log2(distance / 8)
                bucket = min(8 + math.floor(math.log2((distance / 8) ** 2) + 1e-9), 15)
            assert table[query, key] == bucket + 16 * (key > query), (query, key)


def test_a_static_embedding_is_the_mean_of_its_rows_and_so_is_its_gradient():
    folder = text_models.static(width=6)
    table = np.float64(folder.params["backbone"]["tokens"]["embedding"])
    expected = [table[ROWS[0]].mean(0), table[ROWS[1, :5]].mean(0), np.zeros(6)]
    np.testing.assert_allclose(apply(folder, ROWS, LENGTHS), expected, atol=1e-6)
    every = apply(folder, ROWS, LENGTHS, method="every_layer")
    np.testing.assert_allclose(every, [expected], atol=1e-6)

    def loss(params):
        z_bd = folder.encoder.apply({"params": params}, ROWS, LENGTHS, train=True)
        return (z_bd * np.float32([[1], [2], [3]])).sum()

    found = jax.jit(jax.grad(loss))(folder.params)["backbone"]["tokens"]["embedding"]
    gradient = np.zeros_like(table)
    for b, n in enumerate(LENGTHS):
        np.add.at(gradient, ROWS[b, :n], (b + 1) / max(n, 1))
    np.testing.assert_allclose(found, gradient, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (text_models.bert, {"depth": 0}, "depth must be 1 to 3, got 0"),
        (text_models.bert, {"depth": 4}, "depth must be 1 to 3, got 4"),
        (text_models.static, {"depth": 2}, "depth must be 1, .* got 2"),
    ],
)
def test_depths_that_are_not_there_are_refused(make, options, message):
    with pytest.raises(ValueError, match=message):
        apply(make(), ROWS, LENGTHS, **options)


def test_more_tokens_than_positions_and_unknown_pooling_are_refused():
    folder = text_models.bert(**MPNET)
    assert folder.encoder.backbone.max_tokens == 28
    with pytest.raises(ValueError, match="29 tokens are more than the 28 positions"):
        states(folder, np.ones((1, 29), np.int32), np.array([29]))
    encoder = SentenceEncoder(Static(9, 4), pooling="max")
    with pytest.raises(ValueError, match="pooling must be one of mean, cls, last; got 'max'"):
        encoder.init(jax.random.key(0), ROWS, LENGTHS)


@pytest.mark.slow
def test_fresh_parameters_are_of_the_scale_that_training_starts_from():
    init = jax.jit(Bert(200, 64, 1, 4, 128).init)
    variables = init(jax.random.key(0), ROWS, LENGTHS)
    for path, leaf in jax.tree_util.tree_flatten_with_path(variables["params"])[0]:
        name = path[-1].key
        if name in ("kernel", "embedding") and leaf.size > 500:
            assert 0.018 < leaf.std() < 0.022
    table = Static(500, 64).init(jax.random.key(0), ROWS, LENGTHS)["params"]["tokens"]["embedding"]
    assert 0.9 < np.linalg.norm(table, axis=1).mean() < 1.1
