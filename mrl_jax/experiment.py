"""The one place where a config becomes explicit arguments: data, mesh, task, optimiser."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mrl_jax import data, models
from mrl_jax.data.shifts import open_shift, parse_shifts
from mrl_jax.errors import CheckpointError, UsageError
from mrl_jax.evaluators import Evaluation, Finding, chosen, hierarchy
from mrl_jax.heads import NestedHead
from mrl_jax.models.resnet import ResNet
from mrl_jax.nesting import Nesting, parse_dims
from mrl_jax.program import Program
from mrl_jax.runtime import mesh as meshes
from mrl_jax.runtime import optimizer as optimizers
from mrl_jax.runtime import step as steps
from mrl_jax.tasks import Classification


@contextlib.contextmanager
def _config_errors(group: str) -> Iterator[None]:
    """A ValueError of the library becomes a usage error that names the config key."""
    try:
        yield
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"config.{group}: {error}") from error


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A run: its program, its data and its measurements.

    Attributes:
      program: what is computed.
      dataset: all splits.
      evaluation: the evaluators.
    """

    program: Program
    dataset: data.Dataset
    evaluation: Evaluation

    def facts(self) -> dict[str, str]:
        """What a checkpoint remembers and a restoring run must find unchanged."""
        return {"data": self.dataset.fingerprint()}

    def check_facts(self, saved: dict[str, str]) -> None:
        """Refuses a checkpoint that was trained on other data.

        Raises:
          CheckpointError: the fingerprints differ.
        """
        if saved != self.facts():
            raise CheckpointError(
                f"the checkpoint was trained on other data: fingerprint {saved.get('data')} then, "
                f"{self.facts()['data']} now ({self.dataset.name})"
            )

    def batches(self, seed: int) -> Any:
        """Training batches: a function of the step."""
        sharding = meshes.batch_sharding(self.program.mesh)
        return self.dataset.splits["train"].batches(self.program.batch_size, seed, sharding)

    def evaluate(self, state: Any, splits: tuple[str, ...] = ("val", "test")) -> Finding:
        """All evaluators on those of the splits that the data set has."""
        present = tuple(name for name in splits if name in self.dataset.splits)
        return self.evaluation.run(*steps.evaluated(state), present)


def check_numbers(config: ConfigDict) -> None:
    """Raises a UsageError that names the first number of a config that is out of range."""
    least = {
        "seed": 0,
        "steps": 1,
        "batch_size": 1,
        "log_every": 1,
        "checkpoint.every": 1,
        "checkpoint.keep": 1,
        "eval.every": 0,
        "eval.batch_size": 1,
        "data.classes": 0,
        "optimizer.warmup_steps": 0,
        "optimizer.accumulate": 1,
    }
    for key, smallest in least.items():
        value = config
        for part in key.split("."):
            value = value[part]
        if value < smallest:
            raise UsageError(f"config.{key} must be >= {smallest}, got {value}")
    if config.seed >= 2**31:
        raise UsageError(f"config.seed must be below 2**31, got {config.seed}")
    for key, value in (
        ("head.label_smoothing", config.head.label_smoothing),
        ("optimizer.ema_decay", config.optimizer.ema_decay),
    ):
        if not 0 <= value < 1:
            raise UsageError(f"config.{key} must be in [0, 1), got {value}")


def _evaluated_dims(config: ConfigDict, nesting: Nesting) -> tuple[int, ...]:
    if not config.eval.dims:
        return nesting.with_dims_between().dims
    with _config_errors("eval.dims"):
        dims = Nesting(config.eval.dims).dims
    if dims[0] > nesting.width:
        raise UsageError(
            f"config.eval.dims {dims} are all wider than the nesting ({nesting.width} dims)"
        )
    return dims


def _optimizer(config: ConfigDict) -> tuple[optax.GradientTransformation, optax.Schedule]:
    o = config.optimizer
    with _config_errors("optimizer"):
        rate = optimizers.schedule(o.schedule, o.learning_rate, o.warmup_steps, config.steps)
        optimizer = optimizers.make_optimizer(
            o.name,
            rate,
            weight_decay=o.weight_decay,
            decay_mask=o.decay_mask,
            nesterov=o.nesterov,
            clip_norm=o.clip_norm,
        )
    return optimizer, rate


def make_mesh(config: ConfigDict, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of a config over these devices (all of them); checks the batch sizes against it.

    Raises:
      UsageError: sizes that do not fit.
    """
    with _config_errors("mesh"):
        mesh = meshes.make_mesh(**config.mesh, devices=devices)
    divisor = meshes.batch_divisor(mesh)
    accumulate = config.optimizer.accumulate
    for key, size, parts in (
        ("batch_size", config.batch_size, divisor * accumulate),
        ("eval.batch_size", config.eval.batch_size, divisor),
    ):
        if size % parts:
            raise UsageError(
                f"config.{key} {size} is not divisible by the {parts} parts that it is split into"
                f" (mesh data x fsdp{' x optimizer.accumulate' * (parts > divisor)})"
            )
    return mesh


def make_task(
    config: ConfigDict, *, classes: int, image_shape: tuple[int, int, int], mesh: Mesh | None
) -> Classification:
    """Model and loss of a config, for so many classes and images [H, W, C].

    Raises:
      UsageError: names the config key and what would be legal.
    """
    with _config_errors("model"):
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
    with _config_errors("nesting"):
        nesting = parse_dims(config.nesting.dims, config.nesting.weights, backbone.out_dim)
    with _config_errors("data"):
        augmentation = data.Augmentation(
            # A stream crops while it decodes.
            crop=0.0 if config.data.stream else config.data.random_crop,
            flip=config.data.flip,
            shift=config.data.random_shift,
            mixup=config.data.mixup,
        )
    with _config_errors("head"):
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
    optimizer, rate = _optimizer(config)
    ema_decay = config.optimizer.ema_decay
    with _config_errors("model"):
        abstract = jax.eval_shape(
            lambda key: steps.init_state(task, optimizer, key, ema=ema_decay > 0),
            jax.random.key(0),
        )
    with _config_errors("optimizer"):
        if config.optimizer.weight_decay:
            optimizers.check_decay_mask(config.optimizer.decay_mask, abstract["params"])
    with _config_errors("sharding"):
        placed = meshes.shardings(abstract, config.sharding, mesh)
    state = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        abstract,
        placed,
    )
    accumulate = config.optimizer.accumulate
    return Program(mesh, task, optimizer, rate, state, config.batch_size, accumulate, ema_decay)


def open_data(config: ConfigDict) -> data.Dataset:
    """The data set of a config.

    Raises:
      UsageError: names the config key and what would be legal.
      DataError: data missing or inconsistent.
    """
    d = config.data
    with _config_errors("data"):
        dataset = data.load(
            d.source,
            path=d.path,
            dataset=d.dataset,
            image_size=d.image_size,
            eval_crop=d.eval_crop,
            stream=d.stream,
            random_crop=d.random_crop,
            resolutions=d.resolutions,
            rand_augment=d.rand_augment,
            threads=d.threads,
        )
    if d.classes not in (0, len(dataset.class_names)):
        raise UsageError(
            f"config.data.classes is {d.classes}, but {dataset.name} has "
            f"{len(dataset.class_names)} classes"
        )
    return dataset


def from_config(config: ConfigDict) -> Experiment:
    """Builds and checks an experiment; nothing is compiled yet.

    Raises:
      UsageError: names the config key and what would be legal.
      DataError: data missing or inconsistent.
    """
    check_numbers(config)
    mesh = make_mesh(config)
    # What is wrong with the model should show before minutes are spent on reading data.
    task = make_task(config, classes=2, image_shape=(32, 32, 3), mesh=None)
    dims = _evaluated_dims(config, task.nesting)
    with _config_errors("eval.measures"):
        chosen(config.eval.measures)
    folders = parse_shifts(config.eval.shifts)
    _optimizer(config)
    dataset = open_data(config)
    program = make_program(
        config, classes=len(dataset.class_names), image_shape=dataset.image_shape, mesh=mesh
    )
    return Experiment(program, dataset, _evaluation(config, program, dataset, dims, folders))


def _evaluation(
    config: ConfigDict,
    program: Program,
    dataset: data.Dataset,
    dims: tuple[int, ...],
    folders: dict[str, pathlib.Path],
) -> Evaluation:
    d, e = config.data, config.eval
    height, _, channels = dataset.image_shape
    if folders and channels != 3:
        raise UsageError(f"eval.shifts are RGB images, those of {dataset.name} are grey")
    shifts = {
        name: open_shift(
            name,
            folder,
            dataset.class_names,
            image_size=height,
            eval_crop=d.eval_crop,
            stream=d.stream,
            threads=d.threads,
        )
        for name, folder in folders.items()
    }
    return Evaluation(
        program.task,
        program.mesh,
        dataset,
        dims=dims,
        batch_size=e.batch_size,
        seed=config.seed,
        measures=e.measures,
        hierarchy=hierarchy.read(e.hierarchy, dataset.class_names) if e.hierarchy else None,
        shifts=shifts,
    )
