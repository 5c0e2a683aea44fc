"""Contrastive losses on every prefix of two embeddings, for about the price of the longest."""

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mrl_jax.errors import check_choice
from mrl_jax.kernels.prefix import prefix_dots
from mrl_jax.kernels.scaled_softmax import nested_column_sums
from mrl_jax.kernels.sharding import check_mesh
from mrl_jax.nesting import Nesting

Implementation = Literal["auto", "xla", "pallas"]
PerGranularity = jax.Array | float
Mask = jax.Array | tuple[jax.Array, jax.Array] | None

NORM_FLOOR = 1e-12


@dataclasses.dataclass(frozen=True)
class _Pairs:
    """Two sides, ready to be multiplied: no padding, inverse norms, what counts.

    Attributes:
      a_bd: [B, m_G] rows.
      b_nd: [N, m_G] columns: the other sides of the pairs, then the extra negatives.
      inverse_a_gb: [G, B] inverse norms of the rows' prefixes, 0 where a prefix is zero.
      inverse_b_gn: [G, N], those of the columns.
      cosines_gb: [G, B] of the pairs.
      keep: [B, N] or [1, N] bool: which logits exist; None for all. Pairs always do.
      mean_b: [B] what a row weighs in the mean: 1 / count, or 0 for padding.
      weights_gb: [G, B] what it weighs in the loss.
    """

    a_bd: jax.Array
    b_nd: jax.Array
    inverse_a_gb: jax.Array
    inverse_b_gn: jax.Array
    cosines_gb: jax.Array
    keep: jax.Array | None
    mean_b: jax.Array
    weights_gb: jax.Array

    def swapped(self) -> "_Pairs":
        """The other direction: rows of b among all rows of a, without the extra negatives."""
        batch = self.a_bd.shape[0]
        keep = self.keep
        if keep is not None:
            keep = keep[:, :batch] if keep.shape[0] == 1 else keep[:, :batch].T
        return dataclasses.replace(
            self,
            a_bd=self.b_nd[:batch],
            b_nd=self.a_bd,
            inverse_a_gb=self.inverse_b_gn[:, :batch],
            inverse_b_gn=self.inverse_a_gb,
            keep=keep,
        )


def nested_info_nce(
    a_bd: jax.Array,
    b_bd: jax.Array,
    nesting: Nesting,
    *,
    temperature: PerGranularity,
    symmetric: bool = False,
    mask: Mask = None,
    extra_negatives: jax.Array | None = None,
    implementation: Implementation = "auto",
    mesh: Mesh | None = None,
    batch_axes: Sequence[str] = ("data", "fsdp"),
) -> tuple[jax.Array, jax.Array]:
    """Which b belongs to this a? Softmax cross-entropy of cosines, of every prefix at once.

    Row i belongs to column i; all other columns are its negatives. One running Gram matrix serves
    all prefixes, tile of rows by tile of rows, and the gradients are taken on the way: the FLOPs
    of the longest prefix alone, and [B, N] never exists. Gradients of `per_granularity_g` are
    exact, too, and cost a second run. The embedding of a prefix that is zero gets none.

    Args:
      a_bd: [B, >= m_G] embeddings, of any length. Matmuls take their dtype and sum in float32.
      b_bd: [B, >= m_G].
      nesting: granularities and weights c_m.
      temperature: what cosines are divided by: one positive number or one per granularity [G];
        may be learned.
      symmetric: the mean of both directions; in the second, rows of b among all rows of a. It is
        computed separately, so this is twice the work.
      mask: [B], 1 for pairs that count and 0 for padding, which may hold anything and is nobody's
        negative; or [B, N] bool, False where a column is no negative for a row, for example
        a duplicate of its own; or both, as a tuple. The second direction reads [B, N] transposed.
        What [B, N] says of a pair itself is not read.
      extra_negatives: [K, >= m_G] more columns, N = B + K, after those of the batch.
      implementation: "xla"; "pallas", one fused kernel for TPU and GPU, see
        `kernels.pallas.logsumexp`; "auto" is "xla".
      mesh: with it, rows are split over `batch_axes`. A device gathers all columns and goes through
        its own rows, so all rows of all devices are negatives.
      batch_axes: mesh axes of the rows.

    Returns:
      loss: sum over granularities of c_m times the mean over pairs. 0 if none counts.
      per_granularity_g: [G] these means.

    Raises:
      ValueError: shapes or dtypes that do not fit together, a temperature that is not positive,
        options that do not exist or exclude each other, a batch that does not divide over the mesh.

    Source: InfoNCE (arXiv 1807.03748), with prefixes as in arXiv 2205.13147, eq. 1.
    """
    pairs = _pairs(a_bd, b_bd, nesting, mask, extra_negatives, mesh, batch_axes)
    check_choice("implementation", implementation, get_args(Implementation))
    temperature_g = _per_granularity("temperature", temperature, nesting, pairs, positive=True)
    devices = {"mesh": mesh, "batch_axes": batch_axes}
    directions = [pairs, pairs.swapped()] if symmetric else [pairs]
    losses, means = [], []
    for direction in directions:
        total, lse_gb = _logsumexp(direction, nesting, temperature_g, implementation, devices)
        target_gb = direction.cosines_gb / temperature_g[:, None]
        losses.append(total - (direction.weights_gb * target_gb).sum())
        means.append(_mean(direction, lse_gb - target_gb))
    return sum(losses) / len(directions), sum(means) / len(directions)


def nested_sigmoid_loss(
    a_bd: jax.Array,
    b_bd: jax.Array,
    nesting: Nesting,
    *,
    temperature: PerGranularity,
    bias: PerGranularity,
    mask: Mask = None,
    extra_negatives: jax.Array | None = None,
    mesh: Mesh | None = None,
    batch_axes: Sequence[str] = ("data", "fsdp"),
) -> tuple[jax.Array, jax.Array]:
    """Is this b the one of this a? Logistic loss of cosine / temperature + bias, of every prefix.

    -log sigmoid(logit) for pairs, -log sigmoid(-logit) for all other columns, summed over columns,
    mean over rows. Cost, gradients, other arguments, results and errors as of `nested_info_nce`.

    Args:
      temperature: one positive number or one per granularity [G]; may be learned. The source writes
        t = 1 / temperature.
      bias: one number or one per granularity [G]; may be learned.

    Source: SigLIP (arXiv 2303.15343), with prefixes as in arXiv 2205.13147, eq. 1.
    """
    pairs = _pairs(a_bd, b_bd, nesting, mask, extra_negatives, mesh, batch_axes)
    temperature_g = _per_granularity("temperature", temperature, nesting, pairs, positive=True)
    bias_g = _per_granularity("bias", bias, nesting, pairs)
    # The pair's own logit is left out here and added below: its two logs must not cancel.
    total, others_gb = nested_column_sums(
        "softplus",
        pairs.a_bd,
        pairs.b_nd.T,
        nesting,
        pairs.weights_gb,
        row_gb=pairs.inverse_a_gb / temperature_g[:, None],
        col_gn=pairs.inverse_b_gn,
        bias_gn=jnp.broadcast_to(bias_g[:, None], pairs.inverse_b_gn.shape),
        keep_bn=pairs.keep,
        skip_b=jnp.arange(pairs.mean_b.size),
        mesh=mesh,
        batch_axes=batch_axes,
    )
    own_gb = jax.nn.softplus(-(pairs.cosines_gb / temperature_g[:, None] + bias_g[:, None]))
    loss = total + (pairs.weights_gb * own_gb).sum()
    return loss, _mean(pairs, others_gb + own_gb)


def _logsumexp(pairs: _Pairs, nesting: Nesting, temperature_g, implementation, devices):
    """(sum of weights * log-sum-exp, log-sum-exp [G, B]) of a direction's logits."""
    row_gb = pairs.inverse_a_gb / temperature_g[:, None]
    if implementation != "pallas":
        return nested_column_sums(
            "logsumexp",
            pairs.a_bd,
            pairs.b_nd.T,
            nesting,
            pairs.weights_gb,
            row_gb=row_gb,
            col_gn=pairs.inverse_b_gn,
            keep_bn=pairs.keep,
            **devices,
        )
    from mrl_jax.kernels.pallas.logsumexp import LEFT_OUT, nested_logsumexp_pallas

    if devices["mesh"] is not None:
        raise ValueError("implementation 'pallas' works on one device; with a mesh, take 'xla'")
    if pairs.keep is not None and pairs.keep.shape[0] != 1:
        raise ValueError("implementation 'pallas' takes no [B, N] mask, only [B]; 'xla' takes both")
    bias_n = None if pairs.keep is None else jnp.where(pairs.keep[0], 0.0, LEFT_OUT)
    lse_gb = nested_logsumexp_pallas(
        pairs.a_bd, pairs.b_nd, nesting, row_gb=row_gb, col_gn=pairs.inverse_b_gn, bias_gn=bias_n
    )
    return (pairs.weights_gb * lse_gb).sum(), lse_gb


def _mean(pairs: _Pairs, value_gb: jax.Array) -> jax.Array:
    # where: without any column left, a padded row's log-sum-exp is -inf.
    return jnp.where(pairs.mean_b[None] > 0, value_gb * pairs.mean_b[None], 0).sum(-1)


def _pairs(a_bd, b_bd, nesting: Nesting, mask, extra_negatives, mesh, batch_axes) -> _Pairs:
    """The operands of both losses, once all arguments are known to fit together."""
    width, dims = nesting.width, nesting.dims
    extra = [] if extra_negatives is None else [("extra_negatives", extra_negatives)]
    for name, x in (("a", a_bd), ("b", b_bd), *extra):
        if x.ndim != 2 or x.shape[0] < 1 or x.shape[1] < width:
            raise ValueError(f"{name} must be [>= 1, >= {width}], got {x.shape}")
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{name} must be floating point, got {x.dtype}")
    batch = a_bd.shape[0]
    if b_bd.shape[0] != batch:
        raise ValueError(f"a and b must have one row per pair, got {batch} and {b_bd.shape[0]}")
    columns = batch + sum(x.shape[0] for _, x in extra)
    valid_b, negatives_bn = _split_mask(mask, batch, columns)
    if mesh is not None:
        check_mesh(mesh, batch_axes, batch)

    a_bd, b_bd = a_bd[:, :width], b_bd[:, :width]
    extra = [x[:, :width] for _, x in extra]
    dtype = jnp.promote_types(jnp.result_type(a_bd, b_bd, *extra), jnp.float32)
    keep = None
    if valid_b is not None:
        # where, not a product: a padded row may hold anything, also NaN.
        a_bd, b_bd = (jnp.where(valid_b[:, None], x, 0) for x in (a_bd, b_bd))
        keep = jnp.concatenate([valid_b, jnp.ones(columns - batch, bool)])[None]
    if negatives_bn is not None:
        if valid_b is not None:
            # Rows too: in the second direction they are columns.
            negatives_bn &= keep & valid_b[:, None]
        keep = negatives_bn | jnp.eye(batch, columns, dtype=bool)
    valid_b = jnp.ones(batch, bool) if valid_b is None else valid_b

    b_nd = jnp.concatenate([b_bd, *extra])
    inverse_a_gb, inverse_b_gn = (_inverse_norms(x, dims) for x in (a_bd, b_nd))
    dots_gb = prefix_dots(a_bd, b_bd, dims)
    cosines_gb = dots_gb * inverse_a_gb * inverse_b_gn[:, :batch]
    mean_b = valid_b.astype(dtype) / jnp.maximum(valid_b.sum(), 1)
    weights_gb = jnp.asarray(nesting.weights, dtype)[:, None] * mean_b[None]
    return _Pairs(a_bd, b_nd, inverse_a_gb, inverse_b_gn, cosines_gb, keep, mean_b, weights_gb)


def _split_mask(mask: Mask, batch: int, columns: int) -> tuple[jax.Array | None, ...]:
    """Which pairs count, [B], and which columns are negatives, [B, N]; None for all."""
    parts = mask if isinstance(mask, tuple) else () if mask is None else (mask,)
    shapes = tuple(x.shape for x in parts)
    one, two = (batch,), (batch, columns)
    if shapes not in ((), (one,), (two,), (one, two)):
        written = ", ".join(map(str, shapes))
        raise ValueError(
            f"mask must be [{batch}] or [{batch}, {columns}], or both in this order; got {written}"
        )
    if two in shapes and parts[-1].dtype != bool:
        raise ValueError(f"a mask of rows and columns must be bool, got {parts[-1].dtype}")
    return parts[0] > 0 if one in shapes else None, parts[-1] if two in shapes else None


def _inverse_norms(x_bd: jax.Array, dims: tuple[int, ...]) -> jax.Array:
    squares_gb = prefix_dots(x_bd, x_bd, dims)
    # Zero, not 1 / floor: the gradient at a zero vector is zero instead of huge.
    floored_gb = jnp.maximum(squares_gb, NORM_FLOOR**2)
    return jnp.where(squares_gb > NORM_FLOOR**2, jax.lax.rsqrt(floored_gb), 0)


def _per_granularity(
    name: str, value: PerGranularity, nesting: Nesting, pairs: _Pairs, positive: bool = False
) -> jax.Array:
    """The value of every granularity, [G]."""
    if np.shape(value) not in ((), (len(nesting),)):
        raise ValueError(f"{name} must be one number or [{len(nesting)}], got {np.shape(value)}")
    # A learned value is a tracer: it is not known here.
    if not isinstance(value, jax.core.Tracer):
        numbers = np.asarray(value, np.float64)  # jnp would trace it
        if not np.isfinite(numbers).all() or (positive and not (numbers > 0).all()):
            raise ValueError(f"{name} must be finite{' and > 0' * positive}, got {value}")
    return jnp.broadcast_to(jnp.asarray(value, pairs.mean_b.dtype), (len(nesting),))
