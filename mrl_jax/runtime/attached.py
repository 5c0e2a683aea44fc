"""Runs a module for another process, and stops it when that process is gone.

`python -m mrl_jax.runtime.attached MODULE ARGUMENTS` is `python -m MODULE ARGUMENTS` with a pipe as
its standard input, whose other end the starter keeps open. The system closes that end however the
starter ends, by SIGKILL too. The module then gets a SIGTERM: a training saves its state.
"""

import os
import runpy
import signal
import sys
import threading


def _stop_with_starter() -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass  # nobody writes; what counts is the end
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_stop_with_starter, daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
