import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mrl_jax.data import vector_splits as vectors
from mrl_jax.errors import DataError, UsageError
from mrl_jax.store import shards
from mrl_jax.store.vectors import open_vectors

HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def rows(n, width=6, seed=0):
    return np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)


def write_parquet(path, z_nd, **columns):
    lists = pa.array([row.tolist() for row in z_nd], pa.list_(pa.float32()))
    pq.write_table(pa.table({"embedding": lists, **columns}), path)


def write_embedded(folder, z_nd, form="npy"):
    """As `mrl_jax.embed` leaves it, in two shards."""
    folder.mkdir()
    cut = len(z_nd) // 3
    sizes = (cut, len(z_nd) - cut)
    manifest = shards.Manifest(
        z_nd.shape[1], form, tuple(shards.Shard(n, {}) for n in sizes), {"step": 1}
    )
    for index in range(2):
        first, last = manifest.span(index)
        sha256 = shards.write_shard(
            folder, manifest, index, np.arange(first, last), z_nd[first:last]
        )
        manifest = manifest.with_shard(index, sha256)
    manifest.write(folder)


def all_of(opened):
    return opened.read(0, opened.rows)


def test_all_forms_hold_the_same(tmp_path):
    z_nd = rows(30)
    np.save(tmp_path / "x.npy", z_nd)
    write_parquet(tmp_path / "x.parquet", z_nd, text=["a"] * 30)
    for form in ("npy", "parquet"):
        write_embedded(tmp_path / form, z_nd, form)
    row_n = np.array([29, 3, 3, 0, 12, 9, 10, 11])
    for place in ("x.npy", "x.parquet", "npy", "parquet"):
        for opened in (open_vectors(tmp_path / place), open_vectors(tmp_path / place).in_reach()):
            np.testing.assert_array_equal(all_of(opened), z_nd)
            np.testing.assert_array_equal(opened.take(row_n), z_nd[row_n])
            np.testing.assert_array_equal(opened.take(row_n, 2), z_nd[row_n, :2])
            np.testing.assert_array_equal(opened.ids, np.arange(30))
    with pytest.raises(ValueError, match="rows 3 to 30 are not among the 30"):
        opened.take(np.array([30, 3]))


def test_half_precision_is_read_as_float32_and_parquet_may_hold_ids(tmp_path):
    half_nd = rows(5).astype(np.float16)
    np.save(tmp_path / "x.npy", half_nd)
    found = all_of(open_vectors(tmp_path / "x.npy"))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, half_nd)
    write_parquet(tmp_path / "x.parquet", half_nd, id=pa.array([7, 5, 3, 2, 1], pa.int64()))
    np.testing.assert_array_equal(open_vectors(tmp_path / "x.parquet").ids, [7, 5, 3, 2, 1])


@pytest.fixture
def folder(tmp_path):
    for name, n in (("train", 20), ("val", 12)):
        x_nd = rows(n, seed=n)
        np.save(tmp_path / f"{name}.npy", x_nd)
        np.save(tmp_path / f"{name}_positives.npy", x_nd + 1)
    return tmp_path


def test_batches_are_a_function_of_seed_and_step(folder):
    data = vectors.load(str(folder), ())
    assert data.summary() == "vectors of 6 dims: train 20 with positives, val 12 with positives"
    train = data.splits["train"]
    batches = train.batches(8, 3, HERE)
    seen = [jax.device_get(batches(step)) for step in range(5)]
    again = jax.device_get(vectors.load(str(folder), ()).splits["train"].batches(8, 3, HERE)(4))
    for name, array in again.items():
        np.testing.assert_array_equal(array, seen[4][name])
    x_nd = np.load(folder / "train.npy")
    drawn = np.concatenate([batch["vector"] for batch in seen])  # two epochs of 20
    for epoch in (drawn[:20], drawn[20:]):
        np.testing.assert_array_equal(np.sort(epoch[:, 0]), np.sort(x_nd[:, 0]))
    assert (drawn[:20] != drawn[20:]).any()
    for batch in seen:
        np.testing.assert_array_equal(batch["positive"], batch["vector"] + 1)
        np.testing.assert_array_equal(batch["mask"], 1)
        assert batch["vector"].dtype == np.float32
    other = jax.device_get(train.batches(8, 4, HERE)(0))
    assert (other["vector"] != seen[0]["vector"]).any()


def test_equal_rows_have_equal_ids_on_either_side(folder):
    x_nd, y_nd = rows(6), rows(6, seed=1)
    x_nd[4] = x_nd[1]
    y_nd[[2, 5]] = y_nd[0], x_nd[3]
    np.save(folder / "train.npy", x_nd)
    np.save(folder / "train_positives.npy", y_nd)
    ids = vectors.load(str(folder), ()).splits["train"].ids
    assert {id_n.dtype for id_n in ids.values()} == {np.dtype(np.int32)}
    both_nd, id_n = np.concatenate([x_nd, y_nd]), np.concatenate(list(ids.values()))
    for i, row in enumerate(both_nd):
        np.testing.assert_array_equal(id_n == id_n[i], (both_nd == row).all(1))


def test_the_fingerprint_is_of_numbers_not_of_files(folder, tmp_path):
    print_of = vectors.load(str(folder), ()).fingerprint()
    write_parquet(folder / "other.parquet", np.load(folder / "train.npy"))
    names = {"train": "other.parquet", "train_positives": "train_positives.npy", "val": "val.npy"}
    files = [f"{part}={folder / name}" for part, name in names.items()]
    with_val = [*files, f"val_positives={folder / 'val_positives.npy'}"]
    assert vectors.load("", with_val).fingerprint() == print_of
    assert vectors.load("", files).fingerprint() != print_of
    changed = np.load(folder / "val.npy")
    changed[[0, 1]] = changed[[1, 0]]
    np.save(folder / "val.npy", changed)
    assert vectors.load(str(folder), ()).fingerprint() != print_of


def broken(folder, name):
    z_nd = np.load(folder / "val.npy")
    if name == "nan":
        z_nd[7, 2] = np.nan
    elif name == "narrow":
        z_nd = z_nd[:, :4]
    elif name == "short":
        z_nd = z_nd[:5]
    elif name == "integers":
        z_nd = z_nd.astype(np.int32)
    elif name == "flat":
        z_nd = z_nd[0]
    place = "val_positives" if name == "short" else "val"
    np.save(folder / f"{place}.npy", z_nd)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nan", r"val\.npy: row 7 holds NaN or infinity"),
        ("narrow", r"val\.npy has 4 dims, but .*train\.npy has 6"),
        ("short", r"val_positives\.npy has 5 rows, but .*val\.npy has 12"),
        ("integers", "must hold floating point numbers, it holds int32"),
        ("flat", r"must hold \[rows, dims\], its shape is \(6,\)"),
    ],
)
def test_what_is_wrong_is_named(folder, name, message):
    broken(folder, name)
    with pytest.raises(DataError, match=message) as error:
        vectors.load(str(folder), ())
    assert "\n" not in str(error.value)


def test_places_that_say_too_little_or_too_much(folder):
    x = folder / "train.npy"
    for path, files, error, message in (
        ("", [], UsageError, "task adaptor needs data.path=FOLDER or data.files"),
        (str(folder), [f"train={x}"], UsageError, "task adaptor needs data.path=FOLDER or"),
        ("", [f"dev={x}"], UsageError, "data.files must be PART=PLACE with PART one of train, val"),
        ("", [f"train={x}", f"train={x}"], UsageError, "each at most once"),
        ("", [f"val={x}"], DataError, "data.files has no train split"),
        ("", [f"train={x}", f"val_positives={x}"], DataError, "data.files has no val split"),
        (str(folder / "no"), [], DataError, "no such folder"),
    ):
        with pytest.raises(error, match=message):
            vectors.load(path, files)
    (folder / "train").mkdir()
    with pytest.raises(DataError, match=r"train\.npy and .*train: which is train\?"):
        vectors.load(str(folder), ())


def test_splits_in_files_of_other_tools(tmp_path):
    save_file = pytest.importorskip("safetensors.numpy").save_file
    x_nd, y_nd = rows(9), rows(5, seed=1)
    file = tmp_path / "all.safetensors"
    save_file({"train": x_nd, "val": y_nd, "positives": x_nd + 1}, file)
    named = [f"train={file}:train", f"train_positives={file}:positives", f"val={file}:val"]
    (tmp_path / "folder").mkdir()
    save_file({"x": x_nd}, tmp_path / "folder" / "train.safetensors")
    save_file({"x": x_nd + 1}, tmp_path / "folder" / "train_positives.safetensors")
    write_parquet(tmp_path / "folder" / "val.parquet", y_nd)
    fingerprints = set()
    for path, files in (("", named), (str(tmp_path / "folder"), ())):
        data = vectors.load(path, files)
        np.testing.assert_array_equal(all_of(data.splits["train"].sides["positive"]), x_nd + 1)
        np.testing.assert_array_equal(all_of(data.splits["val"].sides["vector"]), y_nd)
        fingerprints.add(data.fingerprint())
    assert len(fingerprints) == 1
    file.rename(tmp_path / "moved.safetensors")
    later = [f"train={file}:train", f"val={tmp_path}/moved.safetensors:val"]
    assert list(vectors.load("", later, train=False).splits) == ["val"]


def test_scored_pairs(tmp_path):
    path, z_nd = tmp_path / "sts.npz", rows(4).astype(np.float16)
    np.savez(path, a=z_nd, b=z_nd[::-1], score=[1, 2, 3, 4])
    found = vectors.read_scored(path, 6)
    assert {x.dtype for x in found} == {np.dtype(np.float32), np.dtype(np.float64)}
    np.testing.assert_array_equal(found.b_nd, z_nd[::-1])
    bad_nd = z_nd.copy()
    bad_nd[2, 0] = np.inf
    for arrays, message in (
        ({"a": z_nd, "b": z_nd}, "arrays a, b and score"),
        ({"a": z_nd, "b": z_nd[:3], "score": np.ones(4)}, r"a and b \[N, 6\] and score \[N\]"),
        ({"a": z_nd[:, :2], "b": z_nd[:, :2], "score": np.ones(4)}, r"a and b \[N, 6\]"),
        ({"a": z_nd, "b": bad_nd, "score": np.ones(4)}, "row 2 of b holds NaN"),
        ({"a": z_nd, "b": z_nd.astype(int), "score": np.ones(4)}, "must hold floating point"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(DataError, match=message):
            vectors.read_scored(path, 6)
    with pytest.raises(DataError, match="arrays a, b and score"):
        vectors.read_scored(tmp_path / "nowhere.npz", 6)
