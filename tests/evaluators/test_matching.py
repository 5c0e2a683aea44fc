import numpy as np
import pytest

from mrl_jax.evaluators import matching
from mrl_jax.record.results import Series

DIMS = (2, 3, 8)


def brute_force(a, b, a_id, b_id, dim):
    """Row by row: every b that competes must be surely farther than the own one."""
    right = []
    for i in range(len(a)):
        cosines = [
            a[i, :dim] @ y[:dim] / (np.linalg.norm(a[i, :dim]) * np.linalg.norm(y[:dim])) for y in b
        ]
        others = [
            j for j in range(len(b)) if b_id[j] not in (a_id[i], b_id[i]) and a_id[j] != a_id[i]
        ]
        right.append(all(cosines[j] < cosines[i] for j in others))
    return right


@pytest.mark.parametrize("scores", [2**24, 100])
def test_it_is_the_definition_at_every_prefix(monkeypatch, scores):
    """Also where rows are gone through a few at a time."""
    monkeypatch.setattr(matching, "_MAX_SCORES", scores)
    rng = np.random.default_rng(0)
    a = rng.normal(size=(40, 8)).astype(np.float32)
    b = (a + rng.normal(size=(40, 8))).astype(np.float32)
    a_id, b_id = np.arange(40), np.arange(40) + 40
    a_id[3] = a_id[7]  # two rows with the same a
    b_id[[10, 11]] = b_id[12]  # three with the same b
    b_id[20] = a_id[21]  # a b that is another row's a
    found = matching.measure(a, b, a_id, b_id, Series(split="val"), DIMS)
    dims, right_gn = found.examples["val/match"]
    assert dims == DIMS
    for dim, right_n in zip(DIMS, right_gn, strict=True):
        assert right_n.tolist() == brute_force(a, b, a_id, b_id, dim)
    assert [r.n for r in found.results] == [40] * 3
    assert 0 < found.results[0].value < found.results[2].value < 1


def test_constant_zero_and_nan_embeddings_are_not_right():
    ids = np.arange(4), np.arange(4) + 4
    for x in (np.ones((4, 2)), np.zeros((4, 2)), np.full((4, 2), np.nan)):
        with np.errstate(invalid="ignore"):
            found = matching.measure(x, x, *ids, Series(split="val"), (2,))
        assert found.results[0].value == 0


def test_lengths_change_nothing():
    rng = np.random.default_rng(1)
    a = rng.normal(size=(10, 4))
    found = matching.measure(a, a * 7, np.arange(10), np.arange(10) + 10, Series(split="val"), (4,))
    assert found.results[0].value == 1
