"""Log-sum-exp of nested logits as one fused kernel: no logits in the device's main memory."""

import functools
from collections.abc import Callable
from typing import get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mrl_jax.kernels.chunks import cut_rows, join_rows
from mrl_jax.kernels.pallas.tiles import KernelCall, Platform, backward_kernel, forward_kernel
from mrl_jax.nesting import Nesting

# A finite "minus infinity": a tile may consist of such columns alone without inf - inf.
LEFT_OUT = -1e30


def _padded(call: KernelCall, a_bd, w_nd, row_gb, col_gn, bias_gn) -> tuple[jax.Array, ...]:
    """The operands in whole tiles. Padded columns are left out of the sum."""
    rows, columns = call.padded_rows - call.rows, call.padded_columns - call.columns
    dims = call.width - call.dims[-1]
    return (
        jnp.pad(a_bd, ((0, rows), (0, dims))),
        jnp.pad(w_nd, ((0, columns), (0, dims))),
        jnp.pad(row_gb, ((0, 0), (0, rows))),
        jnp.pad(col_gn, ((0, 0), (0, columns))),
        jnp.pad(bias_gn, ((0, 0), (0, columns)), constant_values=LEFT_OUT),
    )


def _forward(call: KernelCall, *operands: jax.Array) -> jax.Array:
    count, r, t, d = len(call.dims), call.row_tile, call.column_tile, call.width
    column_tiles = call.padded_columns // t
    scalars_of_columns = pl.BlockSpec((count, t), lambda i, j: (0, j))
    # A TPU sums over the column tiles as it goes; a GPU returns one part for each.
    parts = 1 if call.on_tpu else column_tiles
    lse_pgb = call.pallas_call(
        forward_kernel,
        grid=(call.padded_rows // r, column_tiles),
        in_specs=[
            pl.BlockSpec((r, d), lambda i, j: (i, 0)),
            pl.BlockSpec((t, d), lambda i, j: (j, 0)),
            pl.BlockSpec((count, r), lambda i, j: (0, i)),
            scalars_of_columns,
            scalars_of_columns,
        ],
        out_specs=pl.BlockSpec((None, count, r), lambda i, j: (0 if call.on_tpu else j, 0, i)),
        out_shape=jax.ShapeDtypeStruct((parts, count, call.padded_rows), jnp.float32),
    )(*_padded(call, *operands))
    return jax.nn.logsumexp(lse_pgb, 0)[:, : call.rows]


def _backward(call: KernelCall, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    *operands, lse_gb, dlse_gb = arrays
    a_bd, w_nd, row_gb, col_gn, bias_gn = _padded(call, *operands)
    padding = ((0, 0), (0, call.padded_rows - call.rows))
    # exp(logit - inf) = 0: padded rows cannot overflow, whatever the bias.
    lse_gb = jnp.pad(lse_gb, padding, constant_values=jnp.inf)
    dlse_gb = jnp.pad(dlse_gb, padding)
    chunk = call.padded_rows // call.chunks
    kernel = _backward_call(call, chunk)

    def step(of_columns, of_rows):
        a_rd, row_gr, lse_gr, dlse_gr = of_rows
        da_rd, dw_nd, drow_gr, dcol_gn, dbias_gn = kernel(
            a_rd, w_nd, row_gr, col_gn, bias_gn, lse_gr, dlse_gr
        )
        return jax.tree.map(jnp.add, of_columns, (dw_nd, dcol_gn, dbias_gn)), (da_rd, drow_gr)

    cuts = ((a_bd, 0), (row_gb, 1), (lse_gb, 1), (dlse_gb, 1))
    of_rows = tuple(cut_rows(x, axis, chunk) for x, axis in cuts)
    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (w_nd, col_gn, bias_gn))
    (dw_nd, dcol_gn, dbias_gn), (da_rd, drow_gr) = lax.scan(step, zeros, of_rows)
    width, columns = call.dims[-1], call.columns
    return (
        join_rows(da_rd, 0, call.rows)[:, :width],
        dw_nd[:columns, :width],
        join_rows(drow_gr, 1, call.rows),
        dcol_gn[:, :columns],
        dbias_gn[:, :columns],
    )


def _backward_call(call: KernelCall, chunk: int) -> Callable:
    """The backward kernel for one chunk of rows: padded operands, lse, dlse -> five gradients."""
    count, r, t, d = len(call.dims), call.row_tile, call.column_tile, call.width
    columns = call.padded_columns
    by_column = pl.BlockSpec((t, d), lambda j, i: (j, 0))
    scalars_of_rows = pl.BlockSpec((count, r), lambda j, i: (0, i))
    scalars_of_columns = pl.BlockSpec((count, t), lambda j, i: (0, j))
    in_specs = [
        pl.BlockSpec((r, d), lambda j, i: (i, 0)),
        by_column,
        scalars_of_rows,
        scalars_of_columns,
        scalars_of_columns,
        scalars_of_rows,
        scalars_of_rows,
    ]
    # The same block for every tile: on a TPU it stays in VMEM until the end.
    out_specs = [
        pl.BlockSpec((chunk, d), lambda j, i: (0, 0)),
        by_column,
        pl.BlockSpec((count, chunk), lambda j, i: (0, 0)),
        scalars_of_columns,
        scalars_of_columns,
    ]
    shapes = ((chunk, d), (columns, d), (count, chunk), (count, columns), (count, columns))
    common = {
        "grid": (columns // t, chunk // r),
        "out_specs": out_specs,
        "out_shape": [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes],
    }
    if call.on_tpu:
        scratch = [pltpu.VMEM((count, r, t), jnp.float32)]
        return call.pallas_call(
            backward_kernel, in_specs=in_specs, scratch_shapes=scratch, **common
        )
    kernel = call.pallas_call(
        backward_kernel,
        in_specs=in_specs + out_specs,
        input_output_aliases={len(in_specs) + k: k for k in range(len(out_specs))},
        **common,
    )
    return lambda *arrays: kernel(*arrays, *(jnp.zeros(shape, jnp.float32) for shape in shapes))


def _on_platform(
    function: Callable, dims: tuple[int, ...], interpret: Platform | None, *arrays: jax.Array
):
    rows, columns = arrays[0].shape[0], arrays[1].shape[0]

    def on(platform: Platform, interpret: bool) -> Callable:
        return functools.partial(function, KernelCall(dims, platform, interpret, rows, columns))

    if interpret:
        return on(interpret, True)(*arrays)
    # Decided when lowering, so that a program for one platform can be lowered on another.
    return lax.platform_dependent(
        *arrays, tpu=on("tpu", False), cuda=on("cuda", False), cpu=on("tpu", True)
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _logsumexp(dims, interpret, a_bd, w_nd, row_gb, col_gn, bias_gn):
    return _on_platform(_forward, dims, interpret, a_bd, w_nd, row_gb, col_gn, bias_gn)


def _logsumexp_fwd(dims, interpret, *operands):
    lse_gb = _logsumexp(dims, interpret, *operands)
    return lse_gb, (operands, lse_gb)


def _logsumexp_bwd(dims, interpret, residuals, dlse_gb):
    operands, lse_gb = residuals
    gradients = _on_platform(_backward, dims, interpret, *operands, lse_gb, dlse_gb)
    return tuple(d.astype(x.dtype) for d, x in zip(gradients, operands, strict=True))


_logsumexp.defvjp(_logsumexp_fwd, _logsumexp_bwd)


def nested_logsumexp_pallas(
    a_bd: jax.Array,
    w_nd: jax.Array,
    nesting: Nesting,
    *,
    row_gb: jax.Array | None = None,
    col_gn: jax.Array | None = None,
    bias_gn: jax.Array | None = None,
    interpret: Platform | None = None,
) -> jax.Array:
    """Log-sum-exp over n of the nested logits row * (a[:, :m] @ w[:, :m].T) * col + bias.

    What a nested softmax loss needs besides the logits of its targets: that of a classifier (MRL-E,
    arXiv 2205.13147, section 3) with the kernel's transpose as `w_nd`, or a contrastive one with
    the other side's embeddings as `w_nd` and inverse norms as `row_gb` and `col_gn`.
    Differentiable in all five arrays.

    Cost: one fused kernel forward and one backward, which recomputes the logits once; in all the
    FLOPs of one dense layer's forward and backward plus one more forward. A granularity that does
    not start and end at multiples of 128 dims (GPU: 32) costs up to two such multiples more. Apart
    from operands and float32 gradients (copies where sizes are not whole tiles) a TPU keeps [G, B]
    in main memory; a GPU also [G, B, N / 64], one number per tile.

    TPU: v5e and later, up to 8192 dims. GPU: Triton; its programs add gradients atomically, in no
    fixed order, so their last bits differ from run to run. Where a run must repeat bit for bit, use
    another form. CPU: the TPU kernel in Pallas' interpreter, for tests and much too slow for more.
    Tests interpret and lower both kernels and compile the TPU one; neither ran on a device yet.

    Args:
      a_bd: [B, D] float32 or bfloat16, D >= `nesting.width`; further dims are not read.
      w_nd: [N, D'] likewise. Two different dtypes are promoted to one.
      nesting: the G prefix lengths. Weights play no part.
      row_gb: [G, B] factors; 1 where not given.
      col_gn: [G, N] factors; 1 where not given.
      bias_gn: [G, N], or [N] for all granularities; 0 where not given. -1e30 leaves a column out.
      interpret: run the kernel of this platform in Pallas' interpreter, wherever; for tests.

    Returns:
      [G, B] float32.

    Raises:
      ValueError: shapes that do not fit together, no rows or columns, another dtype, an unknown
        platform to interpret.
    """
    count, width = len(nesting), nesting.width
    for name, x in (("a", a_bd), ("w", w_nd)):
        if x.ndim != 2 or x.shape[0] < 1 or x.shape[1] < width:
            raise ValueError(f"{name} must be [>= 1, >= {width}], got {x.shape}")
        if x.dtype not in (jnp.float32, jnp.bfloat16):
            raise ValueError(f"{name} must be float32 or bfloat16, got {x.dtype}")
    if interpret not in (None, *get_args(Platform)):
        raise ValueError(f"interpret must be None, tpu or cuda; got {interpret!r}")
    rows, columns = a_bd.shape[0], w_nd.shape[0]

    def factors(name: str, x: jax.Array | None, size: int, default: float) -> jax.Array:
        if x is None:
            return jnp.full((count, size), default, jnp.float32)
        if x.shape != (count, size):
            raise ValueError(f"{name} must be [{count}, {size}], got {x.shape}")
        return x.astype(jnp.float32)

    if bias_gn is not None and bias_gn.shape == (columns,):
        bias_gn = jnp.broadcast_to(bias_gn[None], (count, columns))
    dtype = jnp.result_type(a_bd, w_nd)
    return _logsumexp(
        nesting.dims,
        interpret,
        a_bd[:, :width].astype(dtype),
        w_nd[:, :width].astype(dtype),
        factors("row", row_gb, rows, 1),
        factors("col", col_gn, columns, 1),
        factors("bias", bias_gn, columns, 0),
    )
