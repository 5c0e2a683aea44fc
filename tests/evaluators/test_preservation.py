import numpy as np
import pytest
import scipy.stats

from mrl_jax.errors import DataError, NonFiniteError
from mrl_jax.evaluators import preservation, spaces
from mrl_jax.record.results import Series

VAL = Series(split="val")
DIMS = (1, 3, 8)


def unit(z):
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def nearest(z_nd, dim):
    """Row by row the ten other rows of the largest cosine."""
    x = unit(z_nd[:, :dim].astype(np.float64))
    found = []
    for i in range(len(x)):
        order = np.argsort(-(x @ x[i]), kind="stable")
        found.append({int(j) for j in order if j != i} and [int(j) for j in order if j != i][:10])
    return found


def vectors(n=60):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 8)).astype(np.float32) * np.linspace(2, 0.3, 8, dtype=np.float32)


@pytest.mark.parametrize("queries", [2000, 37])
def test_it_is_the_definition(monkeypatch, queries):
    monkeypatch.setattr(preservation, "QUERIES", queries)
    whole = vectors()
    other = whole + 0.3 * np.random.default_rng(1).normal(size=whole.shape).astype(np.float32)
    compared = [("trained", DIMS, other), ("cut", DIMS, whole)]
    found = preservation.measure(compared, whole, VAL, seed=5)
    by_name = {(r.name, r.dim): r for r in found.results}
    order = np.random.default_rng(5).permutation(60)
    wanted = nearest(whole, 8)
    for suffix, z_nd in (("", other), ("_cut", whole)):
        for dim in DIMS[1:]:  # at one dim all cosines are equal up to their sign
            near = nearest(z_nd, dim)
            share = [len({*near[i]} & {*wanted[i]}) / 10 for i in np.sort(order[:queries])]
            overlap = by_name[f"val/overlap10{suffix}", dim]
            assert overlap.value == pytest.approx(np.mean(share))
            assert overlap.stderr == pytest.approx(scipy.stats.sem(share))
            assert overlap.n == min(60, queries)
            cosines = [
                [unit(x[:, :d])[i] @ unit(x[:, :d])[j] for i, j in order[:60].reshape(2, 30).T]
                for x, d in ((z_nd.astype(np.float64), dim), (whole.astype(np.float64), 8))
            ]
            kept = by_name[f"val/cosine_spearman{suffix}", dim]
            # Two of them are 8e-8 apart, which is no order.
            expected = scipy.stats.spearmanr(*np.round(cosines, 6)).statistic
            assert kept.value == pytest.approx(expected)
            assert kept.n == 30
    assert by_name["val/overlap10_cut", 8].value == 1
    assert by_name["val/cosine_spearman_cut", 8].value == pytest.approx(1)
    assert 0.3 < by_name["val/overlap10_cut", 3].value < 1


def test_the_standard_error_of_spearman_is_that_of_other_pairs():
    values, stderrs = [], []
    rng = np.random.default_rng(0)
    for _ in range(100):
        x, noise = rng.normal(size=(2, 200))
        values.append(preservation._spearman(x, x**3 + noise))
        stderrs.append(preservation._jackknife(x, x**3 + noise))
    assert np.mean(stderrs) == pytest.approx(np.std(values), rel=0.2)


def test_equal_rows_do_not_take_the_place_of_others():
    whole = np.repeat(vectors(20), 3, axis=0)  # every row three times
    found = preservation.measure([("trained", DIMS, whole.copy())], whole, VAL, seed=0)
    assert [r.value for r in found.results if r.name == "val/overlap10"][-1] == 1


def test_constant_vectors_keep_no_order():
    whole = vectors()
    found = preservation.measure([("trained", DIMS, np.ones_like(whole))], whole, VAL, seed=0)
    assert [r.value for r in found.results if r.name == "val/cosine_spearman"] == [0, 0, 0]


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(DataError, match="needs at least 12 vectors, got 11"):
        preservation.measure([], vectors(11), VAL, seed=0)
    bad = vectors()
    bad[3, 1] = np.nan
    with pytest.raises(NonFiniteError, match="1 of 60 embeddings of val"):
        preservation.measure([("trained", DIMS, bad)], vectors(), VAL, seed=0)


def test_axes_about_the_origin_keep_inner_products_best():
    z_nd = vectors() + np.float32(1.5)
    axes = spaces.axes_about_origin(z_nd)
    np.testing.assert_allclose(axes.T @ axes, np.eye(8), atol=1e-12)
    z = z_nd.astype(np.float64)
    _, singular, rows = np.linalg.svd(z)
    for m in (1, 3, 8):
        kept = z @ axes[:, :m]
        error = np.square(z @ z.T - kept @ kept.T).sum()
        assert error == pytest.approx((singular[m:] ** 4).sum(), abs=1e-6)
        np.testing.assert_allclose(np.abs(rows[:m] @ axes[:, :m]), np.eye(m), atol=1e-9)
    assert (axes[np.abs(axes).argmax(0), np.arange(8)] > 0).all()
