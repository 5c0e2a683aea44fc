"""Forks of a process that uses JAX: they lack JAX's threads, and wait for them for ever."""

import os

from jax._src import xla_bridge  # nothing public says whether devices are in use already

from mrl_jax.errors import UsageError

_forked = False


def _note() -> None:
    global _forked
    _forked = _forked or xla_bridge.backends_are_initialized()


os.register_at_fork(after_in_child=_note)


def check_not_forked() -> None:
    """Refuses to compute in a fork of a process that had used JAX.

    Raises:
      UsageError: says how to start workers instead.
    """
    if _forked:
        raise UsageError(
            "this process is a fork of one in which JAX was in use, and would hang: start workers "
            "with multiprocessing.get_context('spawn'), or fork before anything is loaded"
        )
