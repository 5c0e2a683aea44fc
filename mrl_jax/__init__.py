"""Matryoshka Representation Learning in JAX: one embedding, every listed prefix of it usable.

`Nesting` lists the granularities, `NestedHead` classifies every prefix (MRL, MRL-E or the
fixed-feature baseline) and `losses` weighs them into one loss. `kernels` has the losses of large
problems, at the cost of the longest prefix; `nested` lifts any other loss on embeddings, such as
those of `losses.pairs`. The commands `mrl_jax.train`, `evaluate`, `sweep` and `report` join them
into a run: data, mesh, checkpoints, metrics, plots. `load` opens a trained model.
"""

import importlib
from typing import Any

__all__ = ["NestedHead", "Nesting", "kernels", "load", "losses", "nested"]

_MODULES = {
    "NestedHead": "heads",
    "Nesting": "nesting",
    "load": "model",
    "nested": "losses.lift",
}


def __getattr__(name: str) -> Any:
    # On first use: importing JAX takes seconds, and commands listen to signals before that.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_MODULES.get(name, name)}")
    return getattr(module, name) if name in _MODULES else module
