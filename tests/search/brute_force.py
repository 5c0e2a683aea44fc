"""Vectors for tests of indexes, and what must be found among them, in float64."""

import itertools

import numpy as np

from mrl_jax.search.index import codes
from mrl_jax.store.vectors import open_vectors


def draw(rows, width, seed=0):
    """Vectors of many lengths whose first dims say most, as those of MRL."""
    generator = np.random.default_rng(seed)
    z_nd = generator.standard_normal((rows, width)) * 0.95 ** np.arange(width)
    return (z_nd * generator.uniform(0.3, 3, (rows, 1))).astype(np.float32)


def store(folder, z_nd, ids=None, name="z"):
    """The same vectors on disk."""
    np.save(folder / f"{name}.npy", z_nd)
    if ids is None:
        return open_vectors(folder / f"{name}.npy")
    np.save(folder / f"{name}-ids.npy", np.asarray(ids, np.int64))
    return open_vectors(folder / f"{name}.npy", folder / f"{name}-ids.npy")


def similar(z_nd, query_bd, metric):
    """The scores [B, N] that an index gives."""
    z_nd, query_bd = z_nd.astype(np.float64), query_bd.astype(np.float64)
    if metric == "l2":
        return -np.square(query_bd[:, None] - z_nd).sum(2)
    score_bn = query_bd @ z_nd.T
    if metric == "cosine":
        score_bn /= np.maximum(np.linalg.norm(z_nd, axis=1), 1e-12)
        score_bn /= np.maximum(np.linalg.norm(query_bd, axis=1), 1e-12)[:, None]
    return score_bn


def best(score_bn, k):
    """Rows [B, k] with the largest scores, the smaller of equal ones first."""
    return np.argsort(-score_bn, axis=1, kind="stable")[:, :k]


def check(found, score_bn, ids=None):
    """Whether (ids, scores) are the best of these scores, those of the ids found, in order."""
    ids_bk, scores_bk = found
    k = ids_bk.shape[1]
    assert (ids_bk.dtype, scores_bk.dtype) == (np.int64, np.float32)
    ids = np.arange(score_bn.shape[1]) if ids is None else np.asarray(ids)
    place = {id_: row for row, id_ in enumerate(ids.tolist())}
    row_bk = np.array([[place[id_] for id_ in found] for found in ids_bk.tolist()])
    assert all(len(set(row)) == k for row in row_bk.tolist())
    size = np.abs(score_bn).max()
    np.testing.assert_allclose(
        scores_bk, np.take_along_axis(score_bn, row_bk, 1), rtol=1e-5, atol=1e-6 * size
    )
    np.testing.assert_allclose(
        scores_bk, -np.sort(-score_bn, 1)[:, :k], rtol=1e-5, atol=1e-6 * size
    )
    assert (np.diff(scores_bk, axis=1) <= 0).all()


def decoded(z_nw, code):
    """What the codes of these dims stand for, [N, w] float64."""
    code_nb, gain_n = codes.encode(z_nw, code)
    if code == "binary":
        there_nw = 2.0 * np.unpackbits(code_nb, axis=1)[:, : z_nw.shape[1]] - 1
    else:
        there_nw = code_nb.view(code).astype(np.float64)
    return there_nw * gain_n[:, None]


def stage_scores(z_nd, query_bd, dims, code, metric):
    """By codes, of every stage: a list of [B, N] that rank rows as the metric does."""
    product_bn, found = 0, []
    for a, b in itertools.pairwise((0, *dims)):
        product_bn = product_bn + decoded(query_bd[:, a:b], code) @ decoded(z_nd[:, a:b], code).T
        norm_n = np.maximum(np.linalg.norm(z_nd[:, :b].astype(np.float64), axis=1), 1e-12)
        if metric == "l2":
            found.append(product_bn - np.square(norm_n) / 2)
        else:
            found.append(product_bn / norm_n if metric == "cosine" else product_bn)
    return found


def funnel(stages_gbn, keeps, allowed_bn=None):
    """Rows kept [B, keeps[-1]], rising, and for which queries rounding cannot matter."""
    score_bn = stages_gbn[0]
    in_bn = np.ones(score_bn.shape, bool) if allowed_bn is None else allowed_bn.copy()
    clear_b = np.ones(len(score_bn), bool)
    for score_bn, keep in zip(stages_gbn, keeps, strict=True):
        score_bn = np.where(in_bn, score_bn, -np.inf)
        sorted_bn = -np.sort(-score_bn, 1)
        if keep < score_bn.shape[1]:
            size = np.abs(sorted_bn[:, 0])
            clear_b &= sorted_bn[:, keep - 1] - sorted_bn[:, keep] > 1e-6 * size
        in_bn &= score_bn >= sorted_bn[:, keep - 1 : keep]
    return in_bn, clear_b
