"""Softmax cross-entropy on every prefix of one linear layer: values and gradients in one go.

The algorithms behind `cross_entropy.nested_linear_cross_entropy`, on the arrays of one device.
What they have in common: the logits of a granularity are those of the one before plus one block
product, so one running [B, C] array serves all of them; the gradient with respect to the block
products is a running sum, too, from the largest granularity down. Nothing is [G, B, C].
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from mrl_jax.kernels.chunks import cut_rows, join_rows
from mrl_jax.kernels.prefix import exact_dot

Blocks = tuple[tuple[int, int], ...]

# Up to this many logits per granularity are worked on as one piece; more go class tile by class
# tile of this many. Measured on a CPU: larger pieces leave the cache, smaller ones slow matmuls.
WHOLE_ELEMENTS = 2**21
TILE_ELEMENTS = 2**18
MIN_TILE = 128

# Rows are worked on in chunks of at most so many, and of fewer where more than so many
# granularities would have to be kept: what is alive is at most 5 [B, C] arrays.
CHUNK_ROWS = 1024
MAX_KEPT = 5


@dataclasses.dataclass(frozen=True)
class Cut:
    """How the work on [B, C] logits is cut: static, so part of the compiled program.

    Attributes:
      blocks: the dim range that each granularity adds.
      class_tile: classes per tile; at least C for one piece.
      kept: granularities whose logits stay in memory from the forward to the backward sweep;
        none of them recomputes the logits tile by tile ("streamed").
      smoothing: label smoothing s; the target is (1 - s) one-hot + s / C.
      class_axis: mesh axis that the classes are split over, inside `shard_map`, or None.
    """

    blocks: Blocks
    class_tile: int
    kept: tuple[int, ...]
    smoothing: float = 0.0
    class_axis: str | None = None


def kept_granularities(dims: tuple[int, ...], whole: bool) -> tuple[int, ...]:
    """The granularities whose logits are worth their memory: those above a sixteenth of the width.

    The others are recomputed, which costs 2 % of forward and backward. For halvings four are
    kept, however long the list. Where all classes are one piece, the first one below is kept, too:
    the rest is got back from it by subtracting block products, one array after the other.
    """
    first = next(g for g, m in enumerate(dims) if 16 * m > dims[-1])
    return tuple(range(max(first - 1, 0) if whole else first, len(dims)))


def class_tile(rows: int, classes: int, alive: int) -> int:
    """Classes per tile when logits of `alive` granularities are held at a time; C for one piece."""
    rows = min(rows, CHUNK_ROWS)
    if rows * classes * alive <= WHOLE_ELEMENTS:
        return classes
    elements = TILE_ELEMENTS if alive == 1 else WHOLE_ELEMENTS // alive
    return min(classes, max(MIN_TILE, elements // rows))


def row_chunks(rows: int, kept: int) -> int:
    """In how many chunks the rows are worked on."""
    return max(-(-rows // CHUNK_ROWS), -(-kept // MAX_KEPT))


def _after(*arrays: jax.Array) -> jax.Array | int:
    """An offset of zero that can only be known once the arrays are computed.

    XLA:CPU schedules all the block products first and so keeps a [B, C] array for each of them
    (`optimization_barrier` does not survive until it schedules). Slicing at `lo + _after(x)` makes
    a block wait for x, and the memory saved is time: fresh pages cost more than the arithmetic.
    """

    def wait():
        late = [(x.ravel()[0] > jnp.inf).astype(jnp.int32) for x in arrays]
        return sum(late[1:], late[0])

    return lax.platform_dependent(cpu=wait, default=lambda: jnp.int32(0))


def in_turn(x: jax.Array, *arrays: jax.Array) -> jax.Array:
    """x, unchanged, but not before the arrays are computed; see `_after`."""
    return x + jnp.asarray(_after(*arrays), x.dtype)


def _over_tiles(classes: int, tile: int, body: Callable, carry):
    """Runs body(start, size, carry) over tiles of classes, the last one possibly smaller."""
    full = classes // tile
    if full:
        carry = lax.fori_loop(0, full, lambda t, c: body(t * tile, tile, c), carry)
    if classes % tile:
        carry = body(jnp.int32(full * tile), classes % tile, carry)
    return carry


class _Tile:
    """One tile of classes: its weights and targets, sliced when they are asked for."""

    def __init__(self, cut: Cut, z_bd, kernel_dc, bias_c, row_gb, labels_b, start, size):
        self.cut, self.start, self.size = cut, start, size
        self.z_bd, self.kernel_dc, self.row_gb = z_bd, kernel_dc, row_gb
        self.dtype = jnp.promote_types(z_bd.dtype, jnp.float32)
        self.bias_1c = lax.dynamic_slice_in_dim(bias_c, start, size)[None].astype(self.dtype)
        self.labels_b = labels_b - start  # outside [0, size) where the label is in another tile

    def dims(self, g: int, late: jax.Array | int) -> jax.Array:
        """The rows' dims that granularity g adds."""
        lo, hi = self.cut.blocks[g]
        return lax.dynamic_slice_in_dim(self.z_bd, lo + late, hi - lo, 1)

    def kernel(self, g: int, late: jax.Array | int) -> jax.Array:
        """The part of the kernel that granularity g adds."""
        lo, hi = self.cut.blocks[g]
        block = lax.dynamic_slice(self.kernel_dc, (lo + late, self.start), (hi - lo, self.size))
        return block.astype(self.z_bd.dtype)

    def product(self, g: int, late: jax.Array | int) -> jax.Array:
        """The block product that granularity g adds."""
        return jnp.matmul(
            self.dims(g, late), self.kernel(g, late), preferred_element_type=self.dtype
        )

    def logits(self, g: int, running_bc: jax.Array) -> jax.Array:
        """Scaled and with bias, from the running sum of block products."""
        if self.row_gb is not None:
            running_bc = running_bc * self.row_gb[g][:, None]
        return running_bc + self.bias_1c

    def label_logit(self, logits_bc: jax.Array) -> jax.Array:
        """The label's logit where the label is in this tile, else 0."""
        inside_b = (self.labels_b >= 0) & (self.labels_b < self.size)
        column_b = jnp.clip(self.labels_b, 0, self.size - 1)
        picked_b = jnp.take_along_axis(logits_bc, column_b[:, None], axis=1)[:, 0]
        return jnp.where(inside_b, picked_b, 0)

    def target(self, classes: int) -> jax.Array:
        """This tile's part of the target distribution."""
        hit_bc = jnp.arange(self.size)[None] == self.labels_b[:, None]
        one_hot_bc = hit_bc.astype(self.dtype)
        smoothing = self.cut.smoothing
        return (1 - smoothing) * one_hot_bc + smoothing / classes if smoothing else one_hot_bc


def _all_classes(x, cut: Cut):
    return lax.psum(x, cut.class_axis) if cut.class_axis else x


def _local_labels(labels_b: jax.Array, classes: int, cut: Cut) -> jax.Array:
    """Labels counted from this device's first class."""
    return labels_b - lax.axis_index(cut.class_axis) * classes if cut.class_axis else labels_b


def _forward(cut: Cut, z_bd, kernel_dc, bias_c, row_gb, labels_b, kept: tuple[int, ...]):
    """Sweeps up: log-sum-exp and loss of every granularity, and the running sums to keep."""
    rows, classes = z_bd.shape[0], kernel_dc.shape[1]
    count = len(cut.blocks)
    dtype = jnp.promote_types(z_bd.dtype, jnp.float32)
    whole = classes <= cut.class_tile

    def sweep(start, size, carry):
        peak_gb, mass_gb, target_gb, saved = carry
        tile = _Tile(cut, z_bd, kernel_dc, bias_c, row_gb, labels_b, start, size)
        late, running_bc, stats, saved = 0, None, [], list(saved)
        for g in range(count):
            block_bc = tile.product(g, late)
            running_bc = block_bc if running_bc is None else running_bc + block_bc
            logits_bc = tile.logits(g, running_bc)
            peak_b = jnp.maximum(peak_gb[g], lax.stop_gradient(logits_bc.max(-1)))
            # A product with ones: XLA:CPU sums an array by matmul faster than it fuses exp and sum.
            ones_c = jnp.ones((size,), dtype)
            mass_b = exact_dot(jnp.exp(logits_bc - peak_b[:, None]), ones_c)
            mass_b += mass_gb[g] * jnp.exp(peak_gb[g] - peak_b)
            target_b = (1 - cut.smoothing) * tile.label_logit(logits_bc)
            if cut.smoothing:
                everywhere = cut.smoothing / _class_count(classes, cut)
                target_b += everywhere * exact_dot(logits_bc, ones_c)
            stats.append((peak_b, mass_b, target_gb[g] + target_b))
            late = _after(mass_b)
            if g in kept:
                at = kept.index(g)
                saved[at] = (
                    running_bc
                    if whole
                    else lax.dynamic_update_slice_in_dim(saved[at], running_bc, start, 1)
                )
        return *(jnp.stack(s) for s in zip(*stats, strict=True)), saved

    none_gb = jnp.zeros((count, rows), dtype)
    saved = [jnp.zeros((rows, classes), dtype) for _ in kept]
    carry = (none_gb - jnp.inf, none_gb, none_gb, saved)
    if whole:
        peak_gb, mass_gb, target_gb, saved = sweep(0, classes, carry)
    else:
        peak_gb, mass_gb, target_gb, saved = _over_tiles(classes, cut.class_tile, sweep, carry)
    if cut.class_axis:
        peak_all_gb = lax.pmax(peak_gb, cut.class_axis)
        mass_gb = _all_classes(mass_gb * jnp.exp(peak_gb - peak_all_gb), cut)
        peak_gb, target_gb = peak_all_gb, _all_classes(target_gb, cut)
    lse_gb = jnp.log(mass_gb) + peak_gb
    return lse_gb - target_gb, lse_gb, saved


def _class_count(classes: int, cut: Cut) -> int:
    return classes * (lax.axis_size(cut.class_axis) if cut.class_axis else 1)


def _backward(cut: Cut, z_bd, kernel_dc, bias_c, row_gb, labels_b, weights_gb, lse_gb, saved):
    """Sweeps down: the gradients, from the largest granularity to the smallest."""
    rows, classes = z_bd.shape[0], kernel_dc.shape[1]
    count, width = len(cut.blocks), cut.blocks[-1][1]
    dtype = lse_gb.dtype
    # Once per call instead of once per tile; the barrier keeps XLA from folding it back in.
    tiled = classes > cut.class_tile
    z_db = lax.optimization_barrier(z_bd.T) if tiled else None

    def sweep(start, size):
        tile = _Tile(cut, z_bd, kernel_dc, bias_c, row_gb, labels_b, start, size)
        alive, late = dict(zip(cut.kept, saved, strict=True)), 0
        if tiled or not cut.kept:
            alive = {g: lax.dynamic_slice_in_dim(x, start, size, 1) for g, x in alive.items()}
            for g in range(cut.kept[0] if cut.kept else count):
                block_bc = tile.product(g, late)
                alive[g] = alive[g - 1] + block_bc if g else block_bc
                late = _after(alive[g])
        target_bc = tile.target(_class_count(classes, cut))
        running_bc = suffix_bc = dbias_c = 0
        dz, dkernel, drow = [], [], []
        for g in reversed(range(count)):
            running_bc = alive[g] if g in alive else running_bc - tile.product(g + 1, late)
            softmax_bc = jnp.exp(tile.logits(g, running_bc) - (lse_gb[g] + late)[:, None])
            dlogits_bc = weights_gb[g][:, None] * (softmax_bc - target_bc)
            if row_gb is None:
                suffix_bc = suffix_bc + dlogits_bc
            else:
                drow.append((dlogits_bc * running_bc).sum(-1))
                dbias_c += dlogits_bc.sum(0)
                suffix_bc = suffix_bc + dlogits_bc * row_gb[g][:, None]
            narrow_bc = suffix_bc.astype(z_bd.dtype)
            dz.append(jnp.matmul(narrow_bc, tile.kernel(g, late).T, preferred_element_type=dtype))
            if tiled:
                lo, hi = cut.blocks[g]
                dims_mb = lax.dynamic_slice_in_dim(z_db, lo + late, hi - lo, 0)
            else:
                dims_mb = tile.dims(g, late).T
            dkernel.append(jnp.matmul(dims_mb, narrow_bc, preferred_element_type=dtype))
            late = late + _after(dz[-1], dkernel[-1])
        if row_gb is None:
            dbias_c = suffix_bc.sum(0)
        drow_gb = jnp.stack(drow[::-1]) if drow else None
        return dz[::-1], dkernel[::-1], dbias_c, drow_gb

    if not tiled:
        dz, dkernel, dbias_c, drow_gb = sweep(0, classes)
        dz_bd, dkernel_dc = jnp.concatenate(dz, 1), jnp.concatenate(dkernel, 0)
    else:

        def accumulate(start, size, carry):
            dz_bd, dkernel_dc, dbias_c, drow_gb = carry
            dz, dkernel, dbias_tile_c, drow_tile_gb = sweep(start, size)
            for (lo, _), dz_block, dkernel_block in zip(cut.blocks, dz, dkernel, strict=True):
                before = lax.dynamic_slice(dz_bd, (0, lo), dz_block.shape)
                dz_bd = lax.dynamic_update_slice(dz_bd, before + dz_block, (0, lo))
                dkernel_dc = lax.dynamic_update_slice(dkernel_dc, dkernel_block, (lo, start))
            dbias_c = lax.dynamic_update_slice_in_dim(dbias_c, dbias_tile_c, start, 0)
            return dz_bd, dkernel_dc, dbias_c, None if drow_gb is None else drow_gb + drow_tile_gb

        zeros = (
            jnp.zeros((rows, width), dtype),
            jnp.zeros((width, classes), dtype),
            jnp.zeros((classes,), dtype),
            None if row_gb is None else jnp.zeros_like(weights_gb),
        )
        dz_bd, dkernel_dc, dbias_c, drow_gb = _over_tiles(
            classes, cut.class_tile, accumulate, zeros
        )
    if row_gb is not None:
        drow_gb = _all_classes(drow_gb, cut)
    return _all_classes(dz_bd, cut), dkernel_dc, dbias_c, drow_gb


def losses(cut: Cut, z_bd, kernel_dc, bias_c, row_gb, labels_b) -> jax.Array:
    """Cross-entropy of every granularity and row, [G, B], without any [B, C] array kept.

    `row_gb` [G, B] scales the rows per granularity, None for 1; `labels_b` are integer classes,
    counted over all devices.
    """
    labels_b = _local_labels(labels_b, kernel_dc.shape[1], cut)
    return _forward(cut, z_bd, kernel_dc, bias_c, row_gb, labels_b, ())[0]


def losses_and_gradients(
    cut: Cut, z_bd, kernel_dc, bias_c, row_gb, labels_b, weights_gb
) -> tuple[jax.Array, tuple]:
    """`losses`, and the gradients of sum(weights_gb * losses) as (dz, dkernel, dbias, drow).

    dkernel and dbias are those of this device's rows. All are float32 or wider; drow is None if
    row_gb is.
    """
    labels_b = _local_labels(labels_b, kernel_dc.shape[1], cut)
    chunks = row_chunks(z_bd.shape[0], len(cut.kept))
    if chunks > 1:
        return _in_row_chunks(chunks, cut, z_bd, kernel_dc, bias_c, row_gb, labels_b, weights_gb)
    arrays = (z_bd, kernel_dc, bias_c, row_gb, labels_b)
    loss_gb, lse_gb, saved = _forward(cut, *arrays, cut.kept)
    return loss_gb, _backward(cut, *arrays, weights_gb, lse_gb, saved)


def _in_row_chunks(chunks: int, cut: Cut, z_bd, kernel_dc, bias_c, row_gb, labels_b, weights_gb):
    rows = z_bd.shape[0]
    size = -(-rows // chunks)

    def step(sums, chunk):
        z_rd, row_gr, labels_r, weights_gr = chunk
        arrays = (z_rd, kernel_dc, bias_c, row_gr, labels_r)
        loss_gr, lse_gr, saved = _forward(cut, *arrays, cut.kept)
        dz_rd, dkernel_dc, dbias_c, drow_gr = _backward(cut, *arrays, weights_gr, lse_gr, saved)
        return (sums[0] + dkernel_dc, sums[1] + dbias_c), (loss_gr, dz_rd, drow_gr)

    dtype = weights_gb.dtype
    zeros = (jnp.zeros(kernel_dc.shape, dtype), jnp.zeros(bias_c.shape, dtype))
    chunks_in = (
        cut_rows(z_bd, 0, size),
        cut_rows(row_gb, 1, size),
        cut_rows(labels_b, 0, size),
        cut_rows(weights_gb, 1, size),
    )
    (dkernel_dc, dbias_c), (loss_gb, dz_bd, drow_gb) = lax.scan(step, zeros, chunks_in)
    dz_bd, drow_gb = join_rows(dz_bd, 0, rows), join_rows(drow_gb, 1, rows)
    return join_rows(loss_gb, 1, rows), (dz_bd, dkernel_dc, dbias_c, drow_gb)
