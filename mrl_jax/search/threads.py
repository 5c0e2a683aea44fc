"""Threads of a search: ours share out the queries, libraries beneath them compute with one each."""

import contextlib
import functools
import os
import threading
from collections.abc import Iterator

import threadpoolctl

from mrl_jax.search import clusters


def cores() -> int:
    """How many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # macOS has no such thing
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def _libraries(api: str) -> tuple[threadpoolctl.LibController, ...]:
    """Those loaded for "blas" or "openmp"; faiss brings some of its own."""
    clusters.faiss()
    return tuple(threadpoolctl.ThreadpoolController().select(user_api=api).lib_controllers)


def alone() -> None:
    """OpenMP starts no threads for the calling thread from now on."""
    for library in _libraries("openmp"):
        library.set_num_threads(1)


class _Blas:
    """BLAS has one limit for the whole process: 1 while anyone wants it, then what it was."""

    def __init__(self):
        self._lock, self._users, self._before = threading.Lock(), 0, []

    def limit(self) -> None:
        """Begins; every call needs one of `release`."""
        with self._lock:
            if not self._users:
                self._before = [(library, library.num_threads) for library in _libraries("blas")]
                for library, _ in self._before:
                    library.set_num_threads(1)
            self._users += 1

    def release(self) -> None:
        """Ends; the last one restores."""
        with self._lock:
            self._users -= 1
            if not self._users:
                self._restore()

    def _restore(self) -> None:
        for library, number in self._before:
            library.set_num_threads(number)

    def start_anew(self) -> None:
        """In a fork, where the threads that were searching are gone."""
        if self._users:
            self._restore()
        self._lock, self._users = threading.Lock(), 0


_blas = _Blas()
os.register_at_fork(after_in_child=_blas.start_anew)


@contextlib.contextmanager
def one_each() -> Iterator[None]:
    """Meanwhile BLAS and OpenMP compute with one thread for each of ours.

    Theirs beside ours would be more than there are cores, and wait for each other. A forked process
    needs it, too: OpenMP waits for ever for threads that a process had before it was forked, unless
    it wants none. The limit of OpenMP is the calling thread's; that of BLAS the process's, from the
    first thread that is in here until the last one leaves.
    """
    before = [(library, library.num_threads) for library in _libraries("openmp")]
    alone()
    try:
        _blas.limit()
        try:
            yield
        finally:
            _blas.release()
    finally:
        # Last: a BLAS that is built on OpenMP sets the calling thread's number as well.
        for library, number in before:
            library.set_num_threads(number)
