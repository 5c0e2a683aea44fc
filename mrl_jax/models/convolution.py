"""A convolution whose gradient with respect to the kernel is also fast on CPUs."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

# The gradient is summed over so many bytes of patches at a time, which stay in the cache.
CHUNK_BYTES = 2**22

_LAYOUT = ("NHWC", "HWIO", "NHWC")

Padding = tuple[tuple[int, int], tuple[int, int]]
Strides = tuple[int, int]


def _xla(x_bhwc, kernel_hwio, strides: Strides, padding: Padding) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x_bhwc, kernel_hwio, strides, padding, dimension_numbers=_LAYOUT
    )


def _kernel_gradient_xla(x_bhwc, dy_bhwo, kernel_hwio, strides, padding):
    _, pull = jax.vjp(lambda kernel: _xla(x_bhwc, kernel, strides, padding), kernel_hwio)
    return pull(dy_bhwo)[0]


def _chunks(batch: int, row_bytes: int) -> int:
    """The smallest divisor of the batch that makes chunks of at most `CHUNK_BYTES`, if any."""
    fits = (n for n in range(1, batch) if batch % n == 0 and batch // n * row_bytes <= CHUNK_BYTES)
    return next(fits, batch)


def _kernel_gradient_by_products(x_bhwc, dy_bhwo, kernel_hwio, strides, padding):
    """Products of the inputs under each row of the kernel and the gradients of their outputs."""
    batch, rows, columns, outputs = dy_bhwo.shape
    height, width, inputs, _ = kernel_hwio.shape
    patch_bytes = height * width * inputs * x_bhwc.dtype.itemsize
    # For a 1x1 kernel the inputs are the patches: nothing has to be laid out.
    chunks = _chunks(batch, rows * columns * patch_bytes) if height * width > 1 else 1

    def cut(a):
        # Every chunks-th image, so that a batch that is split over devices stays split.
        return a.reshape(-1, chunks, *a.shape[1:]).swapaxes(0, 1)

    def under(padded, first, count, stride, axis):
        return jax.lax.slice_in_dim(padded, first, first + stride * (count - 1) + 1, stride, axis)

    def add(sums, part):
        x, dy = part
        dy_no = dy.reshape(-1, outputs)
        padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
        shifted = [under(padded, j, columns, strides[1], 2) for j in range(width)]
        lines = jnp.concatenate(shifted, -1)

        def product(i):
            line_np = under(lines, i, rows, strides[0], 1).reshape(-1, width * inputs)
            # The narrow factor first: the other way round takes XLA:CPU twice as long.
            contract_n = (((0,), (0,)), ((), ()))
            return jax.lax.dot_general(
                dy_no, line_np, contract_n, preferred_element_type=jnp.float32
            )

        return tuple(total + product(i) for i, total in enumerate(sums)), None

    zeros = (jnp.zeros((outputs, width * inputs), jnp.float32),) * height
    sums, _ = jax.lax.scan(add, zeros, (cut(x_bhwc), cut(dy_bhwo)))
    gradient_howi = jnp.stack(sums).reshape(height, outputs, width, inputs)
    return gradient_howi.transpose(0, 2, 3, 1).astype(kernel_hwio.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(
    x_bhwc: jax.Array, kernel_hwio: jax.Array, strides: Strides, padding: Padding
) -> jax.Array:
    """A two-dimensional convolution, [B, H, W, C] -> [B, H', W', O].

    On accelerators this is XLA's. On CPUs the kernel's gradient is a sum of products of patches
    and output gradients: XLA:CPU computes it as a convolution whose kernel is as large as an
    image, at a tenth to a half of the speed of the forward pass.
    """
    return _xla(x_bhwc, kernel_hwio, strides, padding)


def _forward(x_bhwc, kernel_hwio, strides, padding):
    return _xla(x_bhwc, kernel_hwio, strides, padding), (x_bhwc, kernel_hwio)


def _backward(strides, padding, saved, dy_bhwo):
    x_bhwc, kernel_hwio = saved
    _, pull = jax.vjp(lambda x: _xla(x, kernel_hwio, strides, padding), x_bhwc)
    gradient = functools.partial(jax.lax.platform_dependent, x_bhwc, dy_bhwo, kernel_hwio)
    dkernel = gradient(
        cpu=functools.partial(_kernel_gradient_by_products, strides=strides, padding=padding),
        default=functools.partial(_kernel_gradient_xla, strides=strides, padding=padding),
    )
    return pull(dy_bhwo)[0], dkernel


convolve.defvjp(_forward, _backward)


def for_flax(
    x_bhwc: jax.Array,
    kernel_hwio: jax.Array,
    strides: Sequence[int],
    padding: Any,
    **others: Any,
) -> jax.Array:
    """`convolve` as flax.linen.Conv calls it (its `conv_general_dilated`).

    Raises:
      ValueError: dilation or groups, which `convolve` does not have.
    """
    ones = math.prod((*others["lhs_dilation"], *others["rhs_dilation"]))
    if ones != 1 or others["feature_group_count"] != 1:
        raise ValueError("convolve has neither dilation nor groups")
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(
            x_bhwc.shape[1:3], kernel_hwio.shape[:2], strides, padding
        )
    return convolve(x_bhwc, kernel_hwio, tuple(strides), tuple(map(tuple, padding)))
