"""Encoders of which fewer layers are run: a measure at layer x dim, as tables."""

import dataclasses
from collections.abc import Sequence

from mrl_jax.record import metrics
from mrl_jax.reporting import shifted, statistics, tables
from mrl_jax.reporting.content import Section
from mrl_jax.reporting.headline import WITHIN, percent
from mrl_jax.reporting.methods import Method, series
from mrl_jax.reporting.sheet import Cell, Row, Sheet

ALL = "all"
UNTRAINED = "Only the last layer was trained."


def section(methods: Sequence[Method], split: str) -> Section | None:
    """Layer x dim on the split and on other sets; None where no layers were measured."""
    sheets, said = [], []
    for name in (split, *shifted.names(methods)):
        for method in methods:
            for metric, layers in _measured(method, name).items():
                grid = {
                    layer: method.values(series(name, metric, layer=layer))
                    for layer in (*layers, None)
                }
                means = {
                    (layer, dim): statistics.summarize(list(by_seed.values())).mean
                    for layer, by_dim in grid.items()
                    for dim, by_seed in by_dim.items()
                }
                place = tables.SPLIT_NAMES.get(name, name)
                title = f"{metrics.describe(metric).title}, {place}"
                sheet = _sheet(f"{title}: {method.label} by layer and dim", means)
                if {run.config.get("pairs.layers") for run in method.runs.values()} == {"last"}:
                    sheet = dataclasses.replace(sheet, notes=(*sheet.notes, UNTRAINED))
                sheets.append(sheet)
                said.append(f"{title}: {_smallest(method.label, means)}")
    if not sheets:
        return None
    return Section("Fewer layers", said[0], tuple(said[1:]), (), tuple(sheets))


def _measured(method: Method, name: str) -> dict[str, list[int]]:
    """Of every metric that was measured after layers on a set, after which."""
    found: dict[str, set[int]] = {}
    for run in method.runs.values():
        for result in run.results:
            if result.series.place == name and result.layer is not None:
                found.setdefault(result.metric, set()).add(result.layer)
    return {metric: sorted(layers) for metric, layers in sorted(found.items())}


def _whole(means: dict[tuple[int | None, int], float]) -> float:
    """After all layers, at all dims."""
    return means[None, max(dim for layer, dim in means if layer is None)]


def _sheet(title: str, means: dict[tuple[int | None, int], float]) -> Sheet:
    dims = sorted({dim for _, dim in means})
    layers = [*sorted({layer for layer, _ in means if layer is not None}), None]
    least = _whole(means) - WITHIN
    rows = []
    for layer in layers:
        cells = [
            Cell(percent(means[layer, dim]), best=means[layer, dim] >= least)
            if (layer, dim) in means
            else Cell()
            for dim in dims
        ]
        rows.append(Row(ALL if layer is None else str(layer), tuple(cells)))
    note = (
        "Rows: layers that are run; columns: dims that are kept. Mean over seeds, in percent; "
        "marked is what is within one point of all layers and dims, or above."
    )
    return Sheet(title, ("layers", *map(str, dims)), tuple(rows), (note,))


def _smallest(label: str, means: dict[tuple[int | None, int], float]) -> str:
    """The fewest layers that are within one point, and the fewest dims there."""
    whole = _whole(means)
    near = [(layer, dim) for layer, dim in means if layer and means[layer, dim] >= whole - WITHIN]
    if not near:
        return (
            f"no fewer layers of {label} come within one point of the {percent(whole)}% of all "
            "layers and dims."
        )
    layer, dim = min(near)
    noun = "layer" if layer == 1 else "layers"
    return (
        f"{label} reaches {percent(means[layer, dim])}% after {layer} {noun} at {dim} dims, within "
        f"one point of the {percent(whole)}% of all layers and dims."
    )
