"""Arrays that are made once, kept in a folder named after their origin, and mapped into memory.

    texts-0123456789abcdef0123456789abcdef/    arrays that were made together
        manifest.json    their origin; dtype, length and sha256 of each; its own checksum
        NAME.bin         one file for each

The origin is everything that the arrays are made from. A folder is written under another name and
renamed when it is whole. Opening it reads it once and compares the checksums; what is damaged is
made again.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import pathlib
import platform
import secrets
import shutil
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from mrl_jax.errors import DataError
from mrl_jax.store import json_files

SCHEMA = 1  # of these folders and of all that is kept in them
MANIFEST = "manifest.json"


class Stored(NamedTuple):
    """Read-only arrays [any] that were made together, and small JSON values beside them.

    `name` is that of their folder, which identifies their origin; "" in memory.
    """

    name: str
    arrays: dict[str, np.ndarray]
    values: dict[str, Any]


@dataclasses.dataclass
class _Part:
    """An array on its way; its digest is kept for files alone."""

    dtype: np.dtype
    file: BinaryIO | None
    length: int = 0
    digest: Any = dataclasses.field(default_factory=hashlib.sha256)
    memory: bytearray = dataclasses.field(default_factory=bytearray)


class Parts:
    """One-dimensional arrays that are made part by part, in files of `folder` or in memory."""

    def __init__(self, folder: pathlib.Path | None = None):
        self._folder = folder
        self._parts: dict[str, _Part] = {}

    def append(self, name: str, values: np.ndarray) -> None:
        """Appends values [any] to an array; all of its values have one dtype."""
        if name not in self._parts:
            file = self._path(name).open("wb") if self._folder else None
            self._parts[name] = _Part(values.dtype, file)
        part = self._parts[name]
        if values.dtype != part.dtype:
            raise TypeError(f"{name} holds {part.dtype}, got {values.dtype}")
        part.length += len(values)
        content = values.tobytes()
        if part.file:
            part.file.write(content)
            part.digest.update(content)
        else:
            part.memory += content

    def array(self, name: str) -> np.ndarray:
        """The whole array, read-only; nothing can be appended from now on."""
        part = self._parts[name]
        if part.file:
            part.file.close()
            return _mapped(self._path(name), part.dtype, part.length)
        found = np.frombuffer(part.memory, part.dtype) if part.length else np.zeros(0, part.dtype)
        found.flags.writeable = False
        return found

    def drop(self, name: str) -> None:
        """Removes an array that was needed only on the way."""
        if file := self._parts.pop(name).file:
            file.close()
            self._path(name).unlink()

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays, by name."""
        return {name: self.array(name) for name in self._parts}

    def describe(self) -> dict[str, dict[str, Any]]:
        """What a manifest says of the arrays."""
        return {
            name: {"dtype": p.dtype.str, "length": p.length, "sha256": p.digest.hexdigest()}
            for name, p in self._parts.items()
        }

    def close(self) -> None:
        """Closes the files."""
        for part in self._parts.values():
            if part.file:
                part.file.close()

    def _path(self, name: str) -> pathlib.Path:
        return self._folder / f"{name}.bin"


Facts = dict[str, Any]


class _DamagedError(Exception):
    """A folder does not hold what was written into it."""


def stored(
    cache: str,
    kind: str,
    facts: Callable[[], Facts],
    write: Callable[[Parts], tuple[Facts, dict[str, Any]]],
) -> Stored:
    """Arrays from the cache, or made now and kept there.

    Processes of one host wait for the first of them; different hosts may make the same arrays
    twice, and one copy stays.

    Args:
      cache: folder; "": everything is made in memory and nothing is kept.
      kind: the names of the folders begin with it.
      facts: gives the origin as JSON; called only if the cache holds arrays of this kind.
      write: fills `Parts` and gives (facts, values): the origin as it was found on the way.

    Raises:
      DataError: the folder cannot be written; and what `write` raises.
    """
    if not cache:
        parts = Parts()
        values = write(parts)[1]
        return Stored("", parts.arrays(), values)
    folder = pathlib.Path(cache)

    def find() -> Stored | None:
        return _open(folder, kind, facts()) if any(folder.glob(f"{kind}-*")) else None

    with contextlib.suppress(_DamagedError):
        if found := find():
            return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder) as alone:
            if alone:
                # Only those of this host: others may be in use where hosts do not share locks.
                for path in folder.glob(_unfinished("?" * 16)):
                    shutil.rmtree(path, ignore_errors=True)
            try:
                found = find()
            except _DamagedError as error:
                print(f"warning: {error}; it is made again", flush=True)
                found = None
            return found or _make(folder, kind, write)
    except OSError as error:
        raise DataError(f"cannot write data.cache {cache}: {error.strerror or error}") from error


def _make(
    folder: pathlib.Path, kind: str, write: Callable[[Parts], tuple[Facts, dict[str, Any]]]
) -> Stored:
    temporary = folder / _unfinished(secrets.token_hex(8))
    temporary.mkdir()
    try:
        with contextlib.closing(Parts(temporary)) as parts:
            facts, values = write(parts)
        content = {"facts": facts, "values": values, "arrays": parts.describe()}
        text = json.dumps(content, sort_keys=True)
        manifest = {"sha256": hashlib.sha256(text.encode()).hexdigest(), **content}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
        path = folder / _name(kind, facts)
        try:
            temporary.rename(path)
        except OSError:
            if not path.is_dir():
                raise
            # It exists already: damaged, or made by a faster host that may be using it.
            with contextlib.suppress(_DamagedError):
                if found := _open(folder, kind, facts):
                    return found
            path.rename(temporary / "damaged")
            shutil.rmtree(temporary / "damaged")
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    arrays = {
        name: _mapped(path / f"{name}.bin", np.dtype(about["dtype"]), about["length"])
        for name, about in content["arrays"].items()
    }
    return Stored(path.name, arrays, values)


def _open(folder: pathlib.Path, kind: str, facts: Facts) -> Stored | None:
    """The arrays of this origin, read and compared with their checksums; None if there are none.

    Raises:
      _DamagedError: their folder is damaged.
    """
    path = folder / _name(kind, facts)
    if not path.is_dir():
        return None
    try:
        manifest = json_files.read_object(path / MANIFEST)
        checksum = manifest.pop("sha256")
        text = json.dumps(manifest, sort_keys=True)
        if hashlib.sha256(text.encode()).hexdigest() != checksum:
            raise ValueError(f"{MANIFEST} has another checksum")
        arrays = {}
        for name, about in manifest["arrays"].items():
            if pathlib.PurePath(name).name != name:
                raise ValueError(f"{name!r} is not the name of an array")
            file = path / f"{name}.bin"
            arrays[name] = _mapped(file, np.dtype(about["dtype"]), about["length"])
            with file.open("rb") as content:
                if hashlib.file_digest(content, "sha256").hexdigest() != about["sha256"]:
                    raise ValueError(f"{file.name} has another checksum")
    except (DataError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _DamagedError(f"{path} is damaged ({error})") from error
    return Stored(path.name, arrays, manifest["values"])


def _mapped(path: pathlib.Path, dtype: np.dtype, length: int) -> np.ndarray:
    size = path.stat().st_size
    if size != length * dtype.itemsize:
        raise ValueError(f"{path.name} has {size} bytes, not {length} x {dtype.itemsize}")
    # An empty file cannot be mapped.
    return np.asarray(np.memmap(path, dtype, "r")) if length else np.zeros(0, dtype)


def _unfinished(token: str) -> str:
    return f"unfinished-{platform.node()}-{token}"


def _name(kind: str, facts: Facts) -> str:
    text = json.dumps({"schema": SCHEMA, **facts}, sort_keys=True)
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[bool]:
    """Waits until no other process of this host writes here; yields whether that is certain.

    This only saves work: folders stay whole on a file system without locks as well.
    """
    alone = True
    with (folder / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that writes to {folder}", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            alone = False
        yield alone
