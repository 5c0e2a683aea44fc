"""What an engine must give for a schedule: brute force in float64, and vectors to try it on."""

import numpy as np

FIRST_ID = 2**41


def vectors(n, width=64, classes=40, seed=0):
    """Ids in no order, and rows around class means whose first dims tell most."""
    rng = np.random.default_rng(seed)
    scale_d = (1 + np.arange(width)) ** -0.5
    means_cd = np.random.default_rng(99).normal(size=(classes, width)) * scale_d
    z_nd = means_cd[rng.integers(0, classes, n)] + 0.6 * rng.normal(size=(n, width)) * scale_d
    return FIRST_ID + 3 * rng.permutation(n), z_nd.astype(np.float32)


def scores(z_nd, query_d, metric):
    z_nd, query_d = z_nd.astype(np.float64), query_d.astype(np.float64)
    if metric == "l2":
        return -np.square(z_nd - query_d).sum(1)
    products_n = z_nd @ query_d
    if metric == "cosine":
        lengths_n = np.linalg.norm(z_nd, axis=1) * np.linalg.norm(query_d)
        return products_n / np.maximum(lengths_n, 1e-24)
    return products_n


def expected(ids_n, z_nd, query_bd, k, schedule, metric, first=np.float32):
    """Ids and scores [B, k]; the first stage's prefixes are rounded to a dtype."""
    ids_bk, scores_bk = [], []
    for query_d in query_bd:
        left_n = np.arange(len(ids_n))
        for dim, keep in (*schedule.stages, (schedule.final, k)):
            dtype = first if len(left_n) == len(ids_n) and schedule.stages else np.float32
            z_cd, q_d = z_nd[left_n, :dim].astype(dtype), query_d[:dim].astype(dtype)
            score_c = scores(z_cd, q_d, metric)
            order_c = np.lexsort((ids_n[left_n], -score_c))[:keep]
            left_n = left_n[order_c]
        ids_bk.append(ids_n[left_n])
        scores_bk.append(score_c[order_c])
    return np.array(ids_bk), np.array(scores_bk)


def recall(found_bk, right_bk):
    return np.mean([len(set(f) & set(r)) / len(r) for f, r in zip(found_bk, right_bk, strict=True)])


def check(found, right):
    assert found[0].dtype == np.int64
    assert found[1].dtype == np.float32
    np.testing.assert_array_equal(found[0], right[0])
    np.testing.assert_allclose(found[1], right[1], rtol=2e-6, atol=2e-6)
