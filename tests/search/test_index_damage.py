import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys

import faiss
import numpy as np
import pytest
from brute_force import draw, store
from commands import ROOT

from mrl_jax.errors import DataError, UsageError
from mrl_jax.search.index import Index, files, pages
from mrl_jax.search.index.rows import InMemory as Vectors
from mrl_jax.search.plan import Plan
from mrl_jax.search.schedule import Schedule

N, D = 300, 24
LISTS = Plan(Schedule.parse(f"8:60 > 16:40 > {D}"), code="int8", lists=4, list_dim=8, probes=4)
IVF = Plan(Schedule.parse(f"8:60 > {D}"), factory="IVF4,Flat", parameters="nprobe=4")
PLANS = {"lists": LISTS, "IVF": IVF}


class InMemory(Vectors):
    """Vectors with ids of their own."""

    def __init__(self, vector_nd, ids):
        super().__init__(vector_nd)
        self.ids = ids


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Indexes of two segments with deleted rows, by name."""
    folder = tmp_path_factory.mktemp("whole")
    for name, plan in PLANS.items():
        index = Index.build(folder / name, store(folder, draw(N, D)), plan=plan)
        index.add(store(folder, draw(20, D), np.arange(20) + 900))
        index.delete([7, 903])
        index.verify()
    return folder


@pytest.fixture(params=PLANS)
def folder(request, whole, tmp_path):
    """A copy of one of them, to be damaged."""
    return shutil.copytree(whole / request.param, tmp_path / "index")


def inside(folder):
    """All files of an index but the manifest and the lock."""
    aside = (files.MANIFEST, files.LOCK)
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in aside)


def line_of(error, do):
    """The one line that a DataError says."""
    with pytest.raises(error) as raised:
        do()
    assert type(raised.value) is error
    line = str(raised.value)
    assert line
    assert "\n" not in line
    assert len(line) < 400
    return line


def flip(path, byte, bit):
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    path.write_bytes(content)


def test_truncated_and_missing_files(folder):
    for path in inside(folder):
        content = path.read_bytes()
        for size in (0, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:size])
            line = line_of(DataError, lambda: Index.open(folder))
            assert line == f"{path} is damaged: {size} bytes instead of {len(content)}"
        path.write_bytes(content + b"x")
        assert str(path) in line_of(DataError, lambda: Index.open(folder))
        path.unlink()
        line = line_of(DataError, lambda: Index.open(folder))
        assert line == f"{path} cannot be read: No such file or directory"
        path.mkdir()
        assert str(path) in line_of(DataError, lambda: Index.open(folder))
        path.rmdir()
        path.write_bytes(content)
    Index.open(folder).verify()


def test_a_flipped_bit_is_found(folder):
    """By `verify` wherever it is; deleted rows and the manifest are checked when it is opened."""
    generator = np.random.default_rng(0)
    for path in inside(folder):
        content = path.read_bytes()
        # And in the lowest byte of the last number, which makes another one that is as good.
        for byte in (*generator.integers(0, len(content), 5), max(0, len(content) - 8)):
            flip(path, byte, generator.integers(2))
            line = line_of(DataError, lambda: Index.open(folder).verify())
            # What is deleted are numbers of rows, which must be some.
            where = (f"{path} is damaged: ", f"the rows of {path.parent} are damaged: ")
            assert line.startswith(where)
            path.write_bytes(content)
            if path.parent == folder:
                flip(path, byte, generator.integers(2))
                line_of(DataError, lambda: Index.open(folder))
                path.write_bytes(content)
    Index.open(folder).verify()


def test_a_flipped_bit_in_the_manifest(folder):
    path = folder / files.MANIFEST
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    for byte in range(0, len(content), 9):
        flip(path, byte, generator.integers(8))
        assert str(path) in line_of(DataError, lambda: Index.open(folder))
        path.write_bytes(content)
    for size in (0, 1, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        assert str(path) in line_of(DataError, lambda: Index.open(folder))
    path.write_bytes(content)
    Index.open(folder).verify()


def test_a_flipped_bit_in_what_says_shapes(folder):
    """It is refused, or nothing has changed: never another number of rows, or of bytes in one."""
    query_bd = draw(3, D, seed=1)
    wanted = Index.open(folder).search(query_bd, 10)
    generator = np.random.default_rng(1)
    refused = 0
    for path in sorted(folder.glob("s*-00001/*.npy")):
        content = path.read_bytes()
        for byte in range(0, content.index(b"}") + 2, 2):
            flip(path, byte, generator.integers(8))
            try:
                index = Index.open(folder)
            except DataError:
                refused += 1
            else:
                for a, b in zip(index.search(query_bd, 10), wanted, strict=True):
                    np.testing.assert_array_equal(a, b)
            path.write_bytes(content)
    assert refused > 100


def forge(folder, name, array):
    """Another array of the right size and checksum where one of the index is, as by a mistake."""
    manifest = files.read_manifest(folder)
    for about in (manifest["shared"], *manifest["segments"]):
        if name in about["files"]:
            np.save(folder / about["name"] / name, array(np.load(folder / about["name"] / name)))
            (folder / about["name"] / pages.CHECKSUMS).unlink()
            about.update(files.describe(folder / about["name"]))
            break
    manifest.pop("schema")
    files.write_manifest(folder, manifest)
    return folder / about["name"] / name


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.view(np.uint8),
        lambda x: x[:-1],
        lambda x: x[None],
        lambda x: x.astype(x.dtype.newbyteorder()),
        lambda x: x.astype(np.complex64),
        lambda x: x.reshape(-1)[:0],
        lambda x: np.concatenate([x, x]),
        lambda x: x.astype(object),
    ],
    ids=["bytes", "short", "axis", "endian", "complex", "empty", "long", "object"],
)
def test_arrays_of_another_shape_or_type(whole, change, tmp_path):
    names = [path.name for path in inside(whole / "lists") if path.suffix == ".npy"]
    tried = 0
    for name in sorted(set(names)):
        if name.startswith("deleted"):
            continue
        folder = shutil.copytree(whole / "lists", tmp_path / name)
        before = np.load(next(folder.rglob(name)))
        after = change(before)
        if (after.dtype, after.shape) == (before.dtype, before.shape):
            continue  # bytes of bytes
        path = forge(folder, name, change)
        assert line_of(DataError, lambda f=folder: Index.open(f)).startswith(f"{path} is damaged: ")
        tried += 1
    assert tried > 6


@pytest.mark.parametrize(
    ("plan", "name", "change"),
    [
        ("lists", "rows.npy", lambda x: x + 10**9),
        ("lists", "rows.npy", lambda x: x - 1),
        ("lists", "bounds.npy", lambda x: x + 1),
        ("lists", "bounds.npy", lambda x: np.append(x[0], x[:0:-1])),
        ("lists", "rows.npy", lambda x: x[[0, *range(len(x) - 1)]]),
        ("lists", "centroids.npy", lambda x: x * np.nan),
        ("lists", "centroids.npy", lambda x: x + np.float32(3e38)),
    ],
    ids=["beyond", "negative", "late", "falling", "twice", "nan", "large"],
)
def test_numbers_that_lead_out_of_arrays(whole, plan, name, change, tmp_path):
    """They must not be followed: the process would end without a word."""
    folder = shutil.copytree(whole / plan, tmp_path / "index")
    path = forge(folder, name, change)
    line = line_of(DataError, lambda: Index.open(folder).search(draw(3, D, seed=1), 10))
    assert line.startswith(f"{path} is damaged: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: (8, rows - 1, None), "it holds 299 rows of 8 dims instead of 300 of 8"),
        (lambda rows: (9, rows, None), "it holds 300 rows of 9 dims instead of 300 of 8"),
        (lambda rows: (8, rows, np.arange(rows) + 10**9), "it finds row 1000000"),
    ],
    ids=["rows", "dims", "numbers"],
)
def test_an_index_of_faiss_of_something_else(whole, tmp_path, change, message):
    folder = shutil.copytree(whole / "IVF", tmp_path / "index")
    manifest = files.read_manifest(folder)
    about = manifest["segments"][0]
    dim, rows, ids = change(about["rows"])
    other = faiss.IndexIDMap(faiss.IndexFlatIP(dim)) if ids is not None else faiss.IndexFlatIP(dim)
    if ids is None:
        other.add(draw(rows, dim))
    else:
        other.add_with_ids(draw(rows, dim), ids)
    path = folder / about["name"] / "shortlist.faiss"
    faiss.write_index(other, str(path))
    (path.parent / pages.CHECKSUMS).unlink()
    about.update(files.describe(path.parent))
    manifest.pop("schema")
    files.write_manifest(folder, manifest)
    index = Index.open(folder)
    line = line_of(DataError, lambda: index.search(draw(3, D, seed=1), 10, parameters=""))
    assert line.startswith(f"{path} is damaged: {message}")


def test_other_schemas(folder):
    path = folder / files.MANIFEST
    content = json.loads(path.read_text())
    for schema, line in (
        (4, "is of schema 4, 3 is read"),
        (1, "was written by an older release: build the index again"),
        (None, "is of schema None, 3 is read"),
        ({"a": [10**90]}, "is of schema {'a': "),
    ):
        path.write_text(json.dumps({**content, "schema": schema}))
        assert line_of(DataError, lambda: Index.open(folder)).startswith(f"{path} {line}")


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("plan"),
        lambda m: m.pop("segments"),
        lambda m: m["plan"].pop("schedule"),
        lambda m: m["plan"].update(code="int4"),
        lambda m: m["plan"].update(schedule="8:60 > 16:40 > 99"),
        lambda m: m["segments"][0].update(rows=299),
        lambda m: m["segments"][0].update(rows="300"),
        lambda m: m.update(width=25),
        lambda m: m.update(segments=7),
        lambda m: m["shared"].update(files=[]),
        lambda m: m["shared"].update(files={}, name="segment-00001"),
        lambda m: m["segments"][0].update(deleted=[]),
        lambda m: m["segments"][0].update(checksum=7),
        lambda m: m["segments"][0]["files"]["ids.npy"].update(bytes=10**200),
        lambda m: m["segments"][0]["files"].update({"../../x.npy": {"bytes": 1}}),
        lambda m: m["segments"][0].update(files={}),
        lambda m: m["segments"].append(m["segments"][0]),
        lambda m: m["segments"].clear(),
        lambda m: m.update(version=float("nan")),
        lambda m: m.pop("clusters"),
        lambda m: m.update(clusters={"read": 0, "said": 1.0}),
        lambda m: m.update(clusters={"read": 0.5, "said": float("nan")}),
        lambda m: m.update(clusters=[0.5, 1.0]),
        *(
            lambda m, name=name: m["segments"][0].update(name=name)
            for name in ("/etc", "../..", "..", "", "segment-00001/../segment-00001", "x\n", 7)
        ),
    ],
)
def test_manifests_that_say_something_else(folder, change):
    """Even with a right checksum."""
    manifest = files.read_manifest(folder)
    change(manifest)
    manifest.pop("schema")
    files.write_manifest(folder, manifest)
    assert "damaged" in line_of(DataError, lambda: Index.open(folder))


@pytest.mark.parametrize("name", ["segment-00001", "segment-00001/ids.npy", "manifest.json"])
def test_links_are_not_followed(folder, tmp_path, name):
    path = folder / name
    path.rename(tmp_path / "aside")
    path.symlink_to(tmp_path / "aside")
    line = line_of(DataError, lambda: Index.open(folder))
    assert line == f"{path} is a link; an index holds files of its own only"


@pytest.mark.parametrize("name", ["segment-00001/ids.npy", "manifest.json"])
def test_pipes_are_not_waited_for(folder, name):
    path = folder / name
    path.unlink()
    os.mkfifo(path)
    line = line_of(DataError, lambda: Index.open(folder))
    assert line == f"{path} is damaged: it is no file"


def test_what_is_no_index(tmp_path):
    missing = tmp_path / "missing"
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for path in (missing, tmp_path / "empty", tmp_path / "file"):
        line = line_of(DataError, lambda p=path: Index.open(p))
        assert line == f"{path} holds no index (manifest.json is missing)"
    for text in (
        b"[]",
        b"{}",
        b"7",
        b'"x"',
        b'{"schema": 2, "shards": []}',
        b"\xff",
        b"{",
        b"[" * 10**5,
    ):
        (tmp_path / "empty" / files.MANIFEST).write_bytes(text)
        line = line_of(DataError, lambda: Index.open(tmp_path / "empty"))
        assert line.startswith(f"{tmp_path / 'empty' / files.MANIFEST} is damaged")


def test_what_cannot_be_built(tmp_path):
    vectors = store(tmp_path, draw(30, D))
    where = tmp_path / "index"
    flat = Plan(Schedule.parse(f"8:20 > {D}"))

    def refused(error, message, plan=flat, vectors=vectors, where=where):
        line = line_of(error, lambda: Index.build(where, vectors, plan=plan))
        assert message in line
        left = {path.name for path in tmp_path.iterdir() if path.suffix != ".npy"}
        assert left <= {"there", "file"}

    refused(DataError, "needs 25 dims, the vectors have 24", Plan(Schedule.exact(25)))
    many = Plan(Schedule.parse("8:20 > 24"), lists=31, list_dim=8)
    refused(DataError, "the plan has 31 lists, there are 30 vectors", many)
    for value, message in ((np.nan, "row 4 holds NaN"), (1e19, "longer than 4e18")):
        z_nd = draw(30, D)
        z_nd[4, 5] = value
        for plan in (flat, LISTS, Plan(Schedule.parse("8:20 > 24"), factory="Flat")):
            refused(DataError, message, plan, store(tmp_path, z_nd, name="bad"))
    long = store(tmp_path, draw(30, D) * np.float32(1e6), name="bad")
    half = Plan(flat.schedule, code="float16")
    refused(UsageError, "float16 codes hold numbers up to 65504", half, long)
    refused(
        DataError, "no vector can have the id -1", flat, store(tmp_path, draw(3, D), [1, -1, 2])
    )
    for factory, message in (
        ("banana", "faiss cannot make 'banana' of 30 x 8: could not parse index string banana"),
        ("IVF31,Flat", "Number of training points (30) should be at least as large as"),
        ("PQ3x4", "should be a multiple of the number of subquantizers"),
        ("IDMap,Flat", "use add_with_ids"),
    ):
        plan = Plan(flat.schedule, factory=factory)
        refused(UsageError, message, plan, store(tmp_path, draw(30, D)))
    plan = Plan(flat.schedule, factory="Flat", parameters="nprobe=3")
    refused(UsageError, "faiss cannot use the parameters 'nprobe=3': ", plan)
    plan = Plan(flat.schedule, factory="IVF2,Flat", parameters="nprobe=0")
    refused(UsageError, "faiss cannot search by the parameters 'nprobe=0': ", plan)
    (tmp_path / "file").write_text("x")
    refused(UsageError, "file exists already; remove it or give another", where=tmp_path / "file")
    refused(DataError, "Not a directory", where=tmp_path / "file" / "index")
    there = Index.build(tmp_path / "there", vectors, plan=flat)
    refused(UsageError, "there exists already; remove it or give another", where=tmp_path / "there")
    there.verify()


@pytest.mark.parametrize("name", PLANS)
def test_a_full_disk(name, whole, tmp_path):
    """No room for a file of any size: one line, nothing left over, the index is as it was."""
    more = store(tmp_path, draw(40, D, seed=5), np.arange(40) + 2000, name="more")
    folder = shutil.copytree(whole / name, tmp_path / "index")
    old = {path: path.read_bytes() for path in inside(folder)}
    changes = {
        "build": lambda: Index.build(tmp_path / "new", more, plan=PLANS[name]),
        "add": lambda: Index.open(folder).add(more),
        "delete": lambda: Index.open(folder).delete(Index.open(folder).ids[:100]),
        "compact": lambda: Index.open(folder).compact(),
    }
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    seen = set()
    for change, do in changes.items():
        for size in (0, 100, 200, 300, 700, 1100, 1500, 2000, 2500, 3000, 6000, 20000, 100000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
            try:
                line = line_of(DataError, do)
            except pytest.fail.Exception:  # there was room
                break
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert line.startswith(f"cannot write {tmp_path}")
            assert not line.endswith("None")
            seen.add((change, size))
            assert {path: path.read_bytes() for path in inside(folder)} == old
            assert not list(tmp_path.glob("new*"))
        else:
            pytest.fail("there was never room")
        shutil.rmtree(tmp_path / "new", ignore_errors=True)
        shutil.rmtree(folder)
        shutil.copytree(whole / name, folder)
    assert len(seen) > 15


@pytest.mark.parametrize("name", PLANS)
def test_an_index_holds_no_descriptors(name, whole, tmp_path):
    """However many segments it has, of small files and of large ones."""
    count = lambda: len(os.listdir("/dev/fd"))  # noqa: E731
    before = count()
    index = Index.open(shutil.copytree(whole / name, tmp_path / "index"))
    for n in range(8):
        ids = np.arange(5000) + 10_000 * (n + 1)
        rows = 5000 if n % 4 == 3 else 1
        index.add(InMemory(draw(rows, D, seed=n), ids[:rows]))
        index.search(draw(2, D), 5)
    assert index.rows == 318 + 6 + 10_000
    assert count() <= before


@pytest.mark.parametrize("change", ["open", "build", "add", "delete", "compact"])
def test_too_few_descriptors(change, whole, tmp_path):
    """That is what is said, nothing is called damaged, and what fails has changed nothing."""
    folder = shutil.copytree(whole / "lists", tmp_path / "index")
    more = InMemory(draw(40, D, seed=5), np.arange(40) + 2000)
    index = Index.open(folder)
    do = {
        "open": lambda: Index.open(folder),
        "build": lambda: Index.build(tmp_path / "new", more, plan=LISTS),
        "add": lambda: index.add(more),
        "delete": lambda: index.delete([3]),
        "compact": lambda: index.compact(),
    }[change]
    before = [index.rows, sorted(path for path in inside(folder))]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    for free in range(40):
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + free, hard))
        try:
            line = line_of(DataError, do)
        except pytest.fail.Exception:
            break
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert line.endswith(": Too many open files")
        assert "damaged" not in line
        assert [Index.open(folder).rows, sorted(inside(folder))] == before
        assert not (tmp_path / "new").exists()
    assert 0 < free < 30
    Index.open(folder).verify()


def test_what_cannot_be_opened_is_not_committed(whole, tmp_path, monkeypatch):
    """Not the other way around: an error after which all of it is there."""
    folder = shutil.copytree(whole / "lists", tmp_path / "index")
    index, old, read = Index.open(folder), set(inside(folder)), pages.read

    def refuse(path, *arguments):
        if path not in old and path.parent.parent == folder:
            raise DataError(f"{path} cannot be read: Too many open files")
        return read(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(pages, "read", refuse)
        for change in (
            lambda: index.add(InMemory(draw(3, D), np.arange(3) + 5000)),
            lambda: index.compact(),
        ):
            assert "Too many open files" in line_of(DataError, change)
            assert set(inside(folder)) == old
            assert index.rows == Index.open(folder).rows == 318
    index.compact()
    assert index.rows == 318


def test_data_are_on_disk_before_the_manifest_names_them(whole, tmp_path, monkeypatch):
    """In this order, as after a power cut there may be any first part of it."""
    events, sync, replace = [], os.fsync, os.replace

    def fsync(number):
        events.append(("on disk", os.readlink(f"/proc/self/fd/{number}")))
        sync(number)

    def rename(old, new):
        events.append(("named", str(new)))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", rename)
    folder = shutil.copytree(whole / "lists", tmp_path / "index")
    index = Index.open(folder)
    manifest, names = folder / files.MANIFEST, ("on disk", str(folder))
    for change in (
        lambda: index.add(InMemory(draw(3, D), np.arange(3) + 5000)),
        lambda: index.delete([5000, 3]),
        lambda: index.compact(),
    ):
        old = set(inside(folder))
        events.clear()
        change()
        named = events.index(("named", str(manifest)))
        for path in set(inside(folder)) - old:
            if path.parent == folder:
                first = events.index(("on disk", str(path)))
            else:
                temporary = f"{path.parent}{files.UNFINISHED}"
                first = events.index(("named", str(path.parent)))
                written = [("on disk", f"{temporary}/{path.name}"), ("on disk", temporary)]
                assert max(map(events.index, written)) < first
            assert names in events[first:named]
        assert ("on disk", f"{manifest}.tmp") in events[:named]
        assert names in events[named:]


def test_room_is_taken_before_it_is_filled(tmp_path):
    """A disk that is full later would kill the process where an array is mapped into memory."""
    array = files.array(tmp_path / "x.npy", np.float32, (1000, 100))
    assert os.stat(tmp_path / "x.npy").st_blocks * 512 >= array.nbytes


def test_folders_that_may_not_be_changed(whole, tmp_path):
    folder = shutil.copytree(whole / "lists", tmp_path / "index")
    lock = folder / files.LOCK
    lock.unlink()
    lock.mkdir()  # root may write whatever the mode of a file is
    for change in (lambda: Index.open(folder).delete([3]), lambda: Index.open(folder).compact()):
        assert line_of(DataError, change) == f"cannot write {folder}: Is a directory"
    Index.open(folder).verify()


OPENED = """
import pathlib, resource, sys
import faiss, numba
from mrl_jax.search.index import Index

def costs():
    read = pathlib.Path("/proc/self/io").read_text().split()[1]
    return int(read), resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for warm, opened in zip(sys.argv[1::2], sys.argv[2::2]):
    Index.open(warm)
    before = costs()
    index = Index.open(opened)
    after = costs()
    print(*(b - a for a, b in zip(before, after)))
"""


@pytest.mark.skipif(not pathlib.Path("/proc/self/io").exists(), reason="Linux counts bytes read")
def test_opening_reads_no_arrays(whole, tmp_path):
    """Neither by reading nor by looking at mapped memory: the costs are those of a few pages."""
    vectors = store(tmp_path, draw(8000, D))
    script = [sys.executable, "-c", OPENED]
    for name, plan in PLANS.items():
        Index.build(tmp_path / name, vectors, plan=plan)
        script += [whole / name, tmp_path / name]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=True)
    for name, line in zip(PLANS, done.stdout.splitlines(), strict=True):
        read, faults = map(int, line.split())
        size = sum(path.stat().st_size for path in inside(tmp_path / name))
        assert size > 1_000_000
        assert read < 200_000
        assert faults * resource.getpagesize() < 300_000
