"""Nearest class mean: what few-shot and long-tail measurements share.

A query belongs to the class whose mean embedding has the highest cosine to it (Mensink et al.,
"Distance-based image classification", PAMI 2013). Means are of embeddings as they are, not scaled
to unit length first: so the prefix of a mean is the mean of the prefixes, and one mean per class
serves every prefix. Prefixes are cut first and scaled then.
"""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from mrl_jax.evaluators.ranking import ROUNDING

# Cosines held at a time: queries x classes.
_MAX_COSINES = 2**20


def rows_of_classes(label_n: np.ndarray) -> dict[int, np.ndarray]:
    """The examples of each class, classes and examples in ascending order."""
    order_n = np.argsort(label_n, kind="stable")
    classes, starts = np.unique(label_n[order_n], return_index=True)
    return dict(zip(classes.tolist(), np.split(order_n, starts[1:]), strict=True))


def nearest_is_own(
    query_nd: np.ndarray, own_n: np.ndarray, mean_cd: np.ndarray, dims: Sequence[int]
) -> np.ndarray:
    """Whether a query's nearest mean is that of its class, at every prefix: [G, N] bool.

    All prefixes come from one pass over the dims, by running sums of block products. Another mean
    that is equally near within rounding makes the answer no, and so does NaN.

    Args:
      query_nd: embeddings.
      own_n: the row of `mean_cd` of each query's class.
      mean_cd: class means, of any length.
      dims: G increasing prefixes.
    """
    blocks = tuple(zip((0, *dims[:-1]), dims, strict=True))
    mean_cd = mean_cd.astype(np.float32)
    with np.errstate(all="ignore"):  # NaN and inf are judged below
        squares_cg = np.stack([np.square(mean_cd[:, lo:hi]).sum(1) for lo, hi in blocks], 1)
        norm_cg = np.maximum(np.sqrt(squares_cg.cumsum(1)), 1e-12)
        right_gn = np.empty((len(dims), len(query_nd)), bool)
        chunk = max(1, _MAX_COSINES // len(mean_cd))
        for start in range(0, len(query_nd), chunk):
            part = slice(start, start + chunk)
            query_bd, own_b = query_nd[part].astype(np.float32), own_n[part]
            each_b = np.arange(len(own_b))
            running_bc = np.zeros((len(query_bd), len(mean_cd)), np.float32)
            square_b = np.zeros(len(query_bd), np.float32)
            for g, (lo, hi) in enumerate(blocks):
                running_bc += query_bd[:, lo:hi] @ mean_cd[:, lo:hi].T
                square_b += np.square(query_bd[:, lo:hi]).sum(1)
                # These cosines are not divided by the query's norm, which scales them all alike.
                cosine_bc = running_bc / norm_cg[:, g]
                own_cosine_b = cosine_bc[each_b, own_b]
                cosine_bc[each_b, own_b] = -np.inf
                surely_b = cosine_bc.max(1) + ROUNDING * np.sqrt(square_b)
                right_gn[g, part] = own_cosine_b > surely_b
    return right_gn


def digest(arrays: Iterable[np.ndarray]) -> str:
    """A short name for exactly these whole numbers in this order, the same on every machine.

    Runs with the same name for their draws can be compared draw by draw.
    """
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array, "<i8").tobytes())
    return found.hexdigest()[:16]


def by_dim(dims: Sequence[int], accuracy_gr: np.ndarray) -> dict[str, list[float]]:
    """Accuracies of R repeats by dim, for JSON."""
    return {str(m): np.round(row_r, 6).tolist() for m, row_r in zip(dims, accuracy_gr, strict=True)}
