"""Files that appear whole or not at all, and their checksums."""

import contextlib
import hashlib
import os
import pathlib
from collections.abc import Iterator


def sha256(path: pathlib.Path) -> str:
    """The checksum of a file, in hexadecimal digits; OSError if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def whole(path: pathlib.Path, suffix: str = ".tmp") -> Iterator[pathlib.Path]:
    """A temporary path, whose file replaces `path` when the block ends without an error.

    What a killed process leaves there is overwritten by the next, so the name is always the same
    unless `suffix` says otherwise.
    """
    part = path.with_name(path.name + suffix)
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file, whole or not at all; OSError if it cannot be written."""
    with whole(path) as part:
        part.write_text(text, "utf-8")
