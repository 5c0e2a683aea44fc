"""Noticing SIGTERM on any process, at the same step on all of them."""

import signal

import jax
import numpy as np
from jax.sharding import Mesh

from mrl_jax.runtime.mesh import one_per_device


class StopFlag:
    """Turns SIGTERM and SIGINT into a number that all processes read at the same step.

    A scheduler may signal one process only, and processes are never at the same line of code.
    So the wish to stop travels through the training step: each device brings one integer, the
    step returns their sum, and every process acts on the sum of the same step. This works for
    one process and many, fresh and resumed runs, and costs one integer per device.

    Make it first thing: a signal during start-up then stops the run after its first step. SIGTERM
    may come again and again (launchers repeat it); a second Ctrl-C ends the process at once.
    """

    def __init__(self):
        self._wanted = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number, frame):
        del frame
        self._wanted = True
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)

    def wanted(self) -> bool:
        """Whether this process was asked to stop."""
        return self._wanted

    def array(self, mesh: Mesh) -> jax.Array:
        """One int32 per device, 1 where this process was asked to stop; goes into the step."""
        local = np.full(mesh.size, int(self._wanted), np.int32)
        sharding = one_per_device(mesh)
        return jax.make_array_from_callback(local.shape, sharding, lambda index: local[index])
