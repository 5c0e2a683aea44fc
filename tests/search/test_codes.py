import numpy as np
import pytest
from brute_force import decoded, draw

from mrl_jax.errors import DataError, UsageError
from mrl_jax.search.index import clusters, codes

CODES = ("float32", "bfloat16", "float16", "int8", "binary")


@pytest.mark.parametrize("width", [1, 7, 8, 63, 64, 65, 200])
@pytest.mark.parametrize("code", CODES)
def test_sizes(code, width):
    z_nw = draw(5, width)
    code_nb, gain_n = codes.encode(z_nw, code)
    assert (code_nb.dtype, gain_n.dtype) == (np.uint8, np.float32)
    assert code_nb.shape == (5, codes.code_bytes(width, code))
    assert gain_n.shape == (5,)
    bits = {"float32": 32, "bfloat16": 16, "float16": 16, "int8": 8, "binary": 1}[code]
    assert 8 * code_nb.shape[1] - bits * width < 64  # compared 8 bytes at a time


@pytest.mark.parametrize("code", CODES)
def test_what_codes_hold(code):
    z_nw = draw(400, 48) * np.float32(3)
    z_nw[:, 5] = 0
    there_nw = decoded(z_nw, code)
    if code == "float32":
        np.testing.assert_array_equal(there_nw, z_nw)
    elif code == "bfloat16":
        np.testing.assert_allclose(there_nw, z_nw, rtol=2**-8, atol=0)
        assert (there_nw != z_nw).any()
    elif code == "float16":
        np.testing.assert_allclose(there_nw, z_nw, rtol=2**-11, atol=2**-25)
    elif code == "int8":
        step_n = np.abs(z_nw).max(1) / 127
        assert (np.abs(there_nw - z_nw) <= 0.5001 * step_n[:, None]).all()
        np.testing.assert_allclose(np.abs(there_nw).max(1), np.abs(z_nw).max(1), rtol=1e-6)
    else:
        np.testing.assert_array_equal(np.sign(there_nw), np.where(z_nw > 0, 1, -1))
        # No other gain comes nearer to the row (the mean magnitude is where the derivative is 0).
        error_n = np.square(there_nw - z_nw).sum(1)
        for factor in (0.98, 1.02):
            assert (np.square(factor * there_nw - z_nw).sum(1) > error_n).all()


@pytest.mark.parametrize("code", CODES)
def test_rows_do_not_depend_on_each_other(code):
    z_nw = draw(30, 24) * np.float32([[10.0**-i] for i in range(-15, 15)])
    z_nw = z_nw[15:] if code == "float16" else z_nw
    code_nb, gain_n = codes.encode(z_nw, code)
    for i in range(len(z_nw)):
        one_1b, gain_1 = codes.encode(z_nw[i : i + 1], code)
        np.testing.assert_array_equal(one_1b[0], code_nb[i])
        assert gain_1[0] == gain_n[i]
    if code in ("int8", "binary"):  # lengths are in the gains alone
        np.testing.assert_array_equal(codes.encode(z_nw * 2, code)[0], code_nb)
        np.testing.assert_array_equal(codes.encode(z_nw * 2, code)[1], gain_n * 2)


@pytest.mark.parametrize("code", CODES)
def test_zeros_and_no_rows(code):
    np.testing.assert_array_equal(decoded(np.zeros((3, 16), np.float32), code), 0)
    code_nb, gain_n = codes.encode(np.empty((0, 16), np.float32), code)
    assert code_nb.shape == (0, codes.code_bytes(16, code))
    assert gain_n.shape == (0,)


@pytest.mark.parametrize("code", CODES)
def test_parts_of_wider_arrays(code):
    z_nd = draw(20, 40)
    code_nb, gain_n = codes.encode(z_nd[::2, 8:24], code)
    same_nb, same_n = codes.encode(z_nd[::2, 8:24].copy(), code)
    np.testing.assert_array_equal(code_nb, same_nb)
    np.testing.assert_array_equal(gain_n, same_n)


def test_float16_does_not_reach_far():
    legal = np.full((2, 8), 65504, np.float32)
    assert np.isfinite(decoded(legal, "float16")).all()
    for x in (65505, -1e6):
        z_nw = legal.copy()
        z_nw[1, 3] = x
        with pytest.raises(UsageError, match="numbers up to 65504; choose float32 or int8"):
            codes.encode(z_nw, "float16")
        assert np.isfinite(decoded(z_nw, "int8")).all()


@pytest.mark.parametrize("metric", ["cosine", "inner", "l2"])
@pytest.mark.parametrize("probes", [1, 3, 40])
def test_nearest_lists(metric, probes):
    z_nd, query_bd = draw(900, 12), draw(60, 12, seed=1)
    query_bd[7] = 0
    centroid_ld = clusters.fit(z_nd, 40, metric, seed=3)
    assert centroid_ld.shape == (40, 12)
    np.testing.assert_array_equal(clusters.fit(z_nd, 40, metric, seed=3), centroid_ld)
    if metric != "l2":
        np.testing.assert_allclose(np.linalg.norm(centroid_ld, axis=1), 1, rtol=1e-5)
    wide_bd, wide_ld = query_bd.astype(np.float64), centroid_ld.astype(np.float64)
    score_bl = wide_bd @ wide_ld.T
    if metric == "l2":
        score_bl = -np.square(wide_bd[:, None] - wide_ld).sum(2)
    least_b = np.sort(score_bl, 1)[:, -probes]
    found_bp = clusters.nearest(query_bd, centroid_ld, probes, metric)
    assert found_bp.shape == (60, probes)
    assert all(len(set(found)) == probes for found in found_bp.tolist())
    assert (np.take_along_axis(score_bl, found_bp, 1) >= least_b[:, None] - 1e-4).all()


def test_fewer_rows_than_lists():
    with pytest.raises(DataError, match="8 lists need as many rows at least, there are 7"):
        clusters.fit(draw(7, 4), 8, "cosine", 0)
    assert clusters.fit(draw(8, 4), 8, "cosine", 0).shape == (8, 4)
