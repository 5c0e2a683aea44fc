"""1-nearest-neighbour accuracy at every prefix, beside PCA and random dims (paper, Table 2)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.decomposition import PCA

from mrl_jax.kernels import prefix_matmul, prefix_norms
from mrl_jax.results import Result, proportion

# Similarities held at a time: prefixes x queries x database.
_MAX_SIMILARITIES = 2**26


@functools.partial(jax.jit, static_argnames="dims")
def _neighbours(database_nd: jax.Array, query_bd: jax.Array, dims: tuple[int, ...]) -> jax.Array:
    # The query's own norm scales all its similarities alike, so it is not needed.
    similarity_gbn = prefix_matmul(query_bd, database_nd.T, dims)
    return (similarity_gbn / prefix_norms(database_nd, dims)[:, None, :]).argmax(-1)


def neighbours(database_nd: np.ndarray, query_bd: np.ndarray, dims: tuple[int, ...]) -> np.ndarray:
    """The row of the database with the highest cosine to each query, at every prefix: [G, B].

    All prefixes come from one pass over the dims, by running sums; ties go to the first row.
    """
    chunk = max(1, _MAX_SIMILARITIES // (len(dims) * len(database_nd)))
    database_nd = jnp.asarray(database_nd)
    found = [
        np.asarray(_neighbours(database_nd, query_bd[i : i + chunk], dims))
        for i in range(0, len(query_bd), chunk)
    ]
    return np.concatenate(found, axis=1)


def neighbour_accuracy(
    database_nd: np.ndarray,
    database_label_n: np.ndarray,
    query_bd: np.ndarray,
    query_label_b: np.ndarray,
    dims: tuple[int, ...],
    *,
    prefix: str,
    seed: int,
) -> list[Result]:
    """1-NN accuracy of the first m dims, of PCA to m dims and of m dims drawn at random.

    Args:
      database_nd: [N, D] embeddings to search; PCA is fitted on them.
      database_label_n: [N] their classes.
      query_bd: [B, D] embeddings to classify.
      query_label_b: [B] their classes.
      dims: the prefixes m, at most D.
      prefix: first part of the result names, e.g. "val".
      seed: of the random choice of dims.

    Returns:
      Results "{prefix}/1nn", "{prefix}/1nn_pca" and "{prefix}/1nn_random" at every dim. PCA stops
      at min(N, D) dims.
    """
    order = np.random.default_rng(seed).permutation(database_nd.shape[1])
    components = min(database_nd.shape)
    pca = PCA(components, svd_solver="full").fit(database_nd.astype(np.float64))
    spaces = {
        "1nn": (database_nd, query_bd, dims),
        "1nn_pca": (
            pca.transform(database_nd).astype(np.float32),
            pca.transform(query_bd).astype(np.float32),
            tuple(m for m in dims if m <= components),
        ),
        "1nn_random": (database_nd[:, order], query_bd[:, order], dims),
    }
    results = []
    for name, (database, query, fitting) in spaces.items():
        found_gb = database_label_n[neighbours(database, query, fitting)]
        hits_g = (found_gb == query_label_b).sum(-1)
        results += [
            proportion(f"{prefix}/{name}", dim, int(hits), len(query_label_b))
            for dim, hits in zip(fitting, hits_g, strict=True)
        ]
    return results
