"""Forked processes lack their parent's threads, for which JAX and OpenMP would wait for ever."""

import concurrent.futures
import functools
import os
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from jax._src import xla_bridge  # nothing public says whether devices are in use already

from mrl_jax.errors import UsageError

_P, _R = ParamSpec("_P"), TypeVar("_R")

_forked, _forked_from_jax = False, False


def _note() -> None:
    global _forked, _forked_from_jax
    _forked = True
    _forked_from_jax = _forked_from_jax or xla_bridge.backends_are_initialized()


os.register_at_fork(after_in_child=_note)


def check_not_forked() -> None:
    """Refuses to compute in a fork of a process that had used JAX.

    Raises:
      UsageError: says how to start workers instead.
    """
    if _forked_from_jax:
        raise UsageError(
            "this process is a fork of one in which JAX was in use, and would hang: start workers "
            "with multiprocessing.get_context('spawn'), or fork before anything is loaded"
        )


def with_openmp(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Makes a function that uses OpenMP work in forked processes as well.

    OpenMP remembers its threads for each thread that has used it. In a fork those of the only
    thread that is left are missing, so a new thread, which has none yet, calls the function.
    """

    @functools.wraps(function)
    def called(*arguments: _P.args, **options: _P.kwargs) -> _R:
        if not _forked or threading.current_thread() is not threading.main_thread():
            return function(*arguments, **options)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            return pool.submit(function, *arguments, **options).result()

    return called
