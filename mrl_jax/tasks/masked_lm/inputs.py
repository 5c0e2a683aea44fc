"""What a trained masked language model reads: texts, whose hidden states it averages."""

import dataclasses
from typing import Any

from mrl_jax.tasks.sentence_pairs import inputs


class Inputs(inputs.Inputs):
    """Texts; see `tasks.sentence_pairs.inputs.Inputs`. All layers are run."""

    @classmethod
    def of_run(cls, setup: Any, params: Any) -> "Inputs":
        """Those of a run."""
        return dataclasses.replace(super().of_run(setup, params), layers=0)
