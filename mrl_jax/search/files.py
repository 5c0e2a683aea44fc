"""The files of an index: arrays in folders, a manifest that says what must be in them.

    manifest.json          schema, plan, width, segments, sha256 and shape of every array
    shared-00001/          what all segments are made with: centroids.npy or trained.faiss
    segment-00001/         a batch of rows: codes by stage in list order, whole vectors, ids
    deleted-00003-segment-00001.npy    which rows of the segment were deleted

Folders are written under another name and renamed when they are whole; then the manifest, which
carries a checksum of itself, is replaced. What no manifest names is left over from a command that
was stopped, and is removed by the next that writes.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np

from mrl_jax import json_files, results
from mrl_jax.errors import DataError, UsageError
from mrl_jax.outputs import sha256
from mrl_jax.runtime import locks

SCHEMA = 1
MANIFEST = "manifest.json"
UNFINISHED = ".unfinished"
LOCK = ".lock"
# Names that may be left over; whatever else someone has put beside them stays.
_OURS = re.compile(
    r"(shared|segment)-\d{5,}(\.unfinished)?|deleted-\d{5,}-segment-\d{5,}\.npy|manifest\.json\.tmp"
)


def describe(folder: pathlib.Path) -> dict[str, Any]:
    """Size and checksum of every file in a finished folder, by name."""
    return {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.iterdir())
        if path.name != LOCK
    }


def write_manifest(folder: pathlib.Path, content: dict[str, Any]) -> None:
    """Replaces the manifest, which makes all it names part of the index at once."""
    content = {"schema": SCHEMA, **content}
    text = json.dumps(content, sort_keys=True)
    checksum = hashlib.sha256(text.encode()).hexdigest()
    results.write_text(folder / MANIFEST, json.dumps({"checksum": checksum, **content}, indent=1))


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    """What the manifest says.

    Raises:
      DataError: there is none, it is damaged or of another version.
    """
    path = folder / MANIFEST
    try:
        content = json_files.read_object(path)
    except json_files.MissingError:
        raise DataError(f"{folder} holds no index ({MANIFEST} is missing)") from None
    except DataError as error:
        raise DataError(f"{path} is damaged: {error}") from error
    if "checksum" not in content:
        raise DataError(f"{path} is damaged, or of something else than an index")
    checksum = content.pop("checksum")
    if content.get("schema") != SCHEMA:
        raise DataError(f"{path} is of schema {content.get('schema')}, {SCHEMA} is read")
    text = json.dumps(content, sort_keys=True)
    if hashlib.sha256(text.encode()).hexdigest() != checksum:
        raise DataError(f"{path} is damaged: its checksum differs")
    return content


def check_sizes(folder: pathlib.Path, files: dict[str, Any]) -> None:
    """Whether all files are there and as long as they were written, at the cost of a look.

    Raises:
      DataError: one is not.
    """
    for name, about in files.items():
        path = folder / name
        try:
            found = path.stat().st_size
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
        if found != about["bytes"]:
            raise DataError(f"{path} is damaged: {found} bytes instead of {about['bytes']}")


def check_contents(folder: pathlib.Path, files: dict[str, Any]) -> None:
    """Whether all files hold what was written; reads them whole.

    Raises:
      DataError: one does not.
    """
    check_sizes(folder, files)
    for name, about in files.items():
        try:
            found = sha256(folder / name)
        except OSError as error:  # removed since, by a command that changes the index
            raise DataError(f"{folder / name} cannot be read: {error.strerror}") from error
        if found != about["sha256"]:
            raise DataError(f"{folder / name} is damaged: its checksum differs")


def load(path: pathlib.Path, dtype: Any, shape: tuple[int | None, ...]) -> np.ndarray:
    """An array of the index, mapped into memory; None in its shape may be any number.

    Raises:
      DataError: it is no .npy file of the size it says, or holds something else.
    """
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a header is read as Python, so that damage may mean anything
        raise DataError(f"{path} is damaged: {error}") from error
    fits = len(shape) == found.ndim and all(
        want in (None, have) for want, have in zip(shape, found.shape, strict=True)
    )
    fits &= found.dtype == np.dtype(dtype) and found.flags.c_contiguous
    if not fits or found.offset + found.nbytes != path.stat().st_size:
        raise DataError(
            f"{path} is damaged: {found.dtype} {found.shape} instead of {np.dtype(dtype)} {shape}"
        )
    return np.asarray(found)


def array(path: pathlib.Path, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A new array in a file, to be filled.

    Raises:
      OSError: there is no room for it.
    """
    new = np.lib.format.open_memmap(path, "w+", np.dtype(dtype), shape)
    # Otherwise a disk that becomes full while it is filled kills the process (SIGBUS).
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return new


def save(path: pathlib.Path, values: np.ndarray) -> None:
    """Writes a new array.

    Raises:
      OSError: there is no room for it, which `np.save` overlooks where arrays are small.
    """
    array(path, values.dtype, values.shape)[:] = values


@contextlib.contextmanager
def finished(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to write in, which gets its name when the block ends without an error."""
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
                for path in temporary.rglob("*"):
                    if path.is_file():
                        with path.open("rb") as file:
                            os.fsync(file.fileno())
                os.rename(temporary, folder)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise


@contextlib.contextmanager
def written(path: pathlib.Path) -> Iterator[None]:
    """What the system says when it cannot write becomes a DataError."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}") from error


def _empty(folder: pathlib.Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def remove_left_overs(folder: pathlib.Path, named: set[str]) -> None:
    """Removes what the manifest does not name, but no file of another kind."""
    for path in folder.iterdir():
        if path.name in named or not _OURS.fullmatch(path.name):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextlib.contextmanager
def writing(folder: pathlib.Path) -> Iterator[None]:
    """Only one command changes an index at a time.

    Raises:
      UsageError: another one does.
      DataError: the folder may not be changed.
    """
    with written(folder):
        lock = (folder / LOCK).open("a")
    with lock:
        if not locks.taken(lock):
            raise UsageError(f"{folder} is being changed by another command")
        yield
