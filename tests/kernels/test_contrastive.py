import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrl_jax import Nesting
from mrl_jax.kernels import nested_info_nce, nested_sigmoid_loss

NESTING = Nesting((3, 8, 20), (1.0, 0.5, 3.0))
DENSE = Nesting(tuple(range(1, 33)))
UNEVEN = Nesting(tuple(range(2, 50, 3)))  # sixteen blocks, the first one shorter


def problem(nesting=NESTING, batch=11, extra=0, seed=0):
    """Embeddings of pairs that resemble each other, dims to spare, and extra negatives."""
    rng = np.random.default_rng(seed)
    a_bd = rng.normal(size=(batch, nesting.width + 2))
    b_bd = 0.5 * a_bd + rng.normal(size=a_bd.shape)
    arrays = {"a_bd": a_bd, "b_bd": b_bd}
    if extra:
        arrays["extra_negatives"] = rng.normal(size=(extra, nesting.width + 2))
    return arrays


def cosines(a_bm, b_nm):
    def unit(x):
        return x / jnp.linalg.norm(x, axis=1, keepdims=True)

    return unit(a_bm) @ unit(b_nm).T


def info_nce_at(cosines_bn, temperature, negatives_bn, batch):
    """The definition: one row of logits, one softmax."""
    own_bn = jnp.eye(batch, cosines_bn.shape[1], dtype=bool)
    logits_bn = jnp.where(negatives_bn | own_bn, cosines_bn / temperature, -jnp.inf)
    return -jnp.diagonal(jax.nn.log_softmax(logits_bn))


def sigmoid_at(cosines_bn, temperature, bias, negatives_bn, batch):
    own_bn = jnp.eye(batch, cosines_bn.shape[1], dtype=bool)
    logits_bn = cosines_bn / temperature + bias
    terms_bn = -jax.nn.log_sigmoid(jnp.where(own_bn, logits_bn, -logits_bn))
    return jnp.where(negatives_bn | own_bn, terms_bn, 0).sum(1)


def oracle(
    arrays, nesting, *, kind="info_nce", symmetric=False, mask=None, weigh=(), padding_free=None
):
    """Every prefix cut, scaled and compared by itself."""
    a_bd, b_bd = arrays["a_bd"], arrays["b_bd"]
    if padding_free is not None:
        a_bd, b_bd = a_bd[padding_free], b_bd[padding_free]
    batch = a_bd.shape[0]
    b_nd = (
        jnp.concatenate([b_bd, arrays["extra_negatives"]]) if "extra_negatives" in arrays else b_bd
    )
    negatives_bn = jnp.ones((batch, b_nd.shape[0]), bool) if mask is None else mask
    count = len(nesting)
    temperature_g = jnp.broadcast_to(arrays["temperature"], (count,))
    bias_g = jnp.broadcast_to(arrays.get("bias", 0.0), (count,))
    losses = []
    for g, m in enumerate(nesting.dims):
        cosines_bn = cosines(a_bd[:, :m], b_nd[:, :m])
        if kind == "sigmoid":
            rows_b = sigmoid_at(cosines_bn, temperature_g[g], bias_g[g], negatives_bn, batch)
            losses.append(rows_b.mean())
            continue
        loss = info_nce_at(cosines_bn, temperature_g[g], negatives_bn, batch).mean()
        if symmetric:
            back_bb, mask_bb = cosines_bn[:, :batch].T, negatives_bn[:, :batch].T
            loss = (loss + info_nce_at(back_bb, temperature_g[g], mask_bb, batch).mean()) / 2
        losses.append(loss)
    loss_g = jnp.stack(losses)
    return (jnp.array(nesting.weights) * loss_g).sum(), loss_g


def exact(arrays, nesting, **options):
    with jax.enable_x64(True):
        wide = {name: jnp.asarray(np.asarray(x, np.float64)) for name, x in arrays.items()}
        function = functools.partial(oracle, nesting=nesting, **options)
        grad = jax.jit(jax.value_and_grad(function, has_aux=True))
        return jax.tree.map(np.asarray, grad(wide))


def ours(arrays, nesting, *, kind="info_nce", dtype=jnp.float32, **options):
    function = nested_sigmoid_loss if kind == "sigmoid" else nested_info_nce

    def loss(arrays):
        return function(nesting=nesting, **arrays, **options)

    narrow = {
        name: jnp.asarray(x, dtype if np.ndim(x) == 2 else jnp.float32)
        for name, x in arrays.items()
    }
    return jax.jit(jax.value_and_grad(loss, has_aux=True))(narrow)


def close(found, expected, relative=1e-5):
    """Every array within `relative` of its largest entry."""
    found, expected = jax.tree.leaves(found), jax.tree.leaves(expected)
    assert len(found) == len(expected)
    for f, e in zip(found, expected, strict=True):
        assert f.shape == e.shape
        f = np.asarray(f, np.float64)
        np.testing.assert_allclose(f, e, rtol=0, atol=relative * max(np.abs(e).max(), 1e-3))


KINDS = {
    "info_nce": {"temperature": 0.1},
    "symmetric": {"temperature": 0.1},
    "sigmoid": {"temperature": 0.1, "bias": -3.0},
}


def of_kind(kind):
    """(scalars, options) of a case; symmetric is an option of InfoNCE."""
    if kind == "symmetric":
        return KINDS[kind], {"symmetric": True}
    return KINDS[kind], {"kind": kind}


@pytest.mark.parametrize(("kind", "extra"), [("info_nce", 0), ("symmetric", 4), ("sigmoid", 0)])
def test_values_and_gradients_equal_those_of_every_prefix_by_itself(kind, extra):
    scalars, options = of_kind(kind)
    arrays = problem(extra=extra) | scalars
    close(ours(arrays, NESTING, **options), exact(arrays, NESTING, **options))


@pytest.mark.parametrize("kind", ["info_nce", "sigmoid"])
@pytest.mark.parametrize(
    "nesting",
    [
        pytest.param(DENSE, marks=pytest.mark.slow),
        UNEVEN,
        pytest.param(Nesting(tuple(range(16, 129, 16))), marks=pytest.mark.slow),
    ],
)
def test_dense_nestings(kind, nesting):
    scalars, options = of_kind(kind)
    arrays = problem(nesting) | scalars
    close(ours(arrays, nesting, **options), exact(arrays, nesting, **options))


@pytest.mark.parametrize("kind", KINDS)
def test_one_temperature_and_bias_per_granularity_are_learned(kind):
    scalars, options = of_kind(kind)
    scalars = {name: np.array([0.5, 1, 2]) * x for name, x in scalars.items()}
    arrays = problem(extra=2) | scalars
    found, expected = ours(arrays, NESTING, **options), exact(arrays, NESTING, **options)
    assert np.abs(expected[1]["temperature"]).min() > 0.1  # a zero would prove nothing
    close(found, expected)


# A symmetric loss has the rows' InfoNCE in it.
@pytest.mark.parametrize("kind", ["symmetric", "sigmoid"])
def test_padding_is_neither_row_nor_negative_and_may_be_nan(kind):
    scalars, options = of_kind(kind)
    arrays = problem(extra=3) | scalars
    valid_b = np.arange(11) % 4 != 1
    expected = exact(arrays, NESTING, padding_free=valid_b, **options)
    for name in ("a_bd", "b_bd"):
        arrays[name][~valid_b] = np.nan
    mask = jnp.asarray(valid_b, bool if kind == "symmetric" else jnp.float32)
    close(ours(arrays, NESTING, mask=mask, **options), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_alone_has_loss_and_gradients_zero(kind):
    scalars, options = of_kind(kind)
    arrays = problem() | scalars
    found = ours(arrays, NESTING, mask=jnp.zeros(11, bool), **options)
    for x in jax.tree.leaves(found):
        np.testing.assert_array_equal(x, 0)


@pytest.mark.parametrize("kind", ["info_nce", "sigmoid"])
def test_columns_left_out_row_by_row_but_never_the_own_one(kind):
    scalars, options = of_kind(kind)
    arrays = problem(extra=3) | scalars
    mask = np.random.default_rng(5).random((11, 14)) < 0.7
    mask[4] = False
    assert not mask[range(11), range(11)].all()
    expected = exact(arrays, NESTING, mask=jnp.asarray(mask), **options)
    close(ours(arrays, NESTING, mask=jnp.asarray(mask), **options), expected)


@pytest.mark.parametrize("kind", ["symmetric", "sigmoid"])
def test_padding_and_columns_left_out_go_together(kind):
    scalars, options = of_kind(kind)
    arrays = problem(extra=3) | scalars
    valid_b = np.arange(11) % 4 != 1
    mask = np.random.default_rng(6).random((11, 14)) < 0.7
    kept = mask[valid_b][:, np.append(valid_b, [True] * 3)]
    expected = exact(arrays, NESTING, padding_free=valid_b, mask=jnp.asarray(kept), **options)
    for name in ("a_bd", "b_bd"):
        arrays[name][~valid_b] = np.nan
    both = jnp.asarray(valid_b, jnp.float32), jnp.asarray(mask)
    close(ours(arrays, NESTING, mask=both, **options), expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_embeddings(kind):
    scalars, options = of_kind(kind)
    arrays = problem(batch=16) | scalars
    rounded = arrays | {
        name: np.asarray(jnp.asarray(arrays[name], jnp.bfloat16), np.float64)
        for name in ("a_bd", "b_bd")
    }
    found = ours(arrays, NESTING, dtype=jnp.bfloat16, **options)
    assert found[0][0].dtype == jnp.float32
    assert found[1]["a_bd"].dtype == jnp.bfloat16
    expected = exact(rounded, NESTING, **options)
    close(found, expected, relative=2e-2)
    # Sums are float32: only the gradients are rounded.
    close(found[0], expected[0], relative=1e-5)


@pytest.mark.parametrize("kind", ["symmetric", "sigmoid"])
def test_the_gradient_through_per_granularity_values_is_the_same(kind):
    scalars, options = of_kind(kind)
    options.pop("kind", None)
    function = nested_sigmoid_loss if kind == "sigmoid" else nested_info_nce
    arrays = jax.tree.map(jnp.float32, problem() | scalars)

    def through_loss(arrays):
        return function(nesting=NESTING, **arrays, **options)[0]

    def through_values(arrays):
        loss_g = function(nesting=NESTING, **arrays, **options)[1]
        return (jnp.array(NESTING.weights) * loss_g).sum()

    def both(arrays):
        return through_values(arrays) + through_loss(arrays)

    expected = jax.jit(jax.grad(through_loss))(arrays)
    expected = jax.tree.map(np.asarray, expected)
    close(jax.jit(jax.grad(jax.checkpoint(through_loss)))(arrays), expected, relative=1e-6)
    twice = jax.tree.map(lambda x: 2 * x, expected)
    close(jax.jit(jax.grad(both))(arrays), twice)


def test_zero_vectors_have_gradient_zero():
    arrays = problem() | KINDS["info_nce"]
    arrays["a_bd"][3] = 0
    arrays["b_bd"][5, :3] = 0  # only the shortest prefix is zero
    (loss, _), grads = ours(arrays, NESTING)
    assert np.isfinite(loss)
    assert all(np.isfinite(x).all() for x in grads.values())
    np.testing.assert_array_equal(grads["a_bd"][3], 0)
    assert np.abs(grads["b_bd"]).max() < 100


def test_one_pair_alone():
    arrays = problem(batch=1) | KINDS["info_nce"]
    (loss, _), grads = ours(arrays, NESTING)
    np.testing.assert_allclose(loss, 0, atol=1e-5)
    np.testing.assert_allclose(grads["a_bd"], 0, atol=1e-5)
    sigmoid = problem(batch=1) | KINDS["sigmoid"]
    close(ours(sigmoid, NESTING, kind="sigmoid"), exact(sigmoid, NESTING, kind="sigmoid"))


def test_large_logits_stay_exact():
    """Cosines over a temperature of 0.001: exponentials of 1000 do not fit into float32."""
    for kind, scalars in {"info_nce": {}, "sigmoid": {"bias": -500.0}}.items():
        arrays = problem() | scalars | {"temperature": 1e-3}
        found, expected = ours(arrays, NESTING, kind=kind), exact(arrays, NESTING, kind=kind)
        close(found, expected, relative=2e-4)  # logits of 1000 have 1e-4 left after the point


def test_a_learned_sigmoid_loss_near_zero_keeps_its_digits():
    a_bd = np.eye(4)
    arrays = {"a_bd": a_bd, "b_bd": a_bd, "temperature": 1 / 40, "bias": -20.0}
    nesting = Nesting((4,))
    with jax.enable_x64(True):
        expected = 4 * np.log1p(np.exp(-20.0))
    np.testing.assert_allclose(ours(arrays, nesting, kind="sigmoid")[0][0], expected, rtol=1e-5)


@pytest.mark.slow
def test_pallas_equals_xla():
    pytest.importorskip("mrl_jax.kernels.pallas_logsumexp")
    arrays = problem(batch=5, extra=2) | KINDS["info_nce"]
    mask = jnp.arange(5) != 2
    options = {"symmetric": True, "mask": mask}
    expected = jax.tree.map(np.asarray, ours(arrays, NESTING, **options))
    close(ours(arrays, NESTING, implementation="pallas", **options), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a_bd": np.ones(3)}, r"a must be \[>= 1, >= 20\], got \(3,\)"),
        ({"a_bd": np.ones((11, 19))}, r"a must be \[>= 1, >= 20\], got \(11, 19\)"),
        ({"a_bd": np.ones((11, 22), int)}, "a must be floating point, got int"),
        ({"b_bd": np.ones((12, 22))}, "one row per pair, got 11 and 12"),
        ({"extra_negatives": np.ones((4, 3))}, r"extra_negatives must be .*got \(4, 3\)"),
        ({"temperature": 0.0}, "temperature must be finite and > 0, got 0.0"),
        ({"temperature": np.nan}, "temperature must be finite and > 0, got nan"),
        ({"temperature": np.ones(2)}, r"temperature must be one number or \[3\], got \(2,\)"),
        ({"mask": np.ones(10)}, r"mask must be \[11\] or \[11, 11\], or both .* got \(10,\)"),
        ({"mask": np.ones((11, 11))}, "must be bool, got float"),
        ({"implementation": "cuda"}, "implementation must be one of auto, xla, pallas; got 'cuda'"),
        (
            {"implementation": "pallas", "mask": np.ones((11, 11), bool)},
            "'pallas' takes no .B, N. mask",
        ),
    ],
)
def test_bad_input_is_one_line(change, message):
    arguments = problem() | {"temperature": 0.1} | change
    arguments = {k: jnp.asarray(x) if np.ndim(x) else x for k, x in arguments.items()}
    with pytest.raises(ValueError, match=message) as error:
        nested_info_nce(nesting=NESTING, **arguments)
    assert "\n" not in str(error.value)


def test_both_masks_in_the_wrong_order_are_refused():
    arrays = problem()
    mask = jnp.ones((11, 11), bool), jnp.ones(11)
    with pytest.raises(ValueError, match=r"in this order; got \(11, 11\), \(11,\)"):
        nested_info_nce(arrays["a_bd"], arrays["b_bd"], NESTING, temperature=0.1, mask=mask)


def test_a_bad_bias_is_refused():
    arrays = jax.tree.map(jnp.asarray, problem())
    for bias, message in (
        (np.inf, "bias must be finite"),
        (np.ones(4), r"bias must be one .*\[3\]"),
    ):
        with pytest.raises(ValueError, match=message):
            nested_sigmoid_loss(nesting=NESTING, temperature=0.1, bias=bias, **arrays)
