import contextlib
import gzip
import json

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from mrl_jax.data import text, text_files
from mrl_jax.errors import DataError, UsageError

GROUPS = [
    {"captions": ["a dog", "a brown dog", "a dog"], "split": "train"},
    {"captions": ["one cat", "a cat sits"], "split": "dev"},
    {"captions": ["a brown dog", "it barks"], "flag": True},
]


def write(path, rows):
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    return path


def only(path, **options):
    return text.load(files=(f"train={path}",), **options).splits["train"]


def test_groups_share_an_id_with_all_that_shares_a_text(tmp_path):
    split = only(write(tmp_path / "t.jsonl.gz", [*GROUPS, GROUPS[1]]))
    assert (split.kind, split.examples, split.repeated) == ("groups", 4, 1)
    assert tuple(split.texts) == ("a dog", "a brown dog", "one cat", "a cat sits", "it barks")
    # A text that a group names twice counts once.
    assert [part.tolist() for part in np.split(split.members, split.starts[1:-1])] == [
        *([0, 1], [2, 3], [1, 4], [2, 3]),
    ]
    same = split.same_t.tolist()
    assert same[0] == same[1] == same[4] != same[2] == same[3]


def test_rows_are_dropped_by_flag_and_by_value(tmp_path):
    data = text.load(
        files=(f"train={write(tmp_path / 't.jsonl', GROUPS)}",), drop=("flag", "split=dev")
    )
    assert data.splits["train"].examples == 1
    assert data.dropped == 2
    assert "2 rows dropped" in data.summary()
    with pytest.raises(UsageError, match="no row has a column 'splitt'"):
        only(tmp_path / "t.jsonl", drop=("splitt=dev",))


def test_triplets_with_lists_or_columns_of_negatives(tmp_path):
    row = {"query": "q", "document": "d", "negatives": ["n", "m"]}
    split = only(write(tmp_path / "a.jsonl", [row]))
    assert (split.kind, split.negatives) == ("triplets", 2)
    assert {side: split.texts[n[0]] for side, n in split.sides.items()} == {
        **{"anchor": "q", "positive": "d", "negative_0": "n", "negative_1": "m"},
    }
    row = {"anchor": "q", "positive": "d", "negative_10": "m", "negative_9": "n"}
    assert tuple(only(write(tmp_path / "b.jsonl", [row])).texts) == ("q", "d", "n", "m")


def test_a_date_that_python_does_not_have_is_one_line(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = {"text": ["a", "b"], "day": pyarrow.array([1, 2**30], pyarrow.date32())}
    parquet.write_table(pyarrow.table(table), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"cannot read .*t\.parquet: "):
        only(tmp_path / "t.parquet")


def test_scored_pairs_of_tsv_and_parquet_are_the_same(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [("a", "b", 2.5), ("a", "b", 2.5), ("c", 'd "quoted"', 0.0)]
    lines = ["sentence1\tsentence2\tscore", *("\t".join(map(str, row)) for row in rows)]
    (tmp_path / "t.tsv").write_text("\n".join(lines))
    names = ("sentence1", "sentence2", "score")
    table = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    parquet.write_table(pyarrow.table(table), tmp_path / "t.parquet")
    one, other = only(tmp_path / "t.tsv"), only(tmp_path / "t.parquet")
    assert tuple(one.texts) == tuple(other.texts) == ("a", "b", "c", 'd "quoted"')
    assert (one.kind, one.repeated) == ("scored", 1)
    np.testing.assert_array_equal(one.score_n, np.float32([2.5, 2.5, 0]))
    for side in ("anchor", "positive"):
        np.testing.assert_array_equal(one.sides[side], other.sides[side])


def test_columns_have_the_names_one_gives_them(tmp_path):
    rows = [{"premise": "p", "hypothesis": "h", "score": 1}]
    columns = ("anchor=hypothesis", "positive=premise")
    split = only(write(tmp_path / "t.jsonl", rows), columns=columns)
    assert tuple(split.texts) == ("h", "p")


def test_a_folder_has_splits_and_a_fingerprint_of_its_content(tmp_path):
    write(tmp_path / "train.jsonl", GROUPS)
    before = text.load(str(tmp_path))
    write(tmp_path / "dev.jsonl", GROUPS[:1])
    after = text.load(str(tmp_path))
    assert set(before.splits) == {"train"}
    assert set(after.splits) == {"train", "val"}
    changed = [*GROUPS[:2], {**GROUPS[2], "captions": ["a brown dog", "it bark"]}]
    write(tmp_path / "train.jsonl", changed)
    digests = {before.digest, after.digest, text.load(str(tmp_path)).digest}
    assert len(digests) == 3
    # Which text belongs to which counts, not the texts alone.
    rows = [{"anchor": "a", "positive": "b"}, {"anchor": "c", "positive": "d"}]
    swapped = [{"anchor": "a", "positive": "b"}, {"anchor": "d", "positive": "c"}]
    write(tmp_path / "train.jsonl", rows)
    one = text.load(str(tmp_path)).digest
    write(tmp_path / "train.jsonl", swapped)
    assert text.load(str(tmp_path)).digest != one
    write(tmp_path / "val.tsv", [])
    with pytest.raises(DataError, match="which is the val split"):
        text.load(str(tmp_path))


PAIR = '{"anchor": "a", "positive": "b"}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no rows"),
        (PAIR + "{", "line 2: not valid JSON"),
        (PAIR + "[1]", "line 2: must be a JSON object, got list"),
        (PAIR + '{"anchor": "a"}', "line 2: column positive is missing"),
        (PAIR + '\n{"anchor": " ", "positive": "b"}', "line 3: anchor is empty"),
        (PAIR + '{"anchor": null, "positive": "b"}', "line 2: anchor must be a text, got None"),
        ('{"a": 1, "b": 2}', "line 1: needs a column texts (a list), or the columns anchor and"),
        ('{"texts": ["a", "a"]}', "line 1: texts must hold at least 2 different texts, got 1"),
        ('{"texts": "a b"}', "line 1: texts must be a list of texts, got 'a b'"),
        ('{"sentence1": "a", "sentence2": "b", "score": "x"}', "score must be a finite number"),
        ('{"sentence1": "a", "sentence2": "b", "score": NaN}', "score must be a finite number"),
        (
            '{"anchor": "a", "positive": "b", "negatives": ["c"]}\n'
            '{"anchor": "a", "positive": "b", "negatives": ["c", "d"]}',
            "line 2: 2 negatives, the first row has 1",
        ),
        (PAIR.encode() + b'{"anchor": "\xff"}', "line 2: not UTF-8 (invalid start byte)"),
    ],
)
def test_damaged_files_name_the_line(tmp_path, content, message):
    path = tmp_path / "t.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as error:
        only(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


PASSAGE = "word " * 200_000


@pytest.mark.parametrize(
    ("name", "content", "columns"),
    [
        ("t.jsonl", json.dumps({"query": "q", "pos": [PASSAGE] * 3}), ()),
        ("t.jsonl", json.dumps({"texts": PASSAGE}), ()),
        ("t.jsonl", json.dumps({"query": "q", "answer": "a", "score": PASSAGE}), ()),
        ("t.jsonl", json.dumps({PASSAGE: 1, **{f"c{i}": 1 for i in range(10_000)}}), ()),
        ("t.jsonl", json.dumps({"query": "q"}), (f"score={PASSAGE}",)),
        ("t.jsonl", f'{{"{PASSAGE}": 1, "{PASSAGE}": 2}}', ()),
        ("t.tsv", f"q\t{PASSAGE}\t{PASSAGE}\n" * 2, ()),
        ("t.tsv", f"{PASSAGE}\t{PASSAGE}\n", ()),
        ("t.tsv", "anchor\tpositive\r" + "a\tb\r" * 100_000, ()),
    ],
)
def test_messages_quote_little_of_large_rows(tmp_path, name, content, columns):
    (tmp_path / name).write_text(content, newline="")
    with pytest.raises(DataError) as error:
        only(tmp_path / name, columns=columns)
    assert len(str(error.value)) < 1000 + 2 * len(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.tsv", b"anchor\tpositive\na\tb\tc", "line 2: 3 fields, but the first line names 2"),
        ("t.tsv", b"a\ta\nb\tc", "line 1: two columns of the same name"),
        ("t.jsonl.gz", b"no gzip", "cannot read"),
        ("t.jsonl.gz", gzip.compress(PAIR.encode() * 99, mtime=0)[:-9], "cannot read"),
        ("t.parquet", b"PAR1 and no more", "cannot read"),
    ],
)
def test_damaged_containers(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        only(tmp_path / name)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, UsageError, "needs data.path=FOLDER or data.files"),
        ({"path": "nowhere"}, DataError, "nowhere: no such folder"),
        ({"files": ("val=x.tsv",)}, DataError, "has no train split"),
        ({"files": ("trian=x.tsv",)}, UsageError, "SPLIT one of train, val, test; got 'trian=x"),
        ({"files": ("train=x.csv",)}, UsageError, "x.csv: must end in one of .jsonl"),
        ({"files": ("train=nowhere.tsv",)}, DataError, "cannot read nowhere.tsv: No such file"),
        ({"files": ("train=x.tsv",), "columns": ("ancor=x",)}, UsageError, "ROLE one of anchor"),
    ],
)
def test_arguments_that_cannot_be_meant(options, error, message):
    with pytest.raises(error) as raised:
        text.load(**options)
    assert message in str(raised.value)


@pytest.mark.parametrize("name", ["t.jsonl.gz", "t.tsv.gz", "t.txt.gz"])
def test_what_a_small_file_unpacks_to_without_end_is_refused(tmp_path, monkeypatch, name):
    """A million newlines pack into a kilobyte."""
    monkeypatch.setattr(text_files, "MOST_BYTES", 5000)
    monkeypatch.setattr(text_files, "MOST_BLANK", 3000)
    path, head = tmp_path / name, b"a\n" if "tsv" in name else b""
    for content, message in (
        (b"\n" * 100_000, "more than 3,000 blank lines one after another"),
        (b" \n" * 100_000, "more than 3,000 blank lines one after another"),
        (b"x" * 100_000, "is longer than 5,000 bytes"),
        (b"\0" * 100_000, "is longer than 5,000 bytes"),
    ):
        path.write_bytes(gzip.compress(head + content))
        with pytest.raises(DataError, match=message):
            list(text_files.read_rows(path))
    rows = b'{"a": 1}\n' if "jsonl" in name else b"1\n"
    path.write_bytes(gzip.compress(head + (rows + b"\n" * 2000) * 2 + rows.strip()))
    assert len(list(text_files.read_rows(path))) == 3


def test_equal_rows_of_parquet_are_unpacked_a_few_at_a_time(tmp_path):
    """They are stored once: a megabyte may hold terabytes of text."""
    texts = ["x" * 20_000] * 8_000
    path = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.table({"text": texts}), path)
    assert path.stat().st_size < 200_000
    before = pyarrow.total_allocated_bytes()
    with contextlib.closing(text_files.read_rows(path)) as rows:
        assert len(next(rows).values["text"]) == 20_000
        assert pyarrow.total_allocated_bytes() - before < 50e6
