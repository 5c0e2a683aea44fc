"""From a config to an adaptor on frozen embeddings: vectors, adaptor, losses and measurements."""

import pathlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mrl_jax.data import named
from mrl_jax.data import vector_splits as vectors
from mrl_jax.data.vector_splits import VectorData
from mrl_jax.errors import DataError, UsageError
from mrl_jax.evaluators.spaces import axes_about_origin
from mrl_jax.models import adaptors
from mrl_jax.nesting import Nesting, parse_dims
from mrl_jax.runtime.program import Program
from mrl_jax.tasks import common
from mrl_jax.tasks.adaptor.measure import AdaptorEvaluation, fitted_on
from mrl_jax.tasks.adaptor.task import AdaptorTask
from mrl_jax.tasks.common import config_errors

MODEL_KEYS = "adaptor"


def make_adaptor(kind: str, hidden: int, width: int) -> nn.Module:
    """The adaptor of this kind for vectors of so many dims; `hidden` 0 = as many.

    Raises:
      ValueError: hidden units of one that has none.
    """
    if hidden < 0 or (hidden and kind != "residual"):
        raise ValueError(f"hidden must be 0, or units of a residual adaptor; got {hidden}")
    if kind == "residual":
        return adaptors.Residual(hidden or width)
    return adaptors.Linear(width) if kind == "linear" else adaptors.Rotation()


def check(config: ConfigDict) -> None:
    """Refuses keys that contradict each other."""
    with config_errors("nesting"):
        nesting = Nesting(config.nesting.dims, config.nesting.weights or None)
    common.check_without_head(config, nesting)
    common.evaluated_dims(config, nesting)
    if config.optimizer.accumulate > 1:
        raise UsageError(
            "config.optimizer.accumulate: vectors are compared with those of their batch, which "
            "parts of it would not see"
        )
    named.paths("eval.sts", config.eval.sts, set(named.SPLITS))


def assumed_facts(config: ConfigDict, folder: pathlib.Path | None) -> tuple[dict[str, Any], bool]:
    """Vectors as wide as the nesting, the narrowest that are possible, with positives."""
    return {"width": max(config.nesting.dims), "ranked": True}, False


def open_data(
    config: ConfigDict, facts: dict[str, Any] | None, folder: pathlib.Path | None, train: bool
) -> VectorData:
    """All vectors; raises as `data.vectors.load`."""
    data = vectors.load(config.data.path, config.data.files, train=train)
    if facts and data.width != facts["width"]:
        raise DataError(
            f"{data.name} has vectors of {data.width} dims, the run adapts {facts['width']}"
        )
    return data


def facts(config: ConfigDict, data: VectorData) -> dict[str, Any]:
    """The dims of a vector, and whether vectors have positives."""
    return {"width": data.width, "ranked": "positive" in data.splits["train"].sides}


def make_task(config: ConfigDict, facts: dict[str, Any], mesh: Mesh | None) -> AdaptorTask:
    """Adaptor and losses.

    Raises:
      UsageError: names the config key and what would be legal.
    """
    a, width = config.adaptor, facts["width"]
    with config_errors("nesting"):
        nesting = parse_dims(config.nesting.dims, config.nesting.weights, width)
    with config_errors("adaptor"):
        return AdaptorTask(
            make_adaptor(a.kind, a.hidden, width),
            nesting,
            width,
            ranked=facts["ranked"],
            pairs=a.pairs,
            neighbours=a.neighbours,
            nearest=a.nearest,
            reconstruction=a.reconstruction,
            ranking=a.ranking,
            turned=a.start == "pca",
            mesh=mesh,
        )


def start(
    config: ConfigDict, facts: dict[str, Any], program: Program, data: VectorData
) -> tuple[str, Callable[[Any], Any]] | None:
    """What puts the principal axes of the train vectors into a fresh state."""
    del facts
    if not program.task.turned:
        return None

    def put_in(state):
        basis_dd = axes_about_origin(fitted_on(data, config.seed)).astype(np.float32)
        return program.with_values(state, program.state["params"], {"basis": basis_dd})

    return "starts from the principal axes of the train vectors", put_in


def measures(
    config: ConfigDict, facts: dict[str, Any], program: Program, data: VectorData
) -> AdaptorEvaluation:
    """The measurements.

    Raises:
      DataError: a set of scored pairs is missing or damaged.
    """
    paths = named.paths("eval.sts", config.eval.sts, set(named.SPLITS))
    evaluation = AdaptorEvaluation(
        program.task,
        program.mesh,
        data,
        dims=common.evaluated_dims(config, program.task.nesting),
        batch_size=config.eval.batch_size,
        seed=config.seed,
        sts={name: vectors.read_scored(path, facts["width"]) for name, path in paths.items()},
    )
    here = "train" in data.splits
    places = vectors.find_vectors(config.data.path, config.data.files, train=here)
    lines = common.unread({part: [place] for part, place in places.items()}, config)
    evaluation.notes = [data.summary(), *lines]
    return evaluation
