"""What was trained: runs that differ only by seed are one method, which gets a readable label."""

import dataclasses
import functools
import json
import math
import pathlib
from collections import defaultdict
from collections.abc import Collection, Sequence

import pandas as pd

from mrl_jax.config import compare_alike
from mrl_jax.errors import DataError
from mrl_jax.record.artefacts import Units
from mrl_jax.record.results import Result, Series
from mrl_jax.record.runs import Run

# The last three name a run, or are in the label of a method anyway.
NOT_A_VARIANT = {*compare_alike(), "name", "seed", "head.kind"}
READ = "read."  # prefix of a variant's keys that are not config keys but say what was read
SLIM = "slim"
ONE_DIM = ("fixed", SLIM)
NAMES = {"separate": "MRL", "shared": "MRL-E", "fixed": "FF", SLIM: "Slim"}

MOST_SHOWN = 3  # config keys in a label

COLUMNS = ("run", "method", "seed", *Result._fields)

# The config values, as (key, JSON text), in which a method differs from others of the study.
Variant = tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True, eq=False)
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

    @functools.cached_property
    def frame(self) -> pd.DataFrame:
        """All numbers of its runs, one per row, under `COLUMNS`."""
        rows = [
            (run.folder, self.label, seed, *result)
            for seed, run in sorted(self.runs.items())
            for result in run.results
        ]
        # Other columns than of objects hold only Unicode, and no whole numbers beside None.
        frame = pd.DataFrame(rows, columns=COLUMNS, dtype=object)
        numbers = {"seed": int, "dim": int, "value": float, "stderr": float, "n": int}
        return frame.astype(numbers)

    @functools.cached_property
    def _by_series(self) -> dict[Series, pd.DataFrame]:
        series = [Series(*key) for key in self.frame[[*Series._fields]].itertuples(index=False)]
        by_series = self.frame.groupby(pd.Series(series, dtype=object), sort=False)
        return {Series(*key): rows.sort_values(["dim", "seed"]) for key, rows in by_series}

    def measured(self, series: Series) -> pd.DataFrame:
        """The rows of `frame` that are of one series, by dim and seed."""
        return self._by_series.get(series, self.frame.iloc[:0])

    @property
    def series(self) -> list[Series]:
        """What was measured."""
        return list(self._by_series)

    def units(self, series: Series, dim: int) -> dict[int, Units]:
        """What a result is the mean of, by seed, where that is known.

        Raises:
          DataError: a file is damaged, or holds something else than the result is the mean of.
        """
        found, rows = {}, self.measured(series)
        rows = rows[rows.dim == dim]
        for seed, value in zip(rows.seed, rows.value, strict=True):
            run = self.runs[seed]
            units = run.artefacts.units(series, dim)
            if units is None or not run.data:
                continue
            mean, n = units.value_n.mean(), len(units.value_n)
            if abs(value - mean) > 1e-5:  # means of draws are written with six digits
                raise DataError(
                    f"{run.artefacts.folder}: {series.name} at {dim} dims is {value:.6g} in "
                    f"results.json, but the mean of {n} {units.noun} here is {mean:.6g}: evaluate "
                    "the run again"
                )
            found[seed] = units._replace(key=f"{run.data} {units.key}")
        return found


def _is_variant(key: str, kind: str) -> bool:
    # A fixed run has one dim, which its label shows, and the weight of a single dim means nothing.
    if kind in ONE_DIM and key.startswith("nesting."):
        return False
    if kind == SLIM and key in ("model.width", "model.embedding_dim"):
        return False
    return key not in NOT_A_VARIANT


def _kinds(runs: Sequence[Run]) -> list[str]:
    """The kind of every run, where "slim" can only be told by comparing runs.

    A slim network is FF-m, m its full width, with a smaller model.width than the nested networks
    have; in a study without these, than the FF of most dims have.
    """
    widest = max(run.dims[-1] for run in runs)
    nested = [run for run in runs if run.kind != "fixed"]
    standard = nested or [run for run in runs if run.dims[-1] == widest]
    # 0 stands for the full width of the network; a width that is given is meant to be smaller.
    widths = {run.config.get("model.width") or math.inf for run in standard}

    def slim(run: Run) -> bool:
        width = run.config.get("model.width")
        narrow = isinstance(width, int) and 0 < width < min(widths)
        all_of_it = run.config.get("model.embedding_dim") in (0, run.dims[-1])
        return run.kind == "fixed" and narrow and all_of_it

    return [SLIM if slim(run) else run.kind for run in runs]


def _variants(runs: Sequence[Run], kinds: Sequence[str]) -> list[Variant]:
    """For every run, its values of the keys that differ between the runs to which they apply."""
    relevant = [
        {k: json.dumps(v, sort_keys=True) for k, v in r.config.items() if _is_variant(k, kind)}
        for r, kind in zip(runs, kinds, strict=True)
    ]
    varying = []
    for key in dict.fromkeys(key for values in relevant for key in values):
        every = zip(kinds, relevant, strict=True)
        if len({values.get(key) for kind, values in every if _is_variant(key, kind)}) > 1:
            varying.append(key)
    return [tuple((k, values[k]) for k in varying if k in values) for values in relevant]


def _read(runs: Sequence[Run]) -> list[dict[str, str]]:
    """What each run read, by role: by digest if all that read it have one, else by path."""
    read = [({"data": run.data} if run.data else {}) | run.read for run in runs]
    for key in dict.fromkeys(key for run in runs for key in run.places):
        placed = [(own, run) for own, run in zip(read, runs, strict=True) if key in run.places]
        # The path of the data does not say what the data are.
        if key != "data" and any(key not in own for own, _ in placed):
            for own, run in placed:
                own[key] = run.places[key]
    return read


def _with_read(runs: Sequence[Run], variants: Sequence[Variant]) -> list[Variant]:
    """The variants, extended by what was read wherever runs of one variant differ in that.

    A difference that follows from the variant, such as texts cut at another length, is not added.
    """
    read, own = _read(runs), ("nesting.", "model.width", "model.embedding_dim")
    extended = list(variants)
    for key in dict.fromkeys(key for of_run in read for key in of_run):
        found, names = defaultdict(set), defaultdict(set)
        for run, of_run, variant in zip(runs, read, variants, strict=True):
            if key in of_run:
                # Leaves out the keys that only some kinds of methods have.
                shared = tuple(item for item in variant if not item[0].startswith(own))
                found[shared].add(of_run[key])
                names[of_run[key]].add(pathlib.PurePath(run.places.get(key, "")).name)
        if all(len(values) == 1 for values in found.values()):
            continue
        # The name of a file or folder if that tells them apart, else the digest.
        told = {min(files) for files in names.values() if len(files) == 1} - {""}
        length = next(n for n in (8, 16, 32, 64, 4096) if len({v[:n] for v in names}) == len(names))
        for i, of_run in enumerate(read):
            if value := of_run.get(key):
                name = min(names[value]) if len(told) == len(names) else value[:length]
                extended[i] = (*extended[i], (READ + key, json.dumps(name)))
    return extended


def read_of(variant: Variant) -> Variant:
    """The part of a variant that says what was read."""
    return tuple(item for item in variant if item[0].startswith(READ))


def _told_by(variants: Collection[Variant]) -> set[str]:
    """The keys that labels show: all, or of more than `MOST_SHOWN` as few as tell variants apart.

    A configuration that differs in many keys is known by one of them, which is rather a word, such
    as towers.locked=both, than one of the numbers that go with it.
    """
    values = [dict(variant) for variant in variants]
    left = list(dict.fromkeys(key for of_keys in values for key in of_keys))
    if len(left) <= MOST_SHOWN:
        return set(left)

    def apart(keys: Collection[str]) -> int:
        return len({tuple(of_keys.get(key) for key in keys) for of_keys in values})

    chosen: list[str] = []
    while apart(chosen) < apart(left):
        words = {k: all(v.get(k, '"').startswith('"') for v in values) for k in left}
        more = [key for key in left if apart([*chosen, key]) > apart(chosen)]
        chosen.append(max(more, key=lambda key: (words[key], apart([*chosen, key]))))
    return set(chosen)


def suffix(variant: Variant, variants: Collection[Variant]) -> str:
    """The part of a label that tells a variant from the others, e.g. ", learning_rate=0.1"."""
    keys = _told_by(variants)
    last = [key.rpartition(".")[2] for key in keys]
    parts = []
    for key, text in variant:
        if key not in keys:
            continue
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
        new = Method(kind, run.dims, variant, suffix(variant, variants), {})
        method = methods.setdefault((kind, dims, variant), new)
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
