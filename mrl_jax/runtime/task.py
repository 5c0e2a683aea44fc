"""What the trainer knows of a task: pure functions of parameters and a batch."""

from typing import Any, Protocol

import jax

from mrl_jax.nesting import Nesting

Tree = dict[str, Any]


class Task(Protocol):
    """A model and its loss; the trainer knows nothing of images, texts or classes.

    A batch is a dict of arrays whose first axis is the example. `mask` says which examples count:
    [B], or [B, P] where an example holds P predictions.
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
        """Embeddings [B, D], one per example, as in use: without dropout or augmentation."""
