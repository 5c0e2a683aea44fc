"""Locks on files, as far as the file system has them."""

import errno
import fcntl
import os
import sys
from typing import IO

_said: set[int] = set()  # of which file systems this process has said that they have no locks


def taken(file: IO) -> bool:
    """Locks an open file until it is closed; whether no other process has it locked.

    Some file systems have no locks (Lustre without its option, NFS without its daemon): one line
    of a command says so, and the file counts as ours.
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
                "command from the same folder",
                file=sys.stderr,
            )
    return True
