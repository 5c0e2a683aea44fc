import hashlib

import pytest

from mrl_jax.store import files


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "table.json"
    files.write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        files.write_text(path, "half of the \ud800")
    assert path.read_text() == "old"
    files.write_text(path, "new")
    assert files.sha256(path) == hashlib.sha256(b"new").hexdigest()
    assert list(tmp_path.iterdir()) == [path]
