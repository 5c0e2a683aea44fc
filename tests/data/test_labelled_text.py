import pytest

from mrl_jax.data.labelled_text import read_labelled
from mrl_jax.errors import DataError


def test_texts_and_labels_of_both_kinds_of_file(tmp_path):
    (tmp_path / "a.tsv").write_text("label\ttext\n1\tone text\n0\tanother\n")
    (tmp_path / "b.jsonl").write_text('{"review": "one text", "stars": 1}\n')
    assert read_labelled(tmp_path / "a.tsv") == (["one text", "another"], ["1", "0"])
    found = read_labelled(tmp_path / "b.jsonl", text="review", label="stars")
    assert found == (["one text"], ["1"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no rows"),
        ('{"text": "a"}\n', "line 1: column label is missing; found text"),
        ('{"text": "a", "label": null}\n', "line 1: column label is missing"),
        ('{"text": 5, "label": 1}\n', "line 1: text must be a text, got 5"),
    ],
)
def test_damaged_rows_are_refused_with_their_place(tmp_path, content, message):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_labelled(path)
