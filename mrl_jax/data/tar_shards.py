"""Samples in uncompressed tar files, read where they lie: the layout of WebDataset and img2dataset.

    FOLDER/train-000.tar, FOLDER/train-001.tar, FOLDER/val.tar; or FOLDER/train/*.tar
        0001.jpg, 0001.txt, 0002.jpg, 0002.json, ...

A sample is all members of a shard whose names are the same up to the first dot of their last part.
The headers are gone through once; a member is then read at its place. Nothing is unpacked to disk,
and what `tarfile.data_filter` would not let out of an archive is not read.
"""

import dataclasses
import hashlib
import os
import pathlib
import re
import tarfile
from collections.abc import Iterator, Mapping
from typing import BinaryIO, NamedTuple

import numpy as np

from mrl_jax.data.folder import Record, listing
from mrl_jax.data.named import SPLITS
from mrl_jax.data.remarks import Remarks
from mrl_jax.data.strings import Strings
from mrl_jax.data.text_files import VALIDATION
from mrl_jax.errors import DataError, shown
from mrl_jax.store import inputs

_ENDING = r"\.(tar(\.\w+)?|tgz|tbz|txz)"
_SHARD = re.compile(rf"(?P<split>[a-z]+)([^A-Za-z].*)?{_ENDING}")
_SPLIT_OF = {**{name: name for name in SPLITS}, **dict.fromkeys(VALIDATION, "val")}
# What compressed files begin with: gzip, bzip2, xz, zstandard.
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_PART = 1 << 20  # bytes that are looked through at a time


class Member(NamedTuple):
    """A file in a shard: its name, and where its bytes are."""

    name: str
    offset: int
    size: int


class Sample(NamedTuple):
    """The members of one key by what follows the first dot of their names, in small letters."""

    key: str
    members: dict[str, Member]


def is_shard(path: pathlib.Path) -> bool:
    """Whether a file is named like one, compressed ones included, which `members` refuses."""
    return re.search(f"{_ENDING}$", path.name) is not None


def find_shards(folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """The shards of each split in the order of their names: SPLIT*.tar, or SPLIT/*.tar.

    SPLIT is train, test, and val or another of its names. {} if there are none.

    Raises:
      DataError: two kinds of names claim to be one split, or the folder cannot be listed.
    """
    found: dict[str, dict[str, list[pathlib.Path]]] = {}
    with listing():
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.is_dir():
                name, shards = path.name, sorted(filter(is_shard, path.iterdir()))
                kind = f"{name}/"
            elif match := _SHARD.fullmatch(path.name):
                name, shards = match["split"], [path]
                kind = name
            else:
                continue
            if name in _SPLIT_OF and shards:
                found.setdefault(_SPLIT_OF[name], {}).setdefault(kind, []).extend(shards)
    for split, kinds in found.items():
        if len(kinds) > 1:
            first, second, *_ = (shards[0] for shards in kinds.values())
            raise DataError(f"{first} and {second}: which is the {split} split?")
    return {split: next(iter(found[split].values())) for split in SPLITS if split in found}


def members(path: pathlib.Path, remarks: Remarks) -> Iterator[Member]:
    """The files in a shard, in order; `remarks` collects what is not read.

    Raises:
      DataError: it is missing, compressed, damaged or cut short; names the shard, and the member
        or the byte.
    """
    inputs.check_file(path)
    try:
        with path.open("rb") as file:
            if file.read(8).startswith(_COMPRESSED):
                raise DataError(
                    f"{path} is compressed, so that nothing in it can be found without unpacking "
                    "all before it: unpack it to a .tar"
                )
            file.seek(0)
            yield from _members(path, file, remarks)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def _members(path: pathlib.Path, file: BinaryIO, remarks: Remarks) -> Iterator[Member]:
    size, here = os.fstat(file.fileno()).st_size, 0
    try:
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # it keeps every member otherwise
                # A header that points back would be read again and again.
                if member.size < 0 or tar.offset <= here:
                    raise DataError(f"{path}: the header at byte {here:,} is damaged")
                here = tar.offset
                if member.isdir():
                    continue
                name = f"{path}: {member.name}"
                if not member.isreg() or member.issparse():
                    remarks.add("not read (links, devices and sparse files)", name)
                    continue
                if member.offset_data + member.size > size:
                    raise DataError(f"{path} is cut short: it ends within {shown(member.name)}")
                try:
                    # Of plain files it refuses no other names, and it takes longer than all else.
                    if member.name.startswith("/") or ".." in member.name:
                        member = tarfile.data_filter(member, str(path))
                except tarfile.FilterError:
                    remarks.add("not read (names that lead out of their folder)", name)
                    continue
                _check_name(path, member.name)
                yield Member(member.name, member.offset_data, member.size)
            here = tar.offset
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        raise DataError(f"{path} is damaged behind byte {here:,}: {error}") from error
    _check_end(path, file, here)


def _check_name(path: pathlib.Path, name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(f"{path}: the name {shown(name)} is not UTF-8") from None
    if name.splitlines() != [name]:
        raise DataError(f"{path}: the name {shown(name)} has more than one line")


def _check_end(path: pathlib.Path, file: BinaryIO, end: int) -> None:
    """Refuses a shard whose members end elsewhere than in zeros; `tarfile` would say nothing."""
    file.seek(end)
    mark = file.read(tarfile.BLOCKSIZE)
    if len(mark) < tarfile.BLOCKSIZE:
        raise DataError(f"{path} is cut short: it ends at byte {end:,}, without an end mark")
    if any(mark):
        raise DataError(f"{path}: the header at byte {end:,} is damaged")
    while rest := file.read(_PART):
        if rest.count(0) < len(rest):
            raise DataError(
                f"{path} has more behind the end mark at byte {end:,}: it is damaged, or several "
                "archives in one"
            )


def samples(path: pathlib.Path, remarks: Remarks) -> Iterator[Sample]:
    """The samples of a shard, in the order of their first members.

    Raises:
      DataError: as `members`, or two members have one name.
    """
    found: dict[str, dict[str, Member]] = {}
    for member in members(path, remarks):
        folder, slash, base = member.name.rpartition("/")
        stem, _, extension = base.partition(".")
        if not stem or not extension:
            remarks.add("not read (hidden, or without an ending)", f"{path}: {member.name}")
            continue
        sample = found.setdefault(f"{folder}{slash}{stem}", {})
        if extension.lower() in sample:
            raise DataError(f"{path} has two members called {shown(member.name)}")
        sample[extension.lower()] = member
    yield from (Sample(key, sample) for key, sample in found.items())


def read_at(path: str | os.PathLike, member: Member) -> bytes:
    """The bytes of a member.

    Raises:
      DataError: the shard cannot be read, or is shorter than when it was gone through.
    """
    try:
        # Opened anew, as there may be more shards than a process may have files open.
        file = os.open(path, os.O_RDONLY)
        try:
            data = os.pread(file, member.size, member.offset)
        finally:
            os.close(file)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    if len(data) < member.size:
        raise DataError(f"{path} is cut short: it ends within {shown(member.name)}")
    return data


@dataclasses.dataclass(frozen=True)
class TarRecords:
    """N image files in shards, in order; all labels are 0.

    Attributes:
      root: what the names start from.
      shards: their names.
      names: of the images, "SHARD/MEMBER".
      shard_n: [N] int32, where each is; and at which byte:
      offset_n, size_n: [N] int64.
    """

    root: pathlib.Path
    shards: tuple[str, ...]
    names: Strings
    shard_n: np.ndarray
    offset_n: np.ndarray
    size_n: np.ndarray

    @classmethod
    def of(
        cls,
        root: pathlib.Path,
        shards: tuple[str, ...],
        names: Strings,
        arrays: Mapping[str, np.ndarray],
    ) -> "TarRecords":
        """From arrays called shard, offset and size."""
        return cls(root, shards, names, *(arrays[name] for name in ("shard", "offset", "size")))

    def __len__(self) -> int:
        return len(self.shard_n)

    def __getitem__(self, row: int) -> Record:
        name, shard = self.names[row], self.shards[self.shard_n[row]]
        member = Member(
            name.removeprefix(f"{shard}/"), int(self.offset_n[row]), int(self.size_n[row])
        )
        path = os.path.join(self.root, shard)
        return Record(read_at(path, member), 0, f"{path}: {member.name}")

    @property
    def place(self) -> np.ndarray:
        """A number [N] uint64 per image, equal for one member of one file."""
        starts = []
        for shard in self.shards:
            try:
                about = os.stat(self.root / shard)
            except OSError as error:
                raise DataError(f"cannot read {self.root / shard}: {error.strerror}") from error
            file = hashlib.blake2b(f"{about.st_dev} {about.st_ino}".encode(), digest_size=8)
            starts.append(int.from_bytes(file.digest()))
        return np.array(starts, np.uint64)[self.shard_n] + self.offset_n.astype(np.uint64)

    def order(self) -> str:
        """Hex digits over the names of all images, in order."""
        return hashlib.sha256(self.names.flat).hexdigest()

    def fingerprint(self) -> str:
        """Sixteen hex digits over names and sizes; no image is read."""
        digest = hashlib.sha256(self.names.flat)
        digest.update(np.ascontiguousarray(self.size_n, "<i8"))
        return digest.hexdigest()[:16]
