"""Codes of vectors: how their dims are stored, and how codes are multiplied."""

import ctypes
import functools

import ml_dtypes
import numpy as np

from mrl_jax import extras
from mrl_jax.errors import UsageError
from mrl_jax.search.index import loops
from mrl_jax.search.plan import Code
from mrl_jax.search.schedule import Metric

PRODUCTS = {
    "float32": loops.FLOAT64,
    "bfloat16": loops.FLOAT32,
    "float16": loops.FLOAT32,
    "int8": loops.INT32,
    "binary": loops.BITS,
}
_FLOATS = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
_WORD = 8  # bytes that are compared at a time
_SMALLEST = np.finfo(np.float32).tiny


def norms(z_nd: np.ndarray) -> np.ndarray:
    """Lengths [N] float32; at least the smallest normal number, so that one can divide by them."""
    return np.maximum(loops.lengths(z_nd), _SMALLEST).astype(np.float32)


def compared(query_bd: np.ndarray, metric: Metric) -> np.ndarray:
    """Queries as they are encoded: by cosine, multiplied by powers of two to about unit length.

    That changes no order and rounds nothing, while products of short vectors could become 0.
    """
    if metric != "cosine":
        return query_bd
    _, power_b = np.frexp(norms(query_bd))
    return np.ldexp(query_bd, -power_b[:, None])


def encode(z_nw: np.ndarray, code: Code) -> tuple[np.ndarray, np.ndarray]:
    """Codes [N, bytes] and gains [N]: a product is about that of both codes times both gains.

    int8: a row's largest number becomes 127. Binary: signs, and the mean magnitude is the gain,
    which makes the error of the row least (Rastegari et al., arXiv 1603.05279, eq. 6).

    Raises:
      UsageError: numbers too large for float16.
    """
    z_nw = np.ascontiguousarray(z_nw, np.float32)
    if code in _FLOATS:
        if code == "float16" and np.abs(z_nw).max(initial=0) > np.finfo(np.float16).max:
            raise UsageError("float16 codes hold numbers up to 65504; choose float32 or int8")
        return z_nw.astype(_FLOATS[code], copy=False).view(np.uint8), np.ones(len(z_nw), np.float32)
    if code == "int8":
        gain_n = np.abs(z_nw).max(1) / np.float32(127)
        code_nw = np.rint(z_nw / np.maximum(gain_n, _SMALLEST)[:, None]).astype(np.int8)
        return code_nw.view(np.uint8), gain_n
    bits = np.packbits(z_nw > 0, axis=1)
    # Bits beyond the width are 0 in rows and queries, so that they never differ.
    bits = np.pad(bits, ((0, 0), (0, -bits.shape[1] % _WORD)))
    return bits, np.abs(z_nw).mean(1)


def code_bytes(width: int, code: Code) -> int:
    """Bytes of the codes of `width` dims."""
    if code == "binary":
        return -(-width // (8 * _WORD)) * _WORD
    return width * np.dtype(_FLOATS.get(code, code)).itemsize


@functools.cache
def product_function(code: Code):
    """numkong's compiled product of two rows of codes, for the loops: (a, b, dims, result).

    It is the best that the machine has (AVX-512 VNNI, NEON, ...). What compilers make of a plain
    loop is 2 to 4 times slower on int8, and faiss's scalar quantiser decodes to float32 first.
    Binary codes are compared in the loops themselves, which do not use the function they get.
    """
    with extras.needed("search", "an index"):
        import numkong
    kind = {"binary": "int8", "bfloat16": "bf16"}.get(code, code)
    pointers = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p)
    return ctypes.CFUNCTYPE(None, *pointers)(numkong.pointer_to_dot(kind))


def int8_products(query_bw: np.ndarray, code_nw: np.ndarray) -> np.ndarray:
    """Products [B, N] float32 of int8 codes, each with each, as `product_function` gives them.

    The calling thread computes alone, which a matrix product of BLAS cannot promise.
    """
    import numkong

    packed = numkong.dots_pack(code_nw.view(np.int8))
    return np.asarray(numkong.dots_packed(query_bw.view(np.int8), packed)).astype(np.float32)
