import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrl_jax.models import convolution
from mrl_jax.runtime import mesh as meshes

# Kernel [H, W, C, O], strides, padding.
CASES = {
    "3x3": ((3, 3, 4, 5), (1, 1), ((1, 1), (1, 1))),
    "3x3, stride 2": ((3, 3, 4, 2), (2, 2), ((1, 1), (1, 1))),
    "1x1, stride 2": ((1, 1, 4, 6), (2, 2), ((0, 0), (0, 0))),
    "7x7, stride 2": ((7, 7, 4, 3), (2, 2), ((3, 3), (3, 3))),
    "3x2, strides 2 and 1": ((3, 2, 4, 5), (2, 1), ((1, 0), (0, 2))),
}


def arrays(kernel_shape, batch=6):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, 10, 8, kernel_shape[2]))
    return x, rng.normal(size=kernel_shape)


def oracle(x, kernel, strides, padding, dy=None):
    """Output, or the kernel's gradient for `dy`, in float64, one patch after the other."""
    padded = np.pad(x, ((0, 0), *padding, (0, 0)))
    high, wide = kernel.shape[:2]
    rows = (padded.shape[1] - high) // strides[0] + 1
    columns = (padded.shape[2] - wide) // strides[1] + 1
    y, dkernel = np.zeros((len(x), rows, columns, kernel.shape[-1])), np.zeros(kernel.shape)
    for i in range(rows):
        for j in range(columns):
            top, left = i * strides[0], j * strides[1]
            patch = padded[:, top : top + high, left : left + wide]
            y[:, i, j] = np.einsum("bhwc,hwco->bo", patch, kernel)
            if dy is not None:
                dkernel += np.einsum("bhwc,bo->hwco", patch, dy[:, i, j])
    return y if dy is None else dkernel


@pytest.mark.parametrize(
    ("name", "chunk_bytes"),
    [*((name, 4000) for name in CASES), *(("3x2, strides 2 and 1", x) for x in (2**22, 1))],
)
def test_values_and_gradients_equal_the_definition(name, chunk_bytes, monkeypatch):
    monkeypatch.setattr(convolution, "CHUNK_BYTES", chunk_bytes)
    shape, strides, padding = CASES[name]
    x, kernel = arrays(shape)
    expected = oracle(x, kernel, strides, padding)
    dy = np.random.default_rng(1).normal(size=expected.shape)

    plain = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=strides,
        padding=padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )

    @jax.jit
    def run(x, kernel, dy):
        y, pull = jax.vjp(lambda x, k: convolution.convolve(x, k, strides, padding), x, kernel)
        return y, *pull(dy), jax.vjp(plain, x, kernel)[1](dy)[0]

    y, dx, dkernel, plain_dx = run(*map(np.float32, (x, kernel, dy)))
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    want = oracle(x, kernel, strides, padding, dy)
    np.testing.assert_allclose(dkernel, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())
    np.testing.assert_allclose(dx, plain_dx, atol=1e-4)


def test_narrow_inputs_are_summed_in_float32():
    x, kernel = arrays((3, 3, 4, 5), batch=64)
    x16, kernel16 = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    padding = ((1, 1), (1, 1))

    @jax.jit
    def run(x, kernel):
        y, pull = jax.vjp(lambda k: convolution.convolve(x, k, (1, 1), padding), kernel)
        return y, *pull(jnp.ones_like(y))

    y, dkernel = run(x16, kernel16)
    assert dkernel.dtype == jnp.bfloat16
    want = oracle(np.asarray(x16, np.float64), kernel, (1, 1), padding, np.ones(y.shape))
    # One rounding to bfloat16 at the end.
    np.testing.assert_allclose(
        np.asarray(dkernel, np.float64), want, rtol=2**-8, atol=1e-3 * np.abs(want).max()
    )


def test_only_cpus_take_the_kernel_gradient_as_products():
    x, kernel = map(np.float32, arrays((3, 3, 4, 5)))

    def loss(kernel):
        return (convolution.convolve(x, kernel, (1, 1), ((1, 1), (1, 1))) ** 2).sum()

    traced = jax.jit(jax.grad(loss)).trace(kernel)
    found = {
        platform: traced.lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "tpu", "cuda")
    }
    count = {platform: text.count("stablehlo.convolution") for platform, text in found.items()}
    # Forward; and backward to the image, if XLA does not drop it; and to the kernel.
    assert count["tpu"] == count["cuda"] == count["cpu"] + 1
    assert "dot_general" in found["cpu"]
    assert "dot_general" not in found["tpu"]


def test_a_batch_on_eight_devices_stays_there(monkeypatch):
    monkeypatch.setattr(convolution, "CHUNK_BYTES", 100_000)
    mesh = meshes.make_mesh(8, 1, 1)
    x, kernel = map(np.float32, arrays((3, 3, 4, 5), batch=64))
    split = jax.device_put(x, meshes.batch_sharding(mesh))
    whole = jax.device_put(kernel, meshes.replicated(mesh))

    def loss(kernel, x):
        return (convolution.convolve(x, kernel, (1, 1), ((1, 1), (1, 1))) ** 2).sum()

    gradient = jax.jit(jax.grad(loss))
    compiled = gradient.lower(whole, split).compile()
    assert "while" in compiled.as_text()  # several chunks
    assert "all-gather" not in compiled.as_text()
    assert "all-to-all" not in compiled.as_text()
    np.testing.assert_allclose(compiled(whole, split), gradient(kernel, x), rtol=1e-5)


@pytest.mark.parametrize("padding", ["SAME", "VALID", 1])
def test_flax_layers_compute_the_same_with_it(padding):
    x, _ = arrays((3, 3, 4, 5))
    x = np.float32(x)
    plain = nn.Conv(5, (3, 3), strides=2, padding=padding)
    ours = plain.clone(conv_general_dilated=convolution.for_flax)
    kernel = np.random.default_rng(1).normal(size=(3, 3, 4, 5), scale=0.2)
    params = {"params": {"kernel": np.float32(kernel), "bias": np.zeros(5, np.float32)}}

    @functools.partial(jax.jit, static_argnums=0)
    def gradients(layer):
        return jax.grad(lambda p: (layer.apply(p, x) ** 2).sum())(params)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3),
        gradients(ours),
        gradients(plain),
    )


def test_dilation_and_groups_are_refused():
    x = np.zeros((1, 8, 8, 4), np.float32)
    for layer in (
        nn.Conv(4, (3, 3), kernel_dilation=2, conv_general_dilated=convolution.for_flax),
        nn.Conv(4, (3, 3), feature_group_count=2, conv_general_dilated=convolution.for_flax),
    ):
        with pytest.raises(ValueError, match="neither dilation nor groups"):
            layer.init(jax.random.key(0), x)
