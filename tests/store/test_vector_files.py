"""Files of vectors that others wrote, each read as numpy has them or refused by one clear line."""

import json
import pathlib
import struct
import sys

import ml_dtypes
import numpy as np
import pytest

from mrl_jax.errors import DataError, UsageError
from mrl_jax.extras import MissingPackageError
from mrl_jax.store import hdf5, id_files, parts, shards, tables
from mrl_jax.store.vectors import open_vectors, place

pa = pytest.importorskip("pyarrow", reason="Arrow and Parquet need pyarrow")
pq = pytest.importorskip("pyarrow.parquet", reason="Parquet needs pyarrow")
feather = pytest.importorskip("pyarrow.feather", reason="Arrow needs pyarrow")
safetensors = pytest.importorskip("safetensors.numpy", reason="what is compared was written by it")

ROWS, WIDTH = 23, 5


def draw(rows=ROWS, width=WIDTH, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


def the_h5py():
    return pytest.importorskip("h5py", reason="HDF5 needs the extra hdf5")


def vecs(path, z_nd, number):
    """As the format is described: by hand, row by row, little-endian."""
    rows = (struct.pack(f"<i{len(row)}{number}", len(row), *row) for row in z_nd.tolist())
    path.write_bytes(b"".join(rows))
    return path


def listed(z_nd, kind=None):
    return pa.array(list(z_nd), kind or pa.list_(pa.float32(), z_nd.shape[1]))


def stream(path, table, rows=4, **options):
    with pa.ipc.new_stream(path, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as sink:
        sink.write_table(table, rows)
    return path


def h5(path, z_nd, **options):
    with the_h5py().File(path, "w") as file:
        file.create_dataset("train", data=z_nd, **options)
    return path


FORMATS = {
    "npy": lambda path, z_nd: np.save(path, z_nd),
    "fvecs": lambda path, z_nd: vecs(path, z_nd, "f"),
    "safetensors": lambda path, z_nd: safetensors.save_file({"z": z_nd}, path),
    "arrow": lambda path, z_nd: stream(path, pa.table({"z": listed(z_nd)})),
    "feather": lambda path, z_nd: feather.write_feather(
        pa.table({"z": listed(z_nd)}), path, chunksize=4, compression="lz4"
    ),
    "parquet": lambda path, z_nd: pq.write_table(
        pa.table({"z": listed(z_nd, pa.list_(pa.float32()))}), path, row_group_size=8
    ),
    "hdf5": h5,
    "h5": lambda path, z_nd: h5(path, z_nd, chunks=(3, 2), compression="gzip"),
}


@pytest.fixture(params=FORMATS)
def stored(request, tmp_path, monkeypatch):
    """The same vectors in a file of every kind, read in small blocks: (path, vectors)."""
    for module in (tables, hdf5):
        monkeypatch.setattr(module, "BLOCK", 3 * WIDTH)
    path, z_nd = tmp_path / f"z.{request.param}", draw()
    FORMATS[request.param](path, z_nd)
    return path, z_nd


def test_every_kind_is_read_in_any_order(stored):
    path, z_nd = stored
    vectors = open_vectors(path)
    assert (vectors.rows, vectors.width, vectors.dtype) == (ROWS, WIDTH, np.float32)
    np.testing.assert_array_equal(vectors.ids, np.arange(ROWS))
    spans = [(a, b) for a in range(ROWS) for b in range(a + 1, ROWS + 1)]
    for i in np.random.default_rng(1).permutation(len(spans))[:60]:
        first, last = spans[i]
        found_nd = vectors.read(first, last)
        np.testing.assert_array_equal(found_nd, z_nd[first:last])
        assert found_nd.dtype == np.float32
        assert found_nd.flags.c_contiguous
        assert found_nd.flags.writeable
    np.testing.assert_array_equal(np.concatenate([z for _, z in vectors.chunks(7)]), z_nd)
    row_n = np.array([22, 3, 3, 9, 0, 21])
    np.testing.assert_array_equal(vectors.take(row_n, 2), z_nd[row_n, :2])
    np.testing.assert_array_equal(vectors.in_reach().take(row_n), z_nd[row_n])


def test_every_kind_takes_ids_from_a_file(stored, tmp_path):
    path, _ = stored
    ids_n = np.arange(ROWS)[::-1] * 3
    np.save(tmp_path / "ids.npy", ids_n)
    np.testing.assert_array_equal(open_vectors(path, tmp_path / "ids.npy").ids, ids_n)
    np.save(tmp_path / "few.npy", ids_n[:-1])
    with pytest.raises(DataError, match=r"few\.npy must hold an id for each of 23 rows"):
        open_vectors(path, tmp_path / "few.npy")


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_every_kind_names_the_row_that_is_no_number(stored, value):
    path, z_nd = stored
    z_nd[17, 3] = value
    FORMATS[path.suffix[1:]](path, z_nd)
    vectors = open_vectors(path)
    vectors.read(0, 17)
    with pytest.raises(DataError, match=rf"{path.name}: row 17 holds NaN or infinity"):
        vectors.read(15, 20)


def test_every_kind_names_a_file_that_is_cut_short(stored):
    path, _ = stored
    whole = path.read_bytes()
    for size in {*range(0, len(whole), max(len(whole) // 40, 1)), 1, 7, len(whole) - 1}:
        if path.suffix == ".fvecs" and size and size % 24 == 0:
            continue  # a whole number of rows: nothing in the file says that there were more
        path.write_bytes(whole[:size])
        with pytest.raises(DataError) as found:
            open_vectors(path).read(0, 1)
        assert path.name in str(found.value)
        assert "\n" not in str(found.value)
    path.unlink()
    with pytest.raises(DataError, match=rf"{path.name} is missing"):
        open_vectors(path)


def test_every_kind_survives_any_damage(stored):
    """What is read may differ, for most kinds have no checksums; what is refused is refused so."""
    path, _ = stored
    whole, rng = path.read_bytes(), np.random.default_rng(2)
    for _ in range(60):
        content = np.frombuffer(whole, np.uint8).copy()
        place_n = rng.integers(0, len(content), 3)
        content[place_n] = rng.integers(0, 256, 3)
        path.write_bytes(content.tobytes())
        try:
            vectors = open_vectors(path)
            vectors.read(0, vectors.rows)
        except (DataError, UsageError) as error:
            assert path.name in str(error)  # noqa: PT017 - most do not fail


def refused(message, path, kind=DataError):
    with pytest.raises(kind, match=message) as found:
        open_vectors(path)
    assert "\n" not in str(found.value)


def test_files_without_rows_or_dims(tmp_path):
    for suffix, write in FORMATS.items():
        if suffix in ("hdf5", "h5"):
            continue  # which need a package; see below
        path = tmp_path / f"z.{suffix}"
        write(path, np.zeros((0, 3), np.float32))
        refused(rf"z\.{suffix}(:z)? is empty: 0 rows", path)
    safetensors.save_file({"z": np.zeros((3, 0), np.float32)}, tmp_path / "z.safetensors")
    refused(r"z\.safetensors:z is empty: 3 rows of 0 dims", tmp_path / "z.safetensors")


# .fvecs, .bvecs and .ivecs


def test_bytes_are_read_as_numbers(tmp_path):
    z_nd = np.arange(21, dtype=np.uint8).reshape(7, 3) * 12
    vectors = open_vectors(vecs(tmp_path / "z.bvecs", z_nd, "B"))
    assert vectors.dtype == np.uint8
    np.testing.assert_array_equal(vectors.read(0, 7), z_nd.astype(np.float32))
    np.testing.assert_array_equal(vectors.take(np.array([6, 0, 6])), z_nd[[6, 0, 6]])


def test_rows_of_other_lengths_are_named(tmp_path):
    path = tmp_path / "z.fvecs"
    rows = [vecs(path, draw(1, width), "f").read_bytes() for width in (3, 3, 1, 5, 3)]
    path.write_bytes(b"".join(rows))  # as long as five rows of 3 dims
    vectors = open_vectors(path)
    vectors.read(0, 2)
    message = r"z\.fvecs: row 2 has 1 dims, row 0 has 3$"
    for read in (lambda: vectors.read(1, 4), lambda: vectors.take(np.array([2, 0]))):
        with pytest.raises(DataError, match=message):
            read()
    path.write_bytes(b"".join(rows[:3]))
    refused("cut short: 8 bytes follow its 2 rows of 3 dims, a row has 16", path)
    path.write_bytes(b"".join(rows[:4]) + rows[4][:5])
    refused(message, path)


def test_the_first_dims_must_be_dims(tmp_path):
    path = vecs(tmp_path / "z.fvecs", draw(), "f")
    path.write_bytes(np.frombuffer(path.read_bytes(), "<u4").astype(">u4").tobytes())
    refused(r"begins with 83886080 as the dims of row 0 \(little-endian int32\)", path)
    path.write_bytes(struct.pack("<i", 0) * 4)
    refused("begins with 0 as the dims", path)
    path.write_bytes(struct.pack("<if", -2, 1.0))
    refused("begins with -2 as the dims", path)


def test_ids_from_ivecs(tmp_path):
    np.save(tmp_path / "z.npy", draw(4))
    ids_n = np.array([[7], [2**31 - 1], [-5], [0]])
    for name, ids_nd in (("column", ids_n), ("row", ids_n.T)):
        path = vecs(tmp_path / f"{name}.ivecs", ids_nd, "i")
        assert open_vectors(tmp_path / "z.npy", path).ids.tolist() == ids_n.ravel().tolist()
        assert id_files.read(path).dtype == np.int64
    path = vecs(tmp_path / "neighbours.ivecs", np.arange(12).reshape(4, 3), "i")
    with pytest.raises(DataError, match=r"neighbours\.ivecs must hold one id in each row.*4 rows"):
        id_files.read(path)
    refused("holds whole numbers, such as ids", path)


# safetensors


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_tensors_of_other_floats(tmp_path, dtype):
    z_nd = draw().astype(dtype)
    kind = {"float16": "F16", "bfloat16": "BF16", "float64": "F64"}[z_nd.dtype.name]
    tensors(tmp_path / "z.safetensors", {"z": (kind, z_nd.shape, z_nd.tobytes())})
    vectors = open_vectors(tmp_path / "z.safetensors")
    np.testing.assert_array_equal(vectors.read(0, ROWS), z_nd.astype(np.float32))


def tensors(path, content, **more):
    """As the format is described: by hand."""
    header, data = dict(more), b""
    for name, (kind, shape, numbers) in content.items():
        span = [len(data), len(data) + len(numbers)]
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": span}
        data += numbers
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_the_tensor_is_named_where_there_are_several(tmp_path):
    path, z_nd = tmp_path / "z.safetensors", draw()
    content = {"a": z_nd, "b.w": z_nd[:3] + 1, "n": np.arange(4), "one": z_nd[0], "k": z_nd > 0}
    safetensors.save_file(content, path, {"format": "pt"})
    np.testing.assert_array_equal(open_vectors(f"{path}:b.w").read(0, 3), z_nd[:3] + 1)
    refused(r"z\.safetensors: say which are the vectors, such as .*z\.safetensors:a; it has", path)
    refused(r"z\.safetensors has no 'c'; it has .*b\.w \(F32 \[3, 5\]\)", f"{path}:c")
    refused(r"z\.safetensors:one must hold \[rows, dims\], its shape is \(5,\)", f"{path}:one")
    refused(r"z\.safetensors:k must hold floating point numbers, it holds BOOL", f"{path}:k")
    safetensors.save_file({"n": np.arange(4)}, path)
    refused(r"must hold \[rows, dims\] of floating point numbers; it has n \(I64 \[4\]\)", path)
    safetensors.save_file({}, path)
    refused("it has nothing", path)


def test_headers_of_safetensors_that_lie(tmp_path):
    path, numbers = tmp_path / "z.safetensors", draw(2, 2).tobytes()
    for shape, message in (
        ((2, 3), r"z has 16 bytes, which are not F32 \[2, 3\]"),
        ((-2, -2), r"tensor 'z' cannot have shape \[-2, -2\]"),
        ((2**40, 2**40), "z has 16 bytes, which are not"),
        ((True, 4), "cannot have shape"),
    ):
        tensors(path, {"z": ("F32", shape, numbers)})
        refused(message, path)
    tensors(path, {"z": ("F32", (2, 2), numbers)})
    path.write_bytes(path.read_bytes() + b"\0")
    refused("1 bytes are too many at its end", path)
    tensors(path, {"z": ("F32", (2, 2), numbers)}, y={"dtype": "F32", "shape": [1]})
    refused("tensor 'y': field 'data_offsets' is missing", path)
    for content, message in (
        (struct.pack("<Q", 2**63) + b"{}", "no header fits its bytes"),
        (struct.pack("<Q", 2) + b"[]", "its header is no object"),
        (struct.pack("<Q", 4) + b"{\xff:}", "not UTF-8"),
    ):
        path.write_bytes(content)
        refused(message, path)


# HDF5


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">f2"])
@pytest.mark.parametrize("how", [{}, {"chunks": (4, 3)}, {"chunks": True, "compression": "gzip"}])
def test_hdf5_of_any_byte_order_and_layout(tmp_path, monkeypatch, dtype, how):
    z_nd = draw().astype(dtype)
    path = h5(tmp_path / "z.hdf5", z_nd, **how)
    monkeypatch.setattr(hdf5, "BLOCK", 2 * WIDTH)
    vectors = open_vectors(path)
    for first, last in ((0, ROWS), (3, 9), (22, 23)):
        np.testing.assert_array_equal(
            vectors.read(first, last), z_nd[first:last].astype(np.float32)
        )


def test_the_data_set_is_named_where_there_are_several(tmp_path):
    h5py, path, z_nd = the_h5py(), tmp_path / "glove.hdf5", draw()
    with h5py.File(path, "w", userblock_size=512) as file:  # as ann-benchmarks, and some more
        file["train"], file["test"], file["distances"] = z_nd, z_nd[:4] + 1, z_nd
        file["neighbors"], file["group/inner"] = np.arange(12).reshape(4, 3), z_nd + 2
        file["names"] = ["a", "b"]
        file["link"] = h5py.SoftLink("/group/inner")
        file["lost"] = h5py.SoftLink("/nowhere")
        file["empty"] = np.zeros((0, 3), np.float32)
        file["nothing"] = h5py.Empty("f4")
    for name, expected_nd in (
        ("train", z_nd),
        ("test", z_nd[:4] + 1),
        ("group/inner", z_nd + 2),
        ("/group/inner", z_nd + 2),
        ("link", z_nd + 2),
    ):
        vectors = open_vectors(f"{path}:{name}")
        np.testing.assert_array_equal(vectors.read(0, vectors.rows), expected_nd)
    refused(r"say which are the vectors, such as .*glove\.hdf5:distances; it has", path)
    for name, message in (
        ("valid", r"glove\.hdf5 has no 'valid'; it has distances \(float32 \[23, 5\]\)"),
        ("group", "has no 'group'"),
        ("lost", "has no 'lost'"),
        ("neighbors", "glove.hdf5:neighbors must hold floating point numbers, it holds int64"),
        ("names", r"must hold \[rows, dims\], its shape is \(2,\)"),
        ("nothing", r"must hold \[rows, dims\], its shape is \(\)"),
        ("empty", "is empty: 0 rows of 3 dims"),
    ):
        refused(message, f"{path}:{name}")
    refused(r"lost\.hdf5 is missing", tmp_path / "lost.hdf5:train")


def test_what_hdf5_would_read_as_zeros_is_refused(tmp_path):
    h5py, path = the_h5py(), tmp_path / "z.hdf5"
    with h5py.File(path, "w") as file:
        file.create_dataset("whole", data=draw(), chunks=(5, 5))
        file.create_dataset("never", (6, 2), "f4")
        file.create_dataset("partly", (9, 4), "f4", chunks=(3, 4))[:3] = 1
        file.create_dataset("apart", (6, 2), "f4", external=[(tmp_path / "raw", 0, 48)])
        layout = h5py.VirtualLayout((6, 2), "f4")
        layout[:] = h5py.VirtualSource(tmp_path / "gone.h5", "z", (6, 2))
        file.create_virtual_dataset("virtual", layout)
    open_vectors(f"{path}:whole")
    for name in ("never", "partly"):
        refused(f"z.hdf5:{name} was not written to its end", f"{path}:{name}")
    for name in ("apart", "virtual"):
        refused(f"z.hdf5:{name} lies in other files", f"{path}:{name}")


def test_hdf5_without_h5py(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    refused(r'HDF5 needs .*pip install "mrl_jax\[hdf5\]"', tmp_path / "z.h5", MissingPackageError)


# Arrow and Parquet


LISTS = [
    pa.list_(pa.float32(), WIDTH),
    pa.list_(pa.float64()),
    pa.large_list(pa.float16()),
    pa.list_view(pa.float32()),
]


@pytest.mark.parametrize("kind", LISTS, ids=str)
def test_arrow_is_mapped(tmp_path, kind):
    z_nd, ids_n = draw().astype(kind.value_type.to_pandas_dtype()), np.arange(ROWS)[::-1] * 7
    words = pa.array(["a", "b"] * 11 + ["a"]).dictionary_encode()
    table = pa.table({"word": words, "id": pa.array(ids_n, pa.int32()), "z": listed(z_nd, kind)})
    table = pa.concat_tables([table[:9], table[:0], table[9:]])
    stream(tmp_path / "stream.arrow", table)
    with pa.ipc.new_file(tmp_path / "file.arrow", table.schema) as sink:
        sink.write_table(table)
    feather.write_feather(table, tmp_path / "x.feather", compression="uncompressed")
    for name in ("stream.arrow", "file.arrow", "x.feather"):
        vectors = open_vectors(tmp_path / name)
        assert vectors.dtype == z_nd.dtype
        np.testing.assert_array_equal(vectors.ids, ids_n)
        np.testing.assert_array_equal(vectors.read(4, 17), z_nd[4:17].astype(np.float32))
        assert vectors.in_reach() is vectors


def test_arrow_that_is_refused(tmp_path):
    path, z_nd = tmp_path / "x.arrow", draw(4, 2)
    stream(path, pa.table({"z": listed(z_nd)}), compression="zstd")
    refused("is a compressed Arrow stream, of which no part can be read by itself", path)
    stream(path, pa.table({"z": pa.array([[1.0, 2.0], [1.0], [3.0]])}))
    refused(r"x\.arrow: row 1 has 1 dims, the rows before it have 2", path)
    stream(path, pa.table({"z": pa.array([[1.0, 2.0], [1.0, 2.0], [3.0], [1.0]])}), rows=2)
    refused(r"x\.arrow: row 2 has 1 dims, the rows before it have 2", path)
    stream(path, pa.table({"z": pa.array([[1.0, 2.0], None])}))
    refused(r"x\.arrow: row 1 has no vector", path)
    stream(path, pa.table({"z": pa.array([1.0, 2.0])}))
    refused("must have one column of lists of floating point numbers", path)
    stream(path, pa.table({"z": listed(z_nd), "id": pa.array([4, 5, 4, 6])}))
    refused("rows 0 and 2 have the same id, 4", path)
    stream(path, pa.table({"z": listed(z_nd)}), rows=2)
    whole = path.read_bytes()
    batch = (len(whole) - 8 - whole.index(z_nd[:2].tobytes())) // 2  # about; two are equally long
    for size in range(len(whole) - 8 - 2 * batch, len(whole), 8):  # also between two of them
        path.write_bytes(whole[:size])
        refused("is no Arrow file, or cut short: no end", path)
    path.write_bytes(b"FEA1" + bytes(20) + b"FEA1")
    refused("is Feather of version 1", path)


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_the_column_may_be_named(tmp_path, suffix):
    path, z_nd = tmp_path / f"x.{suffix}", draw()
    table = pa.table({"id": np.arange(ROWS), "a": listed(z_nd), "b": listed(z_nd + 1)})
    pq.write_table(table, path) if suffix == "parquet" else stream(path, table)
    for name, expected_nd in (("a", z_nd), ("b", z_nd + 1)):
        np.testing.assert_array_equal(open_vectors(f"{path}:{name}").read(0, ROWS), expected_nd)
    refused(r"or one of them called vector; it has .*; say which, such as .*:a$", path)
    refused(rf"x\.{suffix} has no column 'c'; it has id, a, b", f"{path}:c")
    refused("column id must hold lists of floating point numbers, it holds int64", f"{path}:id")


def test_rows_of_a_large_row_group_in_any_order(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK", 4 * WIDTH)
    path, z_nd = tmp_path / "x.parquet", draw(90)
    pq.write_table(pa.table({"z": listed(z_nd)}), path, row_group_size=50, data_page_size=64)
    pages, vectors = [], open_vectors(path)
    rows = tables._rows
    monkeypatch.setattr(tables, "_rows", lambda *a: pages.append(1) or rows(*a))
    for i in range(0, 90, 5):
        np.testing.assert_array_equal(vectors.read(i, i + 5), z_nd[i : i + 5])
    assert len(pages) == 23  # each block was decoded once: 13 and 10 of them
    row_n = np.random.default_rng(0).permutation(90)
    for row in row_n[:30].tolist():
        np.testing.assert_array_equal(vectors.read(row, row + 1), z_nd[row : row + 1])
    np.testing.assert_array_equal(vectors.take(row_n), z_nd[row_n])


# Folders


def write_parts(folder, z_nd, names, ids_n=None, kind=None):
    edges = np.linspace(0, len(z_nd), len(names) + 1).astype(int)
    for name, a, b in zip(names, edges, edges[1:], strict=False):
        columns = {} if ids_n is None else {"id": ids_n[a:b]}
        table = pa.table(columns | {"vector": listed(z_nd[a:b], kind)})
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        stream(folder / name, table) if name.endswith("w") else pq.write_table(table, folder / name)
    return folder


def test_a_folder_of_parts_is_one_set(tmp_path):
    z_nd = draw()
    names = ["part-10.parquet", "part-2.parquet", "year=1/b.parquet", "a.parquet"]
    write_parts(tmp_path / "f", z_nd, names, np.arange(ROWS) + 5)
    write_parts(tmp_path / "f", z_nd[:0], ["part-11.parquet"], np.arange(0))  # Spark leaves these
    for name in ("_SUCCESS", ".a.parquet.crc", "_metadata.parquet", "_temporary/0/a.parquet"):
        (tmp_path / "f" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "f" / name).write_bytes(b"x")
    vectors = open_vectors(tmp_path / "f")
    # The same rows in the same order as pyarrow has them.
    table = pq.read_table(tmp_path / "f")
    np.testing.assert_array_equal(vectors.ids, table["id"])
    np.testing.assert_array_equal(vectors.read(0, ROWS), np.stack(table["vector"].to_numpy()))
    np.save(tmp_path / "ids.npy", np.arange(ROWS) * 2)
    assert open_vectors(tmp_path / "f", tmp_path / "ids.npy").ids[-1] == 2 * ROWS - 2
    write_parts(tmp_path / "g", z_nd, ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"])
    (tmp_path / "g" / "state.json").write_text("{}")
    np.testing.assert_array_equal(open_vectors(tmp_path / "g").read(0, ROWS), z_nd)
    (tmp_path / "g").rename(tmp_path / "out.arrow")
    np.testing.assert_array_equal(open_vectors(tmp_path / "out.arrow").read(0, ROWS), z_nd)
    write_parts(tmp_path / "h" / "inner.parquet", z_nd, ["0.parquet"])
    np.testing.assert_array_equal(open_vectors(tmp_path / "h").read(0, ROWS), z_nd)


def test_our_own_parts_are_read_without_their_manifest_too(tmp_path):
    z_nd, ids_n = draw(), np.arange(ROWS) * 3
    manifest = shards.Manifest(WIDTH, "parquet", (shards.Shard(20, {}), shards.Shard(3, {})), {})
    for index in range(2):
        a, b = manifest.span(index)
        sha256 = shards.write_shard(tmp_path, manifest, index, ids_n[a:b], z_nd[a:b])
        manifest = manifest.with_shard(index, sha256)
    manifest.write(tmp_path)
    for _ in range(2):
        vectors = open_vectors(tmp_path)
        np.testing.assert_array_equal(vectors.ids, ids_n)
        np.testing.assert_array_equal(vectors.read(0, ROWS), z_nd)
        np.testing.assert_array_equal(open_vectors(tmp_path).take(np.array([22, 0])), z_nd[[22, 0]])
        (tmp_path / shards.MANIFEST).unlink(missing_ok=True)
    np.testing.assert_array_equal(open_vectors(f"{tmp_path}:vector").read(0, ROWS), z_nd)
    refused("has no column 'z'; it has id, vector", f"{tmp_path}:z")
    manifest.write(tmp_path)
    refused("holds one array only, there is no 'z' in it", f"{tmp_path}:z", UsageError)


def test_parts_that_do_not_go_together(tmp_path):
    def parts_of(*columns):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for i, table in enumerate(columns):
            pq.write_table(pa.table(table), folder / f"{i}.parquet")
        return folder

    z, id_n = listed(draw(2)), np.arange(2)
    refused(
        r"1\.parquet has 4 dims, .*0\.parquet has 5", parts_of({"z": z}, {"z": listed(draw(2, 4))})
    )
    refused(r"1\.parquet has no column 'z'; it has y", parts_of({"z": z}, {"y": z}))
    refused(
        r"1\.parquet has no column id, .*0\.parquet has one",
        parts_of({"z": z, "id": id_n}, {"z": z}),
    )
    refused(
        r"0\.parquet has no column id, .*1\.parquet has one",
        parts_of({"z": z}, {"z": z, "id": id_n}),
    )
    refused(
        "rows 0 and 2 have the same id, 0", parts_of({"z": z, "id": id_n}, {"z": z, "id": id_n})
    )
    refused("is empty: 0 rows of 0 dims", parts_of({"z": z[:0]}, {"z": z[:0]}))
    folder = parts_of({"z": z})
    stream(folder / "1.arrow", pa.table({"z": z}))
    refused("move one kind away", folder)
    (tmp_path / "none").mkdir()
    refused(r"none has no manifest\.json.* and no file of \.parquet or", tmp_path / "none")


def test_names_within_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("a:b.npy", draw())
    pathlib.Path("a").mkdir()
    assert open_vectors("a:b.npy").rows == ROWS
    refused("holds one array only, there is no 'z' to name", "a:b.npy:z", UsageError)
    refused("b:c.npy is missing", "b:c.npy")
    assert place("C.h5:x/y") == (pathlib.Path("C.h5"), "x/y")
    assert place("C.npy:x") == (pathlib.Path("C.npy:x"), None)


def test_blocks_that_are_asked_for_again_are_kept(tmp_path):
    loaded = []

    def load(g):
        loaded.append(g)
        return np.full((2, 1), g, np.float32)

    last = parts.Last()
    a, b = (
        parts.Blocks(tmp_path / name, [2, 2], 1, np.dtype(np.float32), load, last) for name in "ab"
    )
    for part, rows in ((a, slice(0, 1)), (a, slice(1, 3)), (b, slice(3, 4)), (a, np.array([3]))):
        part.read(rows)
    assert loaded == [0, 1, 1, 1]
