"""From a config to image classification: data, model and measurements."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mrl_jax import data
from mrl_jax.data import hierarchy, named
from mrl_jax.data.remarks import Remarks
from mrl_jax.data.shifts import open_shift
from mrl_jax.errors import UsageError
from mrl_jax.evaluators import chosen
from mrl_jax.heads import NestedHead
from mrl_jax.models.resnet import ResNet
from mrl_jax.nesting import parse_dims
from mrl_jax.runtime.program import Program
from mrl_jax.tasks import common, image_encoder
from mrl_jax.tasks.classification.measure import ClassificationEvaluation
from mrl_jax.tasks.classification.task import Classification
from mrl_jax.tasks.common import config_errors

MODEL_KEYS = "model"
DIGITS = "digits"  # the source that brings its own images and classes


def check(config: ConfigDict) -> None:
    """Refuses a network and options of data and measurements that cannot be."""
    make_backbone(config)
    with config_errors("data"):
        data.Options(**_options(config))
    with config_errors("eval.measures"):
        chosen(config.eval.measures)
    named.paths("eval.shifts", config.eval.shifts, set(named.SPLITS))


def assumed_facts(config: ConfigDict, folder: pathlib.Path | None) -> tuple[dict[str, Any], bool]:
    """Two classes if the config does not count them, and RGB images as large as any in training."""
    size = max((pixels for _, pixels in config.data.resolutions), default=config.data.image_size)
    classes = config.data.classes
    names = [f"class {number}" for number in range(classes or 2)]
    sure = classes > 0 and config.data.source != DIGITS
    return {"classes": names, "image_shape": [size, size, 3]}, sure


def open_data(
    config: ConfigDict, facts: dict[str, Any] | None, folder: pathlib.Path | None, train: bool
) -> data.Dataset:
    """The data set of a config.

    Raises:
      UsageError: names the config key and what would be legal.
      DataError: data missing or inconsistent.
    """
    d = config.data
    with config_errors("data"):
        # A run that is only measured needs neither training images nor an example of every class.
        known = None if facts is None or train else facts["classes"]
        dataset = data.load(**_options(config), class_names=known)
    if d.classes not in (0, len(dataset.class_names)):
        raise UsageError(
            f"config.data.classes is {d.classes}, but {dataset.name} has "
            f"{len(dataset.class_names)} classes"
        )
    return dataset


def facts(config: ConfigDict, dataset: data.Dataset) -> dict[str, Any]:
    """The names of the classes, and the shape of images in evaluation."""
    return {"classes": list(dataset.class_names), "image_shape": list(dataset.image_shape)}


def make_backbone(config: ConfigDict) -> nn.Module:
    """The network of a config; raises as `image_encoder.of_config`."""
    backbone = image_encoder.of_config(config)
    if config.data.resolutions and not isinstance(backbone, ResNet):
        raise UsageError(
            f"config.model: {config.model.name} takes images of one size; data.resolutions are for "
            "resnets"
        )
    return backbone


def make_task(config: ConfigDict, facts: dict[str, Any], mesh: Mesh | None) -> Classification:
    """Model and loss.

    Raises:
      UsageError: names the config key and what would be legal.
    """
    backbone = make_backbone(config)
    with config_errors("nesting"):
        nesting = parse_dims(config.nesting.dims, config.nesting.weights, backbone.out_dim)
    common.evaluated_dims(config, nesting)
    with config_errors("data"):
        augmentation = data.Augmentation(
            # A stream crops while it decodes.
            crop=0.0 if config.data.stream else config.data.random_crop,
            flip=config.data.flip,
            shift=config.data.random_shift,
            mixup=config.data.mixup,
        )
    with config_errors("head"):
        head = NestedHead(nesting, len(facts["classes"]), config.head.kind, config.head.normalize)
        return Classification(
            backbone=backbone,
            head=head,
            image_shape=tuple(facts["image_shape"]),
            label_smoothing=config.head.label_smoothing,
            augmentation=augmentation,
            mean=config.data.mean,
            std=config.data.std,
            loss_form=config.head.loss,
            mesh=mesh,
        )


def _options(config: ConfigDict) -> dict[str, Any]:
    """What `data.load` takes."""
    return {field.name: config.data[field.name] for field in dataclasses.fields(data.Options)}


def start(
    config: ConfigDict, facts: dict[str, Any], program: Program, dataset: data.Dataset
) -> tuple[str, Callable[[Any], Any]] | None:
    """What puts the weights of a PyTorch network in a fresh state, see `interop.load_weights`."""
    del facts, dataset
    if not config.weights:
        return None
    from mrl_jax.interop import load_weights  # needs a package that nothing else does

    def put_in(state):
        params, model_state = load_weights(
            config.weights,
            program.task.backbone,
            program.state["params"],
            program.state["model_state"],
            head="skip",
            say=lambda line: print(line) if jax.process_index() == 0 else None,
        )
        return program.with_values(state, params, model_state)

    return f"backbone from {config.weights}", put_in


def measures(
    config: ConfigDict, facts: dict[str, Any], program: Program, dataset: data.Dataset
) -> ClassificationEvaluation:
    """The measurements.

    Raises:
      UsageError: shifted test sets of grey images.
      DataError: a hierarchy or a shifted test set is missing or damaged.
    """
    e, remarks = config.eval, Remarks()
    folders = named.paths("eval.shifts", e.shifts, set(named.SPLITS))
    if folders and facts["image_shape"][-1] != 3:
        raise UsageError(f"eval.shifts are RGB images, those of {dataset.name} are grey")
    classes = tuple(facts["classes"])
    shifts = {
        name: open_shift(
            name,
            path,
            classes,
            data.Options(**_options(config)),
            remarks,
        )
        for name, path in folders.items()
    }
    evaluation = ClassificationEvaluation(
        program.task,
        program.mesh,
        dataset,
        dims=common.evaluated_dims(config, program.task.nesting),
        batch_size=e.batch_size,
        seed=config.seed,
        measures=e.measures,
        hierarchy=hierarchy.read(e.hierarchy, classes) if e.hierarchy else None,
        shifts=shifts,
    )
    evaluation.notes = remarks.lines()
    return evaluation
