"""Measuring two towers at every prefix; the same code during training and offline."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mrl_jax.evaluators import matching
from mrl_jax.evaluators.attempt import attempt
from mrl_jax.models.text.tokenizer import Tokenizer
from mrl_jax.record.finding import Finding
from mrl_jax.record.results import Series
from mrl_jax.runtime.mesh import batch_sharding, replicated
from mrl_jax.runtime.rows import in_batches
from mrl_jax.tasks.image_text.captions import Captioned
from mrl_jax.tasks.image_text.task import ImageText
from mrl_jax.tasks.sentence_pairs.measure import embed_texts


class ImageTextEvaluation:
    """Runs evaluators on photos and captions. Compiles once per length of texts.

    Args:
      dims: prefixes to measure; those beyond the trained width are left out.
      batch_size: photos or texts per step, a multiple of what the mesh splits the batch into.
    """

    def __init__(
        self,
        task: ImageText,
        mesh: Mesh,
        tokenizer: Tokenizer,
        captioned: Mapping[str, Captioned],
        *,
        dims: tuple[int, ...],
        batch_size: int,
        seed: int = 0,
    ):
        self._task, self._mesh, self._tokenizer = task, mesh, tokenizer
        self._captioned, self._batch_size, self._seed = captioned, batch_size, seed
        self._dims = tuple(m for m in dims if m <= task.nesting.width)
        self._embed = jax.jit(task.embed, out_shardings=replicated(mesh))

    def check(self, splits: tuple[str, ...]) -> dict[str, str]:
        """What cannot be measured on these data, and why, see `Finding.skipped`."""
        del splits
        return {}

    def run(self, params: Any, model_state: Any, splits: tuple[str, ...]) -> Finding:
        """All that was asked for, on these splits."""
        found = Finding()
        for name in splits:
            split = self._captioned[name]

            def measure(split=split, name=name):
                z_pd = self.images(params, model_state, split)
                z_td = self.texts(params, model_state, split.texts)
                ids = split.ids(np.arange(split.examples))
                return matching.measure(
                    z_td[split.text_n],
                    z_pd[split.photo_n],
                    ids["text_id"],
                    ids["image_id"],
                    Series(split=name),
                    self._dims,
                )

            attempt(found, f"{name}/match", measure)
        return found

    def images(self, params: Any, model_state: Any, split: Captioned) -> np.ndarray:
        """The embeddings [P, D] float32 of all photos, D the trained width."""
        batches = split.images.padded(self._batch_size, batch_sharding(self._mesh))
        z_pd = in_batches(
            lambda batch: self._embed(params, model_state, {"image": batch["image"]}),
            batches,
            len(split.names),
        )
        return z_pd[:, : self._task.nesting.width].astype(np.float32, copy=False)

    def texts(self, params: Any, model_state: Any, texts: Sequence[str]) -> np.ndarray:
        """The embeddings [T, D] float32 of texts, D the trained width."""
        z_td = embed_texts(
            lambda batch: self._embed(params, model_state, batch),
            texts,
            self._tokenizer,
            max_length=self._task.max_length,
            batch_size=self._batch_size,
            sharding=batch_sharding(self._mesh),
        )
        return z_td[:, : self._task.nesting.width]
