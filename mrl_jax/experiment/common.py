"""What the experiments of all tasks share: checks, mesh, optimiser, and the program they make."""

import contextlib
import dataclasses
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mrl_jax import config as configs
from mrl_jax.data.remarks import left_in
from mrl_jax.errors import CheckpointError, DataError, UsageError, shown
from mrl_jax.nesting import Nesting
from mrl_jax.record.finding import Finding
from mrl_jax.runtime import mesh as meshes
from mrl_jax.runtime import numerics
from mrl_jax.runtime import optimizer as optimizers
from mrl_jax.runtime import step as steps
from mrl_jax.runtime.program import Program
from mrl_jax.runtime.task import Task

_LARGEST = float(np.finfo(np.float32).max)


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
      splits: "train", and "val" and "test" if they exist.
    """

    name: str
    splits: dict[str, Any]

    def fingerprint(self) -> str:
        """Hex digits over all splits, including those that are only measured."""

    def training_fingerprint(self) -> str:
        """Hex digits over what training reads and what the program depends on."""


class Measured(Protocol):
    """The measurements of a run."""

    def check(self, splits: tuple[str, ...]) -> dict[str, str]:
        """What cannot be measured on these data, and why, see `Finding.skipped`; embeds nothing."""

    def run(self, params: Any, model_state: Any, splits: tuple[str, ...]) -> Finding:
        """All that was asked for, on these splits."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A run: its program, its data and its measurements.

    Attributes:
      program: what is computed.
      dataset: all splits.
      evaluation: the evaluators.
      pretrained: where weights come from, for the log, and a function of a fresh state that puts
        them in; None where all starts fresh.
      text_folder: of text, a function of trained parameters on the host that puts the encoder
        together with its tokenizer (an `interop.text_folder.TextFolder`); None of anything else.
      tokenizer: of text, saved in the run folder; None of anything else.
      note: lines on the data, for the log; "" for none.
      config: of the run.
    """

    program: Program
    dataset: Data
    evaluation: Measured
    pretrained: tuple[str, Callable[[Any], Any]] | None = None
    text_folder: Callable[[Any], Any] | None = None
    tokenizer: Any = None
    note: str = ""
    config: ConfigDict = dataclasses.field(default_factory=configs.default_config)

    def facts(self) -> dict[str, Any]:
        """What a checkpoint remembers; a restoring run must have the same, or adopts it."""
        return {
            "data": self.dataset.training_fingerprint(),
            "config": configs.trained_by(self.config),
            "settings": numerics.settings(),
        }

    def check_facts(self, saved: dict[str, Any]) -> None:
        """Refuses a checkpoint of another run.

        Raises:
          CheckpointError: config or data differ.
        """
        # Checkpoints of older releases do not remember the config.
        changed = configs.changed_since(saved["config"], self.config) if "config" in saved else []
        if changed:
            more = f"; {len(changed) - 5} more" if len(changed) > 5 else ""
            raise CheckpointError(
                f"the checkpoint is of another run ({'; '.join(changed[:5])}{more}): use another "
                "--workdir, or the config that it was trained with"
            )
        then, now = saved.get("data"), self.facts()["data"]
        # Checkpoints of older releases remember all splits.
        if then != now and then != self.dataset.fingerprint():
            raise CheckpointError(
                f"the checkpoint was trained on other data: fingerprint {then} then, {now} now "
                f"({self.dataset.name})"
            )

    def use_facts(self, saved: dict[str, Any]) -> None:
        """Makes this process compute like the one that saved the checkpoint.

        Raises:
          CheckpointError: see `check_facts`.
        """
        self.check_facts(saved)
        changed = numerics.pin(saved.get("settings", numerics.DEFAULTS))
        if changed and jax.process_index() == 0:
            print(f"using the JAX settings that the run began with ({'; '.join(changed)})")

    def batches(self, seed: int) -> Callable[[int], dict[str, jax.Array]]:
        """Training batches: a function of the step."""
        sharding = meshes.batch_sharding(self.program.mesh)
        return self.dataset.splits["train"].batches(self.program.batch_size, seed, sharding)

    def evaluate(self, state: Any, splits: tuple[str, ...] = ("val", "test")) -> Finding:
        """All evaluators on those of the splits that the data set has."""
        return self.evaluation.run(*steps.evaluated(state), self._present(splits))

    def check(self, splits: tuple[str, ...] = ("val", "test")) -> dict[str, str]:
        """What `evaluate` will not measure, and why, as far as the data alone show it."""
        return self.evaluation.check(self._present(splits))

    def _present(self, splits: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name in splits if name in self.dataset.splits)


@contextlib.contextmanager
def config_errors(group: str) -> Iterator[None]:
    """A ValueError of the library becomes a usage error that names the config key."""
    try:
        yield
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"config.{group}: {error}") from error


def check_config(config: ConfigDict) -> None:
    """Refuses keys of another task, numbers that are out of range, and unusable JAX settings.

    Raises:
      UsageError: names the first such key or setting.
    """
    numerics.check()
    configs.check_task(config)
    values = configs.flatten(config)
    for key, value in values.items():
        for number in _numbers(value):
            if not abs(number) <= _LARGEST:  # NaN is not, either
                raise UsageError(
                    f"config.{key} must be a finite number, got {shown(number)} "
                    f"(float32 holds up to {_LARGEST:.2g})"
                )
            if type(number) is int and number >= 2**31:
                raise UsageError(f"config.{key} must be below 2**31, got {number}")
    least = {
        "seed": 0,
        "steps": 1,
        "batch_size": 1,
        "log_every": 1,
        "hang_minutes": 0,
        "checkpoint.every": 1,
        "checkpoint.keep": 1,
        "eval.every": 0,
        "eval.batch_size": 1,
        "data.classes": 0,
        "data.image_size": 1,
        "data.threads": 0,
        "optimizer.warmup_steps": 0,
        "optimizer.accumulate": 1,
        "text.vocab_size": 6,  # five special tokens and one more
    }
    for key, smallest in least.items():
        if values[key] < smallest:
            raise UsageError(f"config.{key} must be >= {smallest}, got {values[key]}")
    if not config.text.encoder:
        raise UsageError("config.text.encoder is empty; legal is a folder or a fresh encoder")
    for key in ("head.label_smoothing", "optimizer.ema_decay", "text.dropout"):
        if not 0 <= values[key] < 1:
            raise UsageError(f"config.{key} must be in [0, 1), got {values[key]}")
    with config_errors("sharding"):
        meshes.check_rules(config.sharding)


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, tuple):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, float | int):
        yield value


def check_paths(config: ConfigDict) -> None:
    """Refuses a config whose files or folders do not exist.

    Raises:
      UsageError: weights or a teacher.
      DataError: something to train on or to measure.
    """
    for key in ("weights", "pairs.teacher"):
        path = configs.flatten(config)[key]
        if path and not os.path.exists(path):
            raise UsageError(f"config.{key}: {path} not found")
    d, e = config.data, config.eval
    places = [("data.files", entry.partition("=")[2]) for entry in d.files]
    if config.task != "classification" or d.source == "image_folder":  # TFDS may read a bucket
        places.append(("data.path", d.path))
    for key in ("shifts", "sts", "retrieval", "classification", "clustering"):
        places += [(f"eval.{key}", entry.partition("=")[2]) for entry in e[key]]
    if not os.path.exists(e.hierarchy):  # else it may be FILE:ID,ID,...
        places.append(("eval.hierarchy", e.hierarchy.rpartition(":")[0] or e.hierarchy))
    for key, path in places:
        if path and not os.path.exists(path):
            raise DataError(f"config.{key}: {path} not found")


def check_without_head(config: ConfigDict, nesting: Nesting) -> None:
    """Of a task without classifiers: the kind of head only says whether there is one dim.

    Raises:
      UsageError: a kind that means nothing here.
    """
    kind = config.head.kind
    if kind not in ("separate", "fixed") or (kind == "fixed" and len(nesting) > 1):
        raise UsageError(
            f"config.head.kind of {config.task} is separate, for a nesting, or fixed, for one dim; "
            f"got {kind} for {len(nesting)} dims"
        )


def evaluated_dims(config: ConfigDict, nesting: Nesting) -> tuple[int, ...]:
    """The prefixes that are measured.

    Raises:
      UsageError: none of them lies inside the nesting, or they do not increase.
    """
    if not config.eval.dims:
        return nesting.with_dims_between().dims
    with config_errors("eval.dims"):
        dims = Nesting(config.eval.dims).dims
    if dims[0] > nesting.width:
        raise UsageError(
            f"config.eval.dims {shown(dims)} are all wider than the nesting ({nesting.width} dims)"
        )
    return dims


def unread(files: Mapping[str, Sequence[pathlib.Path]], config: ConfigDict) -> list[str]:
    """Lines on what lies in the data folder besides these files, which are read.

    Raises:
      DataError: a link in the folder is broken.
    """
    return left_in(config.data.path, itertools.chain.from_iterable(files.values()))


def make_optimizer(config: ConfigDict) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimiser of a config and its learning rate by step.

    Raises:
      UsageError: names the config key and what would be legal.
    """
    o = config.optimizer
    with config_errors("optimizer"):
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
    """The mesh of a config over these devices (all of them); raises as `check_mesh`."""
    check_mesh(config, jax.device_count() if devices is None else len(devices))
    return meshes.make_mesh(**config.mesh, devices=devices)


def check_mesh(config: ConfigDict, devices: int) -> None:
    """Checks the mesh of a config, and its batch sizes, against the number of devices.

    Raises:
      UsageError: sizes that do not fit.
    """
    with config_errors("mesh"):
        divisor = meshes.batch_divisor(meshes.axis_sizes(devices, **config.mesh))
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


def make_program(config: ConfigDict, task: Task, mesh: Mesh, *, model_group: str) -> Program:
    """Task, optimiser and abstract state; nothing is compiled or allocated.

    Args:
      config: of the run.
      task: model and loss.
      mesh: devices.
      model_group: of the config keys that are to blame where the model cannot be built.

    Raises:
      UsageError: names the config key and what would be legal.
    """
    optimizer, rate = make_optimizer(config)
    ema_decay = config.optimizer.ema_decay
    with config_errors(model_group):
        abstract = jax.eval_shape(
            lambda key: steps.init_state(task, optimizer, key, ema=ema_decay > 0),
            jax.random.key(0),
        )
    with config_errors("optimizer"):
        if config.optimizer.weight_decay:
            optimizers.check_decay_mask(config.optimizer.decay_mask, abstract["params"])
    with config_errors("sharding"):
        placed = meshes.shardings(abstract, config.sharding, mesh)
    state = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        abstract,
        placed,
    )
    accumulate = config.optimizer.accumulate
    return Program(mesh, task, optimizer, rate, state, config.batch_size, accumulate, ema_decay)


def starting_from(program: Program, params: Any) -> Callable[[Any], Any]:
    """What puts these weights, by the names at the top of the tree, into a fresh state."""

    def as_trained(new, shape):
        return new if isinstance(new, jax.ShapeDtypeStruct) else np.asarray(new, shape.dtype)

    def put_in(state):
        fresh = program.state["params"]
        return program.with_values(state, jax.tree.map(as_trained, {**fresh, **params}, fresh), {})

    return put_in
