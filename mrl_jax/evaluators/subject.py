"""What evaluators see of a trained run: embeddings, and what its head says of them."""

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mrl_jax.data import Dataset, Split, padded_batches
from mrl_jax.data.hierarchy import Hierarchy
from mrl_jax.data.shifts import Shift
from mrl_jax.data.stream import Stream
from mrl_jax.evaluators.spaces import Moments, Space, fit_spaces, moments
from mrl_jax.heads import NestedHead
from mrl_jax.nesting import Nesting
from mrl_jax.record.finding import NO_TRAIN, Unmeasurable
from mrl_jax.runtime.mesh import batch_sharding, replicated
from mrl_jax.runtime.rows import in_batches


class Classifier(Protocol):
    """What is measured: a network that embeds images, with its head."""

    head: NestedHead

    @property
    def nesting(self) -> Nesting:
        """The granularities that are trained."""

    def classifiable(self, dim: int) -> bool:
        """Whether the head has a classifier for a prefix."""

    def embed(self, params: Any, model_state: Any, batch: dict[str, jax.Array]) -> jax.Array:
        """Embeddings [B, D] of a batch."""

    def logits(self, params: Any, z_bd: jax.Array, dims: tuple[int, ...]) -> jax.Array:
        """Of every prefix, [G, B, C]."""


class Embedded(NamedTuple):
    """A split's embeddings [N, D], D the trained width, and labels [N] int32."""

    z_nd: np.ndarray
    label_n: np.ndarray


class Predictions(NamedTuple):
    """What the head says of N examples at G prefixes `dims`, beside the true classes.

    Attributes:
      predicted_gn: class of the largest logit.
      confidence_gn: its softmax probability.
      rank_gn: of the true class, 1 = right. What is not surely below it counts as ahead: ties, so
        that constant logits are not right by luck, and NaN.
    """

    dims: tuple[int, ...]
    label_n: np.ndarray
    predicted_gn: np.ndarray
    confidence_gn: np.ndarray
    rank_gn: np.ndarray


class Instruments:
    """The compiled functions that measuring a task needs; they outlive a set of parameters."""

    def __init__(self, task: Classifier, mesh: Mesh, batch_size: int, dims: tuple[int, ...]):
        self.task, self.mesh, self.batch_size = task, mesh, batch_size
        self.sharding = batch_sharding(mesh)
        self.dims = tuple(m for m in dims if m <= task.nesting.width)
        self.classifiable = tuple(m for m in self.dims if task.classifiable(m))
        whole = replicated(mesh)

        def embed(params, model_state, batch, flip):
            if flip:
                batch = {**batch, "image": batch["image"][:, :, ::-1]}
            return task.embed(params, model_state, batch), batch["label"]

        def judge(params, batch, allowed_c):
            # Views of the same examples [V, B, D]: their logits are averaged.
            logits = [
                task.logits(params, batch[name], self.classifiable)
                for name in sorted(batch.keys() - {"label", "mask"})
            ]
            logits_gbc = sum(logits) / len(logits)
            logits_gbc = jnp.where(allowed_c, logits_gbc, -jnp.inf)
            target_gb1 = jnp.take_along_axis(logits_gbc, batch["label"][None, :, None], -1)
            return (
                logits_gbc.argmax(-1),
                jax.nn.softmax(logits_gbc).max(-1),
                (~(logits_gbc < target_gb1)).sum(-1),
            )

        self.embed = jax.jit(embed, static_argnames="flip", out_shardings=whole)
        self.judge = jax.jit(judge, out_shardings=whole)


class Subject:
    """A trained embedding under measurement. What several evaluators need is computed once.

    Attributes:
      dims: prefixes to measure, none beyond the trained width.
      classifiable: those of them that the head has a classifier for.
      dataset: neighbours, probes and projections are fitted on its train split.
      shifts: other test sets of the same classes by name; legal where a split is.

    Args:
      embedded: what is known already, by split and whether images were mirrored.
    """

    def __init__(
        self,
        instruments: Instruments,
        dataset: Dataset,
        params: Any,
        model_state: Any,
        *,
        seed: int,
        hierarchy: Hierarchy | None = None,
        shifts: dict[str, Shift] | None = None,
        embedded: Mapping[tuple[str, bool], Embedded] = MappingProxyType({}),
    ):
        self._instruments = instruments
        self.dims, self.classifiable = instruments.dims, instruments.classifiable
        self.task, self.mesh = instruments.task, instruments.mesh
        self.dataset, self.params, self.model_state = dataset, params, model_state
        self.seed, self.hierarchy, self.shifts = seed, hierarchy, shifts or {}
        self._embedded = dict(embedded)
        self._predictions: dict[tuple, Predictions] = {}

    def split(self, name: str) -> Split | Stream:
        """A split of the data set, or a shift; Unmeasurable if the train split is not there."""
        if name in self.shifts:
            return self.shifts[name].split
        if name == "train" and name not in self.dataset.splits:
            raise Unmeasurable(NO_TRAIN)
        return self.dataset.splits[name]

    def embedded(self, split: str, flip: bool = False) -> Embedded:
        """Embeddings and labels of a split or shift; `flip` mirrors the images first."""
        if (split, flip) not in self._embedded:
            tools, source = self._instruments, self.split(split)
            batches = source.padded(tools.batch_size, tools.sharding)
            embed = functools.partial(tools.embed, self.params, self.model_state, flip=flip)
            z_nd, label_n = in_batches(embed, batches, source.examples)
            z_nd = z_nd[:, : self.task.nesting.width]
            self._embedded[split, flip] = Embedded(z_nd, label_n)
        return self._embedded[split, flip]

    def predictions(
        self, split: str, flip: bool = False, classes: tuple[int, ...] | None = None
    ) -> Predictions:
        """What the head says of a split or shift at every classifiable dim.

        Args:
          flip: average the logits of every image and its mirror image.
          classes: the only possible answers, which include the labels; None = all.
        """
        key = split, flip, classes
        if key not in self._predictions:
            z_nd, label_n = self.embedded(split)
            views = {"z": z_nd}
            if flip:
                views["z_flip"] = self.embedded(split, flip=True).z_nd
            self._predictions[key] = self._judge({**views, "label": label_n}, classes)
        return self._predictions[key]

    def _judge(self, arrays: dict[str, np.ndarray], classes: tuple[int, ...] | None):
        tools = self._instruments
        allowed_c = np.ones(self.task.head.num_classes, bool)
        if classes is not None:
            allowed_c = np.isin(np.arange(len(allowed_c)), classes)
        batches = padded_batches(arrays, tools.batch_size, tools.sharding)

        def judge(batch):
            return [x_gb.T for x_gb in tools.judge(self.params, batch, allowed_c)]

        found = in_batches(judge, batches, len(arrays["label"]))
        predicted, confidence, rank = (np.ascontiguousarray(x_ng.T) for x_ng in found)
        return Predictions(self.classifiable, arrays["label"], predicted, confidence, rank)

    @functools.cached_property
    def kernel_and_bias(self) -> tuple[np.ndarray, np.ndarray]:
        """The classifier [D, C] and [C] of the full width."""
        kernels, biases = self.task.head.kernels_and_biases(jax.device_get(self.params["head"]))
        if self.task.head.kind == "separate":
            return kernels[-1], biases[-1]
        return kernels, biases

    @functools.cached_property
    def moments(self) -> Moments:
        """What projections and probes need of the train split."""
        return moments(*self.embedded("train"), self.task.head.num_classes)

    @functools.cached_property
    def spaces(self) -> dict[str, Space]:
        """The embedding itself and its untrained rivals, see `spaces.fit_spaces`."""
        return fit_spaces(self.moments, self.kernel_and_bias[0], self.seed)
