"""Measuring two towers at every prefix; the same code during training and offline."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mrl_jax.data import Split, Stream
from mrl_jax.data.class_folders import NamedClasses
from mrl_jax.data.folder import Chosen
from mrl_jax.evaluators import cross_modal, found_photos, zero_shot
from mrl_jax.evaluators.attempt import attempt
from mrl_jax.evaluators.attribution import images_of
from mrl_jax.evaluators.cross_modal import Captions, Sides
from mrl_jax.evaluators.text_common import fitted_on
from mrl_jax.models.text.tokenizer import Tokenizer
from mrl_jax.record.finding import NO_TRAIN, Finding, refusals
from mrl_jax.record.results import Series
from mrl_jax.runtime.mesh import batch_sharding, replicated
from mrl_jax.runtime.rows import in_batches
from mrl_jax.tasks.image_text.captions import Captioned
from mrl_jax.tasks.image_text.task import ImageText
from mrl_jax.tasks.text_inputs import embed_texts

SEARCH = "text_to_image_recall1"  # names the search in messages
CAPTIONS = "caption_1nn"


class ImageTextEvaluation:
    """Runs evaluators on photos and captions. Compiles once per length of texts.

    Args:
      dims: prefixes to measure; those beyond the trained width are left out.
      batch_size: photos or texts per step, a multiple of what the mesh splits the batch into.
      classes: labelled images by the name of the set.
      templates: texts with "{}" where the name of a class goes.
      projections: measure rivals of the prefixes as well, see `cross_modal.rivals`.
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
        classes: Mapping[str, NamedClasses] = MappingProxyType({}),
        templates: tuple[str, ...] = (),
        projections: bool = False,
    ):
        self._task, self._mesh, self._tokenizer = task, mesh, tokenizer
        self._captioned, self._batch_size, self._seed = captioned, batch_size, seed
        self._classes, self._templates, self._projections = classes, templates, projections
        self._dims = tuple(m for m in dims if m <= task.nesting.width)
        self._embed = jax.jit(task.embed, out_shardings=replicated(mesh))

    @property
    def _shown(self) -> tuple[int, ...]:
        """The dims that are trained, or of one that is, all."""
        trained = tuple(m for m in self._dims if m in self._task.nesting.dims)
        return trained if len(trained) > 1 else self._dims

    @functools.cached_property
    def _read(self) -> dict[str, str]:
        """Digests of the sets, see `Finding`."""
        found = {}
        for name, classes in self._classes.items():
            digest = hashlib.sha256()
            classes.update(digest)
            found[f"zero_shot.{name}"] = digest.hexdigest()[:16]
        return found

    @property
    def _unfitted(self) -> dict[str, str]:
        """What cannot be measured without a train split, see `Finding.skipped`."""
        missing = self._projections and "train" not in self._captioned
        return {"projections": NO_TRAIN} if missing else {}

    def check(self, splits: tuple[str, ...]) -> dict[str, str]:
        """What cannot be measured on these data, and why, see `Finding.skipped`."""
        checks: dict[str, Callable[[], Any]] = {}
        for name in splits:
            captions = _captions(self._captioned[name])
            checks[f"{name}/{SEARCH}"] = functools.partial(cross_modal.check, captions)
            checks[f"{name}/{CAPTIONS}"] = functools.partial(cross_modal.check_texts, captions)
        for name, classes in self._classes.items():
            checks[name] = functools.partial(zero_shot.check, classes.names)
        return refusals(checks) | self._unfitted

    def run(self, params: Any, model_state: Any, splits: tuple[str, ...]) -> Finding:
        """All that was asked for, on these splits."""
        images = functools.partial(self.images, params, model_state)
        texts = functools.partial(self.texts, params, model_state)
        found = Finding(read=dict(self._read), skipped=self._unfitted)
        spaces = None
        if self._projections and not self._unfitted:
            spaces = self._rivals(images, texts)
        for name in splits:
            split, at = self._captioned[name], Series(split=name)
            image_pd, text_nd = images(split.images), texts(split.texts)[split.text_n]
            shared = {"captions": _captions(split), "at": at, "dims": self._dims, "spaces": spaces}
            search = functools.partial(cross_modal.measure, image_pd, text_nd, seed=self._seed)
            attempt(found, f"{name}/{SEARCH}", functools.partial(search, **shared))
            nearest = functools.partial(cross_modal.nearest_captions, text_nd, **shared)
            attempt(found, f"{name}/{CAPTIONS}", nearest)
            picture = functools.partial(
                found_photos.measure,
                *(image_pd, text_nd, _captions(split), split.caption, at, self._shown),
                photos=functools.partial(images_of, split.images),
            )
            attempt(found, f"{name}/{found_photos.KIND}", picture)
        for name, classes in self._classes.items():
            tell = functools.partial(self._told, images, texts, classes, Series(name), spaces)
            attempt(found, name, tell)
        return found

    def _rivals(self, images: Callable, texts: Callable) -> dict[str, Sides]:
        train = self._captioned["train"]
        fitted = train.texts[fitted_on(len(train.texts))]
        return cross_modal.rivals(images(_some(train)), texts(fitted), self._seed)

    def _told(
        self,
        images: Callable,
        texts: Callable,
        classes: NamedClasses,
        at: Series,
        spaces: Mapping[str, Sides] | None,
    ) -> Finding:
        """Classes by their names and, with a train split, by the nearest image."""
        zero_shot.check(classes.names)
        test, train, names = classes
        z_nd, shared = images(test.images), {"at": at, "dims": self._dims, "spaces": spaces}
        text_cd = texts(zero_shot.texts(names, self._templates))
        found = zero_shot.measure(z_nd, test.label_n, text_cd, len(names), **shared)
        if train:
            database = images(train.images), train.label_n
            options = {**shared, "mesh": self._mesh}
            found.add(zero_shot.neighbours(*database, z_nd, test.label_n, **options))
        return found

    def images(self, params: Any, model_state: Any, images: Split | Stream) -> np.ndarray:
        """The embeddings [N, D] float32 of all images, D the trained width."""
        batches = images.padded(self._batch_size, batch_sharding(self._mesh))
        z_nd = in_batches(
            lambda batch: self._embed(params, model_state, {"image": batch["image"]}),
            batches,
            images.examples,
        )
        return z_nd[:, : self._task.nesting.width].astype(np.float32, copy=False)

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


def _captions(split: Captioned) -> Captions:
    return Captions(split.photo_n, split.text_n)


def _some(split: Captioned) -> Split | Stream:
    """Photos to fit rivals on."""
    images, rows = split.images, fitted_on(split.images.examples)
    if isinstance(images, Split):
        return Split(images.image[rows], images.label[rows])
    row_n = np.arange(images.examples)[rows]
    return dataclasses.replace(images, records=Chosen(images.records, row_n))
