"""What is deleted is no hindrance: as long as k rows are left, every query finds k."""

import numpy as np
import pytest
from brute_force import best, check, draw, similar, store

from mrl_jax.search.index import NO_ID, Index, clusters
from mrl_jax.search.plan import Plan
from mrl_jax.search.schedule import Schedule

N, D, K = 1200, 16, 10
SHORT = Schedule.parse(f"8:60 > {D}")
LISTS = {"lists": 24, "list_dim": 8, "probes": 2}
PLANS = {
    "exact": Plan(Schedule.exact(D), "inner"),
    "flat": Plan(Schedule.parse(f"8:60 > 12:30 > {D}"), "l2", "float16"),
    "lists": Plan(SHORT, code="int8", **LISTS),
    "lists l2": Plan(Schedule.parse(f"8:60 > 12:30 > {D}"), "l2", **LISTS),
    "HNSW": Plan(SHORT, factory="HNSW8"),
    "HNSW inner": Plan(SHORT, "inner", factory="HNSW8_SQ8", parameters="efSearch=20"),
    "IVF": Plan(SHORT, "l2", factory="IVF24,Flat", parameters="nprobe=2"),
    "IVF of few bits": Plan(SHORT, factory="PCA8,IVF24,PQ4x4fs"),
    "IVF by HNSW": Plan(SHORT, "l2", factory="IVF24_HNSW8,Flat", parameters="nprobe=20"),
    "refined": Plan(SHORT, factory="IVF24,PQ4x4,RFlat", parameters="k_factor_rf=2"),
    "cannot be told": Plan(SHORT, "l2", factory="PQ4x4fs"),
}


@pytest.fixture(params=PLANS)
def plan(request):
    return PLANS[request.param]


def grouped(rows, seed):
    """Half of the rows in each of two groups, far from each other."""
    generator = np.random.default_rng(seed)
    z_nd = 0.4 * generator.standard_normal((rows, D))
    z_nd[np.arange(rows), np.arange(rows) % 2] += 4
    return z_nd.astype(np.float32)


def recall(found_bk, wanted_bk):
    return (found_bk[:, :, None] == wanted_bk[:, None, :]).any(2).mean()


def test_near_a_group_that_is_deleted(plan, tmp_path):
    z_nd, query_bd = grouped(N, 0), grouped(40, 1)
    index = Index.build(tmp_path / "index", store(tmp_path, z_nd), plan=plan)
    left = np.arange(1, N, 2)
    wanted_bk = left[best(similar(z_nd[left], query_bd, plan.metric), K)]
    index.delete(np.arange(0, N, 2))
    for _ in range(2):
        ids_bk, scores_bk = index.search(query_bd, K)
        assert (ids_bk != NO_ID).all()
        assert all(len(set(ids)) == K for ids in ids_bk.tolist())
        assert (np.diff(scores_bk, axis=1) <= 0).all()
        # Those who look near what is gone find about as much as the others, not the next best.
        near, far = (recall(ids_bk[g::2], wanted_bk[g::2]) for g in (0, 1))
        if plan is not PLANS["HNSW inner"]:  # whose graph does not lead everywhere
            assert near > min(0.5, 0.7 * far)
        alone = np.concatenate([index.search(query_bd[b : b + 1], K)[0] for b in range(8)])
        np.testing.assert_array_equal(alone, ids_bk[:8])
        index.compact()


def test_changes_at_random(plan, tmp_path):
    """Added, deleted and compacted in any order: only what is there, and k of it."""
    generator = np.random.default_rng(list(PLANS.values()).index(plan))
    z_nd, query_bd = draw(900, D), draw(12, D, seed=1)
    index = Index.build(tmp_path / "index", store(tmp_path, z_nd[:400]), plan=plan)
    there, unused = set(range(400)), 400
    for step in range(10):
        change = generator.choice(["add", "delete", "delete near", "compact"])
        if change == "add" and unused < 900:
            ids = np.arange(unused, min(unused + generator.integers(1, 120), 900))
            index.add(store(tmp_path, z_nd[ids], ids, name=f"more{step}"))
            there, unused = there | set(ids.tolist()), ids[-1] + 1
        elif change == "compact":
            index.compact()
        else:
            rows = np.array(sorted(there))
            if change == "delete":
                gone = generator.permutation(rows)[: len(rows) // 3]
            else:
                nearest_k = best(similar(z_nd[rows], query_bd[:1], plan.metric), len(rows) * 2 // 3)
                gone = rows[nearest_k[0]]
            index.delete(gone)
            there -= set(gone.tolist())
        rows = np.array(sorted(there))
        assert index.rows == len(rows)
        k = min(K, len(rows))
        ids_bk, scores_bk = index.search(query_bd, K)
        assert (ids_bk[:, k:] == NO_ID).all()
        assert set(ids_bk[:, :k].ravel().tolist()) <= there
        assert all(len(set(ids)) == k for ids in ids_bk[:, :k].tolist())
        truth_bn = similar(z_nd, query_bd, plan.metric)
        np.testing.assert_allclose(
            scores_bk[:, :k], np.take_along_axis(truth_bn, ids_bk[:, :k], 1), rtol=1e-5, atol=1e-5
        )
        if not plan.schedule.stages:
            check((ids_bk[:, :k], scores_bk[:, :k]), truth_bn[:, rows], rows)
    # Who keeps all finds all, whatever was deleted.
    if plan.lists == 1 and there:
        keeps = (10**4,) * len(plan.schedule.stages)
        check(index.search(query_bd, k, keeps=keeps), truth_bn[:, rows], rows)


@pytest.mark.parametrize("metric", ["cosine", "l2", "inner"])
def test_more_candidates_than_a_graph_looks_at_by_itself(metric, tmp_path):
    """The shortlist is as long as it should be, though `efSearch` is 16 where nobody says more."""
    z_nd, query_bd = 2 + draw(600, D), draw(20, D, seed=1)
    wanted_bk = best(similar(z_nd, query_bd, metric), K)
    plan = Plan(Schedule.parse(f"8:600 > {D}"), metric, factory="HNSW8")
    index = Index.build(tmp_path / "index", store(tmp_path, z_nd), plan=plan)
    assert recall(index.search(query_bd, K)[0], wanted_bk) == 1
    ids_bk, _ = index.search(query_bd, 400, keeps=(400,))
    assert (ids_bk != NO_ID).all()
    index.delete(np.arange(0, 600, 2))
    ids_bk, _ = index.search(query_bd, 250, keeps=(250,))
    assert (ids_bk % 2 == 1).all()


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_lists_looked_into(metric):
    """Against sorting all of them."""
    generator = np.random.default_rng(0)
    centroid_ld, query_bd = draw(40, 6), draw(30, 6, seed=1)
    score_bl = similar(centroid_ld, query_bd, metric)
    if metric == "cosine":  # centroids are directions there
        centroid_ld /= np.linalg.norm(centroid_ld, axis=1, keepdims=True)
    rows_l = generator.integers(0, 4, 40) * generator.integers(0, 2, 40)
    for probes, least, enough in ((1, 1, 1), (3, 6, 20), (40, 1, 1), (2, 5, 10**6), (30, 3, 30)):
        list_bp = clusters.looked_into(query_bd, centroid_ld, probes, metric, rows_l, least, enough)
        for score_l, found_p in zip(score_bl, list_bp, strict=True):
            order = [which for which in np.argsort(-score_l) if rows_l[which]]
            wanted = order[:probes]
            if rows_l[wanted].sum() < least:
                before = np.cumsum(rows_l[order]) - rows_l[order]
                wanted = [which for which, n in zip(order, before, strict=True) if n < enough]
            found = found_p[found_p < 40].tolist()
            assert sorted(found) == sorted(wanted)
