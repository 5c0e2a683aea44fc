"""Matryoshka Representation Learning in JAX: one embedding, every listed prefix of it usable.

`Nesting` lists the granularities, `NestedHead` classifies every prefix (MRL, MRL-E or the
fixed-feature baseline) and `losses` weighs them into one loss. `kernels` has the losses of large
problems, at the cost of the longest prefix; `nested` lifts any other loss on embeddings, such as
those of `pair_losses`. The commands `mrl_jax.train`, `evaluate`, `sweep` and `report` join them
into a run: data, mesh, checkpoints, metrics, plots.
"""

from mrl_jax import kernels, losses, pair_losses
from mrl_jax.heads import NestedHead
from mrl_jax.lift import nested
from mrl_jax.nesting import Nesting

__all__ = ["NestedHead", "Nesting", "kernels", "losses", "nested", "pair_losses"]
