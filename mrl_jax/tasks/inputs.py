"""What a trained model of any task reads; a task whose items are no arrays says so in its room."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mrl_jax.data.loader import padded_batches
from mrl_jax.errors import UsageError, shown
from mrl_jax.runtime.rows import Batch, Rows, in_order

Spec = Mapping[str, tuple[tuple[int | str, ...], np.dtype]]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a trained model of a task reads, and what it is exported with.

    As it is here, arrays by the names that the task's batches have, without `label` and `mask`. A
    task with other items has a subclass of the same name in its inputs.py, or in its module; one
    with several towers has TOWERS there instead, a dict of such classes by the towers' names.

    Attributes:
      spec: name -> (shape with "b" examples, dtype) of what the model reads.
      unit: what one item is called.
      legal: what `open` takes, for messages.
      most: the largest values of other names in shapes.
      scaled: whether an embedding is scaled to unit length before anyone cuts it.
      reads_splits: whether it reads the examples of a split of a run as well.
      spread: whether batches are split over the mesh of a run.
      classes: names, where the model tells classes apart.
    """

    spec: Spec
    unit: ClassVar[str] = "row"
    legal: ClassVar[str] = "arrays by name"
    most: Mapping[str, int] = dataclasses.field(default_factory=dict)
    scaled: bool = False
    reads_splits: ClassVar[bool] = True
    spread: ClassVar[bool] = True
    classes: tuple[str, ...] | None = None

    @classmethod
    def of_run(cls, setup: Any, params: Any) -> "Inputs":
        """Those of a run: an `experiment.Experiment` with trained parameters on the host."""
        del params
        spec = {
            name: (("b", *array.shape[1:]), np.dtype(array.dtype))
            for name, array in setup.program.task.batch_spec(1).items()
            if name not in ("label", "mask")
        }
        return cls(spec)

    @classmethod
    def of_export(cls, about: Mapping[str, Any], folder: pathlib.Path, **more: Any) -> "Inputs":
        """Those of an exported folder, whose about.json says this; `more` are other attributes."""
        del folder
        spec = {
            name: (tuple(entry["shape"]), np.dtype(entry["dtype"]))
            for name, entry in about["inputs"].items()
        }
        return cls(spec, **more)

    def about(self, setup: Any, form: str) -> dict[str, Any]:
        """What about.json says of a run that is exported in a format, beside what all say."""
        del setup, form
        return {}

    def save(self, folder: pathlib.Path) -> None:
        """Writes what `of_export` needs beside about.json."""

    def fits(self, items: Any) -> bool:
        """Whether items look like what it reads: asked where a model has several towers."""
        return isinstance(items, Mapping | np.ndarray | jax.Array)

    def open(self, items: Any) -> Rows:
        """Checks items that are to be embedded: an array, or a dict of arrays by name.

        Raises:
          UsageError: arrays that the model cannot read; says which one and why.
        """
        arrays = items if isinstance(items, Mapping) else dict.fromkeys(self.spec, items)
        if arrays.keys() != self.spec.keys() or (arrays is not items and len(arrays) > 1):
            given = listed_kinds(items)
            raise UsageError(f"items must be arrays {', '.join(self.spec)} by name, got {given}")
        arrays = {name: self._checked(name, array) for name, array in arrays.items()}
        counts = {len(array) for array in arrays.values()}
        if len(counts) > 1:
            raise UsageError(f"items must be arrays of as many rows each, got {sorted(counts)}")
        return Rows(counts.pop(), reader(arrays))

    def _checked(self, name: str, items: Any) -> np.ndarray:
        (_, *shape), dtype = self.spec[name]
        array = np.asarray(items)
        if not isinstance(items, np.ndarray | jax.Array | list | tuple) or array.dtype != dtype:
            raise UsageError(f"{name} must be an array of {dtype}, got {listed_kinds(items)}")
        if array.ndim != len(shape) + 1 or array.shape[1:] != tuple(shape):
            there = ", ".join(map(str, ("N", *shape)))
            raise UsageError(f"{name} must have the shape [{there}], got {array.shape}")
        return array

    def example(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Arrays of two made examples, the largest there can be."""
        made = {}
        for name, (shape, dtype) in self.spec.items():
            sizes = [2, *(self.most.get(size, size) for size in shape[1:])]
            if np.issubdtype(dtype, np.floating):
                made[name] = rng.standard_normal(sizes).astype(dtype)
            else:
                made[name] = rng.integers(0, 256, sizes).astype(dtype)
        return made

    def outputs(self, task: Any) -> tuple[str, ...]:
        """Names of what a graph gives."""
        del task
        return ("embedding",)

    def graph(self, task: Any, params: Any, model_state: Any) -> Callable[[Batch], dict[str, Any]]:
        """What a graph computes: of a batch all `outputs`, float32, the embedding uncut."""

        def compute(batch: Batch) -> dict[str, jax.Array]:
            z_bd = task.embed(params, model_state, batch)[:, : task.nesting.width]
            return {"embedding": z_bd.astype(jnp.float32)}

        return compute


def listed_kinds(items: Any) -> str:
    """What a user gave, for messages: an array by dtype and shape, anything else shortened."""
    if isinstance(items, Mapping):
        return ", ".join(f"{name}: {listed_kinds(value)}" for name, value in items.items()) or "{}"
    if isinstance(items, np.ndarray | jax.Array):
        return f"an array of {items.dtype} {items.shape}"
    return f"{shown(items)} ({type(items).__name__})"


def reader(arrays: Mapping[str, np.ndarray]) -> Callable[..., Iterator[tuple[np.ndarray, Batch]]]:
    """`Rows.read` of arrays in memory."""

    def read(first, last, batch_size, sharding):
        part = {name: array[first:last] for name, array in arrays.items()}
        return in_order(padded_batches(part, batch_size, sharding), last - first)

    return read


def alone(task: Any) -> Any:
    """A task as it is on one device, whatever it was trained on."""
    return dataclasses.replace(task, mesh=None) if hasattr(task, "mesh") else task
