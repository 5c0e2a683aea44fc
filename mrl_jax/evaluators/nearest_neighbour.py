"""1-nearest-neighbour accuracy at every prefix, beside PCA and random dims (paper, Table 2)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mrl_jax.evaluators.finding import Finding
from mrl_jax.evaluators.subject import Subject
from mrl_jax.kernels import prefix_matmul, prefix_norms

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


SPACES = ("", "_pca", "_random")


def measure(subject: Subject, split: str) -> Finding:
    """1-NN accuracy among the train split, in the embedding and in its untrained rivals.

    "{split}/1nn" of the first m dims, "{split}/1nn_pca" of PCA to m dims, "{split}/1nn_random" of
    m dims drawn at random.
    """
    found = Finding()
    database, query = subject.embedded("train"), subject.embedded(split)
    for suffix in SPACES:
        space = subject.spaces[suffix]
        dims = space.dims(subject.dims)
        found_gb = neighbours(space.project(database.z_nd), space.project(query.z_nd), dims)
        right_gb = database.label_n[found_gb] == query.label_n
        found.add_right(f"{split}/1nn{suffix}", dims, right_gb)
    return found
