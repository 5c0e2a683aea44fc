import dataclasses
import tracemalloc

import numpy as np
import pytest

from mrl_jax.errors import DataError, UsageError
from mrl_jax.store import shards
from mrl_jax.store.shards import Manifest, Shard
from mrl_jax.store.vectors import open_vectors

SIZES = (5, 7, 1, 7)  # of shards


def draw(rows, width=3, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


@pytest.fixture(params=["file", "npy", "parquet"])
def stored(request, tmp_path):
    """The same 20 vectors with the same ids, in every way they can be stored: (path, ids file)."""
    z_nd, ids_n = draw(20), np.arange(20)[::-1] * 3
    if request.param == "file":
        np.save(tmp_path / "z.npy", z_nd)
        np.save(tmp_path / "ids.npy", ids_n)
        return (tmp_path / "z.npy", tmp_path / "ids.npy"), ids_n, z_nd
    return (write_folder(tmp_path / "folder", request.param, z_nd, ids_n), None), ids_n, z_nd


def write_folder(folder, kind, z_nd, ids_n, sizes=SIZES):
    folder.mkdir(exist_ok=True)
    manifest = Manifest(z_nd.shape[1], kind, tuple(Shard(n, {}) for n in sizes), {"run": "test"})
    for index in range(len(sizes)):
        a, b = manifest.span(index)
        sha256 = shards.write_shard(folder, manifest, index, ids_n[a:b], z_nd[a:b])
        manifest = manifest.with_shard(index, sha256)
    manifest.write(folder)
    return folder


def test_facts_and_parts(stored):
    paths, ids_n, z_nd = stored
    vectors = open_vectors(*paths)
    assert (vectors.rows, vectors.width, vectors.dtype) == (20, 3, np.float32)
    np.testing.assert_array_equal(vectors.ids, ids_n)
    for first, last in ((0, 20), (4, 6), (12, 13), (0, 1), (19, 20)):
        np.testing.assert_array_equal(vectors.read(first, last), z_nd[first:last])
    for first, last in ((0, 21), (-1, 2), (3, 3)):
        with pytest.raises(ValueError, match="not among the 20"):
            vectors.read(first, last)


@pytest.mark.parametrize("rows", [1, 4, 6, 20, 99])
def test_chunks_go_across_shards(stored, rows):
    paths, ids_n, z_nd = stored
    found = list(open_vectors(*paths).chunks(rows))
    assert [len(z) for _, z in found[:-1]] == [rows] * (len(found) - 1)
    np.testing.assert_array_equal(np.concatenate([ids for ids, _ in found]), ids_n)
    np.testing.assert_array_equal(np.concatenate([z for _, z in found]), z_nd)
    assert all(z.dtype == np.float32 and z.flags.writeable for _, z in found)


def test_samples(stored):
    paths, _, z_nd = stored
    vectors = open_vectors(*paths)
    np.testing.assert_array_equal(vectors.sample(20, seed=1), z_nd)
    row_of = {tuple(z): row for row, z in enumerate(z_nd.tolist())}
    drawn = []
    for seed in range(200):
        rows = [row_of[tuple(z)] for z in vectors.sample(6, seed).tolist()]
        assert rows == sorted(set(rows))
        drawn += rows
    # Every row 60 times on average, with a standard deviation of 6.5.
    assert np.abs(np.bincount(drawn, minlength=20) - 60).max() < 30
    np.testing.assert_array_equal(vectors.sample(6, 3), vectors.sample(6, 3))
    np.testing.assert_array_equal(vectors.sample(6, 3, 2), vectors.sample(6, 3)[:, :2])
    for n in (0, 21):
        with pytest.raises(ValueError, match="1 to 20 rows"):
            vectors.sample(n, 0)


def test_what_is_read_is_what_is_asked_for(tmp_path):
    # 256 MB that take no place on the disk: row r holds zeros, but row 12,345 holds ones.
    path = tmp_path / "large.npy"
    large = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(65536, 1024))
    large[12345] = 1
    del large
    vectors = open_vectors(path)
    tracemalloc.start()
    try:
        total = sum(z_nd.sum() for _, z_nd in vectors.chunks(1024))
        vectors.sample(100, 0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == 1024
    assert peak < 2.5 * 1024 * 1024 * 4  # one chunk, and the one before until it is replaced


def test_parquet_reads_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_GROUP_BYTES", 4 * 3 * 2)  # two rows
    z_nd = draw(20)
    vectors = open_vectors(write_folder(tmp_path / "f", "parquet", z_nd, np.arange(20)))
    for rows in (1, 3, 20):
        found = np.concatenate([z for _, z in vectors.chunks(rows)])
        np.testing.assert_array_equal(found, z_nd)
    np.testing.assert_array_equal(vectors.sample(20, 0), z_nd)


@pytest.mark.parametrize("dtype", [np.float16, ">f4", np.float64])
def test_other_floats(tmp_path, dtype):
    z_nd = draw(9).astype(dtype)
    np.save(tmp_path / "z.npy", np.asfortranarray(z_nd))
    vectors = open_vectors(tmp_path / "z.npy")
    assert vectors.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(vectors.ids, np.arange(9))
    np.testing.assert_array_equal(vectors.read(0, 9), z_nd.astype(np.float32))
    assert vectors.read(0, 9).flags.c_contiguous


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_not_a_number(tmp_path, value):
    z_nd = draw(8).astype(np.float64)
    z_nd[5, 2] = value
    np.save(tmp_path / "bad.npy", z_nd)
    vectors = open_vectors(tmp_path / "bad.npy")
    for read in (lambda: list(vectors.chunks(3)), lambda: vectors.sample(8, 0)):
        with pytest.raises(DataError, match=r"bad\.npy: row 5 holds NaN or infinity"):
            read()
    vectors.read(0, 5)


def test_not_a_number_in_a_shard(tmp_path):
    z_nd = draw(20)
    z_nd[9, 0] = np.nan
    vectors = open_vectors(write_folder(tmp_path / "f", "npy", z_nd, np.arange(20)))
    with pytest.raises(DataError, match=r"vectors-00001-of-00004\.npy: row 4 holds NaN"):
        vectors.read(8, 12)


def test_files_that_are_refused(tmp_path):
    path, ids = tmp_path / "z.npy", tmp_path / "ids.npy"

    def refused(message, *paths):
        with pytest.raises(DataError, match=message):
            open_vectors(*(paths or (path,)))

    refused("z.npy is missing")
    for array, message in (
        (np.zeros(4, np.float32), r"\[rows, dims\], its shape is \(4,\)"),
        (np.zeros((4, 2), np.int8), "floating point numbers, it holds int8"),
        (np.zeros((0, 3), np.float32), "is empty: 0 rows of 3 dims"),
        (np.zeros((3, 0), np.float32), "is empty: 3 rows of 0 dims"),
        (np.array([[{}]]), "Python objects"),
    ):
        np.save(path, array, allow_pickle=True)
        refused(message)
    np.save(path, draw(4))
    whole = path.read_bytes()
    for size in (0, 5, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused("z.npy is no whole .npy file")
    path.write_bytes(whole)
    refused("ids.npy is missing", path, ids)
    for array, message in (
        (np.arange(3), r"an id for each of 4 rows, it holds 3"),
        (np.arange(4, dtype=np.float32), "it holds float32"),
        (np.array([b"a", b"b", b"c", b"d"]), r"must hold ids, .* or texts; it holds \|S1"),
        (np.arange(4).astype("m8[s]"), "it holds timedelta64"),
        (np.array([[0, 1, 2, 3]]), "of shape"),
        (np.array([1, 2, 2**63, 4], np.uint64), "row 2 has the id 9223372036854775808, above"),
        (np.array([7, 5, 9, 5]), "rows 1 and 3 have the same id, 5"),
    ):
        np.save(ids, array)
        refused(message, path, ids)
    refused("no manifest.json", tmp_path)


@pytest.mark.parametrize("dtype", [np.int8, np.uint64, ">i8", ">u4"])
def test_ids_of_any_integers(tmp_path, dtype):
    np.save(tmp_path / "z.npy", draw(4))
    np.save(tmp_path / "ids.npy", np.array([4, 3, 9, 0], dtype))
    ids_n = open_vectors(tmp_path / "z.npy", tmp_path / "ids.npy").ids
    assert (ids_n.dtype, ids_n.tolist()) == (np.dtype(np.int64), [4, 3, 9, 0])


@pytest.mark.parametrize("kind", ["npy", "parquet"])
def test_folders_that_are_refused(tmp_path, kind):
    folder = tmp_path / "f"

    def again(ids_n=None):
        return write_folder(folder, kind, draw(20), np.arange(20) if ids_n is None else ids_n)

    def refused(message):
        with pytest.raises(DataError, match=message):
            open_vectors(folder)
        again()

    manifest = shards.read_manifest(again())
    second = folder / manifest.files(1)[0]
    second.unlink()
    refused(f"{second.name} is missing")
    second.write_bytes(second.read_bytes()[:-9])
    refused(f"{second.name} is no whole")
    manifest.with_shard(2, {}).write(folder)
    refused("vectors-00002-of-00004.* is unfinished: call mrl_jax.embed again")
    narrow = dataclasses.replace(manifest, width=2)
    shards.write_shard(folder, narrow, 1, np.arange(7), draw(7, 2))
    refused(f"{second.name} holds 7 x 2 float32, manifest.json says 7 x 3")
    shards.write_shard(folder, manifest, 1, np.arange(6), draw(6))
    refused("holds 6 x 3")
    again(np.array([*range(19), 4]))
    refused("rows 4 and 19 have the same id, 4")
    for text, message in (
        ("{", "not valid JSON"),
        ("{}", "field 'schema' is missing"),
        ('{"schema": 2}', "of schema 2, 1 is read"),
        ((folder / "manifest.json").read_text().replace('"rows": 20', '"rows": 19'), "damaged"),
    ):
        (folder / "manifest.json").write_text(text)
        refused(message)
    with pytest.raises(UsageError, match="holds ids itself"):
        open_vectors(folder, "ids.npy")


def test_damaged_page_of_parquet(tmp_path):
    folder = write_folder(tmp_path / "f", "parquet", draw(20), np.arange(20))
    path = folder / "vectors-00001-of-00004.parquet"
    content = bytearray(path.read_bytes())
    place = content.index(draw(20)[5].tobytes())
    content[place] ^= 1
    path.write_bytes(content)
    vectors = open_vectors(folder)
    with pytest.raises(DataError, match=f"{path.name} is no whole Parquet file"):
        vectors.read(0, 20)
    vectors.read(0, 5)


def test_checksums(tmp_path):
    for kind in ("npy", "parquet"):
        folder = write_folder(tmp_path / kind, kind, draw(20), np.arange(20))
        manifest = shards.read_manifest(folder)
        assert all(shards.intact(folder, manifest, i) for i in range(4))
        for name in manifest.files(1):
            content = bytearray((folder / name).read_bytes())
            content[-1] ^= 1
            (folder / name).write_bytes(content)
            assert [shards.intact(folder, manifest, i) for i in range(4)] == [1, 0, 1, 1]
            content[-1] ^= 1
            (folder / name).write_bytes(content)
        (folder / manifest.files(3)[0]).unlink()
        assert not shards.intact(folder, manifest, 3)
        assert not shards.intact(folder, manifest.with_shard(0, {}), 0)
