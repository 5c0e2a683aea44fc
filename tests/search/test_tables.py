"""Parquet as others write it: every type is read rightly, or refused by a line that says why."""

import decimal

import numpy as np
import pytest

from mrl_jax.errors import DataError
from mrl_jax.store import tables
from mrl_jax.store.vectors import open_vectors

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

Z = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
FLOATS = pa.list_(pa.float32())
VECTORS = pa.array(Z, FLOATS)


@pytest.fixture
def stored(tmp_path):
    """Writes a table; gives its path."""

    def store(columns, **options):
        pq.write_table(pa.table(columns), tmp_path / "x.parquet", **options)
        return tmp_path / "x.parquet"

    return store


@pytest.mark.parametrize("bits", ["int8", "int16", "int32", "int64"])
@pytest.mark.parametrize("sign", ["", "u"])
def test_all_integers_are_ids(stored, sign, bits):
    info = np.iinfo(sign + bits)
    extremes = [int(info.min), 7, min(int(info.max), 2**63 - 1)]
    vectors = open_vectors(stored({"id": pa.array(extremes, sign + bits), "vector": VECTORS}))
    assert vectors.ids.dtype == np.int64
    assert vectors.ids.tolist() == extremes


def test_ids_beyond_float64_are_kept(stored):
    ids = [2**53 + 1, 2**63 - 1, -(2**63)]
    for column in (pa.array(ids), pa.array(ids).dictionary_encode()):
        path = stored({"id": column, "vector": VECTORS}, row_group_size=2)
        assert open_vectors(path).ids.tolist() == ids


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (pa.array([None, 2**53 + 1, 3]), "row 0 has no id"),
        (pa.array([1, 2, None], pa.uint8()), "row 2 has no id"),
        (
            pa.array([1, 2**63, 3], pa.uint64()),
            r"row 1 has the id 9223372036854775808, above 2\^63",
        ),
        (pa.array([4, 5, 4]), "rows 0 and 2 have the same id, 4"),
        (pa.array(["a", "b", "a"]), "rows 0 and 2 have the same id, 'a'"),
        (pa.array(["a", "b", None]).dictionary_encode(), "row 2 has no id"),
        (pa.array([b"a", b"b", b"c"]), "must hold whole numbers .* or texts, it holds binary"),
        (pa.array([1.0, 2.0, 3.0]), "it holds double; leave it out where row numbers will do"),
        (pa.array([decimal.Decimal(1)] * 3), "it holds decimal128"),
        (pa.array([True, False, True]), "it holds bool"),
        (pa.array([1, 2, 3], pa.timestamp("us")), "it holds timestamp"),
        (pa.array([[1], [2], [3]]), "it holds list<element: int64>"),
        (pa.nulls(3), "it holds null"),
    ],
)
def test_ids_that_are_refused(stored, ids, message):
    path = stored({"id": ids, "vector": VECTORS})
    with pytest.raises(DataError, match=rf"x\.parquet: .*{message}"):
        open_vectors(path)


def test_other_ids_may_be_given_beside_those_of_the_table(stored, tmp_path):
    path = stored({"id": pa.array(["a", "b", "c"]), "vector": VECTORS})
    np.save(tmp_path / "ids.npy", np.array([7, 8, 9], ">u2"))
    assert open_vectors(path, tmp_path / "ids.npy").ids.tolist() == [7, 8, 9]


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.float64()),
        pa.list_(pa.float16()),
        pa.list_(pa.float32(), 2),
        pa.large_list(pa.float32()),
        pa.list_view(pa.float32()),
    ],
)
def test_all_lists_of_floats_are_vectors(stored, kind):
    z_nd = np.array(Z, kind.value_type.to_pandas_dtype())
    path = stored({"z": pa.array(list(z_nd), kind), "other": pa.array([Z, Z, Z])})
    vectors = open_vectors(path)
    assert vectors.dtype == z_nd.dtype
    np.testing.assert_array_equal(vectors.read(0, 3), z_nd)


def test_rows_of_many_groups_and_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK", 2)  # one row
    schema = pa.schema({"id": pa.int32(), "vector": FLOATS})
    with pq.ParquetWriter(tmp_path / "x.parquet", schema) as writer:
        for rows in ([], [0, 1], [], [2], []):
            columns = {"id": pa.array(rows, pa.int32()), "vector": [Z[row] for row in rows]}
            writer.write_table(pa.table(columns, schema=schema))
    vectors = open_vectors(tmp_path / "x.parquet")
    assert vectors.ids.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(vectors.read(0, 3), Z)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (pa.array([Z[0], None, Z[1]], FLOATS), ": row 1 has no vector"),
        (pa.array([Z[0], None, Z[1]], pa.list_(pa.float32(), 2)), ": row 1 has no vector"),
        (pa.array([None, None], FLOATS), ": row 0 has no vector"),
        (pa.array([Z[0], [1.0], Z[1]], FLOATS), ": row 1 has 1 dims, the rows before it have 2"),
        (pa.array([Z[0], Z[1], [1.0]], FLOATS), ": row 2 has 1 dims, the rows before it have 2"),
        (pa.array([Z[0], [1.0, None]], FLOATS), ": row 1 has a vector with a null in it"),
        (pa.array([[], []], FLOATS), " is empty: 2 rows of 0 dims"),
        (pa.array([], FLOATS), " is empty: 0 rows of 0 dims"),
        (pa.array([[Z[0]], [Z[1]]]), ".*it has {'vector': 'list<element: list<element: double>>'}"),
        (pa.array([{"a": Z[0]}]), ".*it has {'vector': 'struct<a: list<element: double>>'}"),
        (pa.array([[{"a": 1.0}]]), ".*it has {'vector': 'list<element: struct<a: double>>'}"),
        (pa.array([[1, 2]]), ".*lists of floating point numbers.* 'list<element: int64>'}"),
        (pa.array([[decimal.Decimal(1)]]), r".*'list<element: decimal128\(1, 0\)>'}"),
        (pa.array([b"abcd"], pa.binary(4)), r".*'fixed_size_binary\[4\]'}"),
        (pa.array([1.0]), ".*'double'}"),
    ],
)
def test_vectors_that_are_refused(stored, vectors, message):
    path = stored({"vector": vectors}, row_group_size=2)
    with pytest.raises(DataError, match=rf"x\.parquet{message}"):
        open_vectors(path)


def test_columns_of_the_same_name_are_refused(stored):
    path = stored({"a": VECTORS})
    twice = pa.Table.from_arrays([VECTORS, VECTORS], names=["vector", "vector"])
    pq.write_table(twice, path)
    with pytest.raises(DataError, match=r"two columns of the same name: \['vector', 'vector'\]"):
        open_vectors(path)
    with pytest.raises(DataError, match="or one of them called vector; it has"):
        open_vectors(stored({"a": VECTORS, "b": VECTORS}))
    path.write_bytes(b"PAR1")
    with pytest.raises(DataError, match="no whole Parquet file"):
        open_vectors(path)
