import concurrent.futures
import hashlib
import json
import os
import platform
import resource
import shutil

import numpy as np
import pytest

from mrl_jax.data.array_cache import MANIFEST, Parts, stored
from mrl_jax.errors import DataError

FACTS = {"source": "here", "length": 7}


def write(parts):
    parts.append("numbers", np.arange(3))
    parts.append("numbers", np.arange(3, 7))
    parts.append("way", np.zeros(2))
    parts.drop("way")
    parts.append("none", np.zeros(0, np.float32))
    return FACTS, {"note": "a"}


def get(cache, facts=FACTS, made=None):
    def counted(parts):
        if made is not None:
            made.append(1)
        return facts, write(parts)[1]

    return stored(str(cache), "test", lambda: facts, counted)


def check(found):
    assert set(found.arrays) == {"numbers", "none"}
    np.testing.assert_array_equal(found.arrays["numbers"], np.arange(7))
    assert found.arrays["numbers"].dtype == np.int64
    assert found.arrays["none"].shape == (0,)
    assert found.arrays["none"].dtype == np.float32
    assert found.values == {"note": "a"}
    assert not found.arrays["numbers"].flags.writeable


def test_it_is_made_once_and_the_same_in_memory(tmp_path, capsys):
    made = []
    for _ in range(3):
        check(get(tmp_path / "cache", made=made))
    assert len(made) == 1
    check(get(""))
    assert get("").name == ""
    other = get(tmp_path / "cache", {**FACTS, "length": 8}, made)
    assert len(made) == 2
    assert other.name != get(tmp_path / "cache", made=made).name
    assert len(list((tmp_path / "cache").glob("test-*"))) == 2
    assert capsys.readouterr().out == ""


def test_an_array_has_one_dtype():
    parts = Parts()
    parts.append("a", np.zeros(1))
    with pytest.raises(TypeError, match="a holds float64, got int64"):
        parts.append("a", np.zeros(1, np.int64))


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def changed(path):
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "values": {"note": "b"}}))


def outside(path):
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    manifest["arrays"]["../../numbers"] = manifest["arrays"].pop("numbers")
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**manifest, "sha256": digest}))


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("numbers.bin", flip, "numbers.bin has another checksum"),
        ("numbers.bin", cut, "numbers.bin has 55 bytes, not 7 x 8"),
        ("numbers.bin", os.remove, "No such file"),
        (MANIFEST, changed, "manifest.json has another checksum"),
        (MANIFEST, outside, "'../../numbers' is not the name of an array"),
        (MANIFEST, cut, "Expecting"),
        (MANIFEST, os.remove, "No such file"),
    ],
)
def test_what_is_damaged_is_made_again(tmp_path, capsys, name, damage, reason):
    made = []
    path = tmp_path / get(tmp_path, made=made).name
    damage(path / name)
    check(get(tmp_path, made=made))
    assert len(made) == 2
    line = capsys.readouterr().out
    assert line.startswith(f"warning: {path} is damaged (")
    assert reason in line
    assert line.endswith("); it is made again\n")
    assert line.count("\n") == 1
    check(get(tmp_path, made=made))
    assert len(made) == 2
    assert not list(tmp_path.glob("unfinished-*"))


def test_those_who_come_together_wait_for_the_first(tmp_path):
    made = []
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        for found in pool.map(lambda _: get(tmp_path, made=made), range(6)):
            check(found)
    assert len(made) == 1


def test_of_two_that_do_not_see_each_other_the_first_to_end_stays(tmp_path, monkeypatch):
    """As on hosts whose file system shows locks to one host only."""

    def slow(parts):
        os.remove(tmp_path / ".lock")
        monkeypatch.setattr(platform, "node", lambda: "other")
        first.append(get(tmp_path))
        return FACTS, write(parts)[1]

    first = []
    check(stored(str(tmp_path), "test", lambda: FACTS, slow))
    check(first[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", first[0].name]


def test_an_error_on_the_way_leaves_nothing(tmp_path):
    def broken(parts):
        write(parts)
        raise DataError("line 7")

    with pytest.raises(DataError, match="line 7"):
        stored(str(tmp_path), "test", lambda: FACTS, broken)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    check(get(tmp_path))


def test_what_others_left_unfinished_is_removed_on_this_host_only(tmp_path, monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "host")
    mine, other = (tmp_path / f"unfinished-{host}-{'0' * 16}" for host in ("host", "host-2"))
    mine.mkdir()
    other.mkdir()
    check(get(tmp_path))
    assert other.exists()
    assert not mine.exists()


def test_a_full_disk_leaves_nothing(tmp_path):
    most = resource.getrlimit(resource.RLIMIT_FSIZE)

    def large(parts):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, most[1]))
        parts.append("numbers", np.zeros(1 << 16))
        return write(parts)

    try:
        with pytest.raises(DataError, match=r"cannot write data.cache .*: File too large"):
            stored(str(tmp_path), "test", lambda: FACTS, large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, most)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    path = tmp_path / get(tmp_path).name
    shutil.rmtree(path)
    path.write_text("")
    with pytest.raises(DataError, match=r"cannot write data.cache .*: Not a directory"):
        get(tmp_path)


def test_a_folder_that_cannot_be_one(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write data.cache .*/file/cache: Not a directory"):
        get(tmp_path / "file" / "cache")
