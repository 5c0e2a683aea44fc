import numpy as np
import pytest

from mrl_jax.search.index import clusters, loops


def scores(kind, generator, count):
    if kind == "many ties":
        return generator.integers(-3, 4, count) / np.float32(4)
    if kind == "both zeros":
        return generator.choice(np.array([-0.0, 0.0], np.float32), count)
    if kind == "far apart":
        exponents = generator.uniform(-37, 37, count)
        return generator.choice([-1, 1], count) * 10.0**exponents
    return generator.normal(size=count)


@pytest.mark.parametrize("kind", ["normal", "many ties", "both zeros", "far apart"])
def test_the_best_are_kept_and_of_equal_ones_the_first(kind):
    generator = np.random.default_rng(0)
    for count, keep in ((1, 1), (5, 5), (5, 9), (40, 1), (200, 30), (1000, 999)):
        score_bc = np.stack([scores(kind, generator, count) for _ in range(3)]).astype(np.float32)
        kept_bc = score_bc.copy()
        place_bc = np.tile(np.arange(count), (3, 1))
        count_b = np.full(3, count)
        found = loops.Candidates(kept_bc, place_bc, count_b, np.zeros(3, np.float32))
        loops.keep_best(found, keep)
        assert (count_b == min(count, keep)).all()
        best_bk = np.sort(np.argsort(-score_bc, 1, kind="stable")[:, :keep], 1)
        np.testing.assert_array_equal(place_bc[:, : count_b[0]], best_bk)
        np.testing.assert_array_equal(
            kept_bc[:, : count_b[0]], np.take_along_axis(score_bc, best_bk, 1)
        )


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("lists", [3, 40, 203, 1024])
def test_nearest_lists(lists, metric):
    """Of few and many lists, of numbers that groups do not divide, and of lists that are equal."""
    generator = np.random.default_rng(lists)
    centroid_ld = generator.normal(size=(lists, 6)).astype(np.float32)
    centroid_ld[lists // 2] = centroid_ld[0]
    z_bd = np.concatenate([generator.normal(size=(20, 6)), centroid_ld[:1]]).astype(np.float32)
    score_bl = clusters.directions(z_bd, metric).astype(np.float64) @ centroid_ld.T
    if metric == "l2":
        score_bl -= np.square(centroid_ld).sum(1) / 2
    for probes in {1, 2, min(24, lists), lists}:
        list_bp = clusters.nearest(z_bd, centroid_ld, probes, metric)
        assert all(len(set(found)) == probes for found in list_bp.tolist())
        found_bp = -np.sort(-np.take_along_axis(score_bl, list_bp, 1), 1)
        np.testing.assert_allclose(found_bp, -np.sort(-score_bl, 1)[:, :probes], rtol=1e-5)
