"""Top-1 and top-5 accuracy of the head at every prefix it can classify."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mrl_jax.data import padded_batches
from mrl_jax.results import Result, proportion
from mrl_jax.runtime.mesh import batch_sharding, replicated
from mrl_jax.tasks import Classification

TOP = (1, 5)


class Accuracy:
    """Counts correct predictions over a split; the last, padded batch counts what is real."""

    def __init__(self, task: Classification, mesh: Mesh, dims: tuple[int, ...], batch_size: int):
        self._dims = tuple(m for m in dims if task.classifiable(m))
        self._batch_size = batch_size
        self._sharding = batch_sharding(mesh)

        def hits(params, batch):
            logits_gbc = task.logits(params, batch["z"], self._dims)
            target_gb1 = jnp.take_along_axis(logits_gbc, batch["label"][None, :, None], -1)
            # Rank of the true class. What is not surely below it counts as ahead: ties, so that
            # constant logits are not right by luck, and NaN.
            rank_gb = (~(logits_gbc < target_gb1)).sum(-1)
            valid_1b = (batch["mask"] > 0)[None, :]
            return jnp.stack([((rank_gb <= k) & valid_1b).sum(-1) for k in TOP])

        self._hits = jax.jit(hits, out_shardings=replicated(mesh))

    def run(self, params: Any, z_nd: np.ndarray, label_n: np.ndarray, split: str) -> list[Result]:
        """Results "{split}/top1" and "{split}/top5" at every classifiable dim."""
        arrays = {"z": z_nd, "label": label_n}
        batches = padded_batches(arrays, self._batch_size, self._sharding)
        hits_kg = sum(np.asarray(self._hits(params, batch), np.int64) for batch in batches)
        return [
            proportion(f"{split}/top{k}", dim, int(hits), len(label_n))
            for k, hits_g in zip(TOP, hits_kg, strict=True)
            for dim, hits in zip(self._dims, hits_g, strict=True)
        ]
