"""What two trained towers read: images, or texts."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

from mrl_jax.runtime.rows import Rows
from mrl_jax.tasks import image_inputs, text_encoder, text_inputs
from mrl_jax.tasks.image_text.captions import Captioned


class Images(image_inputs.Inputs):
    """Images; of a split its photos, see `tasks.image_inputs.Inputs`."""

    def open(self, items: Any) -> Rows:
        """See `tasks.image_inputs.Inputs`."""
        if isinstance(items, Captioned):
            return dataclasses.replace(super().open(items.images), names=tuple(items.names))
        return super().open(items)


class Texts(text_inputs.Inputs):
    """Texts; of a split its different captions, see `tasks.text_inputs.Inputs`."""

    reads_splits: ClassVar[bool] = True

    @classmethod
    def of_run(cls, setup: Any, params: Any) -> "Texts":
        """Those of a run. Captions have no prompts, and embeddings are as long as they come out."""
        del params
        folder = text_encoder.trained_folder(setup, None, ())
        folder = dataclasses.replace(folder, prompts={}, default_prompt="", normalize=False)
        return dataclasses.replace(cls.of_folder(folder), layers=0)

    def listed(self, items: Any) -> tuple[Sequence[str], tuple[str, ...] | None]:
        """See `tasks.text_inputs.Inputs`."""
        if isinstance(items, Captioned):
            return items.texts, text_inputs.on_one_line(items.texts)
        return super().listed(items)


TOWERS = {"image": Images, "text": Texts}
