"""What a trained adaptor reads: vectors, in memory or on disk."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from mrl_jax.data.loader import padded_batches
from mrl_jax.data.vector_splits import VectorSplit, digest, row_digests
from mrl_jax.errors import UsageError
from mrl_jax.models.adaptors import Rotation
from mrl_jax.runtime.rows import Batch, Rows, in_order
from mrl_jax.store.ids import without_objects
from mrl_jax.store.vectors import Vectors, open_vectors
from mrl_jax.tasks import inputs


@dataclasses.dataclass(frozen=True)
class Inputs(inputs.Inputs):
    """Vectors of the dims that were adapted; see `tasks.inputs.Inputs`."""

    unit: ClassVar[str] = "vector"

    @classmethod
    def of_run(cls, setup: Any, params: Any) -> "Inputs":
        """Those of a run."""
        del params
        return cls({"vector": (("b", setup.program.task.width), np.dtype(np.float32))})

    def open(self, items: Any) -> Rows:
        """Checks vectors: an array [N, D], a file or folder of vectors, or a split of a run.

        Raises:
          UsageError: vectors of other dims, or none; or see `open_vectors`.
          DataError: files that are missing or damaged, or NaN or infinity in them.
        """
        width = self.spec["vector"][0][1]
        if isinstance(items, VectorSplit):
            return _of_files(items.sides["vector"])
        if isinstance(items, str | os.PathLike):
            vectors = open_vectors(items)
            if vectors.width != width:
                raise UsageError(f"{items} has {vectors.width} dims, the run adapts {width}")
            return _of_files(vectors)
        try:
            z_nd = np.asarray(items)
        except ValueError:  # rows of several lengths
            z_nd = np.asarray(None)
        if not np.issubdtype(z_nd.dtype, np.floating):
            given = inputs.listed_kinds(items)
            raise UsageError(f"vectors must be an array of floating point numbers, got {given}")
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
            z_nd = z_nd.astype(np.float32)
        rows = super().open(z_nd)
        finite_n = np.isfinite(z_nd).all(1)
        if not finite_n.all():
            raise UsageError(
                f"vector {finite_n.argmin()} holds NaN, infinity or a number beyond float32"
            )
        return rows

    def graph(self, task: Any, params: Any, model_state: Any) -> Callable[[Batch], dict[str, Any]]:
        """As of other tasks; a rotation as a product."""
        if not isinstance(task.adaptor, Rotation):
            return super().graph(task, params, model_state)
        # Because not every runtime can solve for what makes the rotation.
        unit_dd = np.eye(task.width, dtype=np.float32)
        turn_dd = np.asarray(task.embed(params, model_state, {"vector": unit_dd}))
        turn_dd = turn_dd[:, : task.nesting.width]
        return lambda batch: {"embedding": batch["vector"] @ turn_dd}


def _of_files(vectors: Vectors) -> Rows:
    def read(first, last, batch_size, sharding):
        arrays: Mapping[str, np.ndarray] = {"vector": vectors.read(first, last)}
        return in_order(padded_batches(arrays, batch_size, sharding), last - first)

    def source():
        numbers_n = without_objects(vectors.ids)
        return f"vectors {digest([row_digests(vectors), numbers_n])}"

    return Rows(vectors.rows, read, ids=vectors.ids, source=source)
