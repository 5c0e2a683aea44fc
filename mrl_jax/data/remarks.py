"""What a person should know of data that were opened: nothing is left out without a word."""

import collections
import contextlib
import os
import pathlib
import unicodedata
from collections.abc import Iterable, Iterator

from mrl_jax.data.images import format_of
from mrl_jax.errors import DataError

# Files with one ending that are opened to see whether they are images.
_LOOKED_INTO = 20


def printable(text: object) -> str:
    """The text in one line of Unicode: what is no letter, sign or space is written as in Python."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def composed(name: str) -> str:
    """The name with one code for each letter with an accent (NFC); macOS writes two (NFD)."""
    return unicodedata.normalize("NFC", name)


def same_letters(name: str, names: Iterable[str]) -> str:
    """What to say of a name where another one differs from it in its Unicode form only; or ""."""
    for other in names:
        if other != name and composed(other) == composed(name):
            return (
                f"; {other!a} has the same letters in another Unicode form (NFC, NFD) than "
                f"{name!a}: give both the same name"
            )
    return ""


class Remarks:
    """Counts what is not read, and what else is odd, by kind, and keeps the first of each kind."""

    def __init__(self):
        self._found: dict[str, tuple[int, str]] = {}
        self._looked_into = collections.Counter()

    def add(self, kind: str, what: object) -> None:
        """One more of a kind."""
        count, first = self._found.get(kind, (0, printable(what)))
        self._found[kind] = (count + 1, first)

    def add_file(self, path: str, legal: str) -> None:
        """One more file whose name is not that of an image.

        Raises:
          DataError: by its content it is one. Of many files with one ending some are opened.
        """
        ending = os.path.splitext(path)[1].lower()
        self._looked_into[ending] += 1
        if self._looked_into[ending] <= _LOOKED_INTO and (kind := format_of(path)):
            raise DataError(
                f"{path} is an image by its content ({kind}), but not by its name ({legal}): "
                "rename it, or put it elsewhere"
            )
        self.add("not read, not named as images are", path)

    def lines(self) -> list[str]:
        """A line for each kind."""
        return [
            f"{kind}: {count:,}, the first is {first}"
            for kind, (count, first) in self._found.items()
        ]


def entries(folder: pathlib.Path | str, remarks: Remarks) -> Iterator[os.DirEntry]:
    """What lies in a folder, by name; what begins with a dot belongs to programs and is not read.

    Raises:
      DataError: a link to what is not there, as of a disk that is not mounted.
      OSError: the folder cannot be listed.
    """
    with os.scandir(folder) as found:
        for entry in sorted(found, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                remarks.add("not read, hidden", entry.path)
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
    """Lines on what lies in a folder beside what is read of it; [] without a folder.

    Raises:
      DataError: a link to what is not there, as a split of a disk that is not mounted.
    """
    remarks, known = Remarks(), set(read)
    with contextlib.suppress(PermissionError):  # a folder may be read without being listed
        for entry in entries(folder, remarks) if folder else ():
            if pathlib.Path(entry.path) not in known:
                remarks.add("not read, none of the splits", entry.path)
    return remarks.lines()
