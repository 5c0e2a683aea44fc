import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrl_jax import Nesting
from mrl_jax.kernels import nested_info_nce, nested_sigmoid_loss, row_tiles

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


def unit_rows(x_bm):
    return x_bm / np.linalg.norm(x_bm, axis=1, keepdims=True)


def of_unit_rows(gradient_bm, x_bm):
    """The gradient with respect to x, from the one with respect to `unit_rows(x)`."""
    unit_bm = unit_rows(x_bm)
    along_b1 = (gradient_bm * unit_bm).sum(1, keepdims=True)
    return (gradient_bm - along_b1 * unit_bm) / np.linalg.norm(x_bm, axis=1, keepdims=True)


def info_nce_at(logits_bn, exists_bn):
    """The definition, one row of logits, one softmax: its mean, and the logits' gradient."""
    own_bn = np.eye(*logits_bn.shape)
    exponentials_bn = exists_bn * np.exp(logits_bn - logits_bn.max(1, keepdims=True))
    sums_b1 = exponentials_bn.sum(1, keepdims=True)
    losses_b1 = np.log(sums_b1) + logits_bn.max(1, keepdims=True)
    loss = losses_b1.mean() - np.diagonal(logits_bn).mean()
    return loss, (exponentials_bn / sums_b1 - own_bn) / len(logits_bn)


def sigmoid_at(logits_bn, exists_bn):
    """-log sigmoid(x) = log(1 + exp(-x)) of pairs, of -x elsewhere; the same two results."""
    signs_bn = 2 * np.eye(*logits_bn.shape) - 1
    terms_bn = np.logaddexp(0, -signs_bn * logits_bn)
    slopes_bn = -signs_bn * np.exp(-np.logaddexp(0, signs_bn * logits_bn))
    batch = len(logits_bn)
    return (exists_bn * terms_bn).sum() / batch, exists_bn * slopes_bn / batch


def exact(arrays, nesting, *, kind="info_nce", symmetric=False, mask=None, padding_free=None):
    """Every prefix cut, scaled and compared by itself: ((loss, of granularities), gradients)."""
    a_bd, b_bd = arrays["a_bd"], arrays["b_bd"]
    rows = slice(None) if padding_free is None else padding_free
    a_bd, extra_kd = a_bd[rows], arrays.get("extra_negatives", b_bd[:0])
    b_nd = np.concatenate([b_bd[rows], extra_kd])
    batch, count = len(a_bd), len(nesting)
    exists_bn = np.eye(batch, len(b_nd), dtype=bool) | (True if mask is None else mask)
    temperature_g = np.broadcast_to(arrays["temperature"], count)
    bias_g = np.broadcast_to(arrays.get("bias", 0.0), count)
    da_bd, db_nd, losses, slopes = np.zeros_like(a_bd), np.zeros_like(b_nd), [], []
    for m, temperature, bias, weight in zip(
        nesting.dims, temperature_g, bias_g, nesting.weights, strict=True
    ):
        a_bm, b_nm = a_bd[:, :m], b_nd[:, :m]
        scaled_bn = unit_rows(a_bm) @ unit_rows(b_nm).T / temperature
        if kind == "sigmoid":
            loss, dlogits_bn = sigmoid_at(scaled_bn + bias, exists_bn)
        else:
            loss, dlogits_bn = info_nce_at(scaled_bn, exists_bn)
        if symmetric:
            back, dback_bb = info_nce_at(scaled_bn[:, :batch].T, exists_bn[:, :batch].T)
            loss, dlogits_bn = (loss + back) / 2, dlogits_bn / 2
            dlogits_bn[:, :batch] += dback_bb.T / 2
        dlogits_bn = weight * dlogits_bn
        dcosines_bn = dlogits_bn / temperature
        da_bd[:, :m] += of_unit_rows(dcosines_bn @ unit_rows(b_nm), a_bm)
        db_nd[:, :m] += of_unit_rows(dcosines_bn.T @ unit_rows(a_bm), b_nm)
        losses.append(loss)
        slopes.append((-(dlogits_bn * scaled_bn).sum() / temperature, dlogits_bn.sum()))
    gradients = {name: np.zeros_like(x) for name, x in arrays.items()}
    gradients["a_bd"][rows], gradients["b_bd"][rows] = da_bd, db_nd[:batch]
    if "extra_negatives" in arrays:
        gradients["extra_negatives"] = db_nd[batch:]
    for name, slope_g in zip(("temperature", "bias"), np.transpose(slopes), strict=True):
        if name in arrays:
            gradients[name] = slope_g if np.ndim(arrays[name]) else slope_g.sum()
    return (np.dot(nesting.weights, losses), np.array(losses)), gradients


@functools.cache
def compiled(nesting, kind, options):
    """One program for all tests that call a loss with the same shapes and options."""
    function = nested_sigmoid_loss if kind == "sigmoid" else nested_info_nce

    def loss(arrays, mask):
        return function(nesting=nesting, **arrays, mask=mask, **dict(options))

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def ours(arrays, nesting, *, kind="info_nce", dtype=jnp.float32, mask=None, **options):
    narrow = {
        name: np.asarray(x, dtype if np.ndim(x) == 2 else np.float32) for name, x in arrays.items()
    }
    return compiled(nesting, kind, tuple(options.items()))(narrow, mask)


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


# A symmetric loss has the rows' InfoNCE in it.
@pytest.mark.parametrize(
    ("kind", "extra", "scale"),
    [("info_nce", 0, 1), ("symmetric", 4, [0.5, 1, 2]), ("sigmoid", 2, [0.5, 1, 2])],
)
def test_values_and_gradients_equal_those_of_every_prefix_by_itself(kind, extra, scale):
    """Temperature and bias are learned, too: one of all granularities, or of each its own."""
    scalars, options = of_kind(kind)
    scalars = {name: np.multiply(scale, x) for name, x in scalars.items()}
    arrays = problem(extra=extra) | scalars
    found, expected = ours(arrays, NESTING, **options), exact(arrays, NESTING, **options)
    assert np.abs(expected[1]["temperature"]).min() > 0.1  # a zero would prove nothing
    close(found, expected)


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


@pytest.mark.parametrize("kind", ["symmetric", "sigmoid"])
def test_padding_is_neither_row_nor_negative_may_be_nan_and_alone_gives_zeros(kind):
    scalars, options = of_kind(kind)
    arrays = problem(extra=3) | scalars
    valid_b = np.arange(11) % 4 != 1
    expected = exact(arrays, NESTING, padding_free=valid_b, **options)
    for name in ("a_bd", "b_bd"):
        arrays[name][~valid_b] = np.nan
    dtype = bool if kind == "symmetric" else np.float32
    close(ours(arrays, NESTING, mask=valid_b.astype(dtype), **options), expected)
    nothing = ours(arrays, NESTING, mask=np.zeros(11, dtype), **options)
    for x in jax.tree.leaves(nothing):
        np.testing.assert_array_equal(x, 0)


# With padding, in the next test, in both directions and for the sigmoid loss, too.
def test_columns_left_out_row_by_row_but_never_the_own_one():
    arrays = problem(extra=3) | KINDS["info_nce"]
    mask = np.random.default_rng(5).random((11, 14)) < 0.7
    mask[4] = False
    assert not mask[range(11), range(11)].all()
    close(ours(arrays, NESTING, mask=mask), exact(arrays, NESTING, mask=mask))


@pytest.mark.parametrize("kind", ["symmetric", "sigmoid"])
def test_padding_and_columns_left_out_go_together(kind):
    scalars, options = of_kind(kind)
    arrays = problem(extra=3) | scalars
    valid_b = np.arange(11) % 4 != 1
    mask = np.random.default_rng(6).random((11, 14)) < 0.7
    kept = mask[valid_b][:, np.append(valid_b, [True] * 3)]
    expected = exact(arrays, NESTING, padding_free=valid_b, mask=kept, **options)
    for name in ("a_bd", "b_bd"):
        arrays[name][~valid_b] = np.nan
    both = valid_b.astype(np.float32), mask
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


@pytest.mark.parametrize("kind", ["info_nce", "sigmoid"])
def test_the_gradient_through_per_granularity_values_is_the_same(kind):
    function = nested_sigmoid_loss if kind == "sigmoid" else nested_info_nce
    arrays = jax.tree.map(np.float32, problem() | KINDS[kind])

    def through_loss(arrays):
        return function(nesting=NESTING, **arrays)[0]

    def through_values(arrays):
        loss_g = function(nesting=NESTING, **arrays)[1]
        return (jnp.array(NESTING.weights) * loss_g).sum()

    def both(arrays):
        return through_values(arrays) + through_loss(arrays)

    @jax.jit
    def gradients(arrays):
        return jax.grad(jax.checkpoint(through_loss))(arrays), jax.grad(both)(arrays)

    rematerialised, mixed = gradients(arrays)
    expected = jax.tree.map(np.asarray, ours(arrays, NESTING, kind=kind)[1])
    close(rematerialised, expected, relative=1e-6)
    close(mixed, jax.tree.map(lambda x: 2 * x, expected))


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
    expected = 4 * np.log1p(np.exp(-20.0))
    np.testing.assert_allclose(ours(arrays, nesting, kind="sigmoid")[0][0], expected, rtol=1e-5)


def test_many_granularities_take_the_memory_of_one_small_tile():
    x_bd = jax.ShapeDtypeStruct((512, 208), jnp.float32)
    nesting = Nesting(tuple(range(16, 209, 16)))
    tile_mb = len(nesting) * 64 * 512 * 4 / 2**20

    def loss(a_bd, b_bd):
        return nested_info_nce(a_bd, b_bd, nesting, temperature=0.05)[0]

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(x_bd, x_bd).compile()
    # The tile, and embeddings of 0.4 MB with their transposes and gradients.
    assert compiled.memory_analysis().temp_size_in_bytes / 2**20 < 2 * tile_mb + 3


@pytest.mark.slow
def test_pallas_equals_xla():
    pytest.importorskip("mrl_jax.kernels.pallas.logsumexp")
    arrays = problem(batch=5, extra=2) | KINDS["info_nce"]
    mask = np.arange(5) != 2
    options = {"symmetric": True, "mask": mask}
    expected = jax.tree.map(np.asarray, ours(arrays, NESTING, **options))
    close(ours(arrays, NESTING, implementation="pallas", **options), expected)


def traced(function, *arguments, **options):
    """What is wrong with arguments shows before anything is compiled."""
    return jax.eval_shape(lambda: function(*arguments, **options))


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
    with pytest.raises(ValueError, match=message) as error:
        traced(nested_info_nce, nesting=NESTING, **arguments)
    assert "\n" not in str(error.value)


def test_both_masks_in_the_wrong_order_are_refused():
    arrays = problem()
    mask = np.ones((11, 11), bool), np.ones(11)
    with pytest.raises(ValueError, match=r"in this order; got \(11, 11\), \(11,\)"):
        traced(nested_info_nce, **arrays, nesting=NESTING, temperature=0.1, mask=mask)


def test_a_bad_bias_is_refused():
    for bias, message in (
        (np.inf, "bias must be finite"),
        (np.ones(4), r"bias must be one .*\[3\]"),
    ):
        with pytest.raises(ValueError, match=message):
            traced(nested_sigmoid_loss, nesting=NESTING, temperature=0.1, bias=bias, **problem())


@pytest.mark.parametrize("columns", [1, 7, 24, 48])
def test_sums_of_log1p_lose_no_small_number(columns):
    rng = np.random.default_rng(columns)
    for low in (-30, -3, 0):  # almost nothing, something, and all ones
        e_rn = np.exp(rng.uniform(low, 0, (5, columns))).astype(np.float32)
        wanted_r = np.log1p(e_rn.astype(np.float64)).sum(1)
        np.testing.assert_allclose(row_tiles._sum_log1p(e_rn), wanted_r, rtol=1e-6)
