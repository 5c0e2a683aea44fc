"""Matryoshka Representation Learning in JAX: one embedding, every listed prefix of it usable.

`Nesting` lists the granularities, `NestedHead` classifies every prefix (MRL, MRL-E or the
fixed-feature baseline) and `losses` weighs them into one loss. The commands `mrl_jax.train`,
`evaluate`, `sweep` and `report` join them into a run: data, mesh, checkpoints, metrics, plots.
"""

from mrl_jax import losses
from mrl_jax.heads import NestedHead
from mrl_jax.nesting import Nesting

__all__ = ["NestedHead", "Nesting", "losses"]
