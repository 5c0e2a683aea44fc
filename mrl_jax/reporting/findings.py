"""The sections about what evaluators wrote to files of their own, and about shifted test sets."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pandas as pd

from mrl_jax import plots
from mrl_jax.errors import DataError
from mrl_jax.plots import Chart, Line, Point
from mrl_jax.record import metrics
from mrl_jax.record.artefacts import fractions
from mrl_jax.record.results import Series
from mrl_jax.reporting import charts, published, sheet, statistics, tables
from mrl_jax.reporting.content import Cell, Figure, Row, Section, Sheet
from mrl_jax.reporting.methods import ONE_DIM, Method
from mrl_jax.reporting.tables import Table
from mrl_jax.reporting.text import count, listing, percent, signed
from mrl_jax.store.json_files import field

TRENDS = ("rises", "rises_then_dips", "dips_then_rises", "no_trend")  # of classes, with dims
UNTRAINED = "Only the last layer was trained."
CLEAN = "clean"  # the family of accuracies on clean examples of the classes of a shifted set


class File(NamedTuple):
    """What an evaluator wrote about one run: the content of a JSON file, and its name in errors."""

    method: Method
    seed: int
    values: dict[str, Any]
    where: str

    def get(self, key: str, types: Any, of: Any = None) -> Any:
        """A checked field of the file, or of an object within it."""
        return field(self.values if of is None else of, key, types, self.where)

    def number(self, of: Any, name: str) -> tuple[float, float, float]:
        """A measured number of an object and the ends of its 95% interval.

        Raises:
          DataError: it is missing or not finite.
        """
        keys = (f"{name}.{part}" for part in ("value", "low", "high"))
        number = tuple(float(self.get(key, (int, float), of)) for key in keys)
        if not all(map(math.isfinite, number)):
            raise DataError(f"{self.where}: {name} must be finite, got {number}")
        return number

    def objects(self, key: str, of: Any = None) -> list[dict[str, Any]]:
        """A list of objects.

        Raises:
          DataError: it is something else.
        """
        found = self.get(key, list, of)
        if not all(isinstance(one, dict) for one in found):
            raise DataError(f"{self.where}: {key} must be a list of objects")
        return found

    @property
    def name(self) -> str:
        """The run in a heading."""
        return f"{self.method.label}, seed {self.seed}"


def files(methods: Sequence[Method], kind: str, place: str) -> list[File]:
    """The files of a kind about a split or set, by method and seed.

    Raises:
      DataError: one of them is damaged.
    """
    return [
        File(method, seed, values, run.artefacts.where(kind, place))
        for method in methods
        for seed, run in sorted(method.runs.items())
        if (values := run.artefacts.table(kind, place)) is not None
    ]


def _nested(methods: Sequence[Method]) -> list[Method]:
    return [method for method in methods if method.kind not in ONE_DIM]


def _first_of_methods(found: Sequence[File]) -> list[File]:
    return list({file.method.label: file for file in reversed(found)}.values())[::-1]


def _interval(number: tuple[float, float, float], write: Callable[[float], str]) -> Cell:
    value, low, high = map(write, number)
    return Cell(value, f"[{low}, {high}]")


def _dims(value: float) -> str:
    return f"{value:.1f}"


# The numbers of a policy, each with its column.
_POLICY = {
    "accuracy": ("accuracy, %", percent),
    "gain_on_full_width": ("− full width, points", signed),
    "gain_on_greedy": ("− one by one, points", signed),
    "expected_dim": ("dims", _dims),
    "full_width_by_expected_dim": ("times fewer", _dims),
    "cumulative_dim": ("dims of all prefixes tried", _dims),
}
# Curves of policies, each with the key that names its points.
CURVES = {
    "greedy": ("cap", "one by one, last dim"),
    "joint_for_greedy": ("cap", "jointly, at no more dims than one by one, last dim"),
    "joint": ("budget", "jointly, dims allowed"),
}
Policy = tuple[File, str, dict[str, Any]]  # a policy with its name


def _policies(title: str, points: Sequence[Policy], note: str = "") -> Sheet:
    """The numbers of policies, in the columns that any of them fills."""
    told = {key: column for key, column in _POLICY.items() if any(key in p for _, _, p in points)}
    rows = []
    for file, name, point in points:
        known = {key: file.number(point, key) for key in told if key in point}
        file.number(point, "accuracy")
        cells = (_interval(known[k], w) if k in known else Cell() for k, (_, w) in told.items())
        rows.append(Row(name, tuple(cells)))
    return Sheet(title, ("policy", *(column for column, _ in told.values())), tuple(rows), note)


def _recommended(found: Sequence[File]) -> Sheet:
    """The recommended policies of all runs, and the best that any could do."""
    points: list[Policy] = []
    for file in found:
        for point in file.objects("headline"):
            loss = percent(file.get("loss", (int, float), point))
            points.append((file, f"{file.name}, may lose {loss}", point))
        best = file.get("oracle", dict)
        points.append((file, f"{file.name}, best choice for every example", best))
    note = "Below: 95% intervals over resamplings of the examples, not over other seeds."
    note = " ".join([note, *published.cascade([file.method for file in found])])
    return _policies("Thresholds by the points of accuracy they may lose", points, note)


def _all_policies(file: File) -> Sheet:
    """Every dim alone, and the points of all curves of policies."""
    points = [(file, f"{file.get('dim', int, p)} dims alone", p) for p in file.objects("single")]
    curves = file.get("curves", dict)
    for curve, (key, title) in CURVES.items():
        for point in file.objects(curve, curves) if curve in curves else ():
            points.append((file, f"{title} {file.get(key, (int, float), point):g}", point))
    return _policies(f"{file.name}: all thresholds", points)


def _cascade_line(file: File, label: str, role: str, points: Sequence[Any], **style: Any) -> Line:
    drawn = {}
    for point in points:
        y, low, high = file.number(point, "accuracy")
        alone = "dim" in point
        x = file.get("dim", int, point) if alone else file.number(point, "expected_dim")[0]
        drawn[x] = Point(float(x), y, low, high)
    if not drawn or min(drawn) <= 0:
        raise DataError(f"{file.where}: {label} has no points, or one at no dims")
    return Line(label, role, tuple(drawn[x] for x in sorted(drawn)), **style)


def _cascade_figure(file: File, methods: Sequence[Method], base: Series) -> Figure:
    label, curves = file.method.label, file.get("curves", dict)

    drawn = functools.partial(_cascade_line, file)
    lines = [
        drawn(f"{label}, each dim alone", "ff_random", file.objects("single")),
        drawn("fitted jointly", "mrl", file.objects("joint", curves), band=True),
    ]
    if greedy := curves.get("greedy") and file.objects("greedy", curves):
        lines.append(drawn("fitted one by one", "mrl_e", greedy, dashes=1))
    lines.append(drawn("recommended", "slim", file.objects("headline"), dashes=None))
    lines.append(drawn("best per example", "ff_cut", [file.get("oracle", dict)], dashes=None))
    table = tables.build(methods, base._replace(metric="top1"))
    lines += [charts.line(c) for c in (table.curves if table else ()) if c.role == "ff"]
    title = f"Cascade of {label}, accuracy, %"
    chart = Chart(title, "dims, mean per example", tuple(lines), file.get("dims", list))
    caption = (
        f"Accuracy against the dims that examples take on average, {file.name}. Thresholds were "
        f"fitted on {file.get('fitted_on', str)}, jointly for all dims or one by one as the "
        "paper's code does. Band and bars: 95% intervals over resamplings of the examples."
    )
    return Figure("cascade.png", caption, plots.drawing(chart))


def cascades(methods: Sequence[Method], base: Series) -> Section | None:
    """What early stopping gives, drawn for the first run (the paper's Figure 6)."""
    found = files(_nested(methods), "cascade", base.place)
    if not found:
        return None
    lead = ""
    if points := found[0].objects("headline"):
        names = ("expected_dim", "full_width_by_expected_dim", "gain_on_full_width")
        dim, ratio, gain = (found[0].number(points[0], name) for name in names)
        change, interval = signed(gain[0]), _interval(gain, signed).below
        lead = (
            f"A cascade of {found[0].name} takes {_dims(dim[0])} dims per example, "
            f"{_dims(ratio[0])} times fewer than the full width, at {change} {interval} points."
        )
    return Section(
        "Adaptive classification",
        lead,
        (_cascade_figure(found[0], methods, base),),
        (_recommended(found),),
        tuple(map(_all_policies, _first_of_methods(found))),
    )


def _agreement_sheet(file: File) -> Sheet:
    dims = file.get("dims", list)
    agree = [fractions(row, file.where) for row in file.get("pairs.agree", list)]
    if [len(row) for row in agree] != [len(dims)] * len(dims):
        raise DataError(f"{file.where}: pairs.agree must be a square of {len(dims)} dims")
    rows = (
        Row(str(dim), tuple(Cell(percent(share)) for share in shares))
        for dim, shares in zip(dims, agree, strict=True)
    )
    title = f"{file.name}: percent of the examples for which two granularities say the same class"
    return Sheet(title, ("dim", *map(str, dims)), tuple(rows))


def agreements(methods: Sequence[Method], base: Series) -> Section | None:
    """What the granularities of one network say of the same examples: oracle, vote, agreement."""
    found = files(_nested(methods), "agreement", base.place)
    rows, lead = [], ""
    for first in _first_of_methods(found):
        method, own = first.method, [file for file in found if file.method is first.method]
        oracle = [file.get("oracle.accuracy", (int, float)) for file in own]
        dims = [file.get("oracle.expected_dim.smallest", (int, float)) for file in own]
        whole = method.measured(base._replace(metric="top1"))
        whole = whole[whole.dim == method.dims[-1]].value
        vote = method.measured(base._replace(metric="vote")).value
        shown = [sheet.mean_cell(statistics.summarize(oracle), len(oracle))]
        shown.append(Cell(_dims(statistics.summarize(dims).mean)))
        for values in (vote, whole):
            summary = statistics.summarize(list(values)) if len(values) else None
            shown.append(sheet.mean_cell(summary, len(oracle)))
        trends = [Cell(f"{first.get(f'classes.trends.{key}', int):,}") for key in TRENDS]
        rows.append(Row(method.label, (*shown, *trends)))
        lead = lead or (
            f"Some granularity of {method.label} is right for "
            f"{percent(statistics.summarize(oracle).mean)}% of the examples, the most that "
            "choosing one for each can give."
        )
    columns = ("method", "some right, %", "at dims", "vote, %", "full width, %")
    columns += tuple(f"classes: {trend.replace('_', ' ')}" for trend in TRENDS)
    note = "Classes: how many get better with dims and so on, of the first seed."
    shown = (Sheet("All granularities together", columns, tuple(rows), note),) if rows else ()
    built = (tables.build(methods, base._replace(metric=name)) for name in ("oracle", "vote"))
    folded = [_agreement_sheet(file) for file in _first_of_methods(found)]
    folded += sheet.of_tables([table for table in built if table])
    if not shown and not folded:
        return None
    return Section("Agreement of granularities", lead, (), shown, tuple(folded))


def sets(methods: Sequence[Method]) -> list[Series]:
    """The sets that are not splits of the run's own data, as series without a metric."""
    found = {Series(set=s.set, split=s.split) for m in methods for s in m.series if s.set}
    return sorted(found)


def is_shift(methods: Sequence[Method], base: Series) -> bool:
    """Whether a set holds other examples of the trained classes, and not texts."""
    return base._replace(metric="top1") in tables.measured(methods, base)


def _drops(shifted: Table, clean: Table) -> pd.DataFrame:
    """The column `lost`, (clean - shifted) / clean, by curve, dim and seed."""
    both = shifted.frame.merge(clean.frame, on=["curve", "dim", "seed"], suffixes=("", "_clean"))
    both = both[both.value_clean > 0]
    return both.assign(lost=1 - both.value / both.value_clean)


def _drop_intervals(methods: Sequence[Method], name: str) -> dict[tuple[str, int], str]:
    """The 95% intervals over examples of methods with a single run, by curve and dim."""
    found = {}
    for method in (m for m in methods if len(m.runs) == 1):
        (run,) = method.runs.values()
        about, where = run.artefacts.shift(name) or ({}, "")
        if "relative_drop_95" not in about:
            continue
        dims, intervals = (field(about, key, list, where) for key in ("dims", "relative_drop_95"))
        try:
            for dim, (low, high) in zip(dims, intervals, strict=True):
                if None not in (low, high):
                    found[method.curve_label, dim] = f"[{percent(low)}, {percent(high)}]"
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: relative_drop_95 of {name} is damaged") from error
    return found


def _drop_sheet(methods: Sequence[Method], name: str, drops: pd.DataFrame) -> Sheet:
    intervals = _drop_intervals(methods, name)
    labels, cells = list(drops.curve.unique()), {}
    for key, lost in drops.groupby(["curve", "dim"]).lost:
        below = intervals.get(key, "") if len(lost) == 1 else ""
        shown = sheet.mean_cell(statistics.summarize(list(lost)), len(lost))
        cells[key] = Cell(shown.text, below)
    rows = (
        Row(str(dim), tuple(cells.get((label, dim), Cell()) for label in labels))
        for dim in sorted(drops.dim.unique())
    )
    note = (
        "(clean − shifted) / clean in percent, clean being the examples of the same classes, asked "
        "in the same way; mean ± sample sd over seeds, of one seed the 95% interval over examples."
    )
    title = f"{name}: share of the clean accuracy that is lost"
    return Sheet(title, ("dim", *labels), tuple(rows), note)


def _lost(table: Table, drops: pd.DataFrame) -> str:
    """What the first nested method loses at its smallest and at its largest trained dim."""
    curve = charts.first_nested(table)
    own = drops[(drops.curve == curve.label) & drops.dim.isin(curve.trained)] if curve else []
    if not len(own):
        return ""
    lost = own.groupby("dim").lost.mean()
    ends = dict.fromkeys((lost.index[0], lost.index[-1]))
    parts = [f"{percent(lost[dim])}% at {dim}" for dim in ends]
    return f"{table.place} {listing(parts)} dims of {curve.label}"


def shifts(methods: Sequence[Method], base: Series) -> Section | None:
    """Accuracy on every test set from elsewhere, by dim, and the share of the clean one lost."""
    del base  # the shifted sets are the same for every split
    found, shown, folded, lost = [], [], [], []
    for place in sets(methods):
        if not is_shift(methods, place):
            continue
        built = {s: t for s in tables.measured(methods, place) if (t := tables.build(methods, s))}
        clean = next((t for t in built.values() if t.about.family == CLEAN), None)
        folded += sheet.of_tables([t for t in built.values() if t is not clean])
        table = built[place._replace(metric="top1")]
        found.append((place.place, table))
        if clean and len(drops := _drops(table, clean)):
            shown.append(_drop_sheet(methods, place.place, drops))
            lost.append(_lost(table, drops))
    if not found:
        return None
    lead = "; ".join(part for part in lost if part)
    chart = charts.overlay("Accuracy on shifted test sets, %", found)
    solid = {curve.label for _, table in found if (curve := charts.first_nested(table))}
    caption = (
        "Linear top-1 on test sets from elsewhere by number of dims kept. Solid: "
        f"{listing(sorted(solid))}; dashed: FF-m."
    )
    figure = Figure("shifts_by_dim.png", caption, plots.drawing(chart))
    lead = f"Share of the clean accuracy that is lost: {lead}." if lead else ""
    return Section("Shifted test sets", lead, (figure,), tuple(shown), tuple(folded))


def _means(file: File, key: str) -> pd.Series:
    """The mean over images of each entry of a list, NaN where it is null in all of them."""
    rows = [file.get(key, list, image) for image in file.objects("images")]
    if len({len(row) for row in rows}) != 1:
        raise DataError(f"{file.where}: {key} must have as many numbers for every image")
    try:
        return pd.DataFrame(rows).astype(float).mean()
    except (TypeError, ValueError) as error:
        raise DataError(f"{file.where}: {key} is damaged ({error})") from error


def _maps(file: File) -> str:
    """How concentrated maps are, and how alike."""
    dims, n = file.get("dims", list), len(file.get("images", list))
    share, alike = _means(file, "top_share"), _means(file, "neighbour_correlation").mean()
    if len(share) != len(dims):
        raise DataError(f"{file.where}: top_share must have a number for each of {len(dims)} dims")
    first, last = share.iloc[0], share.iloc[-1]
    parts = []
    if share.notna().iloc[[0, -1]].all():
        parts.append(
            f"the brightest fifth of the pixels holds {first:.0%} of a map at {dims[0]} dims and "
            f"{last:.0%} at {dims[-1]}"
        )
    if pd.notna(alike):
        parts.append(f"maps of neighbouring prefixes correlate by {alike:.2f}")
    images = f"Mean of {count(n, 'image')}, which illustrate and prove nothing: "
    return f"{images}{'; '.join(parts)}." if parts else ""


def _picture(
    methods: Sequence[Method], kind: str, place: str
) -> tuple[Method | None, int, bytes | None]:
    """A picture of this kind with its method and seed: of the first nested run, else of any."""
    ordered = sorted(methods, key=lambda method: method.kind in ONE_DIM)
    runs = ((m, seed, run.artefacts) for m in ordered for seed, run in sorted(m.runs.items()))
    pictures = ((m, seed, files.image(kind, place)) for m, seed, files in runs)
    return next((found for found in pictures if found[2]), (None, 0, None))


def found_photos(methods: Sequence[Method], base: Series) -> Section | None:
    """The photos that a few captions find."""
    method, seed, picture = _picture(methods, "found_photos", base.place)
    if not picture:
        return None
    caption = (
        f"The nearest photos of six captions at few, some and all dims of {method.label}, seed "
        f"{seed} ({base.place} captions drawn at random)."
    )
    figure = Figure("found_photos.png", caption, lambda dark: picture, wide=True)
    return Section("What captions find", "", (figure,))


def attribution(methods: Sequence[Method], base: Series) -> Section | None:
    """Where in a few images each prefix finds its class."""
    method, seed, picture = _picture(methods, "attribution", base.place)
    if not picture:
        return None
    told = [file for file in files([method], "attribution", base.place) if file.seed == seed]
    caption = (
        f"What the predicted class rests on at each prefix of {method.label}, seed {seed} "
        f"({base.place} images drawn at random within each kind)."
    )
    figure = Figure("attribution.png", caption, lambda dark: picture, wide=True)
    return Section("Where each prefix looks", _maps(told[0]) if told else "", (figure,))


def _layer_sheet(method: Method, whole: Series, layers: Sequence[int]) -> tuple[Sheet, str]:
    """A metric at layer x dim, and the fewest layers that are within one point of all."""
    frames = {layer: method.measured(whole._replace(layer=layer)) for layer in (*layers, None)}
    means = {layer: frame.groupby("dim").value.mean() for layer, frame in frames.items()}
    best = means[None].iloc[-1] if len(means[None]) else math.inf
    dims = sorted({dim for frame in frames.values() for dim in frame.dim})
    rows, least = [], best - sheet.WITHIN
    for layer, of_dim in means.items():
        shown = {dim: Cell(percent(v), best=bool(v >= least)) for dim, v in of_dim.items()}
        cells = tuple(shown.get(dim, Cell()) for dim in dims)
        rows.append(Row("all" if layer is None else str(layer), cells))
    place = tables.SPLIT_NAMES.get(whole.place, whole.place)
    title = f"{tables.describe([method], whole.metric).title}, {place}: {method.label}"
    note = "Layers that are run by dims that are kept, in percent; bold: within one point of all."
    if {run.config.get("pairs.layers") for run in method.runs.values()} == {"last"}:
        note += f" {UNTRAINED}"
    said = f"{title} needs all layers to come within one point of {percent(best)}%."
    near = (
        (row, dim, cell) for row in rows[:-1] for dim, cell in zip(dims, row.cells, strict=True)
    )
    if found := next(((row.head, dim, cell.text) for row, dim, cell in near if cell.best), None):
        layer, dim, value = found
        said = (
            f"{title} reaches {value}% after {count(int(layer), 'layer')} at {dim} dims, within "
            f"one point of the {percent(best)}% of all layers and dims."
        )
    return Sheet(f"{title} by layer and dim", ("layers", *map(str, dims)), tuple(rows), note), said


def layers(methods: Sequence[Method], base: Series) -> Section | None:
    """Encoders cut after fewer layers: a measure by layer and dim, on all sets."""
    found = []
    for place in (base, *sets(methods)):
        for method in methods:
            after: dict[Series, list[int]] = {}
            for series in method.series:
                if series.layer is not None and (series.set, series.split) == place[:2]:
                    after.setdefault(series._replace(layer=None), []).append(series.layer)
            order = sorted(after, key=lambda series: metrics.order(series.metric))
            found += [_layer_sheet(method, whole, sorted(after[whole])) for whole in order]
    if not found:
        return None
    return Section("Fewer layers", found[0][1], (), tuple(each for each, _ in found))
