"""Measuring a sentence encoder at every prefix; the same code during training and offline."""

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mrl_jax.data.text import TextData, TextSplit
from mrl_jax.evaluators import matching, text_common, text_sets, text_sts
from mrl_jax.evaluators.attempt import attempt
from mrl_jax.evaluators.spaces import Space
from mrl_jax.evaluators.text_common import Embed, TextSubject, fitted_on
from mrl_jax.evaluators.text_sets import TextSet
from mrl_jax.models.text.prompts import Role, by_role
from mrl_jax.models.text.tokenizer import Tokenizer
from mrl_jax.record.finding import NO_TRAIN, Finding, digest_of, refusals
from mrl_jax.record.results import Series
from mrl_jax.runtime.mesh import batch_sharding, replicated
from mrl_jax.tasks.sentence_pairs.documents import Documents
from mrl_jax.tasks.sentence_pairs.task import SentencePairs
from mrl_jax.tasks.text_inputs import embed_texts

NO_PROMPTS = MappingProxyType(by_role({}, ""))


class SentenceEvaluation:
    """Runs evaluators on texts. Compiles once per length of texts, however often it runs.

    A split of scored pairs is measured by `text_sts`, any other by `matching`.

    Args:
      dims: prefixes to measure; those beyond the trained width are left out.
      batch_size: texts per step, a multiple of what the mesh splits the batch into.
      prompts: what is put before a text, by its role, see `models.text.prompts`.
      sets: what is measured beside the splits, see `text_sets`.
      projections: measure PCA and a rotation of the whole embedding as well.
      layers: measure the main metrics after these layers as well.
      documents: what embeds the documents of searches beside the encoder itself.
    """

    def __init__(
        self,
        task: SentencePairs,
        mesh: Mesh,
        tokenizer: Tokenizer,
        data: TextData,
        *,
        dims: tuple[int, ...],
        batch_size: int,
        prompts: Mapping[Role, str] = NO_PROMPTS,
        seed: int = 0,
        sets: Sequence[TextSet] = (),
        projections: bool = False,
        layers: tuple[int, ...] = (),
        documents: Documents | None = None,
    ):
        self._task, self._mesh, self._tokenizer, self._data = task, mesh, tokenizer, data
        self._dims = tuple(m for m in dims if m <= task.nesting.width)
        self._batch_size, self._prompts, self._seed = batch_size, prompts, seed
        self._sets, self._projections, self._layers = sets, projections, layers
        self._documents = documents
        self._embed = jax.jit(task.embed, static_argnames="depth", out_shardings=replicated(mesh))

    @functools.cached_property
    def _read(self) -> dict[str, str]:
        """Digests of the sets, see `Finding`."""
        read = {f"{one.key}.{one.name}": one.digest for one in self._sets}
        for one in self._sets if self._documents else ():
            for name in Documents.names(one):
                read[f"{one.key}.{name}"] = digest_of([one.digest, self._documents.digest])
        return read

    def check(self, splits: tuple[str, ...]) -> dict[str, str]:
        """What cannot be measured on these data, and why, see `Finding.skipped`."""
        checks: dict[str, Callable[[], None]] = {}
        for name in splits:
            split = self._data.splits[name]
            if split.kind == "scored":
                scored = text_sts.of_split(split)
                checks[f"{name}/{text_sts.MAIN}"] = functools.partial(text_sts.check, scored)
            else:
                checks[f"{name}/match"] = functools.partial(matching.check, *_ids(split))
        checks |= {one.name: one.check for one in self._sets}
        return refusals(checks) | self._unfitted

    def run(self, params: Any, model_state: Any, splits: tuple[str, ...]) -> Finding:
        """All that was asked for, on these splits."""

        def embed(texts: Sequence[str], role: Role, depth: int | None = None) -> np.ndarray:
            """The trained dims of texts with their prompt, after `depth` layers."""
            z_nd = embed_texts(
                functools.partial(self._embed, params, model_state, depth=depth),
                [self._prompts[role] + text for text in texts],
                self._tokenizer,
                max_length=self._task.max_length,
                batch_size=self._batch_size,
                sharding=batch_sharding(self._mesh),
            )
            return z_nd[:, : self._task.nesting.width]

        prompts = dict(self._prompts) if any(self._prompts.values()) else {}
        found = Finding(read=dict(self._read), prompts=prompts)
        found.skipped.update(self._unfitted)
        subject = TextSubject(embed, self._dims, self._seed, mesh=self._mesh)
        rivals = self._rivals(embed) if self._projections and not self._unfitted else None
        self._add(found, subject._replace(spaces=rivals), splits)
        for layer in self._layers:
            at_layer = functools.partial(embed, depth=layer)
            self._add(found, subject._replace(embed=at_layer), splits, layer)
        return found

    @property
    def _unfitted(self) -> dict[str, str]:
        """What cannot be measured without a train split, see `Finding.skipped`."""
        missing = self._projections and "train" not in self._data.splits
        return {"projections": NO_TRAIN} if missing else {}

    def _rivals(self, embed: Embed) -> dict[str, Space]:
        train = self._data.splits["train"]
        fitted = train.texts[fitted_on(len(train.texts))]
        # Where pairs are a query and a document, documents are what is searched.
        role = "document" if _is_asked(train) else "default"
        return text_common.rivals(embed(fitted, role), self._seed)

    def _add(
        self,
        found: Finding,
        subject: TextSubject,
        splits: tuple[str, ...],
        layer: int | None = None,
    ) -> None:
        """Measures everything; after a layer, the main metrics alone."""

        def add(name: str, at: Series, main: str | None, measure: Callable[..., Finding]) -> None:
            at_layer = at._replace(layer=layer)
            if layer is None:
                attempt(found, name, lambda: measure(at_layer))
            elif main:
                attempt(found, name, lambda: text_sets.of_metric(measure(at_layer), main))

        for name in splits:
            split, at = self._data.splits[name], Series(split=name)
            if split.kind == "scored":
                measure = functools.partial(
                    text_sts.measure, subject, scored=text_sts.of_split(split)
                )
                add(f"{name}/{text_sts.MAIN}", at, text_sts.MAIN, measure)
            else:
                measure = functools.partial(self._matched, subject, split)
                add(f"{name}/match", at, "match", measure)
        for one in self._sets:
            measure = functools.partial(one.measure, subject)
            add(one.name, Series(one.name), one.main, measure)
            if self._documents and (names := Documents.names(one)):
                both, alone = names
                measure = functools.partial(self._documents.asymmetric, one, subject)
                add(both, Series(both), one.main, measure)
                if layer is None:  # the other encoder runs all of its layers
                    measure = functools.partial(self._documents.alone, one, subject)
                    add(alone, Series(alone), None, measure)

    def _matched(self, subject: TextSubject, split: TextSplit, at: Series) -> Finding:
        matching.check(*_ids(split))
        a_n, b_n = split.pairs()
        a, b = ("query", "document") if _is_asked(split) else ("default", "default")
        if self._prompts[a] == self._prompts[b]:
            z_td = subject.embed(split.texts, a)
            z_ad, z_bd = z_td[a_n], z_td[b_n]
        else:
            z_ad, z_bd = (
                subject.embed([split.texts[i] for i in text_n], role)
                for text_n, role in ((a_n, a), (b_n, b))
            )
        return matching.measure(z_ad, z_bd, *_ids(split), at, self._dims)


def _ids(split: TextSplit) -> tuple[np.ndarray, np.ndarray]:
    """The ids of the two texts of each pair; texts with equal ids are never told apart."""
    a_n, b_n = split.pairs()
    return split.same_t[a_n], split.same_t[b_n]


def _is_asked(split: TextSplit) -> bool:
    """Whether the first text of each pair is a query and the second a document."""
    return split.kind in ("pairs", "triplets")
