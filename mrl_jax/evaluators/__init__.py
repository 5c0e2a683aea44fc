"""Measuring a trained embedding at every prefix; the same code during training and offline."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mrl_jax.data import Dataset, padded_batches
from mrl_jax.evaluators.classification import Accuracy
from mrl_jax.evaluators.nearest_neighbour import neighbour_accuracy
from mrl_jax.results import Result
from mrl_jax.runtime.mesh import batch_sharding, replicated
from mrl_jax.tasks import Classification


class Evaluation:
    """Runs all evaluators on splits of a data set. Compiles once, however often it runs.

    Args:
      task: gives embed() and logits().
      mesh: batches are split over it.
      dataset: the train split is the database of the nearest-neighbour evaluator.
      dims: prefixes to measure; those beyond the trained width are left out.
      batch_size: examples per step, a multiple of what the mesh splits the batch into.
      seed: of random choices inside evaluators.
    """

    def __init__(
        self,
        task: Classification,
        mesh: Mesh,
        dataset: Dataset,
        *,
        dims: tuple[int, ...],
        batch_size: int,
        seed: int,
    ):
        self._width = task.nesting.width
        self._dims = tuple(m for m in dims if m <= self._width)
        self._dataset = dataset
        self._batch_size = batch_size
        self._seed = seed
        self._sharding = batch_sharding(mesh)
        self._embed = jax.jit(task.embed, out_shardings=replicated(mesh))
        self._accuracy = Accuracy(task, mesh, self._dims, batch_size)

    def run(self, params: Any, model_state: Any, splits: tuple[str, ...]) -> list[Result]:
        """All results on these splits, named "{split}/{metric}"."""
        # In order, not a set: processes must run the same collectives in the same order, and
        # each process orders sets of strings its own way.
        needed = dict.fromkeys(("train", *splits))
        embeddings = {split: self._embeddings(params, model_state, split) for split in needed}
        label = {name: split.label for name, split in self._dataset.splits.items()}
        results = []
        for split in splits:
            z_nd, label_n = embeddings[split], label[split]
            results += self._accuracy.run(params, z_nd, label_n, split)
            results += neighbour_accuracy(
                embeddings["train"][:, : self._width],
                label["train"],
                z_nd[:, : self._width],
                label_n,
                self._dims,
                prefix=split,
                seed=self._seed,
            )
        return results

    def _embeddings(self, params: Any, model_state: Any, split: str) -> np.ndarray:
        image = self._dataset.splits[split].image
        batches = padded_batches({"image": image}, self._batch_size, self._sharding)
        z_nd = [np.asarray(self._embed(params, model_state, batch)) for batch in batches]
        return np.concatenate(z_nd)[: len(image)]
