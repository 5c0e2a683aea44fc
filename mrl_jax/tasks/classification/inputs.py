"""What a trained classifier of images reads, and the scores that its graph gives."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mrl_jax.runtime.rows import Batch
from mrl_jax.tasks import image_inputs


class Inputs(image_inputs.Inputs):
    """Images, and the classes that they belong to; see `tasks.image_inputs.Inputs`."""

    @classmethod
    def of_run(cls, setup: Any, params: Any) -> "Inputs":
        """Those of a run."""
        read = super().of_run(setup, params)
        return dataclasses.replace(read, classes=tuple(setup.facts["classes"]))

    @classmethod
    def of_export(cls, about: Mapping[str, Any], folder: pathlib.Path, **more: Any) -> "Inputs":
        """Those of an exported folder, whose about.json says this."""
        return super().of_export(about, folder, classes=tuple(about["classes"]), **more)

    def about(self, setup: Any, form: str) -> dict[str, Any]:
        """Classes, network and what is done to an image file, for about.json."""
        head = setup.program.task.head
        return {
            "classes": list(self.classes),
            "model": dict(setup.config.model),
            "head": {"kind": head.kind, "normalize": head.normalize},
            **super().about(setup, form),
        }

    def outputs(self, task: Any) -> tuple[str, ...]:
        """The embedding, and the scores of the classes by every trained prefix."""
        return ("embedding", *(f"logits_{dim}" for dim in task.nesting.dims))

    def graph(self, task: Any, params: Any, model_state: Any) -> Callable[[Batch], dict[str, Any]]:
        """What a graph computes: of a batch all `outputs`, float32."""
        names, dims = self.outputs(task), task.nesting.dims

        def compute(batch: Batch) -> dict[str, jax.Array]:
            z_bd = task.embed(params, model_state, batch)
            found = [z_bd[:, : task.nesting.width], *task.logits(params, z_bd, dims)]
            return {name: x.astype(jnp.float32) for name, x in zip(names, found, strict=True)}

        return compute
