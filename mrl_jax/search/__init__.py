"""Searching nested embeddings: find with few dims, decide with many. All of it sees only arrays.

`top_k` and `funnel` search arrays on devices, exactly and by a `Schedule`; a `DeviceIndex` does so
again and again. An `Index` is in a folder, and `search.planner` finds a plan for it.
"""

import importlib
from typing import Any

__all__ = ["DeviceIndex", "Index", "Schedule", "funnel", "top_k"]

_MODULES = {
    "DeviceIndex": "device.funnel",
    "Index": "index",
    "Schedule": "schedule",
    "funnel": "device.funnel",
    "top_k": "device.exact",
}


def __getattr__(name: str) -> Any:
    # On first use: a schedule needs no JAX, which takes a second to import.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
