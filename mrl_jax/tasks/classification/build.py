"""From a config to image classification: data, model and measurements."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mrl_jax import data, models
from mrl_jax.data import hierarchy, named
from mrl_jax.data.named import SPLITS
from mrl_jax.data.remarks import Remarks
from mrl_jax.data.shifts import open_shift
from mrl_jax.errors import UsageError
from mrl_jax.evaluators import Evaluation, chosen
from mrl_jax.experiment import common
from mrl_jax.experiment.common import Experiment, config_errors
from mrl_jax.heads import NestedHead
from mrl_jax.models.resnet import ResNet
from mrl_jax.nesting import parse_dims
from mrl_jax.runtime.program import Program
from mrl_jax.tasks.classification.task import Classification

GROUP = "model"  # of the config keys that say what the model is


def make_task(
    config: ConfigDict, *, classes: int, image_shape: tuple[int, int, int], mesh: Mesh | None
) -> Classification:
    """Model and loss of a config, for so many classes and images [H, W, C].

    Raises:
      UsageError: names the config key and what would be legal.
    """
    with config_errors("model"):
        backbone = models.build(**config.model)
        part, groups = (
            config.batch_size // config.optimizer.accumulate,
            config.model.batch_norm_groups,
        )
        if part % groups:
            raise ValueError(
                f"batch_norm_groups {groups} does not divide the {part} examples that go through "
                "the network at a time (batch_size / optimizer.accumulate)"
            )
        if config.data.resolutions and not isinstance(backbone, ResNet):
            raise ValueError(
                f"{config.model.name} takes images of one size; data.resolutions are for resnets"
            )
    with config_errors("nesting"):
        nesting = parse_dims(config.nesting.dims, config.nesting.weights, backbone.out_dim)
    with config_errors("data"):
        augmentation = data.Augmentation(
            # A stream crops while it decodes.
            crop=0.0 if config.data.stream else config.data.random_crop,
            flip=config.data.flip,
            shift=config.data.random_shift,
            mixup=config.data.mixup,
        )
    with config_errors("head"):
        head = NestedHead(nesting, classes, config.head.kind, config.head.normalize)
        return Classification(
            backbone=backbone,
            head=head,
            image_shape=image_shape,
            label_smoothing=config.head.label_smoothing,
            augmentation=augmentation,
            mean=config.data.mean,
            std=config.data.std,
            loss_form=config.head.loss,
            mesh=mesh,
        )


def make_program(
    config: ConfigDict, *, classes: int, image_shape: tuple[int, int, int], mesh: Mesh
) -> Program:
    """Task, optimiser and abstract state of a config; nothing is compiled or allocated.

    Raises:
      UsageError: names the config key and what would be legal.
    """
    task = make_task(config, classes=classes, image_shape=image_shape, mesh=mesh)
    return common.make_program(config, task, mesh, model_group=GROUP)


def _options(config: ConfigDict) -> dict[str, Any]:
    """What `data.load` takes."""
    return {field.name: config.data[field.name] for field in dataclasses.fields(data.Options)}


def open_data(config: ConfigDict) -> data.Dataset:
    """The data set of a config.

    Raises:
      UsageError: names the config key and what would be legal.
      DataError: data missing or inconsistent.
    """
    d = config.data
    with config_errors("data"):
        dataset = data.load(**_options(config))
    if d.classes not in (0, len(dataset.class_names)):
        raise UsageError(
            f"config.data.classes is {d.classes}, but {dataset.name} has "
            f"{len(dataset.class_names)} classes"
        )
    return dataset


def check(config: ConfigDict) -> Classification:
    """Checks everything that `from_config` checks before it opens data; raises the same.

    Returns:
      The task as it would be for images of some size and two classes.
    """
    task = make_task(config, classes=2, image_shape=(32, 32, 3), mesh=None)
    with config_errors("data"):
        data.Options(**_options(config))
    common.evaluated_dims(config, task.nesting)
    with config_errors("eval.measures"):
        chosen(config.eval.measures)
    named.paths("eval.shifts", config.eval.shifts, set(SPLITS))
    common.make_optimizer(config)
    return task


def from_config(config: ConfigDict, mesh: Mesh) -> Experiment:
    """Builds and checks an experiment; nothing is compiled yet.

    Raises:
      UsageError: names the config key and what would be legal.
      DataError: data missing or inconsistent.
    """
    # What is wrong with the model should show before minutes are spent on reading data.
    check(config)
    dataset = open_data(config)
    program = make_program(
        config, classes=len(dataset.class_names), image_shape=dataset.image_shape, mesh=mesh
    )
    remarks = Remarks()
    evaluation = _evaluation(config, program, dataset, remarks)
    weights = pretrained(config.weights, program) if config.weights else None
    notes = (*dataset.notes, *remarks.lines())
    return Experiment(program, dataset, evaluation, weights, note="\n".join(notes))


def planned_program(config: ConfigDict, mesh: Mesh) -> Program:
    """The program of a config, for its largest images; nothing is compiled.

    The data set is opened only where the config does not say how many classes and what images it
    has.

    Raises:
      UsageError: names the config key and what would be legal.
      DataError: data missing or inconsistent.
    """
    size = max((pixels for _, pixels in config.data.resolutions), default=config.data.image_size)
    classes, image_shape = config.data.classes, (size, size, 3)
    if not classes or config.data.source == "digits":
        dataset = open_data(config)
        classes = len(dataset.class_names)
        image_shape = (*image_shape[:2], dataset.image_shape[2])
        if not config.data.resolutions:
            image_shape = dataset.image_shape
    return make_program(config, classes=classes, image_shape=image_shape, mesh=mesh)


def pretrained(path: str, program: Program) -> tuple[str, Callable[[Any], Any]]:
    """What puts the weights of a PyTorch network in a fresh state, see `interop.load_weights`."""
    from mrl_jax.interop import load_weights  # needs a package that nothing else does

    def put_in(state):
        params, model_state = load_weights(
            path,
            program.task.backbone,
            program.state["params"],
            program.state["model_state"],
            head="skip",
            say=lambda line: print(line) if jax.process_index() == 0 else None,
        )
        return program.with_values(state, params, model_state)

    return f"backbone from {path}", put_in


def _evaluation(
    config: ConfigDict,
    program: Program,
    dataset: data.Dataset,
    remarks: Remarks,
) -> Evaluation:
    e = config.eval
    folders = named.paths("eval.shifts", e.shifts, set(SPLITS))
    if folders and dataset.image_shape[-1] != 3:
        raise UsageError(f"eval.shifts are RGB images, those of {dataset.name} are grey")
    shifts = {
        name: open_shift(
            name,
            folder,
            dataset.class_names,
            data.Options(**_options(config)),
            remarks,
        )
        for name, folder in folders.items()
    }
    return Evaluation(
        program.task,
        program.mesh,
        dataset,
        dims=common.evaluated_dims(config, program.task.nesting),
        batch_size=e.batch_size,
        seed=config.seed,
        measures=e.measures,
        hierarchy=hierarchy.read(e.hierarchy, dataset.class_names) if e.hierarchy else None,
        shifts=shifts,
    )
