"""Measuring a trained embedding at every prefix; the same code during training and offline."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mrl_jax.data import Dataset
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
      neighbours: also nearest-neighbour accuracy, which embeds the train split.
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
        neighbours: bool = True,
    ):
        self._width = task.nesting.width
        self._dims = tuple(m for m in dims if m <= self._width)
        self._dataset = dataset
        self._batch_size = batch_size
        self._seed = seed
        self._neighbours = neighbours
        self._sharding = batch_sharding(mesh)

        def embed(params, model_state, batch):
            return task.embed(params, model_state, batch), batch["label"]

        self._embed = jax.jit(embed, out_shardings=replicated(mesh))
        self._accuracy = Accuracy(task, mesh, self._dims, batch_size)

    def run(self, params: Any, model_state: Any, splits: tuple[str, ...]) -> list[Result]:
        """All results on these splits, named "{split}/{metric}"."""
        # In order, not a set: processes must run the same collectives in the same order, and
        # each process orders sets of strings its own way.
        needed = dict.fromkeys((*(("train",) * self._neighbours), *splits))
        embedded = {split: self._embeddings(params, model_state, split) for split in needed}
        results = []
        for split in splits:
            z_nd, label_n = embedded[split]
            results += self._accuracy.run(params, z_nd, label_n, split)
            if not self._neighbours:
                continue
            z_train_nd, label_train_n = embedded["train"]
            results += neighbour_accuracy(
                z_train_nd[:, : self._width],
                label_train_n,
                z_nd[:, : self._width],
                label_n,
                self._dims,
                prefix=split,
                seed=self._seed,
            )
        return results

    def _embeddings(self, params: Any, model_state: Any, split: str):
        """Embeddings [N, D] and labels [N] of a split."""
        source = self._dataset.splits[split]
        found = [
            jax.device_get(self._embed(params, model_state, batch))
            for batch in source.padded(self._batch_size, self._sharding)
        ]
        z_nd, label_n = (
            np.concatenate(parts)[: source.examples] for parts in zip(*found, strict=True)
        )
        return z_nd, label_n
