"""A linear classifier fitted on every prefix after training, all prefixes from one factorisation.

Least squares to class indicators with a small ridge. The paper's "Rand. LP" is the probe on m dims
drawn at random (arXiv 2205.13147, Table 1).
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg

from mrl_jax.evaluators.projections import Readout, right
from mrl_jax.evaluators.spaces import Moments, Space, coordinates
from mrl_jax.evaluators.subject import Embedded, Subject
from mrl_jax.record.finding import Finding
from mrl_jax.record.results import Series

# The penalty on the squared weights, over the mean variance of a dim times N, for every prefix and
# space. Small beside the differences of prefixes; without it, a probe on about as many dims as
# there are examples fits noise (78 % instead of 98 % at 1000 of each).
RIDGE = 1e-3


class Probe(NamedTuple):
    """Scores at prefix m: `readout` on the first m coordinates `(z - mean_d) @ whitening_de`."""

    mean_d: np.ndarray
    whitening_de: np.ndarray
    readout: Readout

    def right(self, embedded: Embedded, dims: tuple[int, ...]) -> np.ndarray:
        """Which examples the probe on each prefix gets right: [G, N] bool."""
        x_ne = coordinates(embedded.z_nd, self.mean_d, self.whitening_de, np.dtype("f8"))
        return right(self.readout, x_ne, embedded.label_n, dims)


def fit(found: Moments, space: Space) -> Probe:
    """The ridge regressions, with intercept, of class indicators on all prefixes of a space.

    With X the centred coordinates, L the Cholesky factor of X'X + ridge and V = inv(L) X'Y, the
    weights at prefix m are inv(L[:m, :m]') V[:m]. As L is triangular, the first m of the
    coordinates X inv(L') depend on the first m of X alone, and V[:m] are their weights: all probes
    are prefixes of one.
    """
    basis_de = space.basis_de
    gram_ee = basis_de.T @ found.scatter_dd @ basis_de
    variance = np.trace(found.scatter_dd) / len(found.mean_d)
    # Embeddings that are all the same have no scatter: any ridge gives zero weights.
    gram_ee += np.eye(space.width) * (RIDGE * variance or 1.0)
    factor_ee = np.linalg.cholesky(gram_ee)
    whitening_de = scipy.linalg.solve_triangular(factor_ee, basis_de.T, lower=True).T
    kernel_ec = whitening_de.T @ found.sum_cd.T
    return Probe(found.mean_d, whitening_de, Readout(kernel_ec, found.share_c))


def measure(subject: Subject, split: str) -> Finding:
    """Accuracy of probes fitted on the train split, in the embedding and its untrained rivals.

    Metric probe of the first m dims, or of the first m coordinates of the other spaces.
    """
    found = Finding()
    for space, basis in subject.spaces.items():
        if dims := basis.dims(subject.dims):
            right_gn = fit(subject.moments, basis).right(subject.embedded(split), dims)
            found.add_right(Series("", split, "probe", space), dims, right_gn)
    return found
