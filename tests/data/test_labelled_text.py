import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from mrl_jax.data.labelled_text import read_labelled
from mrl_jax.errors import DataError


def test_texts_and_labels_of_both_kinds_of_file(tmp_path):
    (tmp_path / "a.tsv").write_text("label\ttext\n1\tone text\n0\tanother\n")
    (tmp_path / "b.jsonl").write_text('{"text": "one text", "label": 1}\n')
    assert read_labelled(tmp_path / "a.tsv") == (["one text", "another"], ["1", "0"])
    assert read_labelled(tmp_path / "b.jsonl") == (["one text"], ["1"])


def test_numbers_are_the_same_in_every_form(tmp_path):
    path = tmp_path / "a.jsonl"
    labels = (3, 3.0, "3", True, "no")
    path.write_text("".join(json.dumps({"text": "a", "label": x}) + "\n" for x in labels))
    assert read_labelled(path).labels == ["3", "3", "3", "True", "no"]


def test_a_missing_number_of_a_table_is_no_class(tmp_path):
    table = pa.table({"text": ["a", "b"], "label": pa.array([1.0, float("nan")])})
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="row 2: label must be a word or a whole number, got nan"):
        read_labelled(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no rows"),
        ('{"text": "a"}\n', "line 1: column label is missing; found text"),
        ('{"text": "a", "label": null}\n', "line 1: column label is missing"),
        ('{"text": 5, "label": 1}\n', "line 1: text must be a text, got 5"),
        ('{"text": "a", "label": ["x", "y"]}\n', "label must be a word or a whole number, got \\["),
        ('{"text": "a", "label": {"x": 1}}\n', "line 1: label must be a word .*, got {'x': 1}$"),
        ('{"text": "a", "label": NaN}\n', "line 1: label must be a word .*, got nan"),
        ('{"text": "a", "label": Infinity}\n', "line 1: label must be a word .*, got inf"),
        ('{"text": "a", "label": 2.5}\n', "line 1: label must be a word .*, got 2.5"),
        ('{"text": "a", "label": " "}\n', "line 1: label must be a word .*, got ' '"),
    ],
)
def test_damaged_rows_are_refused_with_their_place(tmp_path, content, message):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_labelled(path)
