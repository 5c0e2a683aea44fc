"""What a trained masked language model reads: texts, whose hidden states it averages."""

import dataclasses
from typing import Any

from mrl_jax.tasks import text_inputs


class Inputs(text_inputs.Inputs):
    """Texts; see `tasks.text_inputs.Inputs`. All layers are run."""

    @classmethod
    def of_run(cls, setup: Any, params: Any) -> "Inputs":
        """Those of a run."""
        return dataclasses.replace(super().of_run(setup, params), layers=0)
