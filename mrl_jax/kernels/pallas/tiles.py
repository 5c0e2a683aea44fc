"""How nested logits are cut into tiles, and the two Pallas kernels that work on one tile.

They serve `logsumexp`. One program of a kernel holds a [R, T] tile of logits, R rows of `a` by T
rows of `w` ("columns"). The products of a granularity are those of the one before plus one block
product, so all granularities cost the FLOPs of the largest alone.

The same kernels serve TPU (Mosaic) and NVIDIA GPU (Triton). What differs: a TPU goes through the
grid in order, so that sums over tiles stay in VMEM, and takes a whole block of dims per product;
the programs of a GPU run side by side, and walk along the dims in small steps.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton as pltriton

from mrl_jax.nesting import blocks_of

Platform = Literal["tpu", "cuda"]

# TPU: slices of dims, rows and columns are whole lanes.
TPU_LANES = 128
# The float32 gradient of a chunk of rows stays in VMEM while all columns pass by.
TPU_CHUNK_BYTES = 2**23
# More than the default limit; v5e and later have 64 or 128 MiB. Wide embeddings: smaller tiles.
TPU_VMEM_BYTES = 56 * 2**20
TPU_LARGE_TILE_DIMS = 4096

# GPU: one program keeps the [R, T] tiles of all granularities. What registers cannot hold spills,
# which is little traffic next to the products: 8 bytes per granularity against 6 FLOPs per dim.
GPU_TILE = 64
GPU_DIMS = 32
GPU_WARPS = 8


def round_up(size: int, multiple: int) -> int:
    """The smallest multiple that is at least `size`."""
    return pl.cdiv(size, multiple) * multiple


@dataclasses.dataclass(frozen=True)
class KernelCall:
    """The static part of a call, and the tile sizes that follow from it.

    Attributes:
      dims: the prefix lengths.
      platform: whose kernel.
      interpret: run it in Pallas' interpreter, or in the TPU simulator with these parameters.
      rows: B.
      columns: N.
    """

    dims: tuple[int, ...]
    platform: Platform
    interpret: bool | pltpu.InterpretParams
    rows: int
    columns: int

    @property
    def on_tpu(self) -> bool:
        """Tiles come in order, and sums stay in VMEM."""
        return self.platform == "tpu"

    @property
    def blocks(self) -> tuple[tuple[int, int], ...]:
        """See `blocks_of`."""
        return blocks_of(self.dims)

    @property
    def align(self) -> int:
        """Slices of dims start and end at multiples of this."""
        return TPU_LANES if self.on_tpu else GPU_DIMS

    @property
    def width(self) -> int:
        """The dims, padded."""
        return round_up(self.dims[-1], self.align)

    def _tile(self, size: int) -> int:
        if not self.on_tpu:
            return GPU_TILE
        largest = 2 * TPU_LANES if self.width <= TPU_LARGE_TILE_DIMS else TPU_LANES
        return min(round_up(size, TPU_LANES), largest)

    @property
    def row_tile(self) -> int:
        """R."""
        return self._tile(self.rows)

    @property
    def column_tile(self) -> int:
        """T."""
        return self._tile(self.columns)

    @property
    def chunks(self) -> int:
        """Calls of the backward kernel, each for a chunk of the rows."""
        if not self.on_tpu:
            return 1
        tiles = max(TPU_CHUNK_BYTES // (4 * self.width * self.row_tile), 1)
        return pl.cdiv(self.rows, tiles * self.row_tile)

    @property
    def padded_rows(self) -> int:
        """The rows in whole tiles and chunks."""
        return round_up(self.rows, self.row_tile * self.chunks)

    @property
    def padded_columns(self) -> int:
        """The columns in whole tiles."""
        return round_up(self.columns, self.column_tile)

    def pallas_call(self, kernel: Callable, **arguments) -> Callable:
        """`pl.pallas_call` of one of the kernels below, for this call's platform."""
        if self.on_tpu:
            params = pltpu.CompilerParams(vmem_limit_bytes=TPU_VMEM_BYTES)
        else:
            # Also what selects Triton: the default backend (Mosaic GPU) refuses plain products.
            params = pltriton.CompilerParams(num_warps=GPU_WARPS, num_stages=1)
        kernel = functools.partial(kernel, self)
        return pl.pallas_call(kernel, compiler_params=params, interpret=self.interpret, **arguments)


def _over_dims(call: KernelCall, block: tuple[int, int], body: Callable, carry=None):
    """Runs body(start, size, carry) over aligned slices of dims that together cover the block."""
    start, stop = block[0] // call.align, pl.cdiv(block[1], call.align)
    if call.on_tpu:
        return body(start * call.align, (stop - start) * call.align, carry)
    return lax.fori_loop(start, stop, lambda k, c: body(k * call.align, call.align, c), carry)


def _load(call: KernelCall, ref, start, size: int, block: tuple[int, int]) -> jax.Array:
    """Dims [start, start + size) of a tile, 0 outside the block: blocks need not be aligned."""
    tile = ref[:, pl.ds(start, size)]
    if all(dim % call.align == 0 for dim in block):
        return tile
    dims_1d = start + lax.broadcasted_iota(jnp.int32, (1, size), 1)
    return tile * ((dims_1d >= block[0]) & (dims_1d < block[1])).astype(tile.dtype)


def _dot(x: jax.Array, y: jax.Array, x_axis: int, y_axis: int) -> jax.Array:
    """The product over one axis of each, summed in float32; float32 operands are not rounded."""
    return lax.dot_general(
        x,
        y,
        (((x_axis,), (y_axis,)), ((), ())),
        precision=lax.Precision.HIGHEST if x.dtype == jnp.float32 else lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )


def _products(call: KernelCall, a_ref, w_ref) -> Iterator[jax.Array]:
    """The [R, T] products of every prefix, one after the other."""
    running_rt = jnp.zeros((call.row_tile, call.column_tile), jnp.float32)
    for block in call.blocks:

        def add_slice(start, size, running_rt, block=block):
            a_rd = _load(call, a_ref, start, size, block)
            return running_rt + _dot(a_rd, w_ref[:, pl.ds(start, size)], 1, 1)

        running_rt = _over_dims(call, block, add_slice, running_rt)
        yield running_rt


def forward_kernel(call: KernelCall, a_ref, w_ref, row_ref, col_ref, bias_ref, lse_ref):
    """Grid (row tiles, column tiles): log-sum-exp of this tile, on a TPU of all tiles so far.

    Refs: a [R, d], w [T, d], row [G, R], col and bias [G, T]; the result is [G, R].
    """
    if call.on_tpu:

        @pl.when(pl.program_id(1) == 0)
        def _():
            lse_ref[...] = jnp.full(lse_ref.shape, -jnp.inf, lse_ref.dtype)

    for g, running_rt in enumerate(_products(call, a_ref, w_ref)):
        scaled_rt = running_rt * row_ref[g, :][:, None] * col_ref[g, :][None]
        logits_rt = scaled_rt + bias_ref[g, :][None]
        peak_r = logits_rt.max(1)
        lse_r = peak_r + jnp.log(jnp.exp(logits_rt - peak_r[:, None]).sum(1))
        if call.on_tpu:
            before_r = lse_ref[g, :]
            peak_r = jnp.maximum(before_r, lse_r)
            lse_r = peak_r + jnp.log(jnp.exp(before_r - peak_r) + jnp.exp(lse_r - peak_r))
        lse_ref[g, :] = lse_r


def backward_kernel(call: KernelCall, *refs):
    """Grid (column tiles, row tiles): recomputes a tile of logits once and adds its gradients.

    Refs: as `forward_kernel` up to bias, then lse and its cotangent, both [G, R]. The gradients are
    those of a and row for the whole chunk of rows, of w, col and bias for one tile of columns. A
    TPU starts them from zero by itself and has [G, R, T] of scratch; a GPU adds atomically to
    zeros.
    """
    a_ref, w_ref, row_ref, col_ref, bias_ref, lse_ref, dlse_ref, *refs = refs
    if call.on_tpu:
        da_ref, dw_ref, drow_ref, dcol_ref, dbias_ref, running_grt = refs
        first_row_tile = pl.program_id(1) == 0
        _zero((pl.program_id(0) == 0) & first_row_tile, da_ref, drow_ref)
        _zero(first_row_tile, dw_ref, dcol_ref, dbias_ref)
    else:
        # The zeros come in as five inputs that share their memory with the outputs.
        da_ref, dw_ref, drow_ref, dcol_ref, dbias_ref = refs[5:]
        running_grt = [None] * len(call.dims)

    def add(ref, where, value):
        if call.on_tpu:
            ref[where] += value
        else:
            pltriton.atomic_add(ref, where, value)

    for g, running_rt in enumerate(_products(call, a_ref, w_ref)):
        running_grt[g] = running_rt

    rows = pl.ds(pl.program_id(1) * call.row_tile, call.row_tile)
    every = slice(None)
    # The gradient of a block product is a sum over the granularities that contain the block.
    dproduct_rt = jnp.zeros((call.row_tile, call.column_tile), jnp.float32)
    for g, block in reversed(tuple(enumerate(call.blocks))):
        this = pl.ds(g, 1)
        row_r1, col_1t = row_ref[g, :][:, None], col_ref[g, :][None]
        by_row_rt = running_grt[g] * row_r1
        logits_rt = by_row_rt * col_1t + bias_ref[g, :][None]
        softmax_rt = jnp.exp(logits_rt - lse_ref[g, :][:, None])
        dlogits_rt = softmax_rt * dlse_ref[g, :][:, None]
        by_col_rt = dlogits_rt * col_1t
        add(drow_ref, (this, rows), (by_col_rt * running_grt[g]).sum(1)[None])
        add(dcol_ref, (this, every), (dlogits_rt * by_row_rt).sum(0)[None])
        add(dbias_ref, (this, every), dlogits_rt.sum(0)[None])
        dproduct_rt += by_col_rt * row_r1
        narrow_rt = dproduct_rt.astype(a_ref.dtype)

        def add_slice(start, size, _, block=block, narrow_rt=narrow_rt):
            dims = pl.ds(start, size)
            w_td = _load(call, w_ref, start, size, block)
            add(da_ref, (rows, dims), _dot(narrow_rt, w_td, 1, 0))
            a_rd = _load(call, a_ref, start, size, block)
            add(dw_ref, (every, dims), _dot(narrow_rt, a_rd, 0, 0))

        _over_dims(call, block, add_slice)


def _zero(condition: jax.Array, *refs):
    @pl.when(condition)
    def _():
        for ref in refs:
            ref[...] = jnp.zeros(ref.shape, ref.dtype)
