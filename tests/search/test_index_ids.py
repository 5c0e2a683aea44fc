"""Ids of whole numbers and of texts, given as arrays: what has an id is found, read, replaced."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pyarrow as pa
import pytest
from brute_force import best, draw, similar, store

from mrl_jax.errors import DataError, UsageError
from mrl_jax.search import Index
from mrl_jax.search.index import NO_ID
from mrl_jax.search.plan import Plan
from mrl_jax.search.schedule import Schedule

N, D = 240, 16
PLANS = {
    "exact": Plan(Schedule.exact(D)),
    "lists": Plan(Schedule.parse(f"8:200 > {D}"), code="int8", lists=4, list_dim=8, probes=4),
    "Flat": Plan(Schedule.parse(f"8:200 > {D}"), factory="Flat"),
}
IDS = {
    "int64": np.random.default_rng(0).permutation(N) * 7 - 2**40,
    # Of many lengths and alphabets, some the beginning of others.
    "texts": np.array([f"{'ü' * (n % 5)}{'/' * (n % 3)}{n}" for n in range(N)], object),
}


@pytest.fixture(params=PLANS)
def plan(request):
    return PLANS[request.param]


@pytest.fixture(params=IDS)
def ids(request):
    return IDS[request.param]


@pytest.fixture(scope="module")
def z_nd():
    return draw(N, D)


def truth(z_nd, query_bd, ids, k):
    return ids[best(similar(z_nd, query_bd, "cosine"), k)]


def same(found, wanted):
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)


def test_a_life_in_changes(plan, ids, z_nd, tmp_path):
    """Built, added to, replaced, deleted from and merged, with the truth beside it in numpy."""
    folder, query_bd = tmp_path / "index", draw(9, D, seed=1)
    index = Index.build(folder, z_nd[:150], ids[:150], plan=plan)
    index.add(z_nd[150:200], ids[150:200])
    there = dict(zip(ids[:200].tolist(), z_nd[:200], strict=True))

    def compare(index):
        assert len(index) == index.rows == len(there)
        left = np.array(list(there), ids.dtype)
        same(index.ids, left)
        rows_nd = np.stack(list(there.values()))
        found, _ = index.search(query_bd, 5)
        same(found, truth(rows_nd, query_bd, left, 5))
        assert all(isinstance(value, str | int) for value in found.ravel().tolist())
        asked = np.random.default_rng(1).choice(left, 30)  # some of them twice
        np.testing.assert_array_equal(index.get(asked), np.stack([there[i] for i in asked]))
        assert all(i in index for i in asked[:3].tolist())

    compare(index)
    new_nd = -2 * z_nd[140:220]
    index.upsert(new_nd, ids[140:220])
    for i, z_d in zip(ids[140:220].tolist(), new_nd, strict=True):
        there.pop(i, None)
        there[i] = z_d
    compare(index)
    index.delete(ids[100:160].tolist())
    index.delete(ids[7])
    for i in [*ids[100:160].tolist(), ids[7]]:
        del there[i]
    compare(index)
    assert ids[100] not in index
    compare(Index.open(folder))
    index.compact()
    compare(index)
    compare(Index.open(folder))
    index.verify()


def test_where_there_is_none(plan, ids, z_nd):
    index = Index.build(None, z_nd[:4], ids[:4], plan=plan if plan.lists == 1 else PLANS["exact"])
    found, scores = index.search(z_nd[:2], 6)
    nothing = NO_ID if ids.dtype == np.int64 else ""
    assert (found[:, 4:] == nothing).all()
    assert (found[:, :4] != nothing).all()
    assert (scores[:, 4:] == -np.inf).all()
    index.delete(ids[:4])
    assert (index.search(z_nd[:2], 6)[0] == nothing).all()
    assert (len(index), index.ids.tolist()) == (0, [])
    assert index.get(ids[:0]).shape == (0, D)
    same(index.search(np.empty((0, D), np.float32), 3)[0], np.empty((0, 3), ids.dtype))


def test_all_that_ids_and_vectors_may_be(z_nd):
    wanted = z_nd[:6]
    for given in (
        wanted,
        wanted.astype(np.float64),
        np.asfortranarray(wanted),
        jnp.asarray(wanted),
        wanted.tolist(),
    ):
        index = Index.build(None, given)
        np.testing.assert_array_equal(index.get([5, 0]), wanted[[5, 0]])
    half = wanted.astype(ml_dtypes.bfloat16)
    index = Index.build(None, jnp.asarray(half))
    np.testing.assert_array_equal(index.get(3)[0], half[3].astype(np.float32))
    assert index.search(jnp.asarray(half)[3], 1)[0].tolist() == [3]
    names = ["a", "b", "ü", "", "e", "f"]
    names[3] = "dd"
    for given in (
        names,
        tuple(names),
        np.array(names),
        np.array(names, object),
        np.array(names, np.dtypes.StringDType()),
        pa.array(names),
        pa.chunked_array([names[:2], names[2:]]),
    ):
        assert Index.build(None, wanted, given).ids.tolist() == names
    for given in (range(6), jnp.arange(6), np.arange(6, dtype=np.uint8), pa.array(range(6))):
        assert Index.build(None, wanted, given).ids.tolist() == list(range(6))


def test_one_query_without_a_batch(ids, z_nd):
    index = Index.build(None, z_nd, ids)
    found, scores = index.search(z_nd[17], 4)
    wanted = index.search(z_nd[17:18], 4)
    same(found, wanted[0][0])
    same(scores, wanted[1][0])
    assert found[0] == ids[17]


def test_an_id_of_another_kind_is_not_there(z_nd):
    numbers, texts = Index.build(None, z_nd), Index.build(None, z_nd, IDS["texts"])
    assert np.int32(3) in numbers
    for other in ("3", 3.0, None, N, [1, 2], [], (), True, 2**70, object()):
        assert other not in numbers
    assert IDS["texts"][3] in texts
    for other in ("none", 3, None, [], b"3", "\ud800"):
        assert other not in texts


REFUSED = [
    ([1, 2, 1, 3], DataError, "rows 0 and 2 have the same id, 1"),
    (["a", "b", "c", "b"], DataError, "rows 1 and 3 have the same id, 'b'"),
    ([0, 1, -1, 2], DataError, "no vector can have the id -1: it stands for none found"),
    (["a", "b", "", "c"], DataError, "no vector can have the id '': it stands for none found"),
    (["a", "b\0", "c", "d"], DataError, "no id can end with the character NUL, 'b\\x00' does"),
    ([1, 2, 3], DataError, "there are 3 ids for 4 vectors"),
    ([1.0, 2, 3, 4], ValueError, "ids must be int64 or texts, got float64"),
    ([[1], [2], [3], [4]], ValueError, "one for each row; their shape is"),
    ([1, "b", 3, 4], ValueError, "ids must be int64 or texts, got 1 among them"),
    (["a", None, "c", "d"], ValueError, "ids must be int64 or texts, got None among them"),
    ([b"a", b"b", b"c", b"d"], ValueError, "ids must be int64 or texts, got |S1"),
    (["a", "b", "\ud800", "d"], ValueError, "ids must be Unicode, got"),
    (np.arange(4, dtype=np.uint64), ValueError, "ids must be int64 or texts, got uint64"),
]


@pytest.mark.parametrize(("ids", "error", "message"), REFUSED)
def test_ids_that_cannot_be(ids, error, message, z_nd, tmp_path):
    with pytest.raises(error) as raised:
        Index.build(tmp_path / "index", z_nd[:4], ids)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_an_index(z_nd, tmp_path):
    index = Index.build(tmp_path / "index", z_nd[:20], IDS["texts"][:20])
    numbers = Index.build(None, z_nd[:20])
    cases = [
        (lambda: index.add(z_nd[:2], [1, 2]), DataError, "the index has texts for ids, got int64"),
        (lambda: numbers.add(z_nd[:1], ["a"]), DataError, "the index has int64 for ids, got texts"),
        (lambda: numbers.upsert(z_nd[:1], ["a"]), DataError, "the index has int64 for ids"),
        (lambda: index.delete([1]), ValueError, "ids must be texts, got int64"),
        (lambda: numbers.delete(["1"]), ValueError, "ids must be int64, got <U1"),
        (lambda: index.get("x"), DataError, "id x is not in the index"),
        (lambda: index.get([3]), ValueError, "ids must be texts, got int64"),
        (lambda: numbers.get(99), DataError, "id 99 is not in the index"),
        (lambda: index.add(z_nd[:2]), UsageError, "vectors that are added need ids: give one"),
        (lambda: index.add(z_nd[:2, :5], ["a", "b"]), DataError, "vectors have 5 dims, the index"),
        (lambda: index.upsert(z_nd[:2], ["a", "a"]), DataError, "rows 0 and 1 have the same id"),
        (lambda: index.add(z_nd[:0], []), ValueError, "vectors must be [N, D] and not empty"),
        (lambda: index.add(z_nd[0], ["a"]), ValueError, "vectors must be [N, D] and not empty"),
        (lambda: index.add(z_nd[:1].astype(int), ["a"]), ValueError, "must be floating point, got"),
        (lambda: index.add(np.full((1, D), np.nan), ["a"]), DataError, "row 0 holds NaN"),
    ]
    before = sorted(tmp_path.rglob("*"))
    for do, error, message in cases:
        with pytest.raises(error) as raised:
            do()
        assert message in str(raised.value)
        assert "\n" not in str(raised.value)
    assert sorted(tmp_path.rglob("*")) == before
    assert (len(index), len(numbers)) == (20, 20)


def test_ids_given_beside_a_source(z_nd, tmp_path):
    index = Index.build(None, store(tmp_path, z_nd[:30]), IDS["texts"][:30])
    index.add(store(tmp_path, z_nd[30:40]), IDS["texts"][30:40])
    same(index.ids, IDS["texts"][:40])
    index = Index.build(None, store(tmp_path, z_nd[:30]))
    assert index.ids.tolist() == list(range(30))


def test_texts_that_lead_out_of_their_file(z_nd, tmp_path):
    """They must not be followed, even where the checksums are right."""
    from test_index_damage import forge

    changes = [lambda x: x + 1, lambda x: x[::-1].copy(), lambda x: x * 10**9]
    changes.append(lambda x: x + 10**9 * (np.arange(len(x)) == 5))
    for n, change in enumerate(changes):
        folder = tmp_path / str(n)
        Index.build(folder, z_nd[:20], IDS["texts"][:20])
        path = forge(folder, "id_ends.npy", change)
        with pytest.raises(DataError) as raised:
            Index.open(folder).search(z_nd[:1], 3)
        assert str(raised.value).startswith(f"{path} is damaged: ")


def test_a_replaced_row_is_never_missing(z_nd, tmp_path, monkeypatch):
    """One change on disk: who opens the index meanwhile sees the old row or the new one."""
    from mrl_jax.search.index import files

    index = Index.build(tmp_path / "index", z_nd[:20], plan=PLANS["exact"])
    seen, write = [], files.write_manifest

    def watched(folder, content):
        other = Index.open(tmp_path / "index")
        seen.append((len(other), other.get(3)[0, 0]))
        write(folder, content)

    monkeypatch.setattr(files, "write_manifest", watched)
    index.upsert(2 * z_nd[3:5], [3, 4])
    assert seen == [(20, z_nd[3, 0])]
    again = Index.open(tmp_path / "index")
    assert (len(again), again.get(3)[0, 0]) == (20, 2 * z_nd[3, 0])
