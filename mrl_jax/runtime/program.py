"""What a run computes: model, loss and optimiser on a mesh, and the compiled step made of them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from mrl_jax.runtime import mesh as meshes
from mrl_jax.runtime import step as steps
from mrl_jax.runtime.task import Task

Batch = Mapping[str, jax.Array | jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True)
class Program:
    """What a run computes; nothing in it depends on the data beyond their shape.

    Attributes:
      mesh: devices.
      task: model and loss.
      optimizer: gradient transformation.
      rate: learning rate by step.
      state: abstract train state (shapes, dtypes, shardings).
      batch_size: examples per step over all devices.
      accumulate: parts of a batch that are computed one after the other.
      ema_decay: of the moving average of the parameters, 0 for none.
    """

    mesh: Mesh
    task: Task
    optimizer: optax.GradientTransformation
    rate: optax.Schedule
    state: Any
    batch_size: int
    accumulate: int = 1
    ema_decay: float = 0.0

    def run_key(self, seed: int) -> jax.Array:
        """The random key of the whole run, on every device."""
        make = jax.jit(jax.random.key, out_shardings=meshes.replicated(self.mesh))
        return make(seed)

    def init_state(self, key: jax.Array) -> Any:
        """A fresh train state; every array is created where it will live."""

        def init(key):
            return steps.init_state(self.task, self.optimizer, key, ema=self.ema_decay > 0)

        return jax.jit(init, out_shardings=self._shardings)(key)

    def with_values(self, state: Any, params: Any, model_state: Any) -> Any:
        """A fresh state with these host arrays in it, also as the start of moving averages.

        Leaves that are not numpy arrays (shapes, as in `state` of the program) stay fresh.
        """

        def place(new, old):
            if not isinstance(new, np.ndarray):
                return old
            return jax.make_array_from_callback(new.shape, old.sharding, lambda index: new[index])

        state = dict(state)
        for name, new in (("params", params), ("model_state", model_state)):
            for key in (name, f"ema_{name}"):
                if key in state:
                    state[key] = jax.tree.map(place, new, state[key])
        return state

    @property
    def largest_batch(self) -> Batch:
        """The training batch of the largest shape that the task is made for, abstract."""
        return self.batch_of(self.batch_size)

    def batch_of(self, size: int) -> Batch:
        """The same of `size` examples."""
        rows = meshes.batch_sharding(self.mesh)
        return {
            name: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=rows)
            for name, shape in self.task.batch_spec(size).items()
        }

    def compile(self, batch: Batch) -> Any:
        """The training step: (state, batch, key, stop) -> (state, metrics).

        The state is donated; `stop` is what `mesh.votes` gives, the metrics hold its sum. Only
        batches of the shapes, dtypes and shardings of `batch` can be trained with it.
        """
        return self.trace(batch).lower().compile()

    def trace(self, batch: Batch) -> Any:
        """The step of `compile` before it is lowered for a platform (a `jax.stages.Traced`)."""

        def update(state, batch, key, stop):
            state, metrics = steps.train_step(
                state,
                batch,
                key,
                task=self.task,
                optimizer=self.optimizer,
                accumulate=self.accumulate,
                ema_decay=self.ema_decay,
            )
            return state, {**metrics, "stop": stop.sum()}

        whole = meshes.replicated(self.mesh)
        shape = jax.ShapeDtypeStruct
        batch = {
            name: shape(rows.shape, rows.dtype, sharding=rows.sharding)
            for name, rows in batch.items()
        }
        key = shape((), jax.random.key(0).dtype, sharding=whole)
        stop = shape((self.mesh.size,), np.int32, sharding=meshes.one_per_device(self.mesh))
        jitted = jax.jit(update, donate_argnums=0, out_shardings=(self._shardings, whole))
        return jitted.trace(self.state, batch, key, stop)

    @property
    def _shardings(self) -> Any:
        return jax.tree.map(lambda leaf: leaf.sharding, self.state)
