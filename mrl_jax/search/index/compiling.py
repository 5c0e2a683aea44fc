"""Compiling with numba, which keeps compiled code wherever this user may write, if anywhere."""

import contextlib
import functools
import os
import pathlib
import stat
import tempfile
from collections.abc import Callable

from mrl_jax import extras

with extras.needed("search", "an index"):
    import numba
    from numba.core.caching import FunctionCache


class _Cache(FunctionCache):
    """Numba's own cache, except that a full disk or a damaged file is no error."""

    def load_overload(self, *arguments):
        """What was compiled before, or None."""
        try:
            return super().load_overload(*arguments)
        except Exception:  # a pickle that was cut short or changed may raise anything
            with contextlib.suppress(Exception):
                self.flush()
            return None

    def save_overload(self, *arguments):
        """Keeps what was compiled, if there is room."""
        with contextlib.suppress(OSError):
            super().save_overload(*arguments)


def compiled(function: Callable) -> Callable:
    """A function compiled at its first call, which holds no lock and may sum in any order.

    Compiled code is kept for other processes: in NUMBA_CACHE_DIR, beside the source, in the user's
    cache folder or in the user's own folder among temporary files, whichever can be written first.
    """
    fast = {"contract", "reassoc", "nsz"}
    dispatcher = numba.njit(function, nogil=True, fastmath=fast)
    if _is_kept():
        dispatcher._cache = _Cache(function)
    return dispatcher


@functools.cache
def _is_kept() -> bool:
    if not _numba_finds_a_folder():
        with contextlib.suppress(OSError):
            numba.config.CACHE_DIR = str(_own_folder())
    return _numba_finds_a_folder()


def _numba_finds_a_folder() -> bool:
    try:
        FunctionCache(_is_kept.__wrapped__)
    except RuntimeError:
        return False
    return True


def _own_folder() -> pathlib.Path:
    """A folder among temporary files into which nobody else can put code; OSError if it is not."""
    folder = pathlib.Path(tempfile.gettempdir(), f"mrl_jax-numba-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(f"{folder} is somebody else's")
    return folder
