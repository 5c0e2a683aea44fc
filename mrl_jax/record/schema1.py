"""results.json of schema 1, whose results have names such as "test/spearman_pca_layer3"."""

import hashlib
from typing import Any

from mrl_jax.errors import DataError, shown
from mrl_jax.record.artefacts import Artefacts
from mrl_jax.record.metrics import RIVALS, TRAINED
from mrl_jax.record.results import Series
from mrl_jax.store.json_files import field

SCHEMA = 1
_SPLITS = ("train", "val", "test")


def upgraded(values: dict[str, Any], artefacts: Artefacts, where: str) -> dict[str, Any]:
    """The same content in the present schema.

    Raises:
      DataError: a field is missing, or a name is none of a result.
    """
    results = []
    for i, item in enumerate(field(values, "results", list, where)):
        name = field(item, "name", str, f"{where}: results[{i}]")
        series = _series(name, f"{where}: results[{i}]")
        results.append({**item, **series._asdict()})
    read = dict(field(values, "read", dict, where)) if "read" in values else {}
    for place in sorted({result["set"] or result["split"] for result in results}):
        # Older runs have digests only among the files that evaluators left.
        if about := artefacts.shift(place):
            read.setdefault(f"shifts.{place}", field(about[0], "data", str, about[1]))
        if "hierarchy" not in read and (groups := artefacts.superclasses(place)):
            read[f"superclasses.{place}"] = hashlib.sha256(groups.encode()).hexdigest()[:16]
    defaults = {"data": "", "skipped": {}, "metrics": {}}
    return {**defaults, **values, "read": read, "results": results}


def _series(name: str, where: str) -> Series:
    place, slash, label = name.partition("/")
    if not (place and slash and label):
        raise DataError(f"{where}: name must be split/metric such as test/top1, got {shown(name)}")
    base, layered, number = label.partition("_layer")
    layer = int(number) if layered and number.isdecimal() else None
    label = label if layer is None else base
    space = next((s for s in RIVALS if label.endswith(f"_{s}") and label != f"_{s}"), TRAINED)
    metric = label if space == TRAINED else label.removesuffix(f"_{space}")
    at = {"split": place} if place in _SPLITS else {"set": place}
    return Series(**at, metric=metric, space=space, layer=layer)
