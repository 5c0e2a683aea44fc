"""From a config to a run: the one way from config and facts to a program, and then to its data.

The facts of a run are what its program depends on beyond the config: the names of the classes, the
shape of images, the sizes of an encoder. They follow from the data when training starts, are kept
in the run's folder, and from then on the run needs no data but what it trains on or measures.
"""

import functools
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mrl_jax import config as configs
from mrl_jax.config import tasks
from mrl_jax.errors import CheckpointError, DataError, UsageError, shown
from mrl_jax.record import folder as run_folder
from mrl_jax.record.finding import Finding
from mrl_jax.runtime import memory, numerics
from mrl_jax.runtime import mesh as meshes
from mrl_jax.runtime import optimizer as optimizers
from mrl_jax.runtime import step as steps
from mrl_jax.runtime.checkpoint import Checkpoints
from mrl_jax.runtime.program import Program
from mrl_jax.tasks.common import config_errors
from mrl_jax.tasks.protocols import Builder, Data, Facts, Measured, Start


class _Nothing:
    """Measures nothing."""

    def check(self, splits: tuple[str, ...]) -> dict[str, str]:
        return {}

    def run(self, params: Any, model_state: Any, splits: tuple[str, ...]) -> Finding:
        return Finding()


class Experiment:
    """A run: its program, and its data and measurements, which are opened when they are used.

    Attributes:
      config: of the run.
      facts: what the program depends on beyond the config.
      folder: of the run; None if it has none.
      program: what is computed.
    """

    def __init__(
        self,
        config: ConfigDict,
        facts: Facts,
        program: Program,
        build: Builder,
        folder: pathlib.Path | None = None,
        data: Data | None = None,
    ):
        self.config, self.facts, self.folder = config, facts, folder
        self.program, self._build = program, build
        if data is not None:
            self.dataset = data

    @functools.cached_property
    def dataset(self) -> Data:
        """What there is of the data, for measuring.

        Raises:
          DataError: missing or inconsistent, or not those of the run.
        """
        data = self._build.open_data(self.config, self.facts, self.folder, False)
        if "train" in data.splits:
            check_facts(self.facts, facts_of(self._build, self.config, data), data.name)
        return data

    @functools.cached_property
    def evaluation(self) -> Measured:
        """The evaluators."""
        make = self._build.measures
        return make(self.config, self.facts, self.program, self.dataset) if make else _Nothing()

    @functools.cached_property
    def kept(self) -> dict[str, str]:
        """Files that belong into the folder of the run, by name."""
        return self._build.kept(self.dataset)

    @property
    def start(self) -> Start | None:
        """What puts pretrained values into a fresh state, and where they come from."""
        return self._build.start(self.config, self.facts, self.program, self.dataset)

    @property
    def text_folder(self) -> Callable[..., Any] | None:
        """With a text encoder, a function of trained parameters and model state on the host that
        gives an `interop.text_folder.TextFolder`; None without one."""
        made = self._build.text_folder
        return functools.partial(made, self) if made else None

    @property
    def image_folder(self) -> Callable[..., Any] | None:
        """Likewise where images are embedded beside texts, `interop.image_folder.ImageFolder`."""
        made = self._build.image_folder
        return functools.partial(made, self) if made else None

    @property
    def notes(self) -> list[str]:
        """Lines on the data, for the log."""
        return [*getattr(self.dataset, "notes", ()), *getattr(self.evaluation, "notes", ())]

    def check_memory(self, train: bool = False) -> None:
        """Refuses a model that does not fit into the memory of the devices, beside a batch.

        Args:
          train: also beside a batch of the training.

        Raises:
          UsageError: says how much is needed, and which config keys to change.
        """
        sizes = {"evaluation batch": self.config.eval.batch_size}
        for name, size in {**sizes, **({"batch": self.config.batch_size} if train else {})}.items():
            held = {**self.program.state, name: self.program.batch_of(size)}
            memory.check(held, self.program.mesh)

    def record_start(self) -> None:
        """Writes into the run's folder what every command needs of it from now on."""
        run_folder.record_config(self.folder, self.config)
        data = self.dataset.training_fingerprint()
        run_folder.record_facts(self.folder, self.facts, data, self.kept)

    def record(self, found: Finding, command: str, step: int) -> None:
        """Writes results.json and the folder `evaluation` of the run: what a command found."""
        run_folder.record_finding(
            self.folder,
            found,
            config=self.config,
            command=command,
            step=step,
            data=self.dataset.fingerprint(),
        )

    def remembered(self) -> dict[str, Any]:
        """What a checkpoint remembers; a restoring run must have the same, or adopts it."""
        return {
            "data": self.dataset.training_fingerprint(),
            "config": configs.trained_by(self.config),
            "facts": run_folder.digest_of(self.facts),
            "settings": numerics.settings(),
        }

    def adopt(self, saved: dict[str, Any]) -> None:
        """Makes this process compute like the one that saved a checkpoint.

        Raises:
          CheckpointError: the checkpoint is of a run with another config.
        """
        # Checkpoints of older releases do not remember the config.
        changed = configs.changed_since(saved["config"], self.config) if "config" in saved else []
        if changed:
            more = f"; {len(changed) - 5} more" if len(changed) > 5 else ""
            raise CheckpointError(
                f"the checkpoint is of another run ({'; '.join(changed[:5])}{more}): use another "
                "--workdir, or the config that it was trained with"
            )
        changed = numerics.pin(saved.get("settings", numerics.DEFAULTS))
        if changed and jax.process_index() == 0:
            print(f"using the JAX settings that the run began with ({'; '.join(changed)})")

    def check_data(self, saved: dict[str, Any]) -> None:
        """Refuses data that a checkpoint was not trained on, if what it was trained on is there.

        Raises:
          CheckpointError: the data differ.
        """
        if "train" not in self.dataset.splits:
            return
        then, now = saved.get("data"), self.dataset.training_fingerprint()
        if now is None:
            return
        # Checkpoints of older releases remember all splits.
        if then != now and then != self.dataset.fingerprint():
            raise CheckpointError(
                f"the checkpoint was trained on other data: fingerprint {then} then, {now} now "
                f"({self.dataset.name})"
            )

    def adopt_and_check(self, saved: dict[str, Any], data: bool = True) -> None:
        """`adopt`, `check_data` if there are `data`, and the facts: they must be the checkpoint's.

        Raises:
          CheckpointError: the checkpoint is of another run.
        """
        self.adopt(saved)
        if data:
            self.check_data(saved)
        if saved.get("facts") not in (None, run_folder.digest_of(self.facts)):
            raise CheckpointError(
                f"the checkpoint is of another run: it does not belong to {run_folder.FACTS}"
            )

    def batches(self, seed: int) -> Callable[[int], dict[str, jax.Array]]:
        """Training batches: a function of the step."""
        sharding = meshes.batch_sharding(self.program.mesh)
        return self.dataset.splits["train"].batches(self.program.batch_size, seed, sharding)

    def evaluate(self, state: Any, splits: tuple[str, ...] = ("val", "test")) -> Finding:
        """All evaluators on those of the splits that the data set has."""
        found = Finding()
        found.add(self.evaluation.run(*steps.evaluated(state), self._present(splits)))
        return found

    def check(self, splits: tuple[str, ...] = ("val", "test")) -> dict[str, str]:
        """What `evaluate` will not measure, and why, as far as the data alone show it."""
        return self.evaluation.check(self._present(splits))

    def _present(self, splits: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name in splits if name in self.dataset.splits)


def facts_of(build: Builder, config: ConfigDict, data: Data) -> Facts:
    """The facts as they are read from JSON: sequences as lists.

    Raises:
      UsageError: the task gives something that JSON does not hold.
    """
    found = build.facts(config, data)
    try:
        return dict(json.loads(json.dumps(found, allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"config.task: facts of {config.task} must be a dict that JSON can hold, got "
            f"{shown(found)} ({error})"
        ) from None


def check_facts(then: Facts, now: Facts, name: str) -> None:
    """Refuses data with other facts than a run began with.

    Raises:
      DataError: names the first fact that differs.
    """
    for key in sorted(then.keys() | now.keys()):
        if then.get(key) != now.get(key):
            raise DataError(
                f"{name}: {key} is {_brief(now.get(key))}, the run began with "
                f"{_brief(then.get(key))}"
            )


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def check_config(config: ConfigDict, devices: int | None) -> None:
    """Refuses numbers that are out of range or do not fit so many devices (None: any number).

    Raises:
      UsageError: names the first such key, or an unusable setting of JAX.
    """
    numerics.check()
    configs.check(config)
    with config_errors("sharding"):
        meshes.check_rules(config.sharding)
    if devices is None:
        return
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


def check(config: ConfigDict, devices: int | None) -> None:
    """Refuses a config that cannot run, as far as can be told before any data are read.

    Args:
      config: of a run.
      devices: how many the run will have; None if that is not known.

    Raises:
      UsageError: names the config key and what would be legal.
      DataError: a damaged model folder or tokenizer.
    """
    check_config(config, devices)
    build = tasks.builder(config.task)
    build.check(config)
    if assumed := build.assumed_facts(config, None):
        # Rules for parameters must fit their names, on whatever devices.
        make_program(config, assumed[0], meshes.make_mesh(devices=jax.devices()[:1]), build)


def check_paths(config: ConfigDict) -> None:
    """Refuses a config whose files or folders do not exist.

    Raises:
      UsageError: weights or a teacher.
      DataError: something to train on or to measure.
    """
    values = configs.flatten(config)
    for name, key in tasks.keys(config.task).items():
        if not key.path:
            continue
        value, kind = values[name], DataError if name.startswith(("data.", "eval.")) else UsageError
        paths = [v.partition("=")[2] for v in value] if isinstance(value, tuple) else [value]
        for path in paths:
            # A bucket's address is for its reader; a file's name may be followed by a part of it.
            file = path.rpartition(":")[0] or path
            if path and "://" not in path and not (os.path.exists(path) or os.path.exists(file)):
                raise kind(f"config.{name}: {file} not found")


def from_config(config: ConfigDict, folder: pathlib.Path | None = None) -> Experiment:
    """Opens the data of a run and builds it, ready to be trained; nothing is compiled yet.

    Args:
      config: of the run.
      folder: of the run. What was kept there at the first start, such as its facts, is read from
        there and compared with the data.

    Raises:
      UsageError: names the config key and what would be legal.
      DataError: data missing or inconsistent, or with other facts than the run began with.
    """
    mesh, build = make_mesh(config), tasks.builder(config.task)
    build.check(config)
    recorded = run_folder.read_facts(folder) if folder else None
    # What is wrong with the model should show before minutes are spent on reading data.
    if likely := recorded or (build.assumed_facts(config, folder) or [None])[0]:
        build.make_task(config, likely, None)
    data = build.open_data(config, recorded, folder, True)
    facts = facts_of(build, config, data)
    if recorded is not None:
        check_facts(recorded, facts, data.name)
    return Experiment(config, facts, make_program(config, facts, mesh, build), build, folder, data)


def of_run(folder: pathlib.Path, overrides: Sequence[str] = ()) -> Experiment:
    """A run as it was trained, without opening its data.

    Runs of older releases kept no facts: their data are opened.

    Args:
      folder: of the run.
      overrides: "--config.key=value" strings, of keys that do not change the model.

    Raises:
      UsageError: no run, or a key that would make it another one.
      DataError: see `from_config`.
    """
    trained = run_folder.read_config(folder)
    config = configs.override(trained, overrides)
    for change in configs.differences(trained, config):
        if not change.startswith("eval."):
            raise UsageError(f"{change}: the run in {folder} was trained otherwise")
    facts = run_folder.read_facts(folder)
    if facts is None:
        return from_config(config, folder)
    build = tasks.builder(config.task)
    program = make_program(config, facts, make_mesh(config), build)
    return Experiment(config, facts, program, build, folder)


def restored(
    folder: pathlib.Path,
    overrides: Sequence[str] = (),
    step: int | None = None,
    *,
    measured: bool = False,
) -> tuple[Experiment, Any]:
    """A run and its state at the newest checkpoint, or at `step`.

    Args:
      folder: of the run.
      overrides: see `of_run`.
      step: of an older checkpoint.
      measured: the data are opened, and must be those of the checkpoint.

    Raises:
      UsageError, DataError: see `of_run`.
      CheckpointError: no checkpoint, a damaged one, or one of another run.
    """
    setup = of_run(folder, overrides)
    setup.check_memory()
    place = folder / run_folder.CHECKPOINTS
    checkpoints = Checkpoints(place, setup.config.checkpoint.keep, read_only=True)
    use = functools.partial(setup.adopt_and_check, data=measured)
    state, _ = checkpoints.read(setup.program.state, use, step)
    return setup, state


def program_of(
    config: ConfigDict, devices: Sequence[Any] | None = None, folder: pathlib.Path | None = None
) -> Program:
    """What a config trains, made for its largest batch; nothing is compiled.

    Data are opened only if neither the folder of the run nor the config tells their facts.

    Args:
      config: of a run.
      devices: those of the mesh; None = all of this machine.
      folder: of the run, if it has begun.

    Raises:
      UsageError: names the config key, and what would be legal.
      DataError: data missing or inconsistent.
    """
    mesh, build = make_mesh(config, devices), tasks.builder(config.task)
    facts = run_folder.read_facts(folder) if folder else None
    if facts is None:
        facts, sure = build.assumed_facts(config, folder) or ({}, False)
        if not sure:
            build.check(config)
            data = build.open_data(config, None, folder, True)
            facts = facts_of(build, config, data)
    return make_program(config, facts, mesh, build)


def make_mesh(config: ConfigDict, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of a config over these devices (all of them); raises as `check_config`."""
    check_config(config, jax.device_count() if devices is None else len(devices))
    return meshes.make_mesh(**config.mesh, devices=devices)


def make_program(config: ConfigDict, facts: Facts, mesh: Mesh, build: Builder) -> Program:
    """The program of a config and facts; nothing is compiled or allocated.

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
    with config_errors(build.MODEL_KEYS):
        task = build.make_task(config, facts, mesh)
        abstract = jax.eval_shape(
            lambda key: steps.init_state(task, optimizer, key, ema=o.ema_decay > 0),
            jax.random.key(0),
        )
    with config_errors("optimizer"):
        if o.weight_decay:
            optimizers.check_decay_mask(o.decay_mask, abstract["params"])
    with config_errors("sharding"):
        placed = meshes.shardings(abstract, config.sharding, mesh)
    state = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        abstract,
        placed,
    )
    return Program(mesh, task, optimizer, rate, state, config.batch_size, o.accumulate, o.ema_decay)
