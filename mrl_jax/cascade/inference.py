"""Classifying with a policy, computing no more dims of an example than it asks for."""

import functools
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from mrl_jax.cascade.policy import Policy
from mrl_jax.heads import NestedHead
from mrl_jax.kernels import prefix_matmul, prefix_norms


class Classifier(Protocol):
    """What `infer` needs of a task.

    Attributes:
      head: classifies prefixes of embeddings.
    """

    head: NestedHead

    def classifiable(self, dim: int) -> bool:
        """Whether the head has a classifier for the first `dim` dims."""


class Inference(NamedTuple):
    """What a policy decided, and what it saved.

    Attributes:
      predicted_b: [B] classes.
      dim_b: [B] where each example stopped.
      multiplications: multiply-adds that the head did, padding included.
      saving: share of those of one full-width head that were not needed. Separate heads, which
        begin anew at every dim, can need more than that: then it is negative.
    """

    predicted_b: np.ndarray
    dim_b: np.ndarray
    multiplications: int
    saving: float


@functools.partial(
    jax.jit, static_argnames=("first", "dim", "normalize"), donate_argnames="product_bc"
)
def _look(
    kernel_dc: jax.Array,
    bias_c: jax.Array,
    z_bd: jax.Array,
    product_bc: jax.Array | None,
    row_p: jax.Array,
    *,
    first: int,
    dim: int,
    normalize: str,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """(confidence [P], class [P], products) of some rows at `dim`, from dims `first` on.

    `product_bc` holds the products over the dims before `first`; None where none are kept.
    """
    z_pd = z_bd[row_p, :dim]
    kernel_kc = kernel_dc[first:dim].astype(z_bd.dtype)
    product_pc = prefix_matmul(z_pd[:, first:], kernel_kc, (dim - first,))[0]
    if product_bc is not None:
        product_pc = product_pc + product_bc[row_p]
        product_bc = product_bc.at[row_p].set(product_pc)
    if normalize == "prefix":
        product_pc = product_pc / prefix_norms(z_pd, (dim,))[0][:, None]
    logits_pc = product_pc + bias_c[None]
    return jax.nn.softmax(logits_pc).max(-1), logits_pc.argmax(-1), product_bc


def infer(task: Classifier, params: Any, z_bd: jax.Array, policy: Policy) -> Inference:
    """Classifies a batch of embeddings; only what has not stopped is computed at the next dim.

    Equals `apply` on what the whole head says, up to rounding. Rows that are still undecided are
    gathered and padded to a power of two, so that at most log2(B) + 1 programs are compiled per
    dim. A shared (or fixed) head adds the block of new dims to the products that it has; a separate
    head begins anew. The host decides after every dim, and so waits for the device once per dim.

    Args:
      task: with the head.
      params: of the task, as trained.
      z_bd: [B, >= width] embeddings, readable by this process.
      policy: the head must have a classifier for each of its dims.

    Raises:
      ValueError: it has none for a dim, or the embeddings have another shape.
    """
    head = task.head
    unknown = [m for m in policy.dims if not task.classifiable(m)]
    if unknown:
        raise ValueError(
            f"the policy stops at dim {unknown[0]}, for which the {head.kind} head with dims "
            f"{head.nesting.dims} has no classifier"
        )
    if z_bd.ndim != 2 or not len(z_bd) or z_bd.shape[1] < head.nesting.width:
        raise ValueError(
            f"expected embeddings [batch >= 1, >= {head.nesting.width}], got {z_bd.shape}"
        )
    kernels, biases = head.kernels_and_biases(params["head"])
    separate = head.kind == "separate"
    z_bd = jax.numpy.asarray(z_bd)
    count, classes = len(z_bd), head.num_classes
    product_bc = None
    if not separate:
        dtype = jax.numpy.promote_types(z_bd.dtype, "float32")
        product_bc = jax.numpy.zeros((count, classes), dtype)
    predicted_b = np.zeros(count, np.int32)
    dim_b = np.zeros(count, np.int32)
    undecided, first, multiplications = np.arange(count), 0, 0
    for dim, threshold in zip(policy.dims, policy.thresholds, strict=True):
        rows = min(count, 1 << (len(undecided) - 1).bit_length())
        row_p = np.full(rows, undecided[0])
        row_p[: len(undecided)] = undecided
        g = head.nesting.dims.index(dim) if separate else None
        *said, product_bc = _look(
            kernels[g] if separate else kernels,
            biases[g] if separate else biases,
            z_bd,
            product_bc,
            row_p,
            first=first,
            dim=dim,
            normalize=head.normalize,
        )
        confidence, predicted = (x[: len(undecided)] for x in jax.device_get(said))
        multiplications += rows * (dim - first) * classes
        stops = confidence.astype(np.float64) > threshold
        if dim == policy.dims[-1]:
            stops[:] = True
        predicted_b[undecided[stops]] = predicted[stops]
        dim_b[undecided[stops]] = dim
        undecided = undecided[~stops]
        if not len(undecided):
            break
        first = 0 if separate else dim
    full = count * head.nesting.width * classes
    return Inference(predicted_b, dim_b, multiplications, 1 - multiplications / full)
