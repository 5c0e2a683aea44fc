"""Reading what the user names."""

import os
import pathlib
import stat

from mrl_jax.errors import DataError

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def check_file(path: pathlib.Path | str, error: type[Exception] = DataError) -> None:
    """Refuses what is there and is no regular file, before anyone waits for its content.

    Opening a pipe that nobody writes to waits for ever, and a device may never end. Where nothing
    is there, whoever opens it says so.

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
