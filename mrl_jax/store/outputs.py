"""Writing results where the user says: a command replaces only what it wrote itself.

A file is recognised by its content, a folder by the list of its files that it holds. Results are
replaced atomically: a command that is killed midway leaves the old result whole.
"""

import contextlib
import ctypes
import errno
import io
import json
import os
import pathlib
import re
import stat
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from mrl_jax.errors import DataError, UsageError
from mrl_jax.store import files, json_files

# In a folder that is replaced as a whole: its subfolders, and the sha256 of all its other files.
MANIFEST = "mrl_jax.files.json"

_READER_S = 10  # seconds to wait for the reader of a pipe

Own = Callable[[pathlib.Path], bool]


def holds_arrays(*names: str) -> Own:
    """Recognises .npz files with exactly these arrays."""

    def own(path: pathlib.Path) -> bool:
        try:
            with zipfile.ZipFile(path) as file:
                return set(file.namelist()) == {f"{name}.npy" for name in names}
        except (OSError, zipfile.BadZipFile):
            return False

    return own


def holds_keys(*keys: str) -> Own:
    """Recognises JSON files that hold an object with these keys."""

    def own(path: pathlib.Path) -> bool:
        try:
            content = json_files.read(path)
        except DataError:
            return False
        return isinstance(content, dict) and set(keys) <= content.keys()

    return own


def check_file(path: pathlib.Path, own: Own, inputs: Sequence[object] = ()) -> None:
    """Checks, before the work starts, that its result may and can be written to this file.

    Pipes, terminals and /dev/null are written to, and symbolic links are followed.

    Args:
      path: named by the user; its folder is created.
      own: recognises files that the command wrote earlier, which may be replaced.
      inputs: paths that the command reads.

    Raises:
      UsageError: the path is a folder, another device, a socket, an input or any other file that
        this command did not write; or its folder is not writable.
    """
    with _said(path):
        if _descriptor(path) is not None:
            return
        target = _target(path)
        if target.is_dir():
            raise UsageError(f"{path} is a folder; give the name of a file")
        if not target.exists():
            if path.is_symlink() and not target.parent.is_dir():
                raise UsageError(f"{path} links to {target}, whose folder does not exist")
            target.parent.mkdir(parents=True, exist_ok=True)
        elif not _is_stream(target):
            if not target.is_file():
                raise UsageError(f"{path} is neither a file nor a pipe; give the name of a file")
            for source in inputs:
                if os.path.exists(str(source)) and os.path.samefile(target, str(source)):
                    raise UsageError(f"{path} is what this command reads; give another file")
            if not own(target):
                raise UsageError(
                    f"{path} was not written by this command; remove it or give another file"
                )
        if not _is_stream(target) and not os.access(target.parent, os.W_OK):
            raise UsageError(f"{path} cannot be written: {target.parent} is not writable")


def write_file(path: pathlib.Path, content: bytes, own: Own) -> None:
    """Writes a file that passed `check_file` atomically: completely or not at all.

    Raises:
      UsageError: see `check_file`; or the file cannot be written, or nobody reads the pipe.
    """
    check_file(path, own)
    with _said(path):
        number, target = _descriptor(path), _target(path)
        if number is None and not _is_stream(target):
            with files.whole(target, f".{os.getpid()}.tmp") as part:
                part.write_bytes(content)
            return
        sys.stdout.flush()
        number = _opened(target) if number is None else os.dup(number)
        with os.fdopen(number, "wb") as stream:
            stream.write(content)


def write_arrays(path: pathlib.Path, own: Own, **arrays: np.ndarray) -> None:
    """`write_file` of an .npz file."""
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_file(path, content.getvalue(), own)


def check_new(folder: pathlib.Path) -> None:
    """Checks, before the work starts, that a folder does not exist and can be created.

    Raises:
      UsageError: it exists or cannot be created.
    """
    with _said(folder):
        if os.path.lexists(folder):
            raise UsageError(f"{folder} exists already; remove it or give another folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(folder.parent, os.W_OK):
            raise UsageError(f"{folder} cannot be written: {folder.parent} is not writable")


def foreign(folder: pathlib.Path) -> str:
    """The first entry of a folder that `replaced` did not write or that was changed since, or "".

    In a folder without a list of its files, every entry is foreign.
    """
    try:
        content = json_files.read(folder / MANIFEST)
        listed, folders = dict(content["sha256"]), set(content["folders"])
    except (DataError, ValueError, KeyError, TypeError):
        listed, folders = {}, set()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            return name
        if path.is_dir():
            known = name in folders
        else:
            known = name == MANIFEST if name not in listed else files.sha256(path) == listed[name]
        if not known:
            return name
    return ""


@contextlib.contextmanager
def made(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary folder, which is renamed to `folder` when the block ends without an error.

    Raises:
      UsageError: see `check_new`.
      OSError: it cannot be written; nothing is left behind.
    """
    check_new(folder)
    with _beside(folder) as new:
        yield new
        os.rename(new, folder)


@contextlib.contextmanager
def replaced(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary folder, which replaces `folder` when the block ends without an error.

    The caller must have checked with `foreign` that the folder may be replaced.

    Raises:
      OSError: it cannot be written; `folder` is left unchanged.
    """
    folder = pathlib.Path(os.path.realpath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _beside(folder) as new:
        yield new
        checksums, folders = {}, []
        for path in sorted(new.rglob("*")):
            name = path.relative_to(new).as_posix()
            if path.is_dir():
                folders.append(name)
            else:
                checksums[name] = files.sha256(path)
        content = {"sha256": checksums, "folders": folders}
        (new / MANIFEST).write_text(json.dumps(content, indent=1) + "\n")
        if folder.exists():
            _exchange(new, folder)
        else:
            os.rename(new, folder)


@contextlib.contextmanager
def _beside(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        new = pathlib.Path(temporary, "new")
        new.mkdir()
        yield new


def _exchange(new: pathlib.Path, old: pathlib.Path) -> None:
    """Swaps two folders, in one step if the file system can."""
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE, which Python's os lacks
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename and not rename(here, os.fsencode(new), here, os.fsencode(old), exchange):
        return
    aside = new.with_name("old")
    os.rename(old, aside)
    try:
        os.rename(new, old)
    except OSError:
        os.rename(aside, old)
        raise


def _target(path: pathlib.Path) -> pathlib.Path:
    """The file that the path links to, whether or not it exists yet; else the path itself."""
    return pathlib.Path(os.path.realpath(path)) if path.is_symlink() else path


def _is_stream(path: pathlib.Path) -> bool:
    """Whether the path is a pipe, a terminal or /dev/null, which are written to in place."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    if not stat.S_ISCHR(found.st_mode):
        return stat.S_ISFIFO(found.st_mode)
    if found.st_rdev == os.stat(os.devnull).st_rdev:
        return True
    with path.open("wb", buffering=0) as device:
        return device.isatty()


def _opened(stream: pathlib.Path) -> int:
    """A descriptor to write to a stream; a pipe's reader may come a little later.

    Raises:
      UsageError: nobody reads the pipe.
    """
    begin = time.monotonic()
    while True:
        try:
            number = os.open(stream, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            if time.monotonic() - begin > _READER_S:
                raise UsageError(f"{stream} is a pipe that nobody reads") from None
            time.sleep(0.05)
        else:
            os.set_blocking(number, True)
            return number


def _descriptor(path: pathlib.Path) -> int | None:
    """The number of the file descriptor that a path such as /dev/stdout stands for, if any."""
    place = path
    for _ in range(8):
        parent = os.path.realpath(place.parent)
        if re.fullmatch(f"/proc/({os.getpid()}|self)/fd", parent) and place.name.isdecimal():
            return int(place.name)
        if not place.is_symlink():
            return None
        place = pathlib.Path(parent, os.readlink(place))
    return None


@contextlib.contextmanager
def _said(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}") from error
