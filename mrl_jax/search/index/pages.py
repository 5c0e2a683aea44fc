"""Files of an index whose pages are compared with their checksums before they are used.

Every folder of arrays has a file `CHECKSUMS`: an xxh3 of 8 bytes for each page of each file, in the
order of the files' names. The manifest has the checksum of that file, and all sizes.
"""

import errno
import functools
import io
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
# When no more bytes of a file than these are left to compare, all are compared at once, in less
# than a millisecond: later reads need not ask which pages are left.
_FEW = 2**22
CHECKSUMS = "checksums.bin"


def checksum(content: Any) -> int:
    """64 bits that change with any accidental change of the bytes."""
    return xxhash.xxh3_64_intdigest(content)


def _pages(size: int) -> int:
    return -(-size // PAGE)


def describe(folder: pathlib.Path, names: list[str]) -> dict[str, Any]:
    """Writes the checksums of a folder's files; gives what the manifest says of them."""
    sums, about = [], {}
    for name in sorted(names):
        with (folder / name).open("rb") as file:
            while page := file.read(PAGE):
                sums.append(checksum(page))
            about[name] = {"bytes": file.tell()}
    content = np.array(sums, "<u8").tobytes()
    (folder / CHECKSUMS).write_bytes(content)
    return {"files": about, "checksum": f"{checksum(content):016x}"}


def read(path: pathlib.Path, size: int | None = None) -> np.ndarray:
    """The bytes of a file, uint8: in memory if it is small, else mapped and not looked at yet.

    A mapped file needs no descriptor, and stays as it is if its name is removed.

    Raises:
      DataError: it is missing, unreadable, no file, a link, or not of this size.
    """
    number = None
    try:
        # A link may lead anywhere, and opening a pipe that nobody writes to would wait for ever.
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        found = os.fstat(number)
        if not stat.S_ISREG(found.st_mode):
            raise DataError(f"{path} is damaged: it is no file")
        if size is not None and found.st_size != size:
            raise DataError(f"{path} is damaged: {found.st_size} bytes instead of {size}")
        if found.st_size > PAGE:
            return mapped(number)
        return np.frombuffer(os.read(number, PAGE), np.uint8)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DataError(f"{path} is a link; an index holds files of its own only") from None
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    finally:
        if number is not None:
            os.close(number)


class File:
    """A file of an index; DataError if it is unreadable, of another size, or small and damaged.

    Attributes:
      path: of it.
      size: in bytes.
      all_read: whether all of it is known to be what was written.
    """

    def __init__(self, path: pathlib.Path, size: int, sum_p: np.ndarray):
        self.path, self.size, self._sum_p = path, size, sum_p
        self._content = read(path, size)
        self._bytes = memoryview(self._content)
        self._read_p = np.zeros(len(sum_p), bool)
        self._left = size  # bytes not compared yet, rounded up to pages
        self.all_read = False
        if len(sum_p) <= 1:
            self.content()

    def content(self) -> np.ndarray:
        """All bytes, uint8; DataError if they differ from their checksums."""
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
    """Pages, not read yet, that hold rows first to last - 1 of a span; some occur twice.

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
                # Meanwhile another thread may have read one, but none becomes unread.
                if at < count and not read_p[p]:
                    page_n[at] = p
                    at += 1
    return page_n[:at]


class Array(File):
    """A .npy file of an index; DataError, too, if it holds an array of another type or shape.

    Attributes:
      nbytes, row_bytes: of all its numbers, and of a row of them.
    """

    def __init__(self, path, size: int, sum_p: np.ndarray, dtype: Any, shape: tuple[int, ...]):
        super().__init__(path, size, sum_p)
        self._check(np.arange(min(1, len(sum_p))))
        try:
            start, found, order, kind = _header(bytes(self._content[: _header_size(self._bytes)]))
        except Exception as error:  # a header is read as Python, so that damage may mean anything
            raise DataError(f"{path} is damaged: {error}") from error
        self._start, dtype = start, np.dtype(dtype)
        self.nbytes = int(np.prod(shape, dtype=object)) * dtype.itemsize
        as_described = (found, order, kind) == (shape, False, dtype)
        if not as_described or start + self.nbytes != size:
            raise DataError(f"{path} is damaged: {kind} {found} instead of {dtype} {shape}")
        self._array = self._content[start:].view(dtype).reshape(shape)
        self.row_bytes = self.nbytes // max(shape[0], 1)

    def whole(self) -> np.ndarray:
        """The array; DataError if it differs from its checksums."""
        self.content()
        return self._array

    def rows(self, first_n: np.ndarray, last_n: np.ndarray) -> np.ndarray:
        """The array, with rows first to last - 1 of every span checked; DataError as `whole`."""
        if self.all_read:
            return self._array
        if self._left <= _FEW:
            return self.whole()
        spans = np.asarray(first_n, np.int64), np.asarray(last_n, np.int64)
        page_n = _unread(*spans, self._start, self.row_bytes, PAGE, self._read_p)
        if len(page_n):
            self._check(np.unique(page_n))
            self._left = PAGE * int((~self._read_p).sum())
        return self._array

    def at(self, row_n: np.ndarray) -> np.ndarray:
        """The array, with these rows checked; DataError as `whole`."""
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
    """A folder of an index, given what `describe` said of it.

    DataError if it is a link, or its checksums cannot be read.
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
        sums = np.split(content.view("<u8"), np.cumsum(pages, dtype=int))
        self._sums = dict(zip(self._sizes, sums, strict=False))

    def has(self, name: str) -> bool:
        """Whether it has such a file."""
        return name in self._sizes

    def file(self, name: str) -> File:
        """One of its files."""
        return File(*self._about(name))

    def array(self, name: str, dtype: Any, shape: tuple[int, ...]) -> Array:
        """One of its arrays."""
        return Array(*self._about(name), dtype, shape)

    def _about(self, name: str) -> tuple[pathlib.Path, int, np.ndarray]:
        if name not in self._sizes:
            raise DataError(f"{self.path} is damaged: it has no {name}")
        return self.path / name, self._sizes[name], self._sums[name]

    def check(self) -> None:
        """Reads all of its files; DataError if one differs from its checksums."""
        for name in self._sizes:
            self.file(name).content()
