"""Locks on files, as far as the file system has them."""

import errno
import fcntl
import sys
from typing import IO


def taken(file: IO) -> bool:
    """Locks an open file until it is closed; whether no other process has it locked.

    Some file systems have no locks (Lustre without its option, NFS without its daemon): one line
    says so, and the file counts as ours.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        print(
            f"warning: {file.name} cannot be locked ({error.strerror}): nothing keeps another "
            "command from the same folder",
            file=sys.stderr,
        )
    return True
