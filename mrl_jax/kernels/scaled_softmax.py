"""Sums over all columns of nested logits, with gradients taken in the same pass.

Logits are row * (a[:, :m] @ w[:m]) * col + bias. A nested softmax or sigmoid loss needs these
besides the logits of its targets; the work on a tile of rows is in `row_tiles`.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from mrl_jax.kernels.row_tiles import Columns, Kept, Reduction, Rows, SumCall, one_pass
from mrl_jax.kernels.weighted_sum import weighted_sum
from mrl_jax.nesting import Nesting


def _on_mesh(call: SumCall, inputs: tuple[Rows, Columns], kept: Kept, *weights_gb: jax.Array):
    """`one_pass` on every device's rows and all columns, or just `one_pass`."""
    if call.mesh is None:
        return one_pass(call, inputs, kept, *weights_gb)
    axes = call.batch_axes
    count = inputs[1].w_dn.shape[1]
    devices = math.prod(call.mesh.shape[axis] for axis in axes)

    def pad(x):
        return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -count % devices)])

    def gather(x):
        return lax.all_gather(x, axes, axis=x.ndim - 1, tiled=True)[..., :count]

    def scatter(x):
        return lax.psum_scatter(pad(x), axes, scatter_dimension=x.ndim - 1, tiled=True)

    def local(inputs, kept, *weights_gb):
        rows, columns = inputs
        kept = kept._replace(keep_n=jax.tree.map(gather, kept.keep_n))
        inputs = rows, jax.tree.map(gather, columns)
        if not weights_gb:
            return one_pass(call, inputs, kept)
        value_gb, (of_rows, of_columns) = one_pass(call, inputs, kept, *weights_gb)
        return value_gb, (of_rows, jax.tree.map(scatter, of_columns))

    first, second = PartitionSpec(axes), PartitionSpec(None, axes)
    of_inputs = (Rows(first, second), second)
    # Every output is split like its input; the checker cannot see that through loops.
    outputs = jax.shard_map(
        local,
        mesh=call.mesh,
        in_specs=(of_inputs, Kept(first, first, first), second)[: 2 + len(weights_gb)],
        out_specs=(second, of_inputs) if weights_gb else second,
        check_vma=False,
    )(
        (inputs[0], jax.tree.map(pad, inputs[1])),
        kept._replace(keep_n=jax.tree.map(pad, kept.keep_n)),
        *weights_gb,
    )
    if not weights_gb:
        return outputs
    value_gb, (of_rows, of_columns) = outputs
    return value_gb, (of_rows, jax.tree.map(lambda x: x[..., :count], of_columns))


def nested_column_sums(
    reduction: Reduction,
    a_bd: jax.Array,
    w_dn: jax.Array,
    nesting: Nesting,
    weights_gb: jax.Array,
    *,
    row_gb: jax.Array,
    col_gn: jax.Array,
    bias_gn: jax.Array | None = None,
    keep_bn: jax.Array | None = None,
    skip_b: jax.Array | None = None,
    mesh: Mesh | None = None,
    batch_axes: Sequence[str] = ("data", "fsdp"),
) -> tuple[jax.Array, jax.Array]:
    """Log-sum-exp, or sum of log(1 + exp), over n of row * (a[:, :m] @ w[:m]) * col + bias.

    Gradients are taken in the forward pass, so `weights_gb` has to be known: the weight of each
    value in the loss. Weighting the second output instead is right, too, and costs a second run.
    Memory besides operands and gradients: a few tiles of rows, not [G, B, N].

    Callers check shapes.

    Args:
      reduction: "logsumexp" or "softplus".
      a_bd: [B, m_G] rows. Matmuls take the operands' dtype and sum in float32.
      w_dn: [m_G, N] columns.
      nesting: the G prefix lengths. Its weights play no part.
      weights_gb: [G, B].
      row_gb: [G, B] factors.
      col_gn: [G, N] factors.
      bias_gn: [G, N] where the loss has one.
      keep_bn: [B, N] or [1, N] bool; False leaves a logit out.
      skip_b: [B] integers: one column that each row leaves out.
      mesh: with it, rows of `a_bd` and columns of `w_dn` are split over `batch_axes`. A device
        gathers all columns and goes through its own rows.
      batch_axes: mesh axes.

    Returns:
      total: sum(weights_gb * value_gb).
      value_gb: [G, B] float32 (float64 if the inputs are). A log-sum-exp of no columns is -inf
        and has no gradient.
    """
    operands = jnp.result_type(a_bd, w_dn)
    dtype = jnp.promote_types(operands, jnp.float32)
    call = SumCall(nesting.dims, reduction, mesh, () if mesh is None else tuple(batch_axes))
    bias_gn = None if bias_gn is None else bias_gn.astype(dtype)
    keep_n = None
    if keep_bn is not None and keep_bn.shape[0] == 1:
        keep_bn, keep_n = None, keep_bn[0]
    run = functools.partial(_on_mesh, call)
    return weighted_sum(
        run,
        run,
        (
            Rows(a_bd.astype(operands), row_gb.astype(dtype)),
            Columns(w_dn.astype(operands), col_gn.astype(dtype), bias_gn),
        ),
        Kept(keep_bn, keep_n, skip_b),
        weights_gb.astype(dtype),
    )
