"""What a user should know about opened data: nothing is left out without being reported."""

import collections
import contextlib
import os
import pathlib
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

from mrl_jax.data.images import format_of
from mrl_jax.errors import DataError

# How many files with the same ending are opened to see whether they are images.
_LOOKED_INTO = 20


def printable(text: object) -> str:
    """The text on one line of valid Unicode: unprintable characters are escaped as in Python."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def composed(name: str) -> str:
    """The name with one code point for each accented letter (NFC); macOS writes two (NFD)."""
    return unicodedata.normalize("NFC", name)


def same_letters(name: str, names: Iterable[str]) -> str:
    """A hint for messages if a name differs from another only in its Unicode form, else ""."""
    for other in names:
        if other != name and composed(other) == composed(name):
            return (
                f"; {other!a} and {name!a} have the same letters in different Unicode forms "
                "(NFC, NFD): give both the same name"
            )
    return ""


class Remarks:
    """Counts, by kind, what is not read or is otherwise odd, and keeps the first of each kind."""

    def __init__(self):
        self._found: dict[str, tuple[int, str]] = {}
        self._looked_into = collections.Counter()

    def add(self, kind: str, what: object, more: int = 1) -> None:
        """Counts more of a kind."""
        count, first = self._found.get(kind) or (0, printable(what))
        self._found[kind] = (count + more, first)

    def counts(self) -> dict[str, list[Any]]:
        """By kind, how many there are and the first, as JSON."""
        return {kind: [count, first] for kind, (count, first) in self._found.items()}

    def add_counts(self, counts: dict[str, list[Any]]) -> None:
        """Adds what was counted before."""
        for kind, (count, first) in counts.items():
            self.add(kind, first, count)

    def add_file(self, path: str, legal: str) -> None:
        """Counts one more file that is not named like an image.

        Raises:
          DataError: its content is an image. Only the first files with each ending are opened.
        """
        ending = os.path.splitext(path)[1].lower()
        self._looked_into[ending] += 1
        if self._looked_into[ending] <= _LOOKED_INTO and (kind := format_of(path)):
            raise DataError(
                f"{path} is an image ({kind}), but is not named like one ({legal}): "
                "rename it, or put it elsewhere"
            )
        self.add("not read (not named like an image)", path)

    def lines(self) -> list[str]:
        """A line for each kind."""
        return [
            f"{kind}: {count:,}, the first is {first}"
            for kind, (count, first) in self._found.items()
        ]


def entries(folder: pathlib.Path | str, remarks: Remarks) -> Iterator[os.DirEntry]:
    """The entries of a folder, sorted by name; hidden ones belong to programs and are not read.

    Raises:
      DataError: a link is broken, for example because a disk is not mounted.
    """
    with os.scandir(folder) as found:
        for entry in sorted(found, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                remarks.add("not read (hidden)", entry.path)
                continue
            if entry.is_symlink():
                try:
                    entry.stat()
                except OSError as error:
                    target = os.readlink(entry.path)
                    raise DataError(
                        f"cannot read {entry.path}: {error.strerror} (it is a link to {target})"
                    ) from error
            yield entry


def left_in(folder: str, read: Iterable[pathlib.Path]) -> list[str]:
    """Lines on the entries of a folder that are not read, see `entries`; [] for folder ""."""
    remarks, known = Remarks(), set(read)
    with contextlib.suppress(PermissionError):  # a folder may be read without being listed
        for entry in entries(folder, remarks) if folder else ():
            if pathlib.Path(entry.path) not in known:
                remarks.add("not read (in no split)", entry.path)
    return remarks.lines()
