"""Threads of a search: ours share the queries, and in each of them libraries use one thread."""

import contextlib
import functools
import os
import threading
from collections.abc import Iterator

import threadpoolctl

from mrl_jax.search.index import clusters


def cores() -> int:
    """How many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # macOS has no such thing
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def _libraries(api: str) -> tuple[threadpoolctl.LibController, ...]:
    """The libraries loaded for "blas" or "openmp"; faiss brings its own."""
    clusters.faiss()
    return tuple(threadpoolctl.ThreadpoolController().select(user_api=api).lib_controllers)


def alone() -> None:
    """OpenMP starts no threads for the calling thread from now on."""
    for library in _libraries("openmp"):
        library.set_num_threads(1)


_limiting = threading.Lock()  # held by the thread that limits BLAS


def _start_anew() -> None:
    """In a fork the thread that limited BLAS may be gone."""
    global _limiting
    _limiting = threading.Lock()


os.register_at_fork(after_in_child=_start_anew)


@contextlib.contextmanager
def _limited(libraries: tuple[threadpoolctl.LibController, ...]) -> Iterator[None]:
    before = [(library, library.num_threads) for library in libraries]
    try:
        for library, _ in before:
            library.set_num_threads(1)
        yield
    finally:
        for library, number in before:
            library.set_num_threads(number)


@contextlib.contextmanager
def one_each() -> Iterator[None]:
    """Meanwhile OpenMP, and mostly BLAS, compute with one thread for each of ours.

    With threads of their own there would be more threads than cores, waiting for each other. A
    forked process needs this, too: OpenMP would wait for ever for threads that only its parent has.

    OpenMP has a limit for each calling thread. BLAS has one for the whole process, and OpenBLAS
    heeds only one of several threads that set it. So one thread at a time limits BLAS, and lifts
    the limit itself, whoever else is still in here: it never stays.
    """
    limiting = _limiting
    with _limited(_libraries("openmp")):
        if limiting.acquire(blocking=False):
            try:
                with _limited(_libraries("blas")):
                    yield
            finally:
                limiting.release()
        else:
            yield


@contextlib.contextmanager
def without_blas_threads() -> Iterator[None]:
    """Meanwhile BLAS computes with one thread in this process, whose other threads search.

    `one_each` limits it as well, but OpenBLAS heeds only one of the threads that set a limit: after
    a search in another thread, batches took 33 ms that take 8.
    """
    with _limited(_libraries("blas")):
        yield
