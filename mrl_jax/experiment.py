"""The one place where a config becomes explicit arguments: data, mesh, task, optimiser."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mrl_jax import data, models
from mrl_jax.errors import CheckpointError, UsageError
from mrl_jax.evaluators import Evaluation
from mrl_jax.heads import NestedHead
from mrl_jax.nesting import Nesting, parse_dims
from mrl_jax.results import Result
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
    """Everything a run consists of, besides its state.

    Attributes:
      mesh: devices.
      dataset: all splits, in memory.
      task: model and loss.
      optimizer: gradient transformation.
      rate: learning rate by step.
      state: abstract train state (shapes, dtypes, shardings).
      evaluation: the evaluators.
    """

    mesh: Mesh
    dataset: data.Dataset
    task: Classification
    optimizer: optax.GradientTransformation
    rate: optax.Schedule
    state: Any
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

    def evaluate(self, state: Any, splits: tuple[str, ...] = ("val", "test")) -> list[Result]:
        """All evaluators on those of the splits that the data set has."""
        present = tuple(name for name in splits if name in self.dataset.splits)
        return self.evaluation.run(state["params"], state["model_state"], present)

    def run_key(self, seed: int) -> jax.Array:
        """The random key of the whole run, on every device."""
        make = jax.jit(jax.random.key, out_shardings=meshes.replicated(self.mesh))
        return make(seed)

    def init_state(self, key: jax.Array) -> Any:
        """A fresh train state; every array is created where it will live."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.state)

        def init(key):
            return steps.init_state(self.task, self.optimizer, key)

        return jax.jit(init, out_shardings=shardings)(key)


def _check_numbers(config: ConfigDict) -> None:
    least = {
        "seed": 0,
        "steps": 1,
        "batch_size": 1,
        "log_every": 1,
        "checkpoint.every": 1,
        "checkpoint.keep": 1,
        "eval.every": 0,
        "eval.batch_size": 1,
        "data.random_shift": 0,
        "optimizer.warmup_steps": 0,
    }
    for key, smallest in least.items():
        value = config
        for part in key.split("."):
            value = value[part]
        if value < smallest:
            raise UsageError(f"config.{key} must be >= {smallest}, got {value}")
    if config.seed >= 2**31:
        raise UsageError(f"config.seed must be below 2**31, got {config.seed}")
    if not 0 <= config.head.label_smoothing < 1:
        raise UsageError(
            f"config.head.label_smoothing must be in [0, 1), got {config.head.label_smoothing}"
        )


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


def from_config(config: ConfigDict) -> Experiment:
    """Builds and checks an experiment; nothing is compiled yet.

    Raises:
      UsageError: names the config key and what would be legal.
      DataError: data missing or inconsistent.
    """
    _check_numbers(config)
    with _config_errors("nesting"):
        nesting = parse_dims(
            config.nesting.dims, config.nesting.weights, config.model.embedding_dim
        )
    dims = _evaluated_dims(config, nesting)
    with _config_errors("mesh"):
        mesh = meshes.make_mesh(**config.mesh)
    divisor = meshes.batch_divisor(mesh)
    for key, size in (
        ("batch_size", config.batch_size),
        ("eval.batch_size", config.eval.batch_size),
    ):
        if size % divisor:
            raise UsageError(
                f"config.{key} {size} is not divisible by the {divisor} parts "
                f"that the mesh splits it into (data x fsdp)"
            )
    with _config_errors("model"):
        backbone = models.build(**config.model)
    with _config_errors("optimizer"):
        rate = optimizers.schedule(
            config.optimizer.learning_rate, config.optimizer.warmup_steps, config.steps
        )
        optimizer = optimizers.make_optimizer(
            config.optimizer.name,
            rate,
            weight_decay=config.optimizer.weight_decay,
            decay_mask=config.optimizer.decay_mask,
        )
    dataset = data.load(
        config.data.source,
        path=config.data.path,
        dataset=config.data.dataset,
        image_size=config.data.image_size,
    )
    with _config_errors("head"):
        head = NestedHead(
            nesting, len(dataset.class_names), config.head.kind, config.head.normalize
        )
        task = Classification(
            backbone=backbone,
            head=head,
            image_shape=dataset.image_shape,
            label_smoothing=config.head.label_smoothing,
            random_shift=config.data.random_shift,
            loss_form=config.head.loss,
            mesh=mesh,
        )
    abstract = jax.eval_shape(lambda key: steps.init_state(task, optimizer, key), jax.random.key(0))
    with _config_errors("sharding"):
        placed = meshes.shardings(abstract, config.sharding, mesh)
    state = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        abstract,
        placed,
    )
    evaluation = Evaluation(
        task,
        mesh,
        dataset,
        dims=dims,
        batch_size=config.eval.batch_size,
        seed=config.seed,
    )
    return Experiment(mesh, dataset, task, optimizer, rate, state, evaluation)
