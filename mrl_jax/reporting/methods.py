"""What was trained: runs that differ by seed only are one method; methods get readable labels."""

import dataclasses
import json
import math
import pathlib
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

from mrl_jax.config import OPERATIONAL_KEYS
from mrl_jax.errors import DataError
from mrl_jax.record.artefacts import Units
from mrl_jax.record.metrics import TRAINED
from mrl_jax.record.results import Result, Series
from mrl_jax.record.runs import Run

# Keys that name or carry out a run without changing what is trained, and those that the label
# of a method tells anyway.
NOT_A_VARIANT = (
    *(key for key in OPERATIONAL_KEYS if not key.startswith("eval.")),
    *("name", "seed", "head.kind"),
    # The measures that these add have names of their own, and test sets are compared by digest.
    *("eval.every", "eval.batch_size", "eval.measures", "eval.dims", "eval.layers"),
    *("eval.projections", "eval.hierarchy", "eval.shifts", "eval.sts", "eval.retrieval"),
    *("eval.classification", "eval.clustering"),
)
OWN_SPLITS = ("train", "val", "test")
READ = "read."  # prefix of a variant's keys that are not config keys but say what was read
SLIM = "slim"
ONE_DIM = ("fixed", SLIM)
NAMES = {"separate": "MRL", "shared": "MRL-E", "fixed": "FF", SLIM: "Slim"}

# The config values, as (key, JSON text), in which a method differs from others of the study.
Variant = tuple[tuple[str, str], ...]


def series(place: str, metric: str, space: str = TRAINED, layer: int | None = None) -> Series:
    """What is measured on one of the data's splits, or on a set of this name."""
    at = {"split": place} if place in OWN_SPLITS else {"set": place}
    return Series(**at, metric=metric, space=space, layer=layer)


@dataclasses.dataclass(frozen=True)
class Method:
    """One way of training: its kind, trained dims and variant, with a run for every seed.

    `kind` is that of the runs' heads, or "slim": FF-m of a network that is narrow throughout.
    """

    kind: str
    dims: tuple[int, ...]
    variant: Variant
    suffix: str  # of the label: "" or ", learning_rate=0.1"
    runs: dict[int, Run]

    @property
    def label(self) -> str:
        """As in "MRL", "FF-8" or "MRL-E, learning_rate=0.1"."""
        dim = f"-{self.dims[-1]}" if self.kind in ONE_DIM else ""
        return NAMES[self.kind] + dim + self.suffix

    @property
    def curve_label(self) -> str:
        """Of the curve it is a part of: FF-8 is the point at 8 dims of FF-m."""
        return f"{NAMES[self.kind]}-m{self.suffix}" if self.kind in ONE_DIM else self.label

    def measured(self, series: Series) -> list[Result]:
        """The results of a series from all runs, in order of seed."""
        return [r for _, run in sorted(self.runs.items()) for r in run.measured(series)]

    def values(self, series: Series) -> dict[int, dict[int, float]]:
        """Measured values as {dim: {seed: value}}."""
        values = defaultdict(dict)
        for seed, run in sorted(self.runs.items()):
            for result in run.measured(series):
                values[result.dim][seed] = result.value
        return dict(values)

    def units(self, series: Series, dim: int) -> dict[int, Units]:
        """By seed what a result is the mean of, where that is known.

        Raises:
          DataError: a file is damaged, or holds something else than the result is the mean of.
        """
        found = {}
        for seed, run in sorted(self.runs.items()):
            units = run.artefacts.units(series, dim)
            if units is None or not run.data:
                continue
            mean, n = units.value_n.mean(), len(units.value_n)
            for r in run.measured(series):
                # Means of draws are written with six digits.
                if r.dim == dim and abs(r.value - mean) > 1e-5:
                    raise DataError(
                        f"{run.artefacts.folder}: {series.name} at {dim} dims is {r.value:.6g} "
                        f"in results.json, but the mean of {n} {units.noun} here is {mean:.6g}: "
                        "evaluate the run again"
                    )
            found[seed] = units._replace(key=f"{run.data} {units.key}")
        return found


def _is_variant(key: str, kind: str) -> bool:
    # A fixed run has one granularity: its label tells the dim, and a lone weight means nothing.
    if kind in ONE_DIM and key.startswith("nesting."):
        return False
    if kind == SLIM and key in ("model.width", "model.embedding_dim"):
        return False
    return not any(key == k or key.startswith(k + ".") for k in NOT_A_VARIANT)


def _as_text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _kinds(runs: Sequence[Run]) -> list[str]:
    """The kind of every run, told from the others where they must be known: "slim".

    A slim network is FF-m, m its full width, with a smaller model.width than the nested networks
    have; in a study without these, than the FF of most dims have.
    """
    nested = [run for run in runs if run.kind != "fixed"]
    widest = max(run.dims[-1] for run in runs)
    standard = nested or [run for run in runs if run.dims[-1] == widest]
    # 0 is the network's own width, which a width that is given is meant to be below.
    widths = {run.config.get("model.width") or math.inf for run in standard}

    def slim(run: Run) -> bool:
        width = run.config.get("model.width")
        narrow = isinstance(width, int) and 0 < width < min(widths)
        all_of_it = run.config.get("model.embedding_dim") in (0, run.dims[-1])
        return run.kind == "fixed" and narrow and all_of_it

    return [SLIM if slim(run) else run.kind for run in runs]


def _variants(runs: Sequence[Run], kinds: Sequence[str]) -> list[Variant]:
    """For every run, its values of the keys that are not the same in all runs that have a say."""
    relevant = [
        {k: _as_text(v) for k, v in r.config.items() if _is_variant(k, kind)}
        for r, kind in zip(runs, kinds, strict=True)
    ]
    varying = []
    for key in dict.fromkeys(key for values in relevant for key in values):
        said = [
            values.get(key)
            for kind, values in zip(kinds, relevant, strict=True)
            if _is_variant(key, kind)
        ]
        if len(set(said)) > 1:
            varying.append(key)
    return [tuple((k, values[k]) for k in varying if k in values) for values in relevant]


def _grouped_by(variant: Variant) -> Variant:
    """A variant without the keys that only some kinds of methods have."""
    own = ("nesting.", "model.width", "model.embedding_dim")
    return tuple(item for item in variant if not item[0].startswith(own))


def _with_read(runs: Sequence[Run], variants: Sequence[Variant]) -> list[Variant]:
    """The variants, extended by what was read wherever runs of one variant differ in that.

    A difference that follows from the variant, such as texts cut at another length, is not added.
    """
    data = [{"data": run.data} if run.data else {} for run in runs]
    digests = [{**of_data, **run.read} for of_data, run in zip(data, runs, strict=True)]
    read = _comparable(digests, [run.places for run in runs])
    varying = []
    for key in dict.fromkeys(key for of_run in read for key in of_run):
        found = defaultdict(set)
        for of_run, variant in zip(read, variants, strict=True):
            if key in of_run:
                found[_grouped_by(variant)].add(of_run[key])
        if any(len(values) > 1 for values in found.values()):
            varying.append(key)
    named = {key: _names(key, read, runs) for key in varying}
    return [
        (*variant, *((READ + key, named[key][of_run[key]]) for key in varying if key in of_run))
        for of_run, variant in zip(read, variants, strict=True)
    ]


def _comparable(
    digests: Sequence[dict[str, str]], places: Sequence[dict[str, str]]
) -> list[dict[str, str]]:
    """What runs read: by digest if all that read it have one, else by path."""
    without = {
        key
        for of_run, at in zip(digests, places, strict=True)
        for key in at.keys() - of_run.keys()
        if key != "data"  # its path does not tell what it is
    }
    return [
        {**of_run, **{key: at[key] for key in at if key in without}}
        for of_run, at in zip(digests, places, strict=True)
    ]


def _names(key: str, read: Sequence[dict[str, str]], runs: Sequence[Run]) -> dict[str, str]:
    """JSON text for each value of a key: a file or folder name if that is unique, else a digest."""
    names = defaultdict(set)
    for of_run, run in zip(read, runs, strict=True):
        if key in of_run:
            names[of_run[key]].add(pathlib.PurePath(run.places.get(key, "")).name)
    told = [next(iter(found)) for found in names.values() if len(found) == 1]
    apart = len({*told}) == len(names) and all(told)
    length = next(n for n in (8, 16, 32, 64, 4096) if len({v[:n] for v in names}) == len(names))
    return {
        value: json.dumps(next(iter(found)) if apart else value[:length])
        for value, found in names.items()
    }


def read_of(variant: Variant) -> Variant:
    """The part of a variant that says what was read."""
    return tuple(item for item in variant if item[0].startswith(READ))


def suffix(variant: Variant, variants: Collection[Variant]) -> str:
    """The part of a label that tells a variant from the others, e.g. ", learning_rate=0.1"."""
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
    """The methods of `runs`: MRL first, MRL-E, FF and Slim by dim; variants in order of value.

    Raises:
      DataError: two runs of the same method have the same seed; names both.
    """
    kinds = _kinds(runs)
    variants = _with_read(runs, _variants(runs, kinds))
    methods: dict[tuple, Method] = {}
    for run, kind, variant in zip(runs, kinds, variants, strict=True):
        dims = run.dims if kind in ONE_DIM else ()  # nested dims are part of the variant
        key = (kind, dims, variant)
        if key not in methods:
            methods[key] = Method(kind, run.dims, variant, suffix(variant, variants), {})
        method = methods[key]
        if run.seed in method.runs:
            raise DataError(
                f"runs {method.runs[run.seed].folder} and {run.folder} are the same method "
                f"({method.label}) with the same seed {run.seed}: report one of them at a time"
            )
        method.runs[run.seed] = run

    def position(method: Method) -> tuple:
        values = tuple((key, _order(text)) for key, text in method.variant)
        dims = method.dims if method.kind in ONE_DIM else ()
        return (list(NAMES).index(method.kind), values, dims)

    return sorted(methods.values(), key=position)


def baseline(method: Method, methods: Sequence[Method], kind: str = "fixed") -> list[Method]:
    """The FF (or Slim) that `method` is to be compared with, by dim; [] where there are none.

    Those that share its variant (nesting keys aside, which they have not); else, where all of them
    are of one variant, those, if they were trained and measured on the same data.
    """

    def keys(variant: Variant, prefix: str | tuple[str, ...], inside: bool) -> Variant:
        return tuple(item for item in variant if item[0].startswith(prefix) == inside)

    fixed = [m for m in methods if m.kind == kind]
    wanted = keys(method.variant, "nesting.", False)
    same = [m for m in fixed if m.variant == wanted]
    if not same and len({m.variant for m in fixed}) == 1:
        data = keys(method.variant, ("data.", READ), True)
        same = [m for m in fixed if keys(m.variant, ("data.", READ), True) == data]
    return same
