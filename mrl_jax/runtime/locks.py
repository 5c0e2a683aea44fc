"""Locks on files, where the file system has them."""

import errno
import fcntl
import os
import sys
from typing import IO

_said: set[int] = set()  # file systems without locks that this process has warned of


def taken(file: IO) -> bool:
    """Locks an open file until it is closed; False if another process has it locked.

    Some file systems have no locks (Lustre without its option, NFS without its daemon): a command
    says so once, and the file counts as ours.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        if (device := os.fstat(file.fileno()).st_dev) not in _said:
            _said.add(device)
            print(
                f"warning: {file.name} cannot be locked ({error.strerror}): nothing keeps another "
                "command out of the same folder",
                file=sys.stderr,
            )
    return True
