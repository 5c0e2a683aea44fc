"""What was trained: runs that differ by seed only are one method; methods get readable labels."""

import dataclasses
import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from mrl_jax.config import OPERATIONAL_KEYS
from mrl_jax.errors import DataError
from mrl_jax.reporting.runs import Run

# Keys that name or carry out a run without changing what is trained, and those that the label
# of a method tells anyway.
NOT_A_VARIANT = (*OPERATIONAL_KEYS, "name", "seed", "eval", "head.kind")
NAMES = {"separate": "MRL", "shared": "MRL-E", "fixed": "FF"}

# The config values, as (key, JSON text), in which a method differs from others of the study.
Variant = tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Method:
    """One way of training: its kind, trained dims and variant, with a run for every seed."""

    kind: str
    dims: tuple[int, ...]
    variant: Variant
    suffix: str  # of the label: "" or ", learning_rate=0.1"
    runs: dict[int, Run]

    @property
    def label(self) -> str:
        """As in "MRL", "FF-8" or "MRL-E, learning_rate=0.1"."""
        dim = f"-{self.dims[-1]}" if self.kind == "fixed" else ""
        return NAMES[self.kind] + dim + self.suffix

    def values(self, split: str, metric: str) -> dict[int, dict[int, float]]:
        """Measured values as {dim: {seed: value}}."""
        values = defaultdict(dict)
        for seed, run in sorted(self.runs.items()):
            for result in run.results:
                if (result.split, result.metric) == (split, metric):
                    values[result.dim][seed] = result.value
        return dict(values)


def _is_variant(key: str, kind: str) -> bool:
    # A fixed run has one granularity: its label tells the dim, and a lone weight means nothing.
    if kind == "fixed" and key.startswith("nesting."):
        return False
    return not any(key == k or key.startswith(k + ".") for k in NOT_A_VARIANT)


def _as_text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _variants(runs: Sequence[Run]) -> list[Variant]:
    """For every run, its values of the keys that are not the same in all runs that have a say."""
    relevant = [
        {k: _as_text(v) for k, v in r.config.items() if _is_variant(k, r.kind)} for r in runs
    ]
    varying = []
    for key in dict.fromkeys(key for values in relevant for key in values):
        said = [
            values.get(key)
            for run, values in zip(runs, relevant, strict=True)
            if _is_variant(key, run.kind)
        ]
        if len(set(said)) > 1:
            varying.append(key)
    return [tuple((k, values[k]) for k in varying if k in values) for values in relevant]


def _suffix(variant: Variant, variants: Sequence[Variant]) -> str:
    keys = {key for other in variants for key, _ in other}
    last = [key.rpartition(".")[2] for key in keys]
    parts = []
    for key, text in variant:
        short = key.rpartition(".")[2]
        value = json.loads(text)
        shown = value if isinstance(value, str) and value else text
        parts.append(f", {short if last.count(short) == 1 else key}={shown}")
    return "".join(parts)


def _order(value: str) -> tuple:
    loaded = json.loads(value)
    number = isinstance(loaded, (int, float))
    return (not number, loaded if number else 0, value)


def group(runs: Sequence[Run]) -> list[Method]:
    """The methods of `runs`: MRL first, then MRL-E, then FF by dim; variants in order of value.

    Raises:
      DataError: two runs of the same method have the same seed; names both.
    """
    variants = _variants(runs)
    methods: dict[tuple, Method] = {}
    for run, variant in zip(runs, variants, strict=True):
        dims = run.dims if run.kind == "fixed" else ()  # nested dims are part of the variant
        key = (run.kind, dims, variant)
        if key not in methods:
            methods[key] = Method(run.kind, run.dims, variant, _suffix(variant, variants), {})
        method = methods[key]
        if run.seed in method.runs:
            raise DataError(
                f"runs {method.runs[run.seed].folder} and {run.folder} are the same method "
                f"({method.label}) with the same seed {run.seed}: report one of them at a time"
            )
        method.runs[run.seed] = run

    def position(method: Method) -> tuple:
        values = tuple((key, _order(text)) for key, text in method.variant)
        dims = method.dims if method.kind == "fixed" else ()
        return (list(NAMES).index(method.kind), values, dims)

    return sorted(methods.values(), key=position)


def baseline(method: Method, methods: Sequence[Method]) -> list[Method]:
    """The FF runs that `method` is to be compared with, by dim; [] where there are none.

    Those that share its variant (nesting keys aside, which FF has not); else, where all FF of the
    study are of one variant, those, if they were trained on the same data.
    """

    def keys(variant: Variant, prefix: str, inside: bool) -> Variant:
        return tuple(item for item in variant if item[0].startswith(prefix) == inside)

    fixed = [m for m in methods if m.kind == "fixed"]
    wanted = keys(method.variant, "nesting.", False)
    same = [m for m in fixed if m.variant == wanted]
    if not same and len({m.variant for m in fixed}) == 1:
        data = keys(method.variant, "data.", True)
        same = [m for m in fixed if keys(m.variant, "data.", True) == data]
    return same
