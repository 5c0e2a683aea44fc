"""Orthogonal changes of basis whose first m coordinates are rivals of the first m dims.

All of them are free: fitted after training, without labels. The paper's tables have some as
"Rand. FS" and "SVD" (arXiv 2205.13147, Tables 1 and 2, appendix D).
"""

from typing import NamedTuple

import numpy as np


class Space(NamedTuple):
    """Coordinates `(z - mean_d) @ basis_de`; the columns of the basis are orthonormal.

    E is the number of coordinates, D or fewer.
    """

    mean_d: np.ndarray
    basis_de: np.ndarray

    @property
    def width(self) -> int:
        """E."""
        return self.basis_de.shape[1]

    def project(self, z_nd: np.ndarray) -> np.ndarray:
        """The coordinates [N, E], float32."""
        coordinates_ne = (z_nd - self.mean_d.astype(z_nd.dtype)) @ self.basis_de.astype(z_nd.dtype)
        return coordinates_ne.astype(np.float32)

    def dims(self, dims: tuple[int, ...]) -> tuple[int, ...]:
        """Those of the prefixes that exist here."""
        return tuple(m for m in dims if m <= self.width)


def fit_spaces(z_nd: np.ndarray, kernel_dc: np.ndarray, seed: int) -> dict[str, Space]:
    """The spaces by the suffix that metrics measured in them carry.

    Args:
      z_nd: [N, D] training embeddings; PCA is fitted on them.
      kernel_dc: [D, C] the classifier of the full width.
      seed: of the random ones.

    Returns:
      "": the embedding as it is; "_random": its dims in random order; "_rotation": a random
      rotation; "_pca": principal components, min(N, D) of them; "_svd": left singular vectors of
      the classifier, min(D, C) of them.
    """
    width = z_nd.shape[1]
    rng = np.random.default_rng(seed)
    order = rng.permutation(width)
    # The sign makes the rotation uniform (Mezzadri, arXiv math-ph/0609050).
    q, r = np.linalg.qr(rng.normal(size=(width, width)))
    mean_d = z_nd.mean(0, dtype=np.float64)
    centred = z_nd - mean_d
    # As few as N components have any variance.
    _, components = np.linalg.eigh(centred.T @ centred)
    components = components[:, ::-1][:, : min(z_nd.shape)]
    singular, _, _ = np.linalg.svd(kernel_dc.astype(np.float64), full_matrices=False)
    zero, identity = np.zeros(width), np.eye(width)
    return {
        "": Space(zero, identity),
        "_random": Space(zero, identity[:, order]),
        "_rotation": Space(zero, q * np.sign(np.diag(r))),
        "_pca": Space(mean_d, components),
        "_svd": Space(zero, singular),
    }
