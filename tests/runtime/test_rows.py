import numpy as np
import pytest

from mrl_jax.errors import NonFiniteError
from mrl_jax.runtime.rows import Rows, embedded, gathered, in_batches, one_ahead

X_ND = np.arange(21, dtype=np.float32).reshape(7, 3)
PADDED = [{"x": X_ND[:3]}, {"x": X_ND[3:6]}, {"x": np.concatenate([X_ND[6:], X_ND[:2] * 0])}]


def read(first, last):
    """Rows of `X_ND` in batches of two, backwards and padded to three."""
    rows = np.arange(last - first)[::-1]
    for start in range(0, len(rows), 2):
        row_b = rows[start : start + 2]
        padding_pd = np.full((3 - len(row_b), 3), np.nan, np.float32)
        yield row_b, {"x": np.concatenate([X_ND[first + row_b], padding_pd])}


def test_rows_come_in_their_order_without_padding():
    done = []
    found = gathered(((row_b, batch["x"]) for row_b, batch in read(0, 7)), 7, progress=done.append)
    np.testing.assert_array_equal(found, X_ND)
    assert done == [2, 2, 2, 1]
    both = in_batches(lambda batch: (batch["x"], {"sum": batch["x"].sum(1)}), PADDED, 7)
    np.testing.assert_array_equal(both[0], X_ND)
    np.testing.assert_array_equal(both[1]["sum"], X_ND.sum(1))
    with pytest.raises(ValueError, match="there are no batches"):
        gathered([], 0)


def test_embeddings_are_cut_and_scaled_in_the_order_that_is_asked_for():
    rows = Rows(7, read)
    part_nd = X_ND[1:6].astype(np.float64)
    unit_nd = part_nd / np.linalg.norm(part_nd, axis=1, keepdims=True)
    short_nd = part_nd[:, :2] / np.linalg.norm(part_nd[:, :2], axis=1, keepdims=True)
    for options, expected_nd in (
        ({}, part_nd[:, :2]),
        ({"scaled": True}, unit_nd[:, :2]),
        ({"normalize": True, "scaled": True}, short_nd),
    ):
        found_nd = embedded(lambda batch: batch["x"], rows, 2, 1, 6, **options)
        np.testing.assert_allclose(found_nd, expected_nd, rtol=1e-6)
    assert embedded(lambda batch: batch["x"], rows, 2, 4, 4).shape == (0, 2)


def test_a_number_that_is_none_names_its_row():
    names = tuple("abcdefg")
    with pytest.raises(NonFiniteError, match=r"the embedding of image 4 \(e\) holds NaN"):
        embedded(
            lambda batch: np.where(batch["x"] == 12, np.inf, batch["x"]),
            Rows(7, read, names=names),
            3,
            2,
            7,
            unit="image",
        )


def test_a_result_is_used_when_the_next_one_has_begun():
    begun = []

    def work():
        for i in range(3):
            begun.append(i)
            yield i

    assert [(i, len(begun)) for i in one_ahead(work())] == [(0, 2), (1, 3), (2, 3)]
