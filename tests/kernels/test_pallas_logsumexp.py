import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from mrl_jax.kernels.pallas import logsumexp, tiles
from mrl_jax.kernels.pallas.logsumexp import nested_logsumexp_pallas
from mrl_jax.nesting import Nesting

NAMES = ("a", "w", "row", "col", "bias")
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
CASES = {
    "odd sizes": ((2, 6, 13), 5, 37),
    "several tiles": ((8, 64, 256), 270, 300),
    "one granularity": ((48,), 20, 150),
    "dense": (tuple(range(9, 37, 9)), 17, 30),
}


def operands(dims, rows, columns, dtype="float32", seed=0):
    """float64 numbers that `dtype` can hold, and a cotangent."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(rows, dims[-1])) / np.sqrt(dims[-1])
    w = rng.normal(size=(columns, dims[-1]))
    a, w = (x.astype(jnp.dtype(dtype)).astype(np.float64) for x in (a, w))
    row = rng.uniform(0.5, 2, (len(dims), rows))
    col = rng.uniform(0.5, 2, (len(dims), columns))
    bias = rng.normal(size=(len(dims), columns))
    return (a, w, row, col, bias), rng.normal(size=(len(dims), rows))


def oracle(dims, arrays, dlse):
    """Values and gradients, granularity by granularity in float64."""
    a, w, row, col, bias = arrays
    da, dw, drow, dcol, dbias = (np.zeros_like(x) for x in arrays)
    lse = np.zeros_like(dlse)
    for g, m in enumerate(dims):
        product = a[:, :m] @ w[:, :m].T
        scale = row[g][:, None] * col[g][None]
        exponentials = np.exp(product * scale + bias[g][None])
        lse[g] = np.log(exponentials.sum(1))
        dlogits = exponentials / exponentials.sum(1)[:, None] * dlse[g][:, None]
        da[:, :m] += (dlogits * scale) @ w[:, :m]
        dw[:, :m] += (dlogits * scale).T @ a[:, :m]
        drow[g] = (dlogits * product * col[g][None]).sum(1)
        dcol[g] = (dlogits * product * row[g][:, None]).sum(0)
        dbias[g] = dlogits.sum(0)
    return lse, (da, dw, drow, dcol, dbias)


def close(found, expected, tolerance):
    pairs = zip(("lse", *NAMES), (found[0], *found[1]), (expected[0], *expected[1]), strict=True)
    for name, x, y in pairs:
        error = np.abs(np.asarray(x, np.float64) - y).max() / np.abs(y).max()
        assert error < tolerance, f"{name}: {error}"


@functools.partial(jax.jit, static_argnames=("dims", "interpret"))
def compiled(arrays, dlse, *, dims, interpret):
    def function(a, w, row, col, bias):
        return nested_logsumexp_pallas(
            a, w, Nesting(dims), row_gb=row, col_gn=col, bias_gn=bias, interpret=interpret
        )

    lse, pull = jax.vjp(function, *arrays)
    return lse, pull(dlse)


def value_and_gradients(dims, arrays, dlse, dtype="float32", interpret=None):
    dtype = jnp.dtype(dtype)
    arrays = tuple(x.astype(dtype if i < 2 else np.float32) for i, x in enumerate(arrays))
    found = compiled(arrays, np.float32(dlse), dims=dims, interpret=interpret)
    for x, y in zip(found[1], arrays, strict=True):
        assert x.dtype == y.dtype
    return found


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_values_and_gradients_in_float64(platform, case, dtype):
    dims, rows, columns = CASES[case]
    arrays, dlse = operands(dims, rows, columns, dtype)
    found = value_and_gradients(dims, arrays, dlse, dtype, platform)
    close(found, oracle(dims, arrays, dlse), TOLERANCE[dtype])


def test_on_a_cpu_the_tpu_kernel_is_interpreted():
    arrays, dlse = operands((2, 6, 13), 5, 37)
    found = value_and_gradients((2, 6, 13), arrays, dlse)
    expected = value_and_gradients((2, 6, 13), arrays, dlse, interpret="tpu")
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    # exp(100) is not a float32, neither in rows nor in the padding behind them.
    *others, bias = arrays
    of_large = value_and_gradients((2, 6, 13), (*others, bias + 100), dlse)
    close((of_large[0] - 100, of_large[1]), oracle((2, 6, 13), arrays, dlse), 1e-4)


def test_rows_in_several_chunks(monkeypatch):
    monkeypatch.setattr(tiles, "TPU_CHUNK_BYTES", 2 * 4 * 256 * 128)
    dims = (2, 6, 13)
    arrays, dlse = operands(dims, 1100, 40)
    assert tiles.KernelCall(dims, "tpu", True, 1100, 40).chunks == 3
    found = value_and_gradients(dims, arrays, dlse, interpret="tpu")
    close(found, oracle(dims, arrays, dlse), 1e-5)


def test_tpu_simulator_with_memory_that_starts_as_nan():
    dims, rows, columns = (2, 6, 130), 300, 600
    arrays, dlse = operands(dims, rows, columns)
    simulator = pltpu.InterpretParams(uninitialized_memory="nan")
    call = tiles.KernelCall(dims, "tpu", simulator, rows, columns)

    @jax.jit
    def run(*arrays):
        lse = logsumexp._forward(call, *arrays[:-1])
        return lse, logsumexp._backward(call, *arrays[:-1], lse, arrays[-1])

    lse, gradients = run(*map(np.float32, (*arrays, dlse)))
    close((lse, gradients), oracle(dims, arrays, dlse), 1e-5)


def test_a_column_that_is_left_out_counts_for_nothing():
    dims = (2, 6, 13)
    (a, w, row, col, bias), dlse = operands(dims, 5, 200)
    # More than one tile of them, and tiles that consist of nothing else.
    keep = np.arange(200) < 30
    found = value_and_gradients(dims, (a, w, row, col, np.where(keep[None], bias, -1e30)), dlse)
    found = jax.tree.map(np.asarray, found)
    lse, (da, dw, *rest) = oracle(dims, (a, w[keep], row, col[:, keep], bias[:, keep]), dlse)
    np.testing.assert_array_equal(found[1][1][~keep], 0)
    gradients = (da, dw, *rest)
    kept = (found[1][0], found[1][1][keep], found[1][2], *(x[:, keep] for x in found[1][3:]))
    close((found[0], kept), (lse, gradients), 1e-5)


def test_factors_default_to_one_and_a_bias_may_be_shared():
    dims = (2, 6, 13)
    (a, w, row, col, bias), dlse = operands(dims, 5, 37)
    shared = np.broadcast_to(bias[0], bias.shape)
    lse, expected = oracle(dims, (a, w, np.ones_like(row), np.ones_like(col), shared), dlse)

    @jax.jit
    def run(*arrays):
        function = functools.partial(nested_logsumexp_pallas, nesting=Nesting(dims))
        found, pull = jax.vjp(lambda a, w, bias_n: function(a, w, bias_gn=bias_n), *arrays[:3])
        return found, pull(arrays[3])

    found, (da, dw, dbias) = run(*map(np.float32, (a, w, bias[0], dlse)))
    np.testing.assert_allclose(found, lse, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(da, expected[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dw, expected[1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dbias, expected[4].sum(0), rtol=1e-5, atol=1e-5)


CALLS = {"cuda": "__gpu$xla.gpu.triton", "tpu": "tpu_custom_call"}


@pytest.mark.parametrize(
    ("dims", "dtype"),
    [
        ((2, 6, 13), "float32"),
        ((2, 6, 13), "bfloat16"),
        ((24, 48, 72, 96), "bfloat16"),
        pytest.param(tuple(range(8, 385, 8)), "bfloat16", marks=pytest.mark.slow),
    ],
    ids=["float32", "bfloat16", "blocks across tiles", "48 granularities"],
)
@pytest.mark.parametrize("platform", CALLS)
def test_lowers_for_accelerators_and_holds_no_logits(platform, dims, dtype):
    nesting = Nesting(dims)

    def forward(a, w):
        return nested_logsumexp_pallas(a, w, nesting)

    def gradients(a, w):
        return jax.grad(lambda a, w: forward(a, w).sum(), (0, 1))(a, w)

    arrays = tuple(jax.ShapeDtypeStruct((n, dims[-1]), dtype) for n in (768, 1000))
    for function, calls in ((forward, 1), (gradients, 2)):
        lowered = jax.jit(function).trace(*arrays).lower(lowering_platforms=(platform,)).as_text()
        assert lowered.count(CALLS[platform]) == calls
        # The columns as they are, and padded to whole tiles.
        assert not re.search(r"tensor<(\d+x)*768x(1000|1024)x", lowered)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a_bd": jnp.zeros((5, 12))}, r"a must be \[>= 1, >= 13\], got \(5, 12\)"),
        ({"w_nd": jnp.zeros((0, 13))}, r"w must be \[>= 1, >= 13\], got \(0, 13\)"),
        ({"a_bd": jnp.zeros((5, 13), jnp.int32)}, "a must be float32 or bfloat16, got int32"),
        ({"row_gb": jnp.zeros((3, 4))}, r"row must be \[3, 5\], got \(3, 4\)"),
        ({"col_gn": jnp.zeros(37)}, r"col must be \[3, 37\], got \(37,\)"),
        ({"bias_gn": jnp.zeros((2, 37))}, r"bias must be \[3, 37\], got \(2, 37\)"),
        ({"interpret": True}, "interpret must be None, tpu or cuda; got True"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    arguments = {"a_bd": jnp.zeros((5, 13)), "w_nd": jnp.zeros((37, 13)), **change}
    with pytest.raises(ValueError, match=message):
        nested_logsumexp_pallas(**arguments, nesting=Nesting((2, 6, 13)))
