"""The files of an index: arrays in folders, a manifest that says what must be in them.

    manifest.json          schema, plan, width, segments, the size of every file, checksums,
                           how well the clusters suited the first rows
    shared-00001/          what all segments are made with: centroids.npy or trained.faiss
    segment-00001/         a batch of rows: codes by stage in list order, whole vectors, ids,
                           attributes.parquet if they have some
    deleted-00003-segment-00001.npy    which rows of the segment were deleted

Folders have checksums of all their pages (see `pages`). They are written under another name and
renamed when they are whole and on disk; then the manifest, which carries a checksum of itself, is
replaced. What it does not name is left over from a command that was stopped, and is removed by the
next that writes.
"""

import contextlib
import errno
import functools
import hashlib
import io
import json
import os
import pathlib
import re
import shutil
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from mrl_jax.errors import DataError, UsageError, shown
from mrl_jax.runtime import locks
from mrl_jax.search.index import pages
from mrl_jax.store import json_files

SCHEMA = 3
_ZEROS = 2**20  # bytes written at a time
_POLL = 0.02  # seconds between two looks whether a lock is free
MANIFEST = "manifest.json"
UNFINISHED = ".unfinished"
LOCK = ".lock"
# Names that may be left over; whatever else someone has put beside them stays.
_OURS = re.compile(
    r"(shared|segment)-\d{5,}(\.unfinished)?|deleted-\d{5,}-segment-\d{5,}\.npy|manifest\.json\.tmp"
)


def describe(folder: pathlib.Path) -> dict[str, Any]:
    """Writes the checksums of a finished folder; gives what the manifest says of it."""
    names = [path.name for path in folder.iterdir() if path.name != LOCK]
    return {"name": folder.name, **pages.describe(folder, names)}


def _seal(content: dict[str, Any]) -> str:
    """The checksum of what a manifest says."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_manifest(folder: pathlib.Path, content: dict[str, Any]) -> None:
    """Replaces the manifest, which makes all that it names part of the index at once."""
    content = {"schema": SCHEMA, **content}
    temporary = folder / f"{MANIFEST}.tmp"
    temporary.write_text(json.dumps({"checksum": _seal(content), **content}))
    sync(temporary)
    rename(temporary, folder / MANIFEST)


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    """What the manifest says, with all its types checked.

    Raises:
      DataError: there is none, it is damaged or of another version, or it names what is not in the
        folder.
    """
    path = folder / MANIFEST
    if not os.path.lexists(path):
        raise DataError(f"{folder} holds no index ({MANIFEST} is missing)")
    text = pages.read(path).tobytes()
    try:
        content = json_files.parse(text, MANIFEST)
    except DataError as error:
        raise DataError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict) or "checksum" not in content:
        raise DataError(f"{path} is damaged, or of something else than an index")
    checksum, schema = content.pop("checksum"), content.get("schema")
    if schema in range(1, SCHEMA):
        raise DataError(f"{path} was written by an older release: build the index again")
    if schema != SCHEMA:
        raise DataError(f"{path} is of schema {shown(schema)}, {SCHEMA} is read")
    if _seal(content) != checksum:
        raise DataError(f"{path} is damaged: its checksum differs")
    try:
        _check(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path} is damaged: {error!r}") from error
    return content


@functools.lru_cache(4096)  # thousands of segments have files of the same names
def _is_name(pattern: str, value: str) -> bool:
    return re.fullmatch(pattern, value) is not None


def _check(content: dict[str, Any]) -> None:
    """Refuses names that lead out of the folder, and values of other types than are written."""

    def of(kind: type, value: Any) -> Any:
        if type(value) is not kind:
            raise ValueError(f"{shown(value)} is no {kind.__name__}")
        return value

    def named(pattern: str, value: Any) -> None:
        if not _is_name(pattern, of(str, value)):
            raise ValueError(f"{shown(value)} is no name of what an index holds")

    def folder(kind: str, about: Any) -> None:
        named(f"{kind}-[0-9]{{5,}}", about["name"])
        of(str, about["checksum"])
        for name, file in of(dict, about["files"]).items():
            named(r"[a-z_]+(-[0-9]+)?\.(npy|bin|faiss|parquet)", name)
            if not 0 <= of(int, file["bytes"]) < 2**62:
                raise ValueError(f"{name} has {shown(file['bytes'])} bytes")

    of(dict, content["plan"]), of(int, content["width"]), of(int, content["version"])
    folder("shared", content["shared"])
    for about in of(list, content["segments"]):
        folder("segment", about)
        if not 0 < of(int, about["rows"]) < 2**31:
            raise ValueError(f"{about['name']} has {shown(about['rows'])} rows")
        if about["deleted"] is not None:
            named(f"deleted-[0-9]{{5,}}-{about['name']}\\.npy", about["deleted"]["name"])
            of(int, about["deleted"]["bytes"]), of(str, about["deleted"]["checksum"])
    clusters = content["clusters"]
    if clusters is not None and not (
        0 < of(float, clusters["read"]) <= 1 <= of(float, clusters["said"])
    ):
        raise ValueError(f"of its clusters it says {shown(clusters)}")
    names = [about["name"] for about in content["segments"]]
    if not names or len(set(names)) < len(names):
        raise ValueError("it names no segment, or one twice")


def rename(old: pathlib.Path, new: pathlib.Path) -> None:
    """Renames a file or folder once everything beside it is on disk, and waits for the new name.

    Otherwise a power cut could leave files without names, or a manifest without its files.
    """
    with _descriptor(new.parent) as folder:
        _sync(folder)
        os.replace(old, new)
        _sync(folder)


def sync(path: pathlib.Path) -> None:
    """Waits until a file, or the names in a folder, are on disk."""
    with _descriptor(path) as number:
        _sync(number)


@contextlib.contextmanager
def _descriptor(path: pathlib.Path) -> Iterator[int]:
    number = os.open(path, os.O_RDONLY)
    try:
        yield number
    finally:
        os.close(number)


def _sync(number: int) -> None:
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # folders of some file systems
            raise


def array(path: pathlib.Path, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A new array in a file, to be filled; OSError if there is no room for it."""
    new = np.lib.format.open_memmap(path, "w+", np.dtype(dtype), shape)
    # Otherwise a disk that fills up meanwhile kills the process (SIGBUS).
    with path.open("r+b") as file:
        size = path.stat().st_size
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:  # on macOS
            file.seek(new.offset)
            for start in range(new.offset, size, _ZEROS):
                file.write(bytes(min(_ZEROS, size - start)))
    return new


def save(path: pathlib.Path, values: np.ndarray) -> None:
    """Writes a new array; OSError if there is no room, which `np.save` overlooks for small ones."""
    array(path, values.dtype, values.shape)[:] = values


def write_deleted(path: pathlib.Path, deleted_n: np.ndarray) -> dict[str, Any]:
    """Writes which of [N] rows are deleted; gives what the manifest says of the file."""
    save(path, np.flatnonzero(deleted_n))
    sync(path)
    content = pages.read(path)
    return {"name": path.name, "bytes": len(content), "checksum": f"{pages.checksum(content):016x}"}


def read_deleted(path: pathlib.Path, about: dict[str, Any]) -> np.ndarray:
    """The numbers of deleted rows, given what the manifest says of the file."""
    content = pages.read(path, about["bytes"])
    if f"{pages.checksum(content):016x}" != about["checksum"]:
        raise DataError(f"{path} is damaged: its checksum differs")
    try:
        row_n = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # a header is read as Python, so that damage may mean anything
        raise DataError(f"{path} is damaged: {error}") from error
    if getattr(row_n, "dtype", None) != np.int64 or row_n.ndim != 1:
        raise DataError(f"{path} is damaged: it does not hold numbers of rows")
    return row_n


@contextlib.contextmanager
def finished(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to write in, which gets its name if the block ends without an error."""
    temporary = folder.with_name(folder.name + UNFINISHED)
    with written(folder):
        temporary.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in temporary.iterdir()}
        if names and LOCK not in names:
            raise UsageError(
                f"{temporary} is in the way: it holds {min(names)}, which no command left there"
            )
        with writing(temporary):
            try:
                _empty(temporary)
                yield temporary
                for path in (*temporary.rglob("*"), temporary):
                    sync(path)
                rename(temporary, folder)
            except BaseException:
                # The lock goes last: it tells the next command that what is left may be removed.
                with contextlib.suppress(OSError):
                    _empty(temporary)
                    shutil.rmtree(temporary)
                raise


@contextlib.contextmanager
def written(path: pathlib.Path) -> Iterator[None]:
    """An error of the system on writing becomes a DataError."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}") from error


def _empty(folder: pathlib.Path) -> None:
    for path in folder.iterdir():
        if path.name != LOCK:
            _remove(path)


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def remove_left_overs(folder: pathlib.Path, named: set[str]) -> None:
    """Removes what the manifest does not name, but nothing that others have put there."""
    for path in folder.iterdir():
        if path.name not in named and _OURS.fullmatch(path.name):
            _remove(path)


@contextlib.contextmanager
def writing(folder: pathlib.Path, wait: float = 0) -> Iterator[None]:
    """Only one command changes an index at a time.

    Args:
      folder: of it.
      wait: seconds in which another command may end. There is no order among those that wait.

    Raises:
      UsageError: it has not ended then.
    """
    end = time.monotonic() + wait
    with written(folder):
        lock = (folder / LOCK).open("a")
    with lock:
        while not locks.taken(lock):
            if (left := end - time.monotonic()) <= 0:
                waited = f", also {wait:g} s later" if wait else ""
                raise UsageError(f"{folder} is being changed by another command{waited}")
            time.sleep(min(left, _POLL))
        yield
