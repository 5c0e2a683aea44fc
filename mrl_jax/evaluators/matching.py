"""Whether a text finds its partner among the partners of all others, at every prefix."""

import numpy as np

from mrl_jax.evaluators.ranking import ROUNDING
from mrl_jax.record.finding import Finding, Unmeasurable
from mrl_jax.record.results import Series

_MAX_SCORES = 2**24  # numbers held at a time


def check(a_id_n: np.ndarray, b_id_n: np.ndarray) -> None:
    """Raises Unmeasurable for pairs that all count as the same one; ids as in `measure`."""
    different = min(len(np.unique(a_id_n)), len(np.unique(b_id_n)))
    if different < 2:
        rows = len(a_id_n)
        raise Unmeasurable(f"needs at least 2 different pairs, got {different} in {rows} rows")


def measure(
    a_nd: np.ndarray,
    b_nd: np.ndarray,
    a_id_n: np.ndarray,
    b_id_n: np.ndarray,
    at: Series,
    dims: tuple[int, ...],
) -> Finding:
    """Metric match: of N pairs, how often the nearest b of an a, by cosine, is its own.

    A b that may not be told apart from the pair (an equal id, or an a of an equal id) does not
    compete. Any other b counts as nearer unless it is farther than the own b by more than rounding:
    so ties, and NaN, make the answer wrong, and constant embeddings are not right by luck.

    Embeddings may be of any length; prefixes are cut before they are scaled. Ids are equal for
    texts that are not to be told apart, on either side.
    """
    right_gn = np.empty((len(dims), len(a_nd)), bool)
    squares_a, squares_b = (np.cumsum(np.square(x, dtype=np.float64), 1) for x in (a_nd, b_nd))
    step = max(1, _MAX_SCORES // len(b_nd))
    for start in range(0, len(a_nd), step):
        rows = slice(start, start + step)
        same_bn = b_id_n[None] == b_id_n[rows, None]
        same_bn |= (b_id_n[None] == a_id_n[rows, None]) | (a_id_n[None] == a_id_n[rows, None])
        dots_bn = np.zeros((len(a_nd[rows]), len(b_nd)), np.float64)
        last = 0
        for g, dim in enumerate(dims):
            dots_bn += a_nd[rows, last:dim].astype(np.float64) @ b_nd[:, last:dim].T
            last = dim
            # The length of a is the same for all: it changes no order.
            length_n = np.sqrt(squares_b[:, dim - 1])
            cosine_bn = dots_bn / np.where(length_n > 0, length_n, 1)
            square_b1 = squares_a[rows, dim - 1 : dim]
            own_b1 = np.take_along_axis(cosine_bn, np.arange(len(a_nd))[rows, None], axis=1)
            own_b1 = own_b1 * np.where(square_b1 > 0, 1, np.nan)
            surely_b1 = own_b1 - ROUNDING * np.sqrt(square_b1)
            right_gn[g, rows] = ((cosine_bn < surely_b1) | same_bn).all(1)
    found = Finding()
    found.add_right(at.of("match"), dims, right_gn)
    return found
