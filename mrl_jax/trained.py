"""A run as it is in its folder: what measuring and embedding start from."""

import pathlib
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from mrl_jax import config as configs
from mrl_jax import experiment
from mrl_jax.errors import UsageError
from mrl_jax.experiment import Experiment
from mrl_jax.record import folder as workdir
from mrl_jax.runtime.checkpoint import Checkpoints


def restored(
    folder: pathlib.Path, overrides: Sequence[str] = (), step: int | None = None
) -> tuple[ConfigDict, Experiment, Any]:
    """The config of a run, its experiment, and its state at the newest checkpoint or at `step`.

    Args:
      folder: of the run.
      overrides: "--config.key=value" strings, of keys that do not change the model.
      step: of an older checkpoint.

    Raises:
      UsageError: no run, or a key that would make it another one.
      CheckpointError: no checkpoint, a damaged one, or one of other data.
      DataError: data missing or inconsistent.
    """
    trained = workdir.read_config(folder)
    config = configs.override(trained, overrides)
    for change in configs.differences(trained, config):
        if not change.startswith("eval.dims:"):  # other keys of eval are operational
            raise UsageError(f"{change}: the run in {folder} was trained otherwise")
    setup = experiment.from_config(config, folder)
    checkpoints = Checkpoints(folder / workdir.CHECKPOINTS, config.checkpoint.keep, read_only=True)
    state, _ = checkpoints.read(setup.program.state, setup.use_facts, step)
    return config, setup, state
