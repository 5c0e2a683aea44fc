"""Linear classifiers on every prefix and their cross-entropy, without the [G, B, C] logits."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from mrl_jax.errors import check_choice
from mrl_jax.kernels import linear_softmax
from mrl_jax.kernels.linear_softmax import Cut
from mrl_jax.kernels.prefix import prefix_dots, prefix_norms
from mrl_jax.kernels.sharding import check_mesh
from mrl_jax.kernels.weighted_sum import weighted_sum
from mrl_jax.nesting import Nesting, blocks_of

Form = Literal["blockwise", "streamed"]
Implementation = Literal["auto", "xla", "pallas"]
Arrays = jax.Array | Sequence[jax.Array]


@dataclasses.dataclass(frozen=True)
class _LossCall:
    """The static part of a call; hashable, so that it can be an argument of `custom_vjp`."""

    dims: tuple[int, ...]
    form: Form
    smoothing: float
    shared: bool
    mesh: Mesh | None
    batch_axes: tuple[str, ...]
    class_axis: str | None

    def cut(self, dims: tuple[int, ...], rows: int, classes: int) -> Cut:
        # Blockwise tiles hold about one array of logits; streamed ones hold every granularity's.
        tile = linear_softmax.class_tile(
            rows, classes, 1 if self.form == "blockwise" else len(dims)
        )
        kept = ()
        if self.form == "blockwise":
            kept = linear_softmax.kept_granularities(dims, whole=tile >= classes)
        return Cut(blocks_of(dims), tile, kept, self.smoothing, self.class_axis)


def _heads(call: _LossCall, z_bd, kernels, biases, row_gb):
    """The linear layers to go through: (granularities, cut, arrays) of each.

    A shared kernel is one layer with G granularities; separate ones are G layers with one each.
    """
    rows = z_bd.shape[0]
    if call.shared:
        every = slice(0, len(call.dims))
        cut = call.cut(call.dims, rows, kernels[0].shape[1])
        yield every, cut, (z_bd, kernels[0], biases[0], row_gb)
        return
    for g, m in enumerate(call.dims):
        cut = call.cut((m,), rows, kernels[g].shape[1])
        row_1b = None if row_gb is None else row_gb[g : g + 1]
        yield slice(g, g + 1), cut, (z_bd[:, :m], kernels[g], biases[g], row_1b)


def _local_losses(call: _LossCall, inputs, labels_b):
    heads = _heads(call, *inputs)
    return jnp.concatenate(
        [linear_softmax.losses(cut, *arrays, labels_b) for _, cut, arrays in heads]
    )


def _local_losses_and_gradients(call: _LossCall, inputs, labels_b, weights_gb):
    z_bd, _, _, row_gb = inputs
    losses, dkernels, dbiases, drow, dz_bd = [], [], [], [], None
    for which, cut, (head_z_bd, *arrays) in _heads(call, *inputs):
        if dz_bd is not None:
            # One layer after the other, so that the [B, C] arrays of one are gone before the next.
            head_z_bd = linear_softmax.in_turn(head_z_bd, dz_bd, dkernels[-1])
        loss_gb, (dz, dkernel, dbias, drow_gb) = linear_softmax.losses_and_gradients(
            cut, head_z_bd, *arrays, labels_b, weights_gb[which]
        )
        padding = ((0, 0), (0, z_bd.shape[1] - dz.shape[1]))
        dz_bd = jnp.pad(dz, padding) if dz_bd is None else jnp.pad(dz, padding) + dz_bd
        losses.append(loss_gb)
        dkernels.append(dkernel)
        dbiases.append(dbias)
        drow.append(drow_gb)
    if call.batch_axes:
        dkernels, dbiases = jax.lax.psum((dkernels, dbiases), call.batch_axes)
    drow_gb = None if row_gb is None else jnp.concatenate(drow)
    return jnp.concatenate(losses), (dz_bd, tuple(dkernels), tuple(dbiases), drow_gb)


def _on_mesh(call: _LossCall, function, *arrays):
    """Runs a local function on every device's rows and classes, or just runs it."""
    if call.mesh is None:
        return function(call, *arrays)
    rows, rows_of_g = PartitionSpec(call.batch_axes), PartitionSpec(None, call.batch_axes)
    inputs = (rows, PartitionSpec(None, call.class_axis), PartitionSpec(call.class_axis), rows_of_g)
    # Every output is either split like its input or summed over the axes it is not split over;
    # the checker cannot see that through while loops.
    return jax.shard_map(
        functools.partial(function, call),
        mesh=call.mesh,
        in_specs=(inputs, rows, rows_of_g)[: len(arrays)],
        out_specs=rows_of_g if function is _local_losses else (rows_of_g, inputs),
        check_vma=False,
    )(*arrays)


def _pallas_losses(call: _LossCall, z_bd, kernels, biases, row_gb, labels_b) -> jax.Array:
    """Losses [G, B]: log-sum-exp from the kernel, the targets' logits from here."""
    # Not at the top: it imports Pallas' TPU and GPU back ends, which nothing else needs.
    from mrl_jax.kernels.pallas.logsumexp import nested_logsumexp_pallas

    if row_gb is None:
        row_gb = jnp.ones((len(call.dims), z_bd.shape[0]))
    heads, rows = [call.dims], [row_gb]
    if not call.shared:
        heads, rows = [(m,) for m in call.dims], list(row_gb[:, None])
    losses = []
    for dims, kernel_dc, bias_c, row_hb in zip(heads, kernels, biases, rows, strict=True):
        x_bd, w_cd = z_bd[:, : dims[-1]], kernel_dc.T.astype(z_bd.dtype)
        lse_hb = nested_logsumexp_pallas(x_bd, w_cd, Nesting(dims), row_gb=row_hb, bias_gn=bias_c)
        target_hb = prefix_dots(x_bd, w_cd[labels_b], dims) * row_hb + bias_c[labels_b][None]
        if call.smoothing:
            mean_hb = prefix_dots(x_bd, w_cd.mean(0, keepdims=True), dims) * row_hb + bias_c.mean()
            target_hb = (1 - call.smoothing) * target_hb + call.smoothing * mean_hb
        losses.append(lse_hb - target_hb)
    return jnp.concatenate(losses)


def nested_linear_cross_entropy(
    z_bd: jax.Array,
    kernel: Arrays,
    bias: Arrays,
    labels_b: jax.Array,
    nesting: Nesting,
    *,
    label_smoothing: float = 0.0,
    mask_b: jax.Array | None = None,
    normalize: Literal["none", "prefix"] = "none",
    form: Form = "blockwise",
    implementation: Implementation = "auto",
    mesh: Mesh | None = None,
    batch_axes: Sequence[str] = ("data", "fsdp"),
    class_axis: str | None = "tensor",
) -> tuple[jax.Array, jax.Array]:
    """Nested heads and their loss in one: equals `nested_cross_entropy(NestedHead(z))`.

    The logits of all granularities never exist at once. A shared kernel (MRL-E) costs the FLOPs
    of one dense layer, forward and backward, for any number of granularities (arXiv 2205.13147,
    section 3; the backward pass is the same running sum from the other end).

    Gradients are computed in the forward pass and scaled in the backward one. They are exact for
    both outputs; those of `per_granularity_g` cost a second run.

    Args:
      z_bd: [B, >= m_G] embeddings. Matmuls take its dtype and sum in float32.
      kernel: shared: [m_G, C]. Separate: one [m, C] per granularity.
      bias: [C], or one per granularity.
      labels_b: [B] integer classes. One outside [0, C) makes the loss NaN.
      nesting: granularities and weights c_m.
      label_smoothing: s in [0, 1): the target is (1 - s) one-hot + s / C.
      mask_b: [B], 1 for examples that count, 0 for padding, which may hold anything.
      normalize: "prefix" scales every prefix to unit length first.
      form: "blockwise" keeps a few [B, C] arrays alive, whatever the number of granularities,
        and recomputes next to nothing. "streamed" goes through tiles of classes twice: one extra
        forward pass, no [B, C] array at all.
      implementation: "xla", or "pallas": a fused kernel for TPU and GPU, streamed, on one device;
        see `kernels.pallas.logsumexp`. "auto" is "xla", as the kernel was never timed on a device.
      mesh: with it, rows are split over `batch_axes` and classes over `class_axis`, and every
        device works on its own part; kernels are gathered over all other axes.
      batch_axes: mesh axes of the rows.
      class_axis: mesh axis of the classes, or None.

    Returns:
      loss: sum over granularities of c_m times the mean cross-entropy (eq. 1).
      per_granularity_g: [G], the mean cross-entropy of each granularity.

    Raises:
      ValueError: shapes that do not fit together, options that do not exist, a batch or classes
        that do not divide over the mesh.
    """
    shared = not isinstance(kernel, (list, tuple))
    kernels, biases = ((kernel,), (bias,)) if shared else (tuple(kernel), tuple(bias))
    batch_axes = tuple(batch_axes)
    _check(z_bd, kernels, biases, labels_b, nesting, shared, mask_b, label_smoothing)
    check_choice("form", form, get_args(Form))
    check_choice("implementation", implementation, get_args(Implementation))
    check_choice("normalize", normalize, ("none", "prefix"))
    if implementation == "pallas" and (form != "streamed" or mesh is not None):
        raise ValueError(
            "implementation 'pallas' has form 'streamed' only and takes no mesh; 'xla' has all"
        )
    if mesh is None:
        batch_axes, class_axis = (), None
    else:
        check_mesh(mesh, batch_axes, z_bd.shape[0], class_axis, kernels[0].shape[1])

    dtype = jnp.promote_types(z_bd.dtype, jnp.float32)
    classes = kernels[0].shape[1]
    z_bd = z_bd[:, : nesting.width]
    if mask_b is None:
        valid_b, count = jnp.ones(labels_b.shape, bool), labels_b.shape[0]
    else:
        valid_b = mask_b > 0
        count = jnp.maximum(valid_b.sum(), 1)
        # where, not a product: a padded row may hold anything, also NaN.
        z_bd = jnp.where(valid_b[:, None], z_bd, 0)
        labels_b = jnp.where(valid_b, labels_b, 0)
    row_gb = 1 / prefix_norms(z_bd, nesting.dims) if normalize == "prefix" else None
    mean_b = jnp.where(valid_b, jnp.ones((), dtype) / count, 0)
    weights_g = jnp.asarray(nesting.weights, dtype)
    call = _LossCall(nesting.dims, form, label_smoothing, shared, mesh, batch_axes, class_axis)
    weights_gb = weights_g[:, None] * mean_b[None]
    if implementation == "pallas":
        loss_gb = _pallas_losses(call, z_bd, kernels, biases, row_gb, labels_b)
        loss = (weights_gb * loss_gb).sum()
    else:
        loss, loss_gb = weighted_sum(
            functools.partial(_on_mesh, call, _local_losses),
            functools.partial(_on_mesh, call, _local_losses_and_gradients),
            (z_bd, kernels, biases, row_gb),
            labels_b,
            weights_gb,
        )
    legal = ((labels_b >= 0) & (labels_b < classes)).all()
    per_granularity_g = (loss_gb * mean_b[None]).sum(-1)
    return jnp.where(legal, loss, jnp.nan), jnp.where(legal, per_granularity_g, jnp.nan)


def _check(
    z_bd, kernels, biases, labels_b, nesting: Nesting, shared: bool, mask_b, label_smoothing
) -> None:
    if z_bd.ndim != 2 or z_bd.shape[1] < nesting.width:
        raise ValueError(f"embeddings must be [B, >= {nesting.width}], got {z_bd.shape}")
    if not jnp.issubdtype(z_bd.dtype, jnp.floating):
        raise ValueError(f"embeddings must be floating point, got {z_bd.dtype}")
    heads = (nesting.width,) if shared else nesting.dims
    if not len(kernels) == len(biases) == len(heads):
        raise ValueError(
            f"separate heads need {len(heads)} kernels and biases (one per dim of "
            f"{nesting.dims}), got {len(kernels)} and {len(biases)}"
        )
    classes = kernels[0].shape[-1]
    for m, kernel, bias in zip(heads, kernels, biases, strict=True):
        if kernel.shape != (m, classes) or bias.shape != (classes,):
            raise ValueError(
                f"kernel and bias of dim {m} must be [{m}, C] and [C], got {kernel.shape} and "
                f"{bias.shape}"
            )
    check_targets(z_bd.shape[0], labels_b, mask_b, label_smoothing)


def check_targets(batch: int, labels_b, mask_b, label_smoothing: float) -> None:
    """Refuses labels that are not [B] integers, a mask that is not [B], smoothing out of [0, 1).

    Raises:
      ValueError: says what would be legal.
    """
    if labels_b.shape != (batch,) or not jnp.issubdtype(labels_b.dtype, jnp.integer):
        raise ValueError(
            f"labels must be [{batch}] integers, got {labels_b.shape} {labels_b.dtype}"
        )
    if mask_b is not None and mask_b.shape != (batch,):
        raise ValueError(f"mask must be [{batch}], got {mask_b.shape}")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
