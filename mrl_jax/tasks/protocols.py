"""What the module of a task offers, and what the parts are that a run is built of."""

import pathlib
from collections.abc import Callable
from typing import Any, Protocol

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mrl_jax.record.finding import Finding
from mrl_jax.runtime.program import Program
from mrl_jax.runtime.task import Task

Facts = dict[str, Any]  # as JSON holds it
# What puts pretrained values into a fresh state, and where they come from, for the log.
Start = tuple[str, Callable[[Any], Any]]


class Split(Protocol):
    """One part of the data, as training reads it."""

    def batches(
        self, batch_size: int, seed: int, sharding: jax.sharding.Sharding
    ) -> Callable[[int], dict[str, jax.Array]]:
        """Training batches: a pure function of the step."""


class Data(Protocol):
    """The data of a run.

    Attributes:
      name: what they are called in messages.
      splits: those of "train", "val" and "test" that there are.
      notes: optional, lines for the log.
    """

    name: str
    splits: dict[str, Any]

    def fingerprint(self) -> str:
        """Hex digits over all splits, including those that are only measured."""

    def training_fingerprint(self) -> str:
        """Hex digits over what training reads and what the program depends on."""


class Measured(Protocol):
    """The measurements of a run. `notes` are lines for the log, if there are any."""

    def check(self, splits: tuple[str, ...]) -> dict[str, str]:
        """What cannot be measured on these data, and why, see `Finding.skipped`; embeds nothing."""

    def run(self, params: Any, model_state: Any, splits: tuple[str, ...]) -> Finding:
        """All that was asked for, on these splits."""


class Builder(Protocol):
    """What the module of a task offers for building; a task of your own may leave out the defaults.

    `MODEL_KEYS` is the group of config keys that are to blame if the model cannot be built.
    """

    MODEL_KEYS: str = "task"

    def check(self, config: ConfigDict) -> None:
        """Refuses what can be refused before data are read. Default: nothing."""

    def assumed_facts(
        self, config: ConfigDict, folder: pathlib.Path | None
    ) -> tuple[Facts, bool] | None:
        """The facts as far as the config says them, and whether they are surely those of the data.

        What is unknown is assumed, so that the rest can be checked before data are read. `folder`
        is that of a run of an older release, which kept no facts. Default: None, nothing is known.
        """

    def open_data(
        self, config: ConfigDict, facts: Facts | None, folder: pathlib.Path | None, train: bool
    ) -> Data:
        """The data. `facts` and `folder` are those of a run that has begun; with `train` False, the
        train split may be missing."""

    def facts(self, config: ConfigDict, data: Data) -> Facts:
        """What the program depends on beyond the config, as these data say."""

    def make_task(self, config: ConfigDict, facts: Facts, mesh: Mesh | None) -> Task:
        """Model and loss."""

    def kept(self, data: Data) -> dict[str, str]:
        """Files that belong into the folder of the run, by name. Default: none."""

    def start(self, config: ConfigDict, facts: Facts, program: Program, data: Data) -> Start | None:
        """Where training starts from other than fresh values. Default: None."""

    def measures(self, config: ConfigDict, facts: Facts, program: Program, data: Data) -> Measured:
        """The measurements. Default: none."""

    # From a run, its parameters and model state to what others read: a text encoder with its
    # tokenizer, and an image network in the same space.
    text_folder: Callable[[Any, Any, Any], Any] | None = None
    image_folder: Callable[[Any, Any, Any], Any] | None = None
