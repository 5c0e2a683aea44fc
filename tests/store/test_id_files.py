"""Ids in files of every kind: numbers and texts are read as they are, or refused in one line."""

import numpy as np
import pytest

from mrl_jax.errors import DataError, UsageError
from mrl_jax.store import id_files
from mrl_jax.store.vectors import open_vectors

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

TEXTS = ["photo 1", "ö/日本.jpg", "7"]
NUMBERS = [3, -5, 2**63 - 1]


@pytest.fixture
def written(tmp_path):
    """Writes a file, of an array, a table or bytes; gives its path."""

    def write(name, content):
        path = tmp_path / name
        if path.suffix == ".npy":
            np.save(path, content, allow_pickle=True)
        elif path.suffix == ".parquet":
            pq.write_table(pa.table(content), path)
        elif path.suffix in (".arrow", ".feather"):
            table = pa.table(content)
            opened = pa.ipc.new_file if path.suffix == ".feather" else pa.ipc.new_stream
            with opened(path, table.schema) as file:
                file.write_table(table, max_chunksize=2)
        else:
            path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize("ids", [TEXTS, NUMBERS])
def test_all_kinds_of_files(written, ids):
    lines = "\n".join(map(str, ids))
    table = {"id": pa.array(ids), "again": pa.array(ids).dictionary_encode(), "x": [1.0, 2.0, 3.0]}
    large = pa.array(ids, pa.large_string() if ids is TEXTS else pa.int64())
    found = [
        written("i.npy", np.array(ids)),
        written("big.npy", np.array(ids).astype(">U9" if ids is TEXTS else ">i8")),
        written("i.txt", lines.encode()),
        written("end.txt", f"{lines}\n".encode()),
        written("windows.txt", "\ufeff{}\r\n".format(lines.replace("\n", "\r\n")).encode()),
        written("i.parquet", table),
        f"{written('again.parquet', table)}:again",
        written("only.parquet", {"name": large}),
        f"{written('i.arrow', table)}:again",
        written("i.feather", table),
    ]
    for path in found:
        read = id_files.read(path)
        assert read.tolist() == ids, path
        assert read.dtype == (object if ids is TEXTS else np.int64)


def test_lines_are_of_the_kind_that_is_asked_for(written):
    numbers = written("n.txt", b"12\n-3\n")
    assert id_files.read(numbers).tolist() == [12, -3]
    assert id_files.read(numbers, "texts").tolist() == ["12", "-3"]
    for other in ("007", "12 ", "1_0", "+3", "9223372036854775808", "-0", "٣"):
        path = written("t.txt", f"12\n{other}\n".encode())
        assert id_files.read(path).tolist() == ["12", other]
        with pytest.raises(DataError, match=r"t\.txt: line 2 holds '.*'; the ids of the index are"):
            id_files.read(path, "int64")
    assert id_files.read(written("none.txt", b"")).tolist() == []
    # These end no line.
    assert id_files.read(written("b.txt", "a\x0bb\u2028c\n".encode())).tolist() == ["a\x0bb\u2028c"]


def test_files_that_are_refused(written):
    no_character = np.array([0x200000, 1], "<u4").view("<U1")
    no_unicode = np.array(["a", "\ud800", "b"])
    cases = [
        (written("f.npy", np.arange(3.0)), "must hold ids, one for each row: .* float64 of shape"),
        (written("b.npy", np.array([b"a"])), "it holds |S1"),
        (written("2.npy", np.zeros((3, 1), int)), r"it holds int64 of shape \(3, 1\)"),
        (written("o.npy", np.array(TEXTS, object)), "is no whole .npy file"),
        (written("u.npy", no_unicode), r"u\.npy: row 1 has an id that is no Unicode"),
        (written("c.npy", no_character), "holds texts that are no Unicode"),
        (written("empty.txt", b"a\n\nb\n"), "line 2 is empty, there must be an id"),
        (written("latin.txt", b"\xe4\n"), "is no text in UTF-8"),
        (written("many.parquet", {"a": TEXTS, "b": TEXTS}), "must have a column id, or one .*:a$"),
        (written("d.parquet", {"id": [1.0]}), "column id must hold whole numbers .* or texts"),
        (f"{written('n.parquet', {'a': TEXTS})}:b", "has no column 'b'; it has a$"),
        (
            f"{written('m.arrow', {'a': TEXTS, 'c': [None] * 3})}:c",
            "column c must .* it holds null",
        ),
        (written("gap.feather", {"id": ["a", None]}), "row 1 has no id"),
        ("none.npy", "is missing"),
        ("none.txt", "is missing"),
        ("none.parquet:id", "is missing"),
    ]
    for path, message in cases:
        with pytest.raises(DataError, match=message) as raised:
            id_files.read(path)
        assert "\n" not in str(raised.value)
    whole = written("t.npy", np.array(TEXTS))
    whole.write_bytes(whole.read_bytes()[:-4])
    with pytest.raises(DataError, match=r"t\.npy is no whole \.npy file"):
        id_files.read(whole)
    with pytest.raises(UsageError, match=r"i\.txt has no columns, there is no 'id' to name in it"):
        id_files.read(f"{written('i.txt', b'a')}:id")
    for kind, path, other in (
        ("int64", written("k.npy", np.array(TEXTS)), "holds texts, the ids of the index are whole"),
        ("texts", written("k.npy", np.arange(3)), "holds whole numbers, the ids of the index are"),
    ):
        written("k.npy", np.array(TEXTS) if kind == "int64" else np.arange(3))
        with pytest.raises(DataError, match=other):
            id_files.read(path, kind)


def test_vectors_with_texts(written, tmp_path):
    z_nd = np.arange(6, dtype=np.float32).reshape(3, 2)
    vectors = list(z_nd)
    for path in (
        written("z.parquet", {"id": TEXTS, "vector": vectors}),
        written("z.feather", {"id": pa.array(TEXTS).dictionary_encode(), "vector": vectors}),
        written("z.arrow", {"id": pa.array(TEXTS, pa.string_view()), "vector": vectors}),
    ):
        found = open_vectors(path)
        assert found.ids.tolist() == TEXTS, path
        np.testing.assert_array_equal(found.read(0, 3), z_nd)
    found = open_vectors(written("z.npy", z_nd), written("i.txt", b"a\n12\nc"))
    assert found.ids.tolist() == ["a", "12", "c"]
    with pytest.raises(DataError, match=r"i\.txt: rows 0 and 2 have the same id, 'a'"):
        open_vectors(tmp_path / "z.npy", written("i.txt", b"a\nb\na"))
    with pytest.raises(DataError, match=r"i\.txt must hold an id for each of 3 rows, it holds 2"):
        open_vectors(tmp_path / "z.npy", written("i.txt", b"a\nb"))
    (tmp_path / "parts").mkdir()
    written("parts/1.parquet", {"id": [1, 2, 3], "vector": vectors})
    written("parts/2.parquet", {"id": TEXTS, "vector": vectors})
    with pytest.raises(DataError, match=r"2\.parquet has texts for ids, .*1\.parquet has whole"):
        open_vectors(tmp_path / "parts")
