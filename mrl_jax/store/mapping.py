"""Files in memory, read as they are looked at, that hold no file descriptor."""

import ctypes
import functools
import mmap
import os
import weakref

import numpy as np


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(None, use_errno=True)
    size, number = ctypes.c_size_t, ctypes.c_int
    library.mmap.argtypes = (ctypes.c_void_p, size, number, number, number, ctypes.c_long)
    library.mmap.restype = ctypes.c_void_p
    library.munmap.argtypes = (ctypes.c_void_p, size)
    return library


def mapped(number: int) -> np.ndarray:
    """The bytes of an open file, uint8 and read-only, also after it was closed or removed.

    Python's own `mmap` keeps a descriptor for each (until 3.13), of which a process has 1024.

    Args:
      number: its descriptor; the file must not be empty.

    Raises:
      OSError: it cannot be mapped.
    """
    size = os.fstat(number).st_size
    place = _library().mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, number, 0)
    if place == ctypes.c_void_p(-1).value:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    memory = (ctypes.c_uint8 * size).from_address(place)
    # Not at the end of the process, when threads may still read.
    weakref.finalize(memory, _library().munmap, place, size).atexit = False
    content = np.frombuffer(memory, np.uint8)
    content.flags.writeable = False
    return content
