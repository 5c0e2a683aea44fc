"""Sums over all columns of nested logits, tile of rows by tile of rows, gradients in the same pass.

Logits are row * (a[:, :m] @ w[:m]) * col + bias. One tile's logits of all granularities are alive
at a time, never [G, B, N]. While they are, the gradients are taken, too: nothing is recomputed,
and the whole loss costs the FLOPs of one dense layer, forward and backward.
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from mrl_jax.kernels.chunks import cut_rows, join_rows
from mrl_jax.kernels.prefix import exact_dot
from mrl_jax.nesting import blocks_of

# More granularities than this become a loop in the compiled program instead of being unrolled:
# compiling 48 takes ten seconds otherwise.
MAX_UNROLLED = 12

# Logits that a tile may hold, over all granularities, and its rows. Measured on a CPU: larger tiles
# cost page faults, smaller ones go through `w` and its gradient too often, which weighs more where
# blocks are small. A loop goes over arrays of one granularity many times: they should stay in the
# cache of a core, and be so small that XLA leaves each operation to one thread. Two threads take
# longer than they save, as they wait for each other thousands of times.
MIN_ROWS = 8
TILE_ELEMENTS, MAX_ROWS = 2**22, 256
LOOPED_TILE_ELEMENTS, LOOPED_MAX_ROWS = 2**24, 32

Reduction = Literal["logsumexp", "softplus"]


class Rows(NamedTuple):
    """What belongs to rows, with gradients: embeddings [B, m_G] and factors [G, B]."""

    a_bd: Any
    row_gb: Any


class Columns(NamedTuple):
    """What belongs to columns, with gradients; columns are the last dimension of each array."""

    w_dn: Any
    col_gn: Any
    bias_gn: Any = None


class Kept(NamedTuple):
    """Which logits exist; None for all: bool [B, N], bool [N], one column each row skips [B]."""

    keep_bn: Any = None
    keep_n: Any = None
    skip_b: Any = None


@dataclasses.dataclass(frozen=True)
class SumCall:
    """The static part of a call; hashable, so that it can be an argument of `custom_vjp`."""

    dims: tuple[int, ...]
    reduction: Reduction
    mesh: Mesh | None
    batch_axes: tuple[str, ...]

    @property
    def blocks(self) -> tuple[tuple[int, int], ...]:
        """See `blocks_of`."""
        return blocks_of(self.dims)

    @property
    def largest_block(self) -> int:
        """Dims of the largest block."""
        return max(hi - lo for lo, hi in self.blocks)

    @property
    def looped(self) -> bool:
        """Whether blocks are many and of about one size: padded to it, they share a loop body."""
        count = len(self.dims)
        return count > MAX_UNROLLED and count * self.largest_block <= 2 * self.dims[-1]

    def rows_per_tile(self, rows: int, columns: int) -> int:
        """Rows of a tile, so that all tiles are of about the same size and little is padding."""
        elements, most = TILE_ELEMENTS, MAX_ROWS
        if self.looped:
            elements, most = LOOPED_TILE_ELEMENTS, LOOPED_MAX_ROWS
        tile = min(max(elements // (len(self.dims) * columns), MIN_ROWS), most)
        tiles = -(-rows // tile)
        return -(-rows // tiles)


def _product(a, w, dtype):
    """Of one block or of a stack of them, summed in `dtype`."""
    return jnp.matmul(a, w, preferred_element_type=dtype)


def _reduce(reduction: Reduction, logits_rn: jax.Array):
    """(value_r, e_rn, scale_r) with d value / d logits = scale_r e_rn. -inf leaves a logit out."""
    # A product with ones: XLA:CPU sums an array by matmul faster than it fuses exp and sum.
    ones_n = jnp.ones(logits_rn.shape[1], logits_rn.dtype)
    if reduction == "logsumexp":
        peak_r = logits_rn.max(-1)
        peak_r = jnp.where(peak_r == -jnp.inf, 0, peak_r)  # nothing kept: avoids inf - inf
        e_rn = jnp.exp(logits_rn - peak_r[:, None])
        mass_r = exact_dot(e_rn, ones_n)
        scale_r = jnp.where(mass_r == 0, 0, 1 / mass_r)
        return jnp.log(mass_r) + peak_r, e_rn, scale_r
    e_rn = jnp.exp(-jnp.abs(logits_rn))
    value_r = exact_dot(jnp.maximum(logits_rn, 0), ones_n) + _sum_log1p(e_rn)
    sigmoid_rn = jnp.where(logits_rn >= 0, 1, e_rn) / (1 + e_rn)
    return value_r, sigmoid_rn, jnp.ones_like(value_r)


def _sum_log1p(e_rn: jax.Array) -> jax.Array:
    """Sums of log(1 + e) along rows, [R], of numbers from 0 to 1.

    A product of factors 1 + e is kept as what exceeds one, which loses no small `e`; so there is
    one logarithm for up to sixteen of them.
    """
    above_rn = e_rn
    for _ in range(4):
        half, odd = divmod(above_rn.shape[1], 2)
        if odd:
            break
        first_rn, second_rn = above_rn[:, :half], above_rn[:, half:]
        above_rn = first_rn + second_rn + first_rn * second_rn
    logs_rn = jnp.log1p(above_rn)
    return exact_dot(logs_rn, jnp.ones(logs_rn.shape[1], logs_rn.dtype))


def _up(reduction: Reduction, kept_rn, running_rn, of_granularity):
    """One more granularity: its logits, their value and the gradients that depend on no other."""
    product_rn, row_r, col_n, bias_n, weights_r = of_granularity
    running_rn += product_rn
    logits_rn = running_rn * row_r[:, None] * col_n[None]
    if bias_n is not None:
        logits_rn += bias_n[None]
    if kept_rn is not None:
        logits_rn = jnp.where(kept_rn, logits_rn, -jnp.inf)
    value_r, e_rn, scale_r = _reduce(reduction, logits_rn)
    share_r = weights_r * scale_r
    pull_r = share_r * row_r
    slope_rn = e_rn * running_rn
    drow_r, dcol_n = share_r * exact_dot(slope_rn, col_n), exact_dot(pull_r, slope_rn)
    dbias_n = None if bias_n is None else exact_dot(share_r, e_rn)
    return running_rn, (value_r, e_rn, pull_r, drow_r, dcol_n, dbias_n)


def _down(dtype, suffix_rn, of_granularity):
    """One granularity less: gradients of the block that this and all larger ones contain."""
    e_rn, pull_r, col_n, w_kn, a_kr = of_granularity
    suffix_rn += e_rn * pull_r[:, None] * col_n[None]
    narrow_rn = suffix_rn.astype(dtype)
    da_rk = _product(narrow_rn, w_kn.T, suffix_rn.dtype)
    dw_kn = _product(a_kr, narrow_rn, suffix_rn.dtype)
    return suffix_rn, (da_rk, dw_kn)


class _Tile(NamedTuple):
    """What a tile of rows needs, its dims in blocks; `a_kr` is its transpose, see `one_pass`."""

    a_rk: Any
    a_kr: Any
    row_gr: Any
    weights_gr: Any
    keep_rn: Any
    skip_r: Any


def _kept(tile: _Tile, keep_n, columns: int):
    conditions = []
    if keep_n is not None:
        conditions.append(keep_n[None])
    if tile.keep_rn is not None:
        conditions.append(tile.keep_rn)
    if tile.skip_r is not None:
        conditions.append(jnp.arange(columns)[None] != tile.skip_r[:, None])
    return functools.reduce(jnp.logical_and, conditions) if conditions else None


def _tile_pass(call: SumCall, gradients: bool, tile: _Tile, columns: Columns, keep_n, sums):
    """Values [G, R] of one tile, its gradients (da, drow), and `sums` plus (dw, dcol, dbias)."""
    rows, count = tile.row_gr.shape[1], columns.w_dn.shape[1]
    kept_rn = _kept(tile, keep_n, count)
    if kept_rn is not None:
        kept_rn = jnp.broadcast_to(kept_rn, (rows, count))
    up = functools.partial(_up, call.reduction, kept_rn)
    down = functools.partial(_down, tile.a_rk.dtype)
    one_tile = _looped_tile if call.looped else _unrolled_tile
    zeros_rn = jnp.zeros((rows, count), tile.row_gr.dtype)
    scalars = (tile.row_gr, columns.col_gn, columns.bias_gn, tile.weights_gr)
    return one_tile(call, gradients, up, down, zeros_rn, scalars, tile, columns, sums)


def _looped_tile(call, gradients, up, down, zeros_rn, scalars, tile, columns, sums):
    def in_blocks(x_kr):
        return x_kr.reshape(len(call.dims), call.largest_block, x_kr.shape[1])

    def up_step(carry, of_granularity):
        running_rn, tile_grn = carry
        g, *of_granularity = of_granularity
        running_rn, outputs = up(running_rn, (tile_grn[g], *of_granularity))
        value_r, e_rn, *of_scalars = outputs
        if not gradients:
            return (running_rn, tile_grn), (value_r,)
        tile_grn = lax.dynamic_update_index_in_dim(tile_grn, e_rn, g, 0)
        return (running_rn, tile_grn), (value_r, *of_scalars)

    def down_step(carry, of_granularity):
        suffix_rn, dw_gkn = carry
        g, *of_granularity = of_granularity
        suffix_rn, (da_rk, dw_kn) = down(suffix_rn, (tile_grn[g], *of_granularity))
        dw_gkn = lax.dynamic_update_index_in_dim(dw_gkn, dw_gkn[g] + dw_kn, g, 0)
        return (suffix_rn, dw_gkn), da_rk

    a_gkr, w_gkn = in_blocks(tile.a_kr), in_blocks(columns.w_dn)
    order_g = jnp.arange(len(call.dims))
    # The products of all blocks at once; each makes room for its `e_rn`. As outputs of the scan
    # those would be memory of its own, cleared for every tile.
    tile_grn = _product(a_gkr.swapaxes(1, 2), w_gkn, zeros_rn.dtype)
    ups = (order_g, *scalars)
    (_, tile_grn), (value_gr, *outputs) = lax.scan(up_step, (zeros_rn, tile_grn), ups)
    if not gradients:
        return value_gr, None, None
    pull_gr, drow_gr, *of_columns = outputs
    dw_kn, *others = sums
    downs = (order_g, pull_gr, columns.col_gn, w_gkn, a_gkr)
    start = (zeros_rn, in_blocks(dw_kn))
    (_, dw_gkn), da_grk = lax.scan(down_step, start, downs, reverse=True)
    da_rk = da_grk.swapaxes(0, 1).reshape(zeros_rn.shape[0], -1)
    others = jax.tree.map(jnp.add, others, of_columns)
    return value_gr, (da_rk, drow_gr), (dw_gkn.reshape(dw_kn.shape), *others)


def _unrolled_tile(call, gradients, up, down, zeros_rn, scalars, tile, columns, sums):
    running_rn, outputs = zeros_rn, []
    for g, (lo, hi) in enumerate(call.blocks):
        own = (None if x is None else x[g] for x in scalars)
        product_rn = _product(tile.a_rk[:, lo:hi], columns.w_dn[lo:hi], zeros_rn.dtype)
        running_rn, out = up(running_rn, (product_rn, *own))
        outputs.append(out)
    value, e, pull, drow, dcol, dbias = zip(*outputs, strict=True)
    if not gradients:
        return jnp.stack(value), None, None
    suffix_rn, da, dw = zeros_rn, [], []
    for g, (lo, hi) in reversed(list(enumerate(call.blocks))):
        own = (e[g], pull[g], columns.col_gn[g], columns.w_dn[lo:hi], tile.a_kr[lo:hi])
        suffix_rn, (da_rk, dw_kn) = down(suffix_rn, own)
        da.append(da_rk)
        dw.append(dw_kn)
    dbias_gn = None if columns.bias_gn is None else jnp.stack(dbias)
    of_columns = (jnp.concatenate(dw[::-1]), jnp.stack(dcol), dbias_gn)
    sums = jax.tree.map(jnp.add, sums, of_columns)
    return jnp.stack(value), (jnp.concatenate(da[::-1], 1), jnp.stack(drow)), sums


def one_pass(
    call: SumCall, inputs: tuple[Rows, Columns], kept: Kept, weights_gb: jax.Array | None = None
):
    """Values [G, B]; with weights, also the gradients of sum(weights * values), like `inputs`."""
    rows, columns = inputs
    gradients = weights_gb is not None
    weights_gb = weights_gb if gradients else jnp.zeros_like(rows.row_gb)
    batch = rows.a_bd.shape[0]
    size = call.rows_per_tile(batch, columns.w_dn.shape[1])
    spread = call.looped and len(call.dims) * call.largest_block != call.dims[-1]
    place = np.concatenate(
        [g * call.largest_block + np.arange(hi - lo) for g, (lo, hi) in enumerate(call.blocks)]
    )
    a_bk, w_kn = rows.a_bd, columns.w_dn
    if spread:
        # Blocks of unequal sizes: zeros behind the shorter ones, which add nothing to a product.
        width = len(call.dims) * call.largest_block
        a_bk = jnp.zeros((batch, width), a_bk.dtype).at[:, place].set(a_bk)
        w_kn = jnp.zeros((width, w_kn.shape[1]), w_kn.dtype).at[place].set(w_kn)
    columns = columns._replace(w_dn=w_kn)

    a_trk = cut_rows(a_bk, 0, size)
    all_tiles = _Tile(
        a_trk,
        a_trk.swapaxes(1, 2),  # once per call: a transposed operand slows a product up to 5 times
        cut_rows(rows.row_gb, 1, size),
        cut_rows(weights_gb, 1, size),
        cut_rows(kept.keep_bn, 0, size),
        cut_rows(kept.skip_b, 0, size),
    )

    def step(sums, tile):
        value_gr, of_rows, sums = _tile_pass(call, gradients, tile, columns, kept.keep_n, sums)
        return sums, (value_gr, of_rows)

    sums = None
    if gradients:
        sums = jax.tree.map(lambda x: jnp.zeros(x.shape, weights_gb.dtype), tuple(columns))
    sums, (value_tgr, of_rows) = lax.scan(step, sums, all_tiles)
    value_gb = join_rows(value_tgr, 1, batch)
    if not gradients:
        return value_gb
    (da_trk, drow_tgr), (dw_kn, *others) = of_rows, sums
    da_bk = join_rows(da_trk, 0, batch)
    if spread:
        da_bk, dw_kn = da_bk[:, place], dw_kn[place]
    return value_gb, (Rows(da_bk, join_rows(drow_tgr, 1, batch)), Columns(dw_kn, *others))
