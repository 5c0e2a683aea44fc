"""Reading files that the user names."""

import contextlib
import os
import pathlib
import stat
import zipfile
from collections.abc import Collection, Iterator

import numpy as np

from mrl_jax.errors import DataError
from mrl_jax.store.mapping import mapped

# What a file may unpack to: so many bytes, or so many times its own size. Arrays of random floats
# keep more than half of their size when they are packed, those of equal numbers a thousandth.
MOST_UNPACKED, MOST_TIMES = 1 << 30, 100

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def place(path: pathlib.Path | str, named: Collection[str]) -> tuple[pathlib.Path, str | None]:
    """PATH, or PATH:NAME, as the path of a file or folder and the name of what is meant in it.

    `named` are the endings of files that hold what has names.
    """
    path = pathlib.Path(path)
    before, _, name = str(path).rpartition(":")
    if not name or not before or path.exists():
        return path, None
    inner = pathlib.Path(before)
    return (inner, name) if inner.exists() or inner.suffix in named else (path, None)


def check_file(path: pathlib.Path | str, error: type[Exception] = DataError) -> None:
    """Refuses folders, pipes, sockets and devices, before anyone waits for their content.

    Opening a pipe that nobody writes to waits for ever, and a device may never end. A missing file
    is not refused here: whoever opens it says so.

    Args:
      path: to be read; links are followed, so /dev/stdin is a file where one was redirected to it.
      error: what is raised.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return
    for matches, kind in _KINDS:
        if matches(mode):
            raise error(f"{path} is {kind}, where a file is needed")


def open_npy(path: pathlib.Path) -> np.ndarray:
    """The array of an .npy file, read when it is used; Python objects are refused.

    Raises:
      DataError: it is missing, no regular file, or not as long as its header says; names it.
    """
    check_file(path)
    try:
        with np.errstate(over="ignore"):  # of a shape that no file can have
            array = np.lib.format.open_memmap(path, mode="r")
        more = path.stat().st_size - array.offset - array.nbytes
        with path.open("rb") as file:
            content = mapped(file.fileno())[array.offset : array.offset + array.nbytes]
        # There may be thousands of files, and numpy's maps hold a descriptor each.
        order = "C" if array.flags.c_contiguous else "F"
        array = content.view(array.dtype).reshape(array.shape, order=order)
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # numpy raises many kinds for headers that lie
        raise DataError(f"{path} is no whole .npy file: {error or type(error).__name__}") from error
    if more:
        raise DataError(f"{path} is no whole .npy file: {more:,} bytes more than its header says")
    return array


def mapped_file(path: pathlib.Path) -> np.ndarray:
    """The bytes of a file, uint8 and read-only, read when they are used; there may be none.

    Raises:
      DataError: it is missing, no regular file, or cannot be read; names it.
    """
    check_file(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return mapped(file.fileno()) if size else np.empty(0, np.uint8)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path} is missing") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


@contextlib.contextmanager
def opened_npz(path: pathlib.Path) -> Iterator[np.lib.npyio.NpzFile]:
    """The arrays of an .npz file by name, read when they are asked for; no Python objects.

    Raises:
      DataError: it is no regular file.
      ValueError: it unpacks to more than a file of its size should.
      Exception: of many kinds, from numpy and zipfile, here and where arrays are read: the file is
        missing or broken.
    """
    check_file(path)
    # Opened here, as np.load leaves its own handle open if the file is torn.
    with path.open("rb") as file:
        with zipfile.ZipFile(file) as members:
            unpacked = sum(member.file_size for member in members.infolist())
        packed = file.seek(0, os.SEEK_END)
        if unpacked > max(MOST_UNPACKED, MOST_TIMES * packed):
            raise ValueError(f"its {packed:,} bytes unpack to {unpacked:,}")
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            yield arrays
