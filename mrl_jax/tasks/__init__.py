"""What is learned from what: a task joins a model and a loss into pure functions of a batch."""

from typing import Any, Protocol

import jax

from mrl_jax.nesting import Nesting
from mrl_jax.tasks.classification.task import Classification

__all__ = ["Classification", "Task"]

Tree = dict[str, Any]


class Task(Protocol):
    """What the trainer knows of a task: nothing of images, texts or classes.

    A batch is a dict of arrays whose first axis is the example; `mask` says which count: [B], or
    [B, P] where an example holds P things to be told.
    """

    @property
    def nesting(self) -> Nesting:
        """The granularities that are trained."""

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the largest batch of so many examples, without sharding."""

    def init(self, key: jax.Array) -> tuple[Tree, Tree]:
        """Fresh (parameters, model state); what changes outside the gradient is model state."""

    def loss(
        self, params: Tree, model_state: Tree, batch: Tree, key: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, Tree]]:
        """Training loss: (total, (loss of each granularity [G], new model state))."""

    def embed(self, params: Tree, model_state: Tree, batch: Tree) -> jax.Array:
        """Embeddings [B, D] of one thing per example, as in use: nothing random."""
