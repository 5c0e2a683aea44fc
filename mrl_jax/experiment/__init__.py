"""The one place where a config becomes explicit arguments: data, mesh, task, optimiser."""

import dataclasses
import pathlib
from types import ModuleType

import jax
from ml_collections import ConfigDict

from mrl_jax import extras
from mrl_jax.experiment import common
from mrl_jax.experiment.common import Experiment, check_config, check_mesh, check_paths, make_mesh
from mrl_jax.runtime import memory
from mrl_jax.runtime import mesh as meshes

__all__ = [
    "Experiment",
    "check",
    "check_config",
    "check_paths",
    "from_config",
    "make_mesh",
    "of_task",
]


def of_task(task: str) -> ModuleType:
    """The module of a task: `check`, `from_config`, `planned_program`, and its `GROUP` of keys."""
    if task == "sentence_pairs":
        with extras.needed("text", f"task {task}"):
            from mrl_jax.tasks.sentence_pairs import build
        return build
    if task == "masked_lm":
        with extras.needed("text", f"task {task}"):
            from mrl_jax.tasks.masked_lm import build
        return build
    if task == "adaptor":
        from mrl_jax.tasks.adaptor import build

        return build
    from mrl_jax.tasks.classification import build

    return build


def check(config: ConfigDict, devices: int | None) -> None:
    """Refuses a config that cannot run, as far as can be told before any data are read.

    Args:
      config: of a run.
      devices: how many the run will have; None if that is not known.

    Raises:
      UsageError: names the config key and what would be legal.
      DataError: a damaged model folder or tokenizer.
    """
    check_config(config)
    module = of_task(config.task)
    task = module.check(config)
    # Rules for parameters must fit their names, on whatever devices.
    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    common.make_program(config, task, mesh, model_group=module.GROUP)
    if devices is not None:
        check_mesh(config, devices)


def from_config(config: ConfigDict, folder: pathlib.Path | None = None) -> Experiment:
    """Builds and checks an experiment; nothing is compiled yet.

    Args:
      config: of the run.
      folder: of the run. What was saved there at the first start, such as the tokenizer of a run on
        text, is read from there and not made again.

    Raises:
      UsageError: names the config key and what would be legal; also if the model or a batch does
        not fit into the memory of the devices.
      DataError: data missing or inconsistent.
    """
    check_config(config)
    module, mesh = of_task(config.task), make_mesh(config)
    arguments = (folder,) if config.task in ("sentence_pairs", "masked_lm") else ()
    setup = dataclasses.replace(module.from_config(config, mesh, *arguments), config=config)
    measured = setup.program.batch_of(config.eval.batch_size)
    memory.check({**setup.program.state, "evaluation batch": measured}, mesh)
    return setup
