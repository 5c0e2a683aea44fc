import json
import os
import re

import pytest

from mrl_jax.errors import DataError
from mrl_jax.store import json_files

DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"{", "not valid JSON (Expecting"),
        (b'{"a": 1} {}', "not valid JSON (Extra data"),
        (b"\xff\xfe{}", "not UTF-8 (invalid start byte at byte 0)"),
        (b"\0", "not valid JSON (Expecting"),
        (DEEP.encode(), "brackets are nested more than 100 deep"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, "brackets are nested more than 100 deep"),
        (b"[" * 101 + b"]" * 101, "brackets are nested more than 100 deep"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b"[-Infinity]", "-Infinity is not a JSON number"),
        (b"[1e999]", "number '1e999' is too large"),
        (b"1" + b"0" * 5000, "is too large"),
        (b'{"a": {"b": 1, "c": 2, "b": 1}}', "key 'b' occurs twice"),
    ],
    ids=range(14),
)
def test_what_is_wrong_is_said_in_a_line(tmp_path, content, message):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(message)) as error:
        json_files.read(path)
    assert str(error.value).startswith(str(path))
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < len(str(path)) + 200


def test_legal_json_is_read(tmp_path):
    path = tmp_path / "x.json"
    content = {"a": [1, 2.5, None, True, "\udce9 é"], "b": 10**200, "c": 1e308}
    path.write_text(json.dumps(content))
    assert json_files.read(path) == content
    path.write_bytes(b"\xef\xbb\xbf" + b"[" * 100 + b"]" * 100)
    assert json.dumps(json_files.read(path)) == "[" * 100 + "]" * 100
    assert json_files.parse('"' + DEEP + '"', "x") == DEEP
    assert json_files.parse("[" + "[]," * 100 + "1]", "x")[-1] == 1  # many beside each other


def test_rows_may_say_nan():
    assert json_files.parse("[1e999]", "x", strict=False) == [float("inf")]
    with pytest.raises(DataError, match="x: brackets"):
        json_files.parse(DEEP, "x", strict=False)


def test_what_is_no_file(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    for name, message in (("pipe", "is a pipe"), (".", "is a folder"), ("x\0y", "null byte")):
        with pytest.raises(DataError, match=message):
            json_files.read(tmp_path / name)
    with pytest.raises(json_files.MissingError, match="No such file"):
        json_files.read(tmp_path / "gone.json")
    (tmp_path / "long.json").write_text('"' + "x" * 100 + '"')
    monkeypatch.setattr(json_files, "MOST_BYTES", 100)
    with pytest.raises(DataError, match="larger than 100 bytes"):
        json_files.read(tmp_path / "long.json")


def test_an_object_is_asked_for(tmp_path):
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(DataError, match=r"must be a JSON object, got \[1\]"):
        json_files.read_object(tmp_path / "x.json")
