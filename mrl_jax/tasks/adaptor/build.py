"""From a config to an adaptor on frozen embeddings: vectors, adaptor, losses and measurements."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mrl_jax.data import named
from mrl_jax.data import vector_splits as vectors
from mrl_jax.data.vector_splits import VectorData
from mrl_jax.errors import UsageError, shown
from mrl_jax.evaluators.spaces import axes_about_origin
from mrl_jax.experiment import common
from mrl_jax.experiment.common import Experiment, config_errors
from mrl_jax.models import adaptors
from mrl_jax.nesting import Nesting, parse_dims
from mrl_jax.runtime.program import Program
from mrl_jax.tasks.adaptor.measure import AdaptorEvaluation, fitted_on
from mrl_jax.tasks.adaptor.task import AdaptorTask

KINDS = ("linear", "residual", "rotation")
STARTS = ("identity", "pca")
GROUP = "adaptor"  # of the config keys that say what the model is


def make_adaptor(kind: str, hidden: int, width: int) -> nn.Module:
    """The adaptor of this kind for vectors of so many dims; `hidden` 0 = as many.

    Raises:
      ValueError: no such kind, or hidden units of one that has none.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {shown(kind)}")
    if hidden < 0 or (hidden and kind != "residual"):
        raise ValueError(f"hidden must be 0, or units of a residual adaptor; got {hidden}")
    if kind == "residual":
        return adaptors.Residual(hidden or width)
    return adaptors.Linear(width) if kind == "linear" else adaptors.Rotation()


def check(config: ConfigDict) -> AdaptorTask:
    """Checks everything that `from_config` checks before it reads vectors; raises the same.

    Returns:
      The task as it would be for vectors as wide as the nesting, the narrowest that are possible.
    """
    a = config.adaptor
    with config_errors("nesting"):
        nesting = Nesting(config.nesting.dims, config.nesting.weights or None)
    common.check_without_head(config, nesting)
    common.evaluated_dims(config, nesting)
    if config.optimizer.accumulate > 1:
        raise UsageError(
            "config.optimizer.accumulate: vectors are compared with those of their batch, which "
            "parts of it would not see"
        )
    with config_errors("adaptor"):
        if a.start not in STARTS:
            raise ValueError(f"start must be one of {', '.join(STARTS)}; got {shown(a.start)}")
    task = _task(config, nesting.width, ranked=True, mesh=None)
    named.paths("eval.sts", config.eval.sts, set(named.SPLITS))
    common.make_optimizer(config)
    return task


def _task(config: ConfigDict, width: int, *, ranked: bool, mesh: Mesh | None) -> AdaptorTask:
    a = config.adaptor
    with config_errors("nesting"):
        nesting = parse_dims(config.nesting.dims, config.nesting.weights, width)
    with config_errors("adaptor"):
        return AdaptorTask(
            make_adaptor(a.kind, a.hidden, width),
            nesting,
            width,
            ranked=ranked,
            pairs=a.pairs,
            neighbours=a.neighbours,
            nearest=a.nearest,
            reconstruction=a.reconstruction,
            ranking=a.ranking,
            turned=a.start == "pca",
            mesh=mesh,
        )


def _task_of(config: ConfigDict, data: VectorData, mesh: Mesh) -> AdaptorTask:
    ranked = "positive" in data.splits["train"].sides
    return _task(config, data.width, ranked=ranked, mesh=mesh)


def from_config(config: ConfigDict, mesh: Mesh) -> Experiment:
    """Builds and checks an experiment; nothing is compiled yet.

    Raises:
      UsageError: names the config key and what would be legal.
      DataError: data missing or inconsistent.
    """
    check(config)
    data = vectors.load(config.data.path, config.data.files)
    task = _task_of(config, data, mesh)
    program = common.make_program(config, task, mesh, model_group=GROUP)
    paths = named.paths("eval.sts", config.eval.sts, set(named.SPLITS))
    evaluation = AdaptorEvaluation(
        task,
        mesh,
        data,
        dims=common.evaluated_dims(config, task.nesting),
        batch_size=config.eval.batch_size,
        seed=config.seed,
        sts={name: vectors.read_scored(path, data.width) for name, path in paths.items()},
    )
    start = None
    if task.turned:
        start = (
            "starts from the principal axes of the train vectors",
            _turn(program, data, config.seed),
        )
    places = vectors.find_vectors(config.data.path, config.data.files)
    lines = common.unread({part: [place] for part, place in places.items()}, config)
    note = "\n".join([data.summary(), *lines])
    return Experiment(program, data, evaluation, start, note=note)


def planned_program(config: ConfigDict, mesh: Mesh) -> Program:
    """The program of a config; nothing is compiled.

    Raises:
      UsageError: names the config key and what would be legal.
      DataError: data missing or inconsistent.
    """
    check(config)
    data = vectors.load(config.data.path, config.data.files)
    return common.make_program(config, _task_of(config, data, mesh), mesh, model_group=GROUP)


def _turn(program: Program, data: VectorData, seed: int) -> Callable[[Any], Any]:
    """What puts the principal axes of the train vectors into a fresh state."""

    def put_in(state):
        basis_dd = axes_about_origin(fitted_on(data, seed)).astype(np.float32)
        return program.with_values(state, program.state["params"], {"basis": basis_dd})

    return put_in
