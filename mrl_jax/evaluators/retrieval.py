"""Neighbours in the train split by cosine: k-NN accuracy, mAP, precision and recall.

Of examples that are equally near, those that come first in the split are taken first. These are the
paper's Table 2 (1-NN) and figures of mAP (arXiv 2205.13147, section 4.3.1, appendices E and F), at
every prefix, with the untrained rivals of the embedding beside it.
"""

from collections.abc import Iterator

import numpy as np

from mrl_jax.errors import NonFiniteError
from mrl_jax.evaluators.ranking import majority, nearest
from mrl_jax.evaluators.subject import Subject
from mrl_jax.record import metrics
from mrl_jax.record.finding import Finding
from mrl_jax.record.results import Series

SPACES = (metrics.TRAINED, "pca", "random", "rotation", "svd")
VOTERS = 20
CUTOFFS = (10, 25, 50, 100)
RIVAL_CUTOFFS = (10,)


def neighbours(subject: Subject, split: str) -> Finding:
    """Whether the nearest training example is of the same class.

    Metric 1nn in the embedding and in its rivals, see `fit_spaces`.
    """
    found, label_n = Finding(), subject.embedded(split).label_n
    for space, dims, label_gnk in _nearest(subject, split, dict.fromkeys(SPACES, 1)):
        found.add_right(Series("", split, "1nn", space), dims, label_gnk[..., 0] == label_n)
    return found


def retrieval(subject: Subject, split: str) -> Finding:
    """Rankings of the nearest training examples; those of the query's class are relevant.

    knn20: the class of most of the 20 nearest is right; of equally frequent classes, the one with
    the nearest example is taken. map10, 25, 50, 100: over the ranks i = 1 ... k that hold a
    relevant example, the share of relevant ones among the first i, summed and divided by k (not by
    the number of relevant ones: the reference's "corrected" mAP). p10 ...: the share of the first k
    that are relevant. r10 ...: the share of all relevant ones that are among the first k; queries
    whose class has no training example are left out, as their `n` says. The rivals have knn20 and
    map10. Where the train split is smaller than k, k is its size. The file of kind "retrieval" says
    how many vectors were searched.
    """
    found, label_n = Finding(), subject.embedded(split).label_n
    database_label_n = subject.embedded("train").label_n
    relevant_n = np.bincount(database_label_n, minlength=label_n.max() + 1)[label_n]
    wanted = {s: CUTOFFS if s == metrics.TRAINED else RIVAL_CUTOFFS for s in SPACES}
    depth = {space: max(VOTERS, *cutoffs) for space, cutoffs in wanted.items()}
    for space, dims, label_gnk in _nearest(subject, split, depth):
        at = Series(split=split, space=space)
        voted_gn = np.stack([majority(label_nk[:, :VOTERS]) for label_nk in label_gnk])
        found.add_right(at._replace(metric=metrics.KNN(VOTERS)), dims, voted_gn == label_n)
        for dim, label_nk in zip(dims, label_gnk, strict=True):
            hit_nk = label_nk == label_n[:, None]
            for family, cutoff, value_n in _rankings(hit_nk, relevant_n, wanted[space]):
                if len(value_n) and (space == metrics.TRAINED or family is metrics.MAP):
                    found.results.append(at._replace(metric=family(cutoff)).mean(dim, value_n))
    found.add_file("retrieval", split, {"database": len(database_label_n)})
    return found


def _nearest(
    subject: Subject, split: str, depth: dict[str, int]
) -> Iterator[tuple[str, tuple[int, ...], np.ndarray]]:
    """Space, G prefixes and labels [G, N, k] of the k nearest, by `depth` of the space.

    Raises:
      NonFiniteError: the embeddings hold NaN or an infinity.
    """
    database, query = subject.embedded("train"), subject.embedded(split)
    spaces = subject.spaces  # checks the train split
    if not np.isfinite(query.z_nd).all():
        raise NonFiniteError(f"embeddings of {split} hold NaN or an infinity")
    for name, k in depth.items():
        space = spaces[name]
        dims = space.dims(subject.dims)
        if not dims:
            continue  # of a space with fewer coordinates than the shortest prefix
        row_gnk = nearest(
            space.project(database.z_nd),
            space.project(query.z_nd),
            dims,
            min(k, len(database.label_n)),
            mesh=subject.mesh,
        )
        yield name, dims, database.label_n[row_gnk]


def _rankings(
    hit_nk: np.ndarray, relevant_n: np.ndarray, cutoffs: tuple[int, ...]
) -> Iterator[tuple[metrics.Family, int, np.ndarray]]:
    """Metrics and their values over queries, from which ranks hold a relevant example."""
    hits_nk = hit_nk.cumsum(1)
    precision_nk = hits_nk / np.arange(1, hit_nk.shape[1] + 1)
    summed_nk = (precision_nk * hit_nk).cumsum(1)
    known_n = relevant_n > 0
    for cutoff in cutoffs:
        last = min(cutoff, hit_nk.shape[1]) - 1
        yield metrics.MAP, cutoff, summed_nk[:, last] / (last + 1)
        yield metrics.PRECISION, cutoff, precision_nk[:, last]
        yield metrics.RECALL, cutoff, hits_nk[known_n, last] / relevant_n[known_n]
