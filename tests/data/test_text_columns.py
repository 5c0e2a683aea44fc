import codecs
import gzip
import json

import numpy as np
import pytest

from mrl_jax import config as configs
from mrl_jax.data import text
from mrl_jax.data.text_columns import Columns, Roles, parse_columns
from mrl_jax.data.text_files import first_columns, read_rows
from mrl_jax.errors import DataError
from mrl_jax.evaluators import text_sts


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(*paths, **options):
    return text.load(files=[f"train={path}" for path in paths], **options)


PAIR, TRIPLET = {"anchor": "a", "positive": "b"}, {"anchor": "c", "positive": "d", "negative": "e"}
SCORED = {"anchor": "f", "positive": "g", "score": 0}


@pytest.mark.parametrize("rows", [(PAIR, TRIPLET), (PAIR, SCORED), (TRIPLET, PAIR), (SCORED, PAIR)])
@pytest.mark.parametrize("files", [1, 2])
def test_what_only_some_rows_have_is_never_dropped(tmp_path, rows, files):
    if files == 1:
        paths = [write(tmp_path / "t.jsonl", *rows)]
    else:
        paths = [write(tmp_path / f"{i}.jsonl", row) for i, row in enumerate(rows)]
    (extra,) = {*rows[0], *rows[1]} - {*PAIR}
    if extra in rows[1]:
        message = f"has column {extra}, which {paths[0]} line 1 does not have"
    else:
        message = f"column {extra} is missing; {paths[0]} line 1 has it"
    with pytest.raises(DataError, match=message) as error:
        load(*paths)
    assert f"{paths[-1]} line {3 - files}: " in str(error.value)


def test_what_nothing_reads_may_differ_and_is_named_once(tmp_path):
    rows = {**PAIR, "id": 7}, {"source": "web", **PAIR}
    data = load(*(write(tmp_path / f"{i}.jsonl", row, row) for i, row in enumerate(rows)))
    assert data.splits["train"].unread == ("id", "source")
    assert data.summary().count("columns that are not read: id, source") == 1
    data = load(tmp_path / "0.jsonl", columns=["ignore=id"])
    assert "not read" not in data.summary()
    # A column that says which rows are left out is read, and is no score.
    write(tmp_path / "f.jsonl", {**PAIR, "label": 0}, {**TRIPLET, "label": 1})
    with pytest.raises(DataError, match="column negative"):
        load(tmp_path / "f.jsonl")
    split = load(tmp_path / "f.jsonl", drop=["label=0"]).splits["train"]
    assert (split.kind, split.examples, split.unread) == ("triplets", 1, ())


NEGATIVES = tuple(f"negative_{i}" for i in range(1, 12))


@pytest.mark.parametrize(
    ("names", "roles"),
    [
        (("text1", "text2", "label"), Roles(None, "text1", "text2", (), "label")),
        (("pair_ID", "sentence_A", "sentence_B", "relatedness_score"),
         Roles(None, "sentence_A", "sentence_B", (), "relatedness_score")),
        (("Sentence 1", "Sentence 2", "Score"),
         Roles(None, "Sentence 1", "Sentence 2", (), "Score")),
        (("labels", "query", "answer"), Roles(None, "query", "answer", (), "labels")),
        (("query", "answer", "neg_1", "neg2"), Roles(None, "query", "answer", ("neg_1", "neg2"))),
        (("query", "positive", *reversed(NEGATIVES)),
         Roles(None, "query", "positive", NEGATIVES)),
        (("question", "pos", "neg"), Roles(None, "question", "pos", ("neg",))),
        (("sent0", "sent1", "hard_neg"), Roles(None, "sent0", "sent1", ("hard_neg",))),
        (("captions", "image"), Roles("captions")),
    ],
)  # fmt: skip
def test_names_of_known_data_sets(names, roles):
    assert Columns().roles(names, "x line 1") == roles


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("sentence1", "sentence2", "is_duplicate"),
            "is_duplicate looks like a score: ",
        ),
        (("sentence1", "sentence2", "gold_label"), "gold_label looks like a score"),
        (("query", "answer", "negative_passage"), "negative_passage looks like a negative"),
        (("query", "answer", "score", "label"), "columns score, label could each be the score"),
        (("query", "question", "answer"), "columns query, question could each be the anchor"),
        (("sentence_0", "sentence_1", "sentence_2"), "could each be the anchor"),
        (("texts", "label"), "so label cannot be used"),
        (("text", "summary"), "needs a column texts .*; found text, summary"),
    ],
)
def test_what_might_be_meant_otherwise_is_refused(names, message):
    with pytest.raises(DataError, match=message):
        Columns().roles(names, "x line 1")
    # Whoever says what is meant is believed.
    given = parse_columns([f"anchor={names[0]}", f"positive={names[1]}", *(
        f"ignore={name}" for name in names[2:])])  # fmt: skip
    assert given.roles(names, "x line 1") == Roles(None, *names[:2])


def test_a_column_that_is_given_must_be_there(tmp_path):
    path = write(tmp_path / "t.jsonl", {**PAIR, "rating": 3})
    with pytest.raises(DataError, match=r"line 1: column ratings is missing; found anchor, pos"):
        load(path, columns=["score=ratings"])
    assert load(path, columns=["score=rating"]).splits["train"].kind == "scored"
    # In other files it need not: they may be of another kind.
    files = [f"train={path}", f"val={write(tmp_path / 'v.jsonl', PAIR)}"]
    assert text.load(files=files, columns=["score=rating"]).splits["val"].kind == "pairs"
    # A set that is only measured may be called as the train split is.
    (tmp_path / "s.tsv").write_text("one\ttwo\tscore\na\tb\t1\n")
    config = configs.default_config("sentence_pairs")
    with pytest.raises(DataError) as error:
        text_sts.read(tmp_path / "s.tsv", "s", config)
    assert "data.columns" not in str(error.value)
    config.data.columns = ("anchor=one", "positive=two")
    assert text_sts.read(tmp_path / "s.tsv", "s", config).first == ["a"]


LINES = "score\tsentence1\tsentence2\n5\ta man\ta guy\n0\ta dog\tä car\n"


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize("suffix", [".tsv", ".tsv.gz"])
def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path, mark, ends, suffix):
    content = mark + LINES.replace("\n", ends).encode()
    path = tmp_path / f"t{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    assert first_columns(path) == ["score", "sentence1", "sentence2"]
    split = load(path).splits["train"]
    assert (split.kind, list(split.texts)) == ("scored", ["a man", "a guy", "a dog", "ä car"])
    np.testing.assert_array_equal(split.score_n, [5, 0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (codecs.BOM_UTF16_LE + LINES.encode("utf-16-le"), "is UTF-16 text; it must be UTF-8"),
        (codecs.BOM_UTF16_BE + LINES.encode("utf-16-be"), "is UTF-16 text; it must be UTF-8"),
        (LINES.encode("utf-16-le"), "line 1 holds a zero byte"),
        (LINES.replace("\n", "\r").encode(), "lines end in carriage returns"),
    ],
)
def test_other_encodings_are_refused_in_one_line(tmp_path, content, message):
    (tmp_path / "t.tsv").write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        load(tmp_path / "t.tsv")
    assert len(str(error.value)) < 200 + len(str(tmp_path))


def test_a_name_twice_in_an_object_is_refused(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"anchor": "a", "positive": "b", "anchor": "c"}\n')
    with pytest.raises(DataError, match=r"line 1: not valid JSON \(key 'anchor' occurs twice\)"):
        list(read_rows(tmp_path / "t.jsonl"))
