"""Measuring a sentence encoder at every prefix; the same code during training and offline."""

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mrl_jax.data.beir import Collection
from mrl_jax.data.labelled_text import LabelledTexts
from mrl_jax.data.loader import put
from mrl_jax.data.text import TextData, TextSplit
from mrl_jax.evaluators import (
    matching,
    text_classification,
    text_clustering,
    text_common,
    text_layers,
    text_retrieval,
    text_sts,
)
from mrl_jax.evaluators.attempt import attempt
from mrl_jax.models.text.prompts import Role, by_role
from mrl_jax.models.text.tokenizer import Tokenizer, pad, padded_length
from mrl_jax.record.finding import Finding, digest_of, refusals
from mrl_jax.record.results import Series
from mrl_jax.runtime.mesh import batch_sharding, replicated
from mrl_jax.runtime.rows import gathered
from mrl_jax.tasks.sentence_pairs.task import SentencePairs

NO_PROMPTS = MappingProxyType(by_role({}, ""))
# Texts of the train split that PCA is fitted on.
FITTED_ON = 20_000


class SentenceEvaluation:
    """Runs evaluators on texts. Compiles once per length of texts, however often it runs.

    A split of scored pairs is measured by `text_sts`, any other by `matching`; beside them the
    sets that have names of their own.

    Args:
      task: gives embed().
      mesh: batches are split over it.
      tokenizer: of the task's encoder.
      data: whose splits are measured.
      dims: prefixes to measure; those beyond the trained width are left out.
      batch_size: texts per step, a multiple of what the mesh splits the batch into.
      prompts: what is put before a text, by the role of the text, see `models.text.prompts`.
      seed: of random choices inside evaluators.
      sts: further sets of scored pairs by name.
      retrieval: collections by name.
      ignore_identical_ids: names of collections, see `text_retrieval.measure`.
      classification: labelled texts to learn from, and to be told, by name.
      clustering: labelled texts by name.
      projections: measure PCA and a rotation of the whole embedding as well.
      layers: measure splits, sts and retrieval after these as well, see `text_layers`.
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
        sts: Mapping[str, TextSplit] = MappingProxyType({}),
        retrieval: Mapping[str, Collection] = MappingProxyType({}),
        classification: Mapping[str, tuple[LabelledTexts, LabelledTexts]] = MappingProxyType({}),
        clustering: Mapping[str, LabelledTexts] = MappingProxyType({}),
        ignore_identical_ids: tuple[str, ...] = (),
        projections: bool = False,
        layers: tuple[int, ...] = (),
    ):
        self._task, self._mesh, self._tokenizer, self._data = task, mesh, tokenizer, data
        self._dims = tuple(m for m in dims if m <= task.nesting.width)
        self._batch_size, self._prompts, self._seed = batch_size, prompts, seed
        self._sts, self._retrieval, self._projections = sts, retrieval, projections
        self._classification, self._clustering = classification, clustering
        self._layers, self._ignore_identical_ids = layers, ignore_identical_ids
        self._embed = jax.jit(task.embed, static_argnames="depth", out_shardings=replicated(mesh))

    @functools.cached_property
    def _read(self) -> dict[str, str]:
        """Digests of the sets that have names of their own, see `Finding`."""
        scored = {name: (*_sides(split), split.score_n) for name, split in self._sts.items()}
        kinds = {
            "sts": scored,
            "retrieval": self._retrieval,
            "classification": self._classification,
            "clustering": self._clustering,
        }
        return {
            f"{kind}.{name}": digest_of(content)
            for kind, sets in kinds.items()
            for name, content in sets.items()
        }

    def check(self, splits: tuple[str, ...]) -> dict[str, str]:
        """What cannot be measured on these data, and why, see `Finding.skipped`."""
        checks: dict[str, Callable[[], None]] = {}
        for name in splits:
            split = self._data.splits[name]
            if split.kind == "scored":
                check = functools.partial(text_sts.check, split.pairs(), split.score_n)
                checks[f"{name}/spearman"] = check
            else:
                checks[f"{name}/match"] = functools.partial(matching.check, *_ids(split))
        for name, split in self._sts.items():
            checks[name] = functools.partial(text_sts.check, split.pairs(), split.score_n)
        for name, parts in self._classification.items():
            checks[name] = functools.partial(text_classification.check, *parts)
        for name, texts in self._clustering.items():
            checks[name] = functools.partial(text_clustering.check, texts)
        return refusals(checks)

    def run(self, params: Any, model_state: Any, splits: tuple[str, ...]) -> Finding:
        """All that was asked for, on these splits."""

        def embed(
            texts: Sequence[str], depth: int | None = None, role: Role = "default"
        ) -> np.ndarray:
            """The trained dims of texts with their prompt, after so many layers."""
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
        options: dict[str, Any] = {"seed": self._seed}
        if self._projections:
            texts = self._data.splits["train"].texts
            fitted = texts[:: max(1, len(texts) // FITTED_ON)][:FITTED_ON]
            # Where pairs are a query and a document, documents are what is searched.
            role = "document" if _is_asked(self._data.splits["train"]) else "default"
            options["spaces"] = text_common.rivals(embed(fitted, role=role), self._seed)
        found.add(self._at_depth(embed, splits, options))
        for name, (train, test) in self._classification.items():
            told = functools.partial(text_classification.measure, embed, Series(name), train, test)
            spaces = options.get("spaces")
            attempt(found, name, functools.partial(told, self._dims, spaces=spaces))
        for name, texts in self._clustering.items():
            clustered = functools.partial(
                text_clustering.measure, embed, Series(name), texts, self._dims
            )
            attempt(found, name, functools.partial(clustered, **options))
        for layer in self._layers:
            at_layer = functools.partial(embed, depth=layer)
            measured = self._at_depth(at_layer, splits, {"seed": self._seed}, layer)
            found.add(text_layers.main_numbers(measured))
        return found

    def _at_depth(
        self, embed: Callable, splits: tuple[str, ...], options: dict, layer: int | None = None
    ) -> Finding:
        """Splits, scored pairs and collections."""
        found = Finding()
        for name in splits:
            split, at = self._data.splits[name], Series(split=name, layer=layer)
            if split.kind == "scored":
                scored = functools.partial(self._scored, embed, at, split, options)
                attempt(found, f"{name}/spearman", scored)
            else:
                matched = functools.partial(self._matched, embed, at, split)
                attempt(found, f"{name}/match", matched)
        for name, split in self._sts.items():
            at = Series(name, layer=layer)
            attempt(found, name, functools.partial(self._scored, embed, at, split, options))
        for name, collection in self._retrieval.items():
            at = Series(name, layer=layer)
            documents = functools.partial(embed, role="document")
            queries = functools.partial(embed, role="query")
            retrieved = functools.partial(text_retrieval.measure, documents, at, collection)
            ignored = name in self._ignore_identical_ids
            about = {"mesh": self._mesh, "ignore_identical_ids": ignored, **options}
            told = functools.partial(retrieved, self._dims, embed_queries=queries, **about)
            attempt(found, name, told)
        return found

    def _scored(self, embed, at: Series, split: TextSplit, options: dict) -> Finding:
        return text_sts.measure(embed, at, _sides(split), split.score_n, self._dims, **options)

    def _matched(self, embed, at: Series, split: TextSplit) -> Finding:
        matching.check(*_ids(split))
        a_n, b_n = split.pairs()
        a, b = ("query", "document") if _is_asked(split) else ("default", "default")
        if self._prompts[a] == self._prompts[b]:
            z_td = embed(split.texts, role=a)
            z_ad, z_bd = z_td[a_n], z_td[b_n]
        else:
            z_ad, z_bd = (
                embed([split.texts[i] for i in text_n], role=role)
                for text_n, role in ((a_n, a), (b_n, b))
            )
        return matching.measure(z_ad, z_bd, *_ids(split), at, self._dims)


def _ids(split: TextSplit) -> tuple[np.ndarray, np.ndarray]:
    """The ids of the two texts of every pair: texts with equal ids are never told apart."""
    a_n, b_n = split.pairs()
    return split.same_t[a_n], split.same_t[b_n]


def _sides(split: TextSplit) -> tuple[list[str], list[str]]:
    """The first and the second text of every row."""
    first, second = ([split.texts[i] for i in text_n] for text_n in split.pairs())
    return first, second


def _is_asked(split: TextSplit) -> bool:
    """Whether the first text of each pair is a query and the second a document."""
    return split.kind in ("pairs", "triplets")


def embed_texts(
    embed: Callable[[dict[str, jax.Array]], jax.Array],
    texts: Sequence[str],
    tokenizer: Tokenizer,
    *,
    max_length: int,
    batch_size: int,
    sharding: jax.sharding.Sharding,
) -> np.ndarray:
    """Embeddings [N, D] float32 of any texts, in their order, the same on every process.

    Args:
      embed: a batch of `tokens` [B, T] and `lengths` [B] to embeddings [B, D] on every device.
      texts: the longest go first: what does not fit in memory shows at once.
      tokenizer: of the encoder.
      max_length: tokens that a text is cut to.
      batch_size: texts per call.
      sharding: of a batch.
    """
    tokens = tokenizer.encode(list(texts), max_length)
    order = sorted(range(len(tokens)), key=lambda i: -len(tokens[i]))

    def results():
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            length = padded_length(len(tokens[rows[0]]), max_length)
            tokens_bt, lengths_b = pad([tokens[i] for i in rows], length, batch_size)
            yield rows, embed(put({"tokens": tokens_bt, "lengths": lengths_b}, sharding))

    return gathered(results(), len(tokens)).astype(np.float32, copy=False)
