"""Measuring an adaptor at every prefix, beside what frozen vectors give without any training."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mrl_jax.data.beir import Collection
from mrl_jax.data.loader import padded_batches
from mrl_jax.data.vector_splits import ScoredVectors, VectorData, VectorSplit
from mrl_jax.evaluators import preservation, text_common, text_retrieval, text_sts
from mrl_jax.evaluators.attempt import attempt
from mrl_jax.evaluators.spaces import Space
from mrl_jax.record.finding import NO_TRAIN, Finding, Unmeasurable, digest_of, refusals
from mrl_jax.record.metrics import TRAINED
from mrl_jax.record.results import Series
from mrl_jax.runtime.mesh import batch_sharding, replicated
from mrl_jax.runtime.rows import in_batches
from mrl_jax.tasks.adaptor.task import AdaptorTask


def fitted_on(data: VectorData, seed: int) -> np.ndarray:
    """Some of the train vectors, at length 1: what PCA is fitted on."""
    vectors = data.splits["train"].sides["vector"]
    sample_nd = vectors.sample(min(text_common.FITTED_ON, vectors.rows), seed)
    return text_common.unit_rows(sample_nd, "the train split")


class AdaptorEvaluation:
    """Runs evaluators on vectors. Compiles once, however often it runs.

    Each split is measured by `preservation` against whole frozen vectors and, where there are
    positives, by `text_retrieval`; scored pairs by `text_sts`. Spaces other than the trained one
    are of the frozen vectors: "cut" has their first dims, "pca" is fitted on the train split.

    Args:
      dims: prefixes to measure; those beyond the trained width are left out.
      batch_size: vectors per step, a multiple of what the mesh splits the batch into.
      sts: scored pairs by name.
    """

    def __init__(
        self,
        task: AdaptorTask,
        mesh: Mesh,
        data: VectorData,
        *,
        dims: tuple[int, ...],
        batch_size: int,
        seed: int = 0,
        sts: Mapping[str, ScoredVectors] = MappingProxyType({}),
    ):
        self._task, self._mesh, self._data, self._sts = task, mesh, data, sts
        self._dims = tuple(m for m in dims if m <= task.nesting.width)
        self._batch_size, self._seed = batch_size, seed
        self._embed = jax.jit(task.embed, out_shardings=replicated(mesh))

    @functools.cached_property
    def _rivals(self) -> dict[str, Space]:
        if self._unfitted:
            return text_common.itself(self._data.width)
        return text_common.rivals(fitted_on(self._data, self._seed), self._seed)

    @property
    def _unfitted(self) -> dict[str, str]:
        """What cannot be measured without a train split, see `Finding.skipped`."""
        return {} if "train" in self._data.splits else {"projections": NO_TRAIN}

    def check(self, splits: tuple[str, ...]) -> dict[str, str]:
        """What cannot be measured on these data, and why, see `Finding.skipped`."""
        checks: dict[str, Callable[[], Any]] = {}
        for name in splits:
            split = self._data.splits[name]
            checks[f"{name}/overlap10"] = functools.partial(preservation.check, split.rows)
            if "positive" in split.sides:
                checks[f"{name}/ndcg10"] = functools.partial(_collection, split.ids)
        for name, (a_nd, b_nd, score_n) in self._sts.items():
            scored = text_sts.Scored(a_nd, b_nd, score_n)
            checks[name] = functools.partial(text_sts.check, scored)
        return refusals(checks) | self._unfitted

    def run(self, params: Any, model_state: Any, splits: tuple[str, ...]) -> Finding:
        """All that was asked for, on these splits."""

        def adapt(z_nd: np.ndarray) -> np.ndarray:
            """The trained dims of vectors."""
            embed = functools.partial(self._embed, params, model_state)
            rows = batch_sharding(self._mesh)
            batches = padded_batches({"vector": z_nd}, self._batch_size, rows)
            x_nd = in_batches(embed, batches, len(z_nd)).astype(np.float32, copy=False)
            return x_nd[:, : self._task.nesting.width]

        found = Finding(skipped=self._unfitted)
        for name in splits:
            split = self._data.splits[name]
            preserved = functools.partial(self._preserved, adapt, name, split)
            attempt(found, f"{name}/overlap10", preserved)
            if "positive" in split.sides:
                answered = functools.partial(self._answered, adapt, name, split)
                attempt(found, f"{name}/ndcg10", answered)
        for name, (a_nd, b_nd, score_n) in self._sts.items():
            found.read[f"sts.{name}"] = digest_of((a_nd, b_nd, score_n))
            rows = range(len(a_nd)), range(len(a_nd), 2 * len(a_nd))
            measure = functools.partial(
                text_sts.measure, at=Series(name), scored=text_sts.Scored(*rows, score_n)
            )
            both_nd = np.concatenate([a_nd, b_nd])
            attempt(found, name, functools.partial(self._beside, measure, adapt, both_nd))
        return found

    def _preserved(self, adapt: Callable, name: str, split: VectorSplit) -> Finding:
        vectors = split.sides["vector"]
        frozen_nd = text_common.unit_rows(vectors.read(0, vectors.rows), name)
        compared = [(TRAINED, self._dims, adapt(frozen_nd))]
        for space, basis in self._rivals.items():
            if there := basis.dims(self._dims):
                compared.append((_of_frozen(space), there, basis.project(frozen_nd)))
        options = {"seed": self._seed, "mesh": self._mesh}
        return preservation.measure(compared, frozen_nd, Series(split=name), **options)

    def _answered(self, adapt: Callable, name: str, split: VectorSplit) -> Finding:
        collection = _collection(split.ids)
        both = [split.sides[side] for side in ("vector", "positive")]
        z_nd = np.concatenate([vectors.read(0, vectors.rows) for vectors in both])
        measure = functools.partial(
            text_retrieval.measure,
            at=Series(split=name),
            searched=text_retrieval.Searched(collection, ignore_identical_ids=True),
        )
        return self._beside(measure, adapt, z_nd)

    def _beside(
        self, measure: Callable[..., Finding], adapt: Callable, z_nd: np.ndarray
    ) -> Finding:
        """A measurement of rows of [N, D], adapted and then frozen.

        Row numbers stand for texts: to measures of texts, a text is what an embedding is of.
        """
        adapted_nd = adapt(z_nd)
        subject = text_common.TextSubject(
            lambda rows, role: adapted_nd[rows], self._dims, self._seed, mesh=self._mesh
        )
        found = measure(subject)
        frozen = subject._replace(embed=lambda rows, role: z_nd[rows], spaces=self._rivals)
        for result in measure(frozen).results:
            found.results.append(result._replace(space=_of_frozen(result.space)))
        return found


def _of_frozen(space: str) -> str:
    """What the space of frozen vectors is called beside that of the adapted ones."""
    return "cut" if space == TRAINED else space


def _collection(ids: dict[str, np.ndarray]) -> Collection:
    """Vectors as queries and their positives as documents, equal ones once, by row number.

    Positives are numbered after all vectors. Equal vectors have one id, so that no query is shown
    itself, nor counts as its own answer.

    Raises:
      Unmeasurable: every vector is its own positive.
    """
    a_n, b_n = ids["vector"], ids["positive"]
    judged_r2 = np.unique(np.stack([a_n, b_n], 1)[a_n != b_n], axis=0)
    if not len(judged_r2):
        raise Unmeasurable(f"each of the {len(a_n)} vectors is its own positive")
    query_b, query_r = np.unique(judged_r2[:, 0], return_inverse=True)
    document_n, place_n = np.unique(b_n, return_index=True)
    _, place_b, _ = np.intersect1d(a_n, query_b, return_indices=True)
    return Collection(
        documents=(len(a_n) + place_n).tolist(),
        document_ids=document_n.tolist(),
        queries=place_b.tolist(),
        query_ids=query_b.tolist(),
        query_r=query_r,
        document_r=np.searchsorted(document_n, judged_r2[:, 1]),
        grade_r=np.ones(len(judged_r2), np.int64),
    )
