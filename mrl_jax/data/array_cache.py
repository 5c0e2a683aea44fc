"""Arrays that are made once: kept in a folder under what they follow from, and mapped into memory.

    texts-0123456789abcdef0123456789abcdef/    arrays that were made together
        manifest.json    what they follow from; dtype, length and sha256 of each; own checksum
        NAME.bin         one file for each

A folder is written under another name and renamed when it is whole. Whoever opens it reads it
through once and compares the checksums; what is damaged is made again.
"""

import contextlib
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
    """What was made.

    Attributes:
      name: stands for all that the arrays follow from; "" in memory.
      arrays: [any] each, read-only.
      values: small JSON values beside them.
    """

    name: str
    arrays: dict[str, np.ndarray]
    values: dict[str, Any]


class Parts:
    """Arrays of one axis that are made part by part.

    Args:
      folder: where their files are; None: they are in memory.
    """

    def __init__(self, folder: pathlib.Path | None = None):
        self._folder = folder
        self._dtypes: dict[str, np.dtype] = {}
        self._lengths: dict[str, int] = {}
        self._digests: dict[str, Any] = {}
        self._files: dict[str, BinaryIO] = {}
        self._memory: dict[str, bytearray] = {}

    def append(self, name: str, values: np.ndarray) -> None:
        """Puts values [any] behind those that there are; all of one dtype."""
        if name not in self._dtypes:
            self._dtypes[name], self._lengths[name] = values.dtype, 0
            if self._folder:
                self._files[name] = self._path(name).open("wb")
                self._digests[name] = hashlib.sha256()
            else:
                self._memory[name] = bytearray()
        if values.dtype != self._dtypes[name]:
            raise TypeError(f"{name} holds {self._dtypes[name]}, got {values.dtype}")
        self._lengths[name] += len(values)
        content = values.tobytes()
        if self._folder:
            self._files[name].write(content)
            self._digests[name].update(content)
        else:
            self._memory[name] += content

    def array(self, name: str) -> np.ndarray:
        """All that was put there, read-only; nothing can be appended from now on."""
        dtype, length = self._dtypes[name], self._lengths[name]
        if self._folder:
            self._files[name].close()
            return _mapped(self._path(name), dtype, length)
        found = np.frombuffer(self._memory[name], dtype) if length else np.zeros(0, dtype)
        found.flags.writeable = False
        return found

    def drop(self, name: str) -> None:
        """Removes an array that was of use on the way only."""
        del self._dtypes[name], self._lengths[name]
        if self._folder:
            self._files.pop(name).close()
            del self._digests[name]
            self._path(name).unlink()
        else:
            del self._memory[name]

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays, by name."""
        return {name: self.array(name) for name in self._dtypes}

    def describe(self) -> dict[str, dict[str, Any]]:
        """What a manifest says of the arrays."""
        return {
            name: {
                "dtype": dtype.str,
                "length": self._lengths[name],
                "sha256": self._digests[name].hexdigest(),
            }
            for name, dtype in self._dtypes.items()
        }

    def close(self) -> None:
        """Lets go of the files."""
        for file in self._files.values():
            file.close()

    def _path(self, name: str) -> pathlib.Path:
        return self._folder / f"{name}.bin"


Facts = dict[str, Any]


class _DamagedError(Exception):
    """What is kept is not what was written."""


def stored(
    cache: str,
    kind: str,
    facts: Callable[[], Facts],
    write: Callable[[Parts], tuple[Facts, dict[str, Any]]],
) -> Stored:
    """Arrays from the cache, or made now and kept there.

    Several processes and hosts may ask at once: those of a host wait for the first of them, and
    those of different hosts may make the same twice, of which one stays.

    Args:
      cache: folder; "": everything is made in memory and nothing kept.
      kind: begins the name of the folders.
      facts: gives what the arrays follow from, as JSON; asked where there is something to compare.
      write: fills `Parts` and gives (facts, values): the facts as they were found on the way.

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
                # Those of other hosts may be in use, where a lock is not seen by all.
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
            # There already: damaged, or another host was faster. That one may be in use.
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
    """What was kept of these facts, read through and found whole; None where there is no such.

    Raises:
      _DamagedError: it is not whole.
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
                raise ValueError(f"{name!r} is no name of an array")
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
    # Nothing cannot be mapped.
    return np.asarray(np.memmap(path, dtype, "r")) if length else np.zeros(0, dtype)


def _unfinished(token: str) -> str:
    return f"unfinished-{platform.node()}-{token}"


def _name(kind: str, facts: Facts) -> str:
    text = json.dumps({"schema": SCHEMA, **facts}, sort_keys=True)
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[bool]:
    """Waits until no other process of this host makes something here; whether that is sure.

    It saves work and is not what keeps the folders whole: a file system without locks is fine.
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
