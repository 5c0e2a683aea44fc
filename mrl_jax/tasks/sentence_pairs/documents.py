"""Queries of a cheap encoder among the documents of a larger one, whose space it has learned."""

import functools
from collections.abc import Sequence

import numpy as np

from mrl_jax.data.token_cache import vectors_of
from mrl_jax.evaluators import text_common, text_retrieval
from mrl_jax.evaluators.text_common import Embed, TextSubject
from mrl_jax.evaluators.text_sets import TextSet
from mrl_jax.interop.text_folder import TextFolder
from mrl_jax.models.text.prompts import Role, by_role
from mrl_jax.record.finding import Finding, digest_of
from mrl_jax.record.results import Series
from mrl_jax.tasks.text_inputs import teacher_of

# What a set is called where both encoders take part, and where the larger one is alone.
ASYMMETRIC, TEACHER = "{}_asymmetric", "{}_teacher"


class Documents:
    """The larger encoder: it embeds the documents of `eval.retrieval` and, to compare, queries.

    Args:
      folder: of the encoder.
      digest: tells its vectors from those of others.
      width: dims of the encoder of queries. Those of the documents beyond it are left out.
      cache: folder that vectors are kept in, see `data.token_cache`; "": in memory alone.
      projections: whether to measure PCA and a rotation of the documents as rivals of their
        prefixes. Both sides are projected, and nothing but the documents is looked at.

    Raises:
      ValueError: the documents have fewer dims.
    """

    def __init__(
        self, folder: TextFolder, digest: str, *, width: int, cache: str, projections: bool
    ):
        if folder.encoder.out_dim < width:
            raise ValueError(
                f"documents: the model has {folder.encoder.out_dim} dims, the queries {width}"
            )
        self.digest, self._width, self._projections = digest, width, projections
        before = by_role(folder.prompts, folder.default_prompt)
        teach = teacher_of(folder)

        # Also in memory, as a run may measure again and again while it is trained.
        @functools.cache
        def embedded(texts: tuple[str, ...], role: Role) -> np.ndarray:
            asked = [before[role] + text for text in texts]
            source = f"{digest_of(asked)} {digest}" if cache else ""
            return vectors_of(asked, teach, cache=cache, source=source)

        self._embedded = embedded

    @staticmethod
    def names(one: TextSet) -> tuple[str, ...]:
        """What is measured beside a set; () where nothing is searched."""
        searched = one.kind is text_retrieval
        return (ASYMMETRIC.format(one.name), TEACHER.format(one.name)) if searched else ()

    def asymmetric(self, one: TextSet, subject: TextSubject, at: Series) -> Finding:
        """Queries are the subject's, documents these."""

        def embed(texts: Sequence[str], role: Role) -> np.ndarray:
            return (self._embed if role == "document" else subject.embed)(texts, role)

        return self._measured(one, subject, at, embed)

    def alone(self, one: TextSet, subject: TextSubject, at: Series) -> Finding:
        """Queries and documents are both of the larger encoder."""
        return self._measured(one, subject, at, self._embed)

    def _embed(self, texts: Sequence[str], role: Role) -> np.ndarray:
        return self._embedded(tuple(texts), role)[:, : self._width]

    def _measured(self, one: TextSet, subject: TextSubject, at: Series, embed: Embed) -> Finding:
        spaces = None
        if self._projections:
            distinct = list(dict.fromkeys(one.data.collection.documents))
            spaces = text_common.rivals(self._embed(distinct, "document"), subject.seed)
        return one.measure(subject._replace(embed=embed, spaces=spaces), at)
