"""Standard streams that nobody needs to read: a log is never a reason to lose a run."""

import errno
import io
import os
import sys

_NO_READER = {errno.EPIPE, errno.EIO}  # of a pipe (`| head`), of a terminal
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class _Output(io.FileIO):
    """A file descriptor that drops what it cannot write for one of the reasons in `dropped`."""

    def __init__(self, number: int, dropped: set[int]):
        super().__init__(number, "w", closefd=False)
        self._dropped = dropped

    def write(self, data) -> int | None:
        """As for files; what is dropped counts as written."""
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in self._dropped:
                raise
            return memoryview(data).nbytes


def keep(log: bool) -> None:
    """Keeps this process's standard streams open, whatever happens to their other ends.

    Args:
      log: what is printed is only a log, so that it may also be lost for want of disk space.
    """
    # The next file that is opened would take the place of a closed standard stream, and what a
    # library prints would go into a checkpoint.
    while (lowest := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(lowest, True)
    os.close(lowest)
    dropped = _NO_READER | _NO_ROOM if log else _NO_READER
    for number, name in ((1, "stdout"), (2, "stderr")):
        raw, old = _Output(number, dropped), getattr(sys, name)
        if old is None:  # it was closed
            new = io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", line_buffering=True)
        else:
            new = io.TextIOWrapper(
                raw if old.write_through else io.BufferedWriter(raw),
                old.encoding,
                old.errors,
                line_buffering=old.line_buffering,
                write_through=old.write_through,
            )
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)
