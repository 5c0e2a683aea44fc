"""What the full-width head says of an embedding of which only m coordinates are kept.

The rivals that need no training at all: the paper's "SVD" in Table 1 is the head cut to rank m
(arXiv 2205.13147, appendix D), which is keeping m coordinates of "svd".
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mrl_jax.evaluators.subject import Subject
from mrl_jax.kernels import prefix_matmul
from mrl_jax.kernels.prefix import prefix_dots
from mrl_jax.record import metrics
from mrl_jax.record.finding import Finding
from mrl_jax.record.results import Series

# Numbers held at a time: scores of all prefixes, or coordinates.
_MAX_SCORES = 2**26

# Prefix norms of a head that normalises are at least this, as in `kernels.prefix_norms`.
_EPSILON = 1e-12


class Readout(NamedTuple):
    """A linear classifier on every prefix of coordinates x: `x[:m] @ kernel_ec[:m] + bias_c`.

    With `mean_e` the coordinates are of z - mean in an orthonormal basis, and what is classified
    is `mean + basis[:, :m] @ x[:m]` at unit length: the product plus `mean_c`, over that length,
    plus `bias_c`.

    Attributes:
      mean_e: coordinates of the mean itself.
      mean_square: its squared length.
      mean_c: its product with the kernel.
    """

    kernel_ec: np.ndarray
    bias_c: np.ndarray
    mean_e: np.ndarray | None = None
    mean_square: float | None = None
    mean_c: np.ndarray | None = None


@functools.partial(jax.jit, static_argnames="dims")
def _right(readout: Readout, x_be: jax.Array, label_b: jax.Array, dims: tuple[int, ...]):
    with jax.default_matmul_precision("float32"):
        score_gbc = prefix_matmul(x_be, readout.kernel_ec, dims)
    if readout.mean_e is not None:
        square_gb = prefix_dots(x_be, x_be + 2 * readout.mean_e[None], dims) + readout.mean_square
        norm_gb1 = jnp.sqrt(jnp.maximum(square_gb, _EPSILON**2))[..., None]
        score_gbc = (score_gbc + readout.mean_c[None, None]) / norm_gb1
    score_gbc = score_gbc + readout.bias_c[None, None]
    target_gb1 = jnp.take_along_axis(score_gbc, label_b[None, :, None], -1)
    # As the head is judged: what is not surely below the true class is ahead of it.
    return (~(score_gbc < target_gb1)).sum(-1) == 1


def right(
    readout: Readout, x_ne: np.ndarray, label_n: np.ndarray, dims: tuple[int, ...]
) -> np.ndarray:
    """Whether the true class, and no other, has the highest score at every prefix: [G, N] bool."""
    readout = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), readout)
    size = max(len(dims) * len(readout.bias_c), x_ne.shape[1])
    chunk = max(1, _MAX_SCORES // size)
    found = [
        np.asarray(_right(readout, x_ne[i : i + chunk], label_n[i : i + chunk], dims))
        for i in range(0, len(x_ne), chunk)
    ]
    return np.concatenate(found, axis=1)


def measure(subject: Subject, split: str) -> Finding:
    """The full-width head's accuracy with m coordinates kept and the mean in place of the others.

    Metric top1. The space "cut" keeps the first m dims and has zeros after them, "random" keeps m
    random dims, and "rotation", "pca" and "svd" the first m coordinates of those spaces. Of a
    shared or fixed head "cut" is the trained space. A head that normalises does so with what is
    left.
    """
    found = Finding()
    query = subject.embedded(split)
    kernel_dc, bias_c = (np.asarray(p, np.float64) for p in subject.kernel_and_bias)
    for name, space in subject.spaces.items():
        dims = space.dims(subject.dims)
        if not dims:
            continue
        kernel_ec, mean_c = space.basis_de.T @ kernel_dc, space.mean_d @ kernel_dc
        readout = Readout(kernel_ec, bias_c + mean_c)
        if subject.task.head.normalize == "prefix":
            mean_e, square = space.mean_d @ space.basis_de, space.mean_d @ space.mean_d
            readout = Readout(kernel_ec, bias_c, mean_e, square, mean_c)
        right_gn = right(readout, space.project(query.z_nd), query.label_n, dims)
        kept = "cut" if name == metrics.TRAINED else name
        found.add_right(Series("", split, metrics.TOP(1), kept), dims, right_gn)
    return found
