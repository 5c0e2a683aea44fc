"""What a run computes: model, loss and optimiser on a mesh, and the compiled step made of them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from mrl_jax.runtime import mesh as meshes
from mrl_jax.runtime import step as steps
from mrl_jax.tasks import Classification


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
    task: Classification
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

    def with_weights(self, state: Any, path: str) -> Any:
        """A fresh state whose backbone is that of a PyTorch network, see `interop.load_weights`."""
        from mrl_jax.interop import load_weights  # needs a package that nothing else does

        params, model_state = load_weights(
            path, self.task.backbone, self.state["params"], self.state["model_state"], head="skip"
        )

        def place(new, old):
            if not isinstance(new, np.ndarray):  # left as it was given: a shape
                return old
            return jax.make_array_from_callback(new.shape, old.sharding, lambda index: new[index])

        state = dict(state)
        for name, new in (("params", params), ("model_state", model_state)):
            for key in (name, f"ema_{name}"):
                if key in state:
                    state[key] = jax.tree.map(place, new, state[key])
        return state

    def compile(self, image_shape: Sequence[int]) -> Any:
        """The training step for images [H, W, C]: (state, batch, key, stop) -> (state, metrics).

        The state is donated; `stop` is what `StopFlag.array` gives, the metrics hold its sum.
        """
        return self.trace(image_shape).lower().compile()

    def trace(self, image_shape: Sequence[int]) -> Any:
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
        rows = meshes.batch_sharding(self.mesh)
        shape = jax.ShapeDtypeStruct
        batch = {
            "image": shape((self.batch_size, *image_shape), np.uint8, sharding=rows),
            "label": shape((self.batch_size,), np.int32, sharding=rows),
            "mask": shape((self.batch_size,), np.float32, sharding=rows),
        }
        key = shape((), jax.random.key(0).dtype, sharding=whole)
        stop = shape((self.mesh.size,), np.int32, sharding=meshes.one_per_device(self.mesh))
        jitted = jax.jit(update, donate_argnums=0, out_shardings=(self._shardings, whole))
        return jitted.trace(self.state, batch, key, stop)

    @property
    def _shardings(self) -> Any:
        return jax.tree.map(lambda leaf: leaf.sharding, self.state)
