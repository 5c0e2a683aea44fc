"""Tar shards are read in place; what is damaged or unsafe in them is named."""

import contextlib
import gzip
import io
import re
import tarfile

import numpy as np
import pytest

from mrl_jax.data import tar_shards
from mrl_jax.data.remarks import Remarks
from mrl_jax.data.strings import Strings
from mrl_jax.data.tar_shards import TarRecords, find_shards, members, samples
from mrl_jax.errors import DataError

FILES = {"a/1.jpg": b"photo" * 300, "a/1.txt": b"words", "a/2.JPG": b"", "a/2.seg.png": b"s"}


def link(name, target, kind=tarfile.SYMTYPE):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def tar(path, files, *others, **options):
    with tarfile.open(path, "w", **options) as shard:
        for member in others:
            shard.addfile(member)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))
    return path


def read(path):
    remarks = Remarks()
    found = list(members(path, remarks))
    return {m.name: tar_shards.read_at(path, m) for m in found}, remarks.lines()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_read_at_their_places(tmp_path, form):
    long = {**FILES, f"{'folder/' * 20}{'x' * 90}.jpg": b"long"}
    found, lines = read(tar(tmp_path / "a.tar", long, format=form))
    assert found == long
    assert not lines


def test_a_sample_is_what_has_one_name_up_to_the_first_dot(tmp_path):
    files = {"b.jpg": b"", **FILES, "b.txt": b"", ".hidden.jpg": b"", "README": b"", "c/.x": b""}
    remarks = Remarks()
    found = list(samples(tar(tmp_path / "a.tar", files), remarks))
    assert [(key, sorted(parts)) for key, parts in found] == [
        ("b", ["jpg", "txt"]),
        ("a/1", ["jpg", "txt"]),
        ("a/2", ["jpg", "seg.png"]),
    ]
    path = tmp_path / "a.tar"
    assert remarks.lines() == [
        f"not read (hidden, or without an ending): 3, the first is {path}: .hidden.jpg"
    ]


def test_two_members_of_one_name_are_refused(tmp_path):
    path = tar(tmp_path / "a.tar", {"1.jpg": b"a", "1.JPG": b"b"})
    with pytest.raises(DataError, match=r"a.tar has two members called '1.JPG'"):
        list(samples(path, Remarks()))


def test_nothing_that_leads_elsewhere_is_read(tmp_path):
    (tmp_path / "secret").write_text("secret")
    device = tarfile.TarInfo("tty.jpg")
    device.type = tarfile.CHRTYPE
    folder = tarfile.TarInfo("a")
    folder.type = tarfile.DIRTYPE
    others = (
        link("1.jpg", str(tmp_path / "secret")),
        link("2.jpg", "../secret"),
        link("3.jpg", "a/1.jpg", tarfile.LNKTYPE),
        device,
        folder,
    )
    files = {"../up.jpg": b"up", "a/../../up.jpg": b"up", "/root.jpg": b"root", **FILES}
    path = tar(tmp_path / "a.tar", files, *others)
    before = sorted(tmp_path.rglob("*"))
    found, lines = read(path)
    # What the data filter takes the slash from stays below the folder.
    assert found == {"root.jpg": b"root", **FILES}
    assert lines == [
        f"not read (links, devices and sparse files): 4, the first is {path}: 1.jpg",
        f"not read (names that lead out of their folder): 2, the first is {path}: ../up.jpg",
    ]
    assert sorted(tmp_path.rglob("*")) == before


def damaged(content, place, value=b"\xff"):
    return content[:place] + value + content[place + len(value) :]


HEADER = 512 + 1536  # where that of the second member begins


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c[:1000], "is cut short: it ends within 'a/1.jpg'"),
        (lambda c: c[:HEADER], "is cut short: it ends at byte 2,048, without an end mark"),
        (lambda c: c[: HEADER + 100], "is cut short: it ends at byte 2,048, without an end mark"),
        (lambda c: damaged(c, HEADER + 5), "the header at byte 2,048 is damaged"),
        (lambda c: damaged(c, 5), "is damaged behind byte 0: "),
        (lambda c: damaged(c, HEADER + 124, b"\x80" + b"\xff" * 11), "damaged"),
        (lambda c: c + c, "has more behind the end mark at byte 4,608"),
        (lambda c: b"", "is damaged behind byte 0: empty file"),
        (gzip.compress, "is compressed, so that nothing in it can be found"),
        (lambda c: b"no archive" * 200, "is damaged behind byte 0: "),
    ],
)
def test_a_damaged_shard_is_named(tmp_path, change, message):
    path = tar(tmp_path / "a.tar", FILES)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}.*{re.escape(message)}") as caught:
        list(members(path, Remarks()))
    assert "\n" not in str(caught.value)


def test_no_byte_of_a_header_ends_in_a_traceback(tmp_path):
    """Each is changed in turn, with a right checksum."""
    path = tar(tmp_path / "a.tar", {"a/1.jpg": b"x", "b.txt": b"y"}, format=tarfile.PAX_FORMAT)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in range(100, 512, 3):
        header = bytearray(content[:512])
        header[place] = rng.integers(256)
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        path.write_bytes(bytes(header) + content[512:])
        with contextlib.suppress(DataError):
            read(path)


def test_a_shard_that_points_back_ends(tmp_path):
    """A negative size would make the same header come again and again."""
    path = tar(tmp_path / "a.tar", FILES, format=tarfile.GNU_FORMAT)
    header = bytearray(path.read_bytes())
    size = -512 % 2**88
    header[HEADER + 124 : HEADER + 136] = b"\xff" + size.to_bytes(11)
    header[HEADER + 148 : HEADER + 156] = b" " * 8
    header[HEADER + 148 : HEADER + 156] = b"%06o\0 " % sum(header[HEADER : HEADER + 512])
    path.write_bytes(header)
    with pytest.raises(DataError, match=r"damaged"):
        list(members(path, Remarks()))


def test_shards_belong_to_splits_by_name(tmp_path):
    for name in ("train-1.tar", "train-0.tar", "train_b.tar", "trainer.tar", "other.tar", "x.txt"):
        (tmp_path / name).touch()
    (tmp_path / "validation").mkdir()
    for name in ("b.tar", "a.tar", "a_stats.json"):
        (tmp_path / "validation" / name).touch()
    found = find_shards(tmp_path)
    names = {split: [path.name for path in paths] for split, paths in found.items()}
    assert names == {
        "train": ["train-0.tar", "train-1.tar", "train_b.tar"],
        "val": ["a.tar", "b.tar"],
    }
    (tmp_path / "val0.tar").touch()
    with pytest.raises(DataError, match=r"val0.tar and .*a.tar: which is the val split|and .*val0"):
        find_shards(tmp_path)


def records(path):
    found = [m for m in members(path, Remarks()) if m.name.endswith("jpg")]
    names = Strings.of(f"{path.name}/{m.name}" for m in found)
    arrays = {name: np.array([getattr(m, name) for m in found]) for name in ("offset", "size")}
    shard = np.zeros(len(found), np.int32)
    return TarRecords.of(path.parent, (path.name,), names, {**arrays, "shard": shard})


def test_a_shard_that_changes_while_it_is_read_is_named(tmp_path):
    path = tar(tmp_path / "a.tar", FILES)
    found = records(path)
    assert found[0] == (FILES["a/1.jpg"], 0, f"{path}: a/1.jpg")
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(DataError, match=r"a.tar is cut short: it ends within 'a/1.jpg'"):
        found[0]
    path.unlink()
    with pytest.raises(DataError, match=r"cannot read .*a.tar: No such file"):
        found[0]


def test_photos_are_told_apart_by_place_and_name(tmp_path):
    one = records(tar(tmp_path / "a.tar", {"1.jpg": b"a", "2.jpg": b"b"}))
    two = records(tar(tmp_path / "b.tar", {"1.jpg": b"a", "2.jpg": b"b"}))
    assert len({*one.place.tolist(), *two.place.tolist()}) == 4
    assert len({one.fingerprint(), two.fingerprint()}) == len({one.order(), two.order()}) == 2
