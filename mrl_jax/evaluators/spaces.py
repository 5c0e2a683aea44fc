"""Orthogonal changes of basis whose first m coordinates are rivals of the first m dims.

All of them are free: fitted after training, without labels. The paper's tables have some as
"Rand. FS" and "SVD" (arXiv 2205.13147, Tables 1 and 2, appendix D).
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.sparse

from mrl_jax.errors import NonFiniteError
from mrl_jax.record.metrics import TRAINED

# Numbers of a copy of the embeddings, in another basis or precision, that are held at a time.
_MAX_COPIED = 2**24


class Space(NamedTuple):
    """E <= D coordinates `(z - mean_d) @ basis_de`; the columns of the basis are orthonormal."""

    mean_d: np.ndarray
    basis_de: np.ndarray

    @property
    def width(self) -> int:
        """E."""
        return self.basis_de.shape[1]

    def project(self, z_nd: np.ndarray) -> np.ndarray:
        """The coordinates [N, E], float32."""
        picked_e = self.basis_de.argmax(0)
        if not self.mean_d.any() and (self.basis_de == np.eye(len(self.mean_d))[:, picked_e]).all():
            # Dims in some order: a product with zeros and ones would cost as much as any other.
            return z_nd[:, picked_e].astype(np.float32, copy=False)
        return coordinates(z_nd, self.mean_d, self.basis_de, np.promote_types(z_nd.dtype, "f4"))

    def dims(self, dims: tuple[int, ...]) -> tuple[int, ...]:
        """Those of the prefixes that exist here."""
        return tuple(m for m in dims if m <= self.width)


def row_chunks(z_nd: np.ndarray) -> Iterator[slice]:
    """Slices of the rows of [N, D] of which one may be copied at a time, in order."""
    rows = max(1, _MAX_COPIED // z_nd.shape[1])
    return (slice(i, i + rows) for i in range(0, len(z_nd), rows))


def coordinates(
    z_nd: np.ndarray, mean_d: np.ndarray, matrix_de: np.ndarray, dtype: np.dtype
) -> np.ndarray:
    """`(z - mean_d) @ matrix_de`, computed in `dtype` and kept in float32: [N, E]."""
    mean_d, matrix_de = mean_d.astype(dtype), matrix_de.astype(dtype)
    x_ne = np.empty((len(z_nd), matrix_de.shape[1]), np.float32)
    for rows in row_chunks(z_nd):
        x_ne[rows] = (z_nd[rows].astype(dtype) - mean_d) @ matrix_de
    return x_ne


def scatter(z_nd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean [D] and the scatter matrix [D, D], `(z - mean).T @ (z - mean)`, both float64.

    PCA and every linear probe follow from them. The mean is taken off before squaring, which keeps
    the digits of embeddings that lie far from zero.

    Raises:
      NonFiniteError: the embeddings hold NaN or an infinity.
    """
    with np.errstate(invalid="ignore"):
        mean_d = z_nd.mean(0, dtype=np.float64)
    if not np.isfinite(mean_d).all():
        bad = len(z_nd) - sum(np.isfinite(z_nd[rows]).all(1).sum() for rows in row_chunks(z_nd))
        raise NonFiniteError(f"{bad} of {len(z_nd)} training embeddings hold NaN or an infinity")
    scatter_dd = np.zeros((len(mean_d), len(mean_d)))
    for rows in row_chunks(z_nd):
        centred_bd = z_nd[rows] - mean_d
        scatter_dd += centred_bd.T @ centred_bd
    return mean_d, scatter_dd


class Moments(NamedTuple):
    """What projections and probes are fitted on, float64: sums over N labelled embeddings z.

    `scatter_dd` is `(z - mean).T @ (z - mean)`; `sum_cd` has the sum of z - mean over the examples
    of each class, `share_c` their share of all examples.
    """

    examples: int
    mean_d: np.ndarray
    scatter_dd: np.ndarray
    sum_cd: np.ndarray
    share_c: np.ndarray


def unlabelled(z_nd: np.ndarray) -> Moments:
    """The moments of embeddings without classes; raises as `scatter`."""
    mean_d, scatter_dd = scatter(z_nd)
    return Moments(len(z_nd), mean_d, scatter_dd, np.zeros((1, len(mean_d))), np.ones(1))


def moments(z_nd: np.ndarray, label_n: np.ndarray, classes: int) -> Moments:
    """The moments of labelled embeddings; raises as `scatter`."""
    mean_d, scatter_dd = scatter(z_nd)
    sum_cd = np.zeros((classes, len(mean_d)))
    for rows in row_chunks(z_nd):
        label_b = label_n[rows]
        # Sums over classes: the sparse form of indicators [C, B].
        indicator_cb = scipy.sparse.csc_array(
            (np.ones(len(label_b)), label_b, np.arange(len(label_b) + 1)),
            shape=(classes, len(label_b)),
        )
        sum_cd += indicator_cb @ (z_nd[rows] - mean_d)
    share_c = np.bincount(label_n, minlength=classes) / len(label_n)
    return Moments(len(z_nd), mean_d, scatter_dd, sum_cd, share_c)


def _signed(basis_de: np.ndarray) -> np.ndarray:
    # Either sign of a component is as good; LAPACK's choice differs by version.
    largest_e = np.abs(basis_de).argmax(0)
    return basis_de * np.sign(basis_de[largest_e, np.arange(basis_de.shape[1])])


def axes_about_origin(z_nd: np.ndarray) -> np.ndarray:
    """An orthonormal basis [D, D] whose first m axes keep inner products of rows best, float64.

    Principal axes without centring: of all projections to m dims they leave the least squared
    error of the Gram matrix (Eckart and Young), and all D together only turn, so that cosines stay
    as they were. Centring would change them.
    """
    square_dd = np.zeros((z_nd.shape[1],) * 2)
    for rows in row_chunks(z_nd):
        z_bd = z_nd[rows].astype(np.float64)
        square_dd += z_bd.T @ z_bd
    _, axes = np.linalg.eigh(square_dd)
    return _signed(axes[:, ::-1])


def fit_spaces(train: Moments, kernel_dc: np.ndarray, seed: int) -> dict[str, Space]:
    """The spaces by their names in `record.metrics`.

    "trained": the embedding as it is; "random": its dims in random order; "rotation": a random
    rotation; "pca": principal components of the N training embeddings, min(N, D) of them, arbitrary
    ones where no variance is left; "svd": left singular vectors of the full-width classifier
    `kernel_dc`, min(D, C) of them.
    """
    width = len(train.mean_d)
    rng = np.random.default_rng(seed)
    order = rng.permutation(width)
    # The sign makes the rotation uniform (Mezzadri, arXiv math-ph/0609050).
    q, r = np.linalg.qr(rng.normal(size=(width, width)))
    # As few as N components have any variance.
    _, components = np.linalg.eigh(train.scatter_dd)
    components = components[:, ::-1][:, : train.examples]
    singular, _, _ = np.linalg.svd(np.asarray(kernel_dc, np.float64), full_matrices=False)
    zero, identity = np.zeros(width), np.eye(width)
    return {
        TRAINED: Space(zero, identity),
        "random": Space(zero, identity[:, order]),
        "rotation": Space(zero, q * np.sign(np.diag(r))),
        "pca": Space(train.mean_d, _signed(components)),
        "svd": Space(zero, _signed(singular)),
    }
