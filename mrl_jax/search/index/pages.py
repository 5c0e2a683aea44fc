"""Files of an index whose pages are compared with their checksums before they are used.

Every folder of arrays has a file `CHECKSUMS`: an xxh3 of 8 bytes for each page of each file, the
files in the order of their names. The manifest has the checksum of that file, and the sizes.
"""

import errno
import functools
import io
import itertools
import os
import pathlib
import stat
from typing import Any

import numpy as np

from mrl_jax import extras
from mrl_jax.errors import DataError
from mrl_jax.search.index.compiling import compiled
from mrl_jax.store.mapping import mapped

with extras.needed("search", "an index"):
    import xxhash

# Linux reads at least as much when a page of 4 KiB is not in memory yet. Files of one page are read
# whole when they are opened, larger ones are mapped.
PAGE = 2**14
# When so few bytes of a file are left to compare, they are compared at once, in less than a
# millisecond: later reads need not ask which pages are left.
_FEW = 2**22
CHECKSUMS = "checksums.bin"


def checksum(content: Any) -> int:
    """64 bits that change with any accidental change of the bytes."""
    return xxhash.xxh3_64_intdigest(content)


def _pages(size: int) -> int:
    return -(-size // PAGE)


def describe(folder: pathlib.Path, names: list[str]) -> dict[str, Any]:
    """Writes the checksums of a folder's files; what the manifest says of them."""
    sums = []
    for name in sorted(names):
        with (folder / name).open("rb") as file:
            while page := file.read(PAGE):
                sums.append(checksum(page))
    content = np.array(sums, "<u8").tobytes()
    (folder / CHECKSUMS).write_bytes(content)
    about = {name: {"bytes": (folder / name).stat().st_size} for name in sorted(names)}
    return {"files": about, "checksum": f"{checksum(content):016x}"}


def read(path: pathlib.Path, size: int | None = None) -> np.ndarray:
    """The bytes of a file, uint8: in memory if it is small, else mapped and not looked at yet.

    A mapped file needs no descriptor, and stays as it is if its name is removed.

    Raises:
      DataError: it is missing, unreadable, no file, a link, or not of this size.
    """
    try:
        # A link may lead anywhere, and opening a pipe that nobody writes to would wait for ever.
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DataError(f"{path} is a link; an index holds files of its own only") from None
        raise _unreadable(path, error) from None
    try:
        found = os.fstat(number)
        if not stat.S_ISREG(found.st_mode):
            raise DataError(f"{path} is damaged: it is no file")
        if size is not None and found.st_size != size:
            raise DataError(f"{path} is damaged: {found.st_size} bytes instead of {size}")
        if found.st_size > PAGE:
            return mapped(number)
        return np.frombuffer(os.read(number, PAGE), np.uint8)
    except OSError as error:
        raise _unreadable(path, error) from None
    finally:
        os.close(number)


def _unreadable(path: pathlib.Path, error: OSError) -> DataError:
    return DataError(f"{path} cannot be read: {error.strerror}")


class File:
    """A file of an index.

    Attributes:
      path: of it.
      size: in bytes.
      all_read: whether all of it is what was written.

    Raises:
      DataError: it is not of the size it had, or cannot be read, or is small and damaged.
    """

    def __init__(self, path: pathlib.Path, size: int, sum_p: np.ndarray):
        self.path, self.size, self._sum_p = path, size, sum_p
        self._content = read(path, size)
        self._bytes = memoryview(self._content)
        self._read_p = np.zeros(len(sum_p), bool)
        self._left = size  # bytes, or a few more, that are not compared yet
        self.all_read = False
        if len(sum_p) <= 1:
            self.content()

    def content(self) -> np.ndarray:
        """All bytes, uint8, compared with their checksums.

        Raises:
          DataError: they were changed.
        """
        if not self.all_read:
            self._check(np.flatnonzero(~self._read_p))
            self.all_read = True
        return self._content

    def _check(self, page_n: np.ndarray) -> None:
        for page in page_n.tolist():
            content = self._bytes[page * PAGE : (page + 1) * PAGE]
            if checksum(content) != self._sum_p[page]:
                raise DataError(f"{self.path} is damaged: its checksum differs")
            self._read_p[page] = True


@compiled
def _unread(first_n, last_n, start, row_bytes, page, read_p):
    """Pages that hold rows first to last - 1 of a span and are not read yet, some of them twice.

    The rows lie one after another from the byte `start` on.
    """
    count = 0
    for n in range(len(first_n)):
        if last_n[n] > first_n[n]:
            low = (start + first_n[n] * row_bytes) // page
            for p in range(low, (start + last_n[n] * row_bytes - 1) // page + 1):
                count += np.int64(not read_p[p])
    page_n = np.empty(count, np.int64)
    at = 0
    for n in range(len(first_n)):
        if at < count and last_n[n] > first_n[n]:
            low = (start + first_n[n] * row_bytes) // page
            for p in range(low, (start + last_n[n] * row_bytes - 1) // page + 1):
                # Another thread may have read one meanwhile, but none becomes unread.
                if at < count and not read_p[p]:
                    page_n[at] = p
                    at += 1
    return page_n[:at]


class Array(File):
    """A .npy file of an index.

    Attributes:
      shape: of the array.
      nbytes: of its numbers.

    Raises:
      DataError: as of every file, or it holds another array.
    """

    def __init__(self, path, size: int, sum_p: np.ndarray, dtype: Any, shape: tuple[int, ...]):
        super().__init__(path, size, sum_p)
        self._check(np.arange(min(1, len(sum_p))))
        try:
            start, found, order, kind = _header(bytes(self._content[: _header_size(self._bytes)]))
        except Exception as error:  # a header is read as Python, so that damage may mean anything
            raise DataError(f"{path} is damaged: {error}") from error
        self._start, self.shape = start, tuple(shape)
        self.nbytes = int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize
        as_said = (found, order, kind) == (self.shape, False, np.dtype(dtype))
        if not as_said or start + self.nbytes != size:
            raise DataError(
                f"{path} is damaged: {kind} {found} instead of {np.dtype(dtype)} {self.shape}"
            )
        self._array = self._content[start:].view(dtype).reshape(shape)
        self._row_bytes = self.nbytes // max(shape[0], 1)

    def whole(self) -> np.ndarray:
        """The array, compared with its checksums.

        Raises:
          DataError: it was changed.
        """
        self.content()
        return self._array

    def rows(self, first_n: np.ndarray, last_n: np.ndarray) -> np.ndarray:
        """The array, of which rows first to last - 1 of every span may be looked at.

        Raises:
          DataError: one of their pages was changed.
        """
        if self.all_read:
            return self._array
        if self._left <= _FEW:
            return self.whole()
        spans = np.asarray(first_n, np.int64), np.asarray(last_n, np.int64)
        page_n = _unread(*spans, self._start, self._row_bytes, PAGE, self._read_p)
        if len(page_n):
            self._check(np.unique(page_n))
            self._left = PAGE * int((~self._read_p).sum())
        return self._array

    def at(self, row_n: np.ndarray) -> np.ndarray:
        """The array, of which these rows may be looked at; raises as `rows`."""
        return self._array if self.all_read else self.rows(row_n, np.add(row_n, 1))


def _header_size(content: memoryview) -> int:
    """Of the first version of .npy, which is what an index is written in."""
    return 10 + int.from_bytes(content[8:10], "little")


@functools.lru_cache
def _header(content: bytes) -> tuple[int, tuple[int, ...], bool, np.dtype]:
    """Where the numbers start, the shape, whether by columns, the type."""
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"version {version} of .npy")
    shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
    return file.tell(), shape, by_columns, dtype


class Folder:
    """A folder of an index.

    Args:
      path: of it.
      about: what `describe` said.

    Raises:
      DataError: it is a link, or its checksums cannot be read.
    """

    def __init__(self, path: pathlib.Path, about: dict[str, Any]):
        if path.is_symlink():
            raise DataError(f"{path} is a link; an index holds files of its own only")
        self.path = path
        self._sizes = {name: file["bytes"] for name, file in sorted(about["files"].items())}
        pages = [_pages(size) for size in self._sizes.values()]
        content = read(path / CHECKSUMS, 8 * sum(pages))
        if f"{checksum(content):016x}" != about["checksum"]:
            raise DataError(f"{path / CHECKSUMS} is damaged: its checksum differs")
        sums = content.view("<u8")
        ends = itertools.accumulate(pages)
        self._sums = {
            name: sums[end - count : end]
            for name, count, end in zip(self._sizes, pages, ends, strict=True)
        }

    def file(self, name: str) -> File:
        """One of its files.

        Raises:
          DataError: see `File`.
        """
        return File(self.path / name, self._size(name), self._sums[name])

    def array(self, name: str, dtype: Any, shape: tuple[int, ...]) -> Array:
        """One of its arrays.

        Raises:
          DataError: see `Array`.
        """
        return Array(self.path / name, self._size(name), self._sums[name], dtype, shape)

    def _size(self, name: str) -> int:
        if name not in self._sizes:
            raise DataError(f"{self.path} is damaged: it has no {name}")
        return self._sizes[name]

    def check(self) -> None:
        """Reads all of its files and compares their checksums.

        Raises:
          DataError: one was changed.
        """
        for name in self._sizes:
            self.file(name).content()
