"""Checksums of arrays that do not depend on how the arrays are split over devices."""

from typing import Any

import jax
import jax.numpy as jnp

from mrl_jax.runtime.mesh import path_name

_UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def _scramble(x: jax.Array) -> jax.Array:
    # A bijection of 32-bit words that spreads every input bit over the whole word (a multiply and
    # xor-shift finaliser), so a changed bit always changes the sum below.
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _leaf_checksum(array: jax.Array) -> jax.Array:
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    size = array.dtype.itemsize
    # 64-bit values become two words along a new last axis.
    bits = jax.lax.bitcast_convert_type(array, _UNSIGNED.get(size, jnp.uint32)).astype(jnp.uint32)
    position = jnp.zeros(bits.shape, jnp.uint32)
    for axis, length in enumerate(bits.shape):
        along = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        position = position * jnp.uint32(length) + along
    # The position goes in so that exchanged values are noticed; two different mixtures make 64
    # bits. Sums of integers do not depend on order, hence not on the sharding.
    words = [
        _scramble(bits ^ _scramble(position + jnp.uint32(salt))).sum(dtype=jnp.uint32)
        for salt in (0x9E3779B9, 0x3C6EF372)
    ]
    return jnp.stack(words)


@jax.jit
def _checksums_and_bad(tree: Any) -> tuple[Any, Any]:
    def bad(array):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            return jnp.zeros((), jnp.int32)
        return (~jnp.isfinite(array)).sum(dtype=jnp.int32)

    return jax.tree.map(_leaf_checksum, tree), jax.tree.map(bad, tree)


def describe(tree: Any) -> dict[str, dict[str, Any]]:
    """What a checkpoint must reproduce: per path, shape, dtype, checksum and non-finite count.

    The checksum is computed on the devices that hold the array, 16 hex digits; it is the same on
    every mesh and number of processes. Any single changed bit changes it.
    """
    checksums, bad = jax.device_get(_checksums_and_bad(tree))
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    rows = zip(leaves, jax.tree.leaves(checksums), jax.tree.leaves(bad), strict=True)
    return {
        path_name(path): {
            "shape": list(leaf.shape),
            "dtype": str(leaf.dtype),
            "checksum": "".join(f"{word:08x}" for word in words),
            "non_finite": int(count),
        }
        for (path, leaf), words, count in rows
    }
