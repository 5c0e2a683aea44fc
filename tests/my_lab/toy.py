"""A task of one's own, outside the package: every prefix of an embedding tells a number.

Nested regression of a function of vectors; `default_config("my_lab.toy")` begins a config of it.
"""

import dataclasses
import hashlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mrl_jax.config.keys import Key
from mrl_jax.data.loader import Batches, padded_batches
from mrl_jax.nesting import Nesting, parse_dims
from mrl_jax.record.finding import Finding
from mrl_jax.record.metrics import Metric
from mrl_jax.record.results import Series
from mrl_jax.runtime.mesh import batch_sharding, replicated

KEYS = {
    "toy.rows": Key(200, "examples of the train split", 1),
    "toy.width": Key(6, "numbers that an example has", 1),
    "toy.hidden": Key(16, "units of the hidden layer", 1),
}
MODEL_KEYS = "toy"
ROWS = {"explained": Metric("Explained variance", "share", low=None, headline=True)}


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples x [N, width] and the number y [N] that belongs to each."""

    x: np.ndarray
    y: np.ndarray

    def batches(self, batch_size, seed, sharding):
        return Batches({"x": self.x, "label": self.y}, batch_size, seed, sharding)


@dataclasses.dataclass(frozen=True)
class Data:
    """All splits, and hex digits that tell them from others."""

    name: str
    splits: dict[str, Split]

    def fingerprint(self, *names):
        content = b"".join(self.splits[name].x.tobytes() for name in names or self.splits)
        return hashlib.sha256(content).hexdigest()

    def training_fingerprint(self):
        return self.fingerprint("train")


def open_data(config, facts, folder, train):
    """Made data; yours are read from files."""
    rng = np.random.default_rng(7)

    def split(rows):
        x_nd = rng.normal(size=(rows, config.toy.width)).astype(np.float32)
        return Split(x_nd, np.sin(x_nd[:, 0]) + x_nd[:, 1] * x_nd[:, 2])

    sizes = {"train": config.toy.rows, "val": 50, "test": 70}
    return Data("toy data", {name: split(rows) for name, rows in sizes.items()})


def facts(config, data):
    """What the program depends on beyond the config."""
    return {"width": data.splits["train"].x.shape[1]}


class Network(nn.Module):
    """Vectors [B, width] to embeddings [B, D]."""

    hidden: int
    out: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.out, name="out")(nn.tanh(nn.Dense(self.hidden, name="hidden")(x)))


@dataclasses.dataclass(frozen=True)
class Toy:
    """Pure functions of parameters and a batch, see `mrl_jax.runtime.task.Task`."""

    network: nn.Module
    nesting: Nesting
    width: int

    def batch_spec(self, batch_size):
        each = jax.ShapeDtypeStruct((batch_size,), jnp.float32)
        return {"x": each.update(shape=(batch_size, self.width)), "label": each, "mask": each}

    def init(self, key):
        network = self.network.init(key, jnp.zeros((1, self.width)))["params"]
        return {"network": network, "read_out": {"kernel": jnp.zeros(self.nesting.width)}}, {}

    def told(self, params, z_bd, dims):
        """What every prefix tells, [G, B]."""
        told_bd = jnp.cumsum(z_bd * params["read_out"]["kernel"][None], axis=1)
        return told_bd[:, jnp.array(dims) - 1].T

    def loss(self, params, model_state, batch, key):
        """(total, (loss of each granularity [G], model state))."""
        told_gb = self.told(params, self.embed(params, model_state, batch), self.nesting.dims)
        loss_g = (batch["mask"][None] * (told_gb - batch["label"][None]) ** 2).mean(1)
        return loss_g.sum(), (loss_g, model_state)

    def embed(self, params, model_state, batch):
        return self.network.apply({"params": params["network"]}, batch["x"])


def make_task(config, facts, mesh):
    """Model and loss."""
    nesting = parse_dims(config.nesting.dims, config.nesting.weights, max(config.nesting.dims))
    return Toy(Network(config.toy.hidden, nesting.width), nesting, facts["width"])


class Measures:
    """Explained variance at every prefix."""

    def __init__(self, *parts):
        self.config, self.program, self.data = parts

    def check(self, splits):
        return {}

    def run(self, params, model_state, splits):
        task, mesh, found = self.program.task, self.program.mesh, Finding(rows=ROWS)
        embed = jax.jit(task.embed, out_shardings=replicated(mesh))
        for name in splits:
            split, size = self.data.splits[name], self.config.eval.batch_size
            batches = padded_batches({"x": split.x}, size, batch_sharding(mesh))
            parts = [jax.device_get(embed(params, model_state, batch)) for batch in batches]
            told_gn = task.told(params, np.concatenate(parts)[: len(split.y)], task.nesting.dims)
            error_gn = (np.asarray(told_gn) - split.y) ** 2 / split.y.var()
            for dim, error_n in zip(task.nesting.dims, error_gn, strict=True):
                noise = error_n.std() / len(error_n) ** 0.5
                told = dim, 1 - error_n.mean(), noise, len(error_n)
                found.results.append(Series("", name, "explained").result(*told))
        return found


def measures(config, facts, program, data):
    """The measurements."""
    return Measures(config, program, data)
