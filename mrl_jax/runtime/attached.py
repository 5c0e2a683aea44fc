"""Runs a module on behalf of a parent process, and stops it when the parent is gone.

`python -m mrl_jax.runtime.attached MODULE ARGUMENTS` is `python -m MODULE ARGUMENTS` with a pipe as
its standard input, the other end of which the parent keeps open. The system closes that end however
the parent ends, even by SIGKILL. The module then gets SIGTERM, on which training saves its state.
"""

import os
import runpy
import signal
import sys
import threading


def _stop_with_starter() -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass  # nothing is ever written: only the end of the pipe matters
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_stop_with_starter, daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
