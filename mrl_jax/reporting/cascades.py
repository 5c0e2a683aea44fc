"""Adaptive classification: accuracy against the dims an example takes on average (Figure 6)."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from mrl_jax.errors import DataError
from mrl_jax.reporting import plots, published, tables
from mrl_jax.reporting.charts import line
from mrl_jax.reporting.content import Figure, Section
from mrl_jax.reporting.headline import count, listing, percent
from mrl_jax.reporting.methods import ONE_DIM, Method
from mrl_jax.reporting.plots import Chart, Line, Point
from mrl_jax.reporting.sheet import Cell, Row, Sheet, signed
from mrl_jax.store.json_files import field


class Number(NamedTuple):
    """A measured number and its 95% interval over resamplings of the examples."""

    value: float
    low: float
    high: float


class Cascade(NamedTuple):
    """The study of one run, as its file tells it."""

    method: Method
    seed: int
    values: dict[str, Any]
    where: str

    def number(self, point: Any, name: str) -> Number:
        """The number `name` of a point.

        Raises:
          DataError: it is missing or not finite.
        """
        parts = (field(point, f"{name}.{key}", (int, float), self.where) for key in Number._fields)
        number = Number(*map(float, parts))
        if not all(map(math.isfinite, number)):
            raise DataError(f"{self.where}: {name} must be finite, got {number}")
        return number

    def points(self, curve: str) -> list[dict[str, Any]]:
        """The points of a curve, "single" or "headline"; [] of one that was not measured.

        Raises:
          DataError: one of them is no JSON object.
        """
        curves = field(self.values, "curves", dict, self.where)
        holder = self.values if curve in ("single", "headline") else curves
        points = field(holder, curve, list, self.where) if curve in holder else []
        if not all(isinstance(point, dict) for point in points):
            raise DataError(f"{self.where}: {curve} must be a list of objects")
        return points

    def line(self, label: str, role: str, points: Sequence[Any], **style: Any) -> Line:
        """Points as a line of a chart: accuracy by expected dims."""
        drawn = {}
        for point in points:
            accuracy = self.number(point, "accuracy")
            if "dim" in point:
                x = float(field(point, "dim", int, self.where))
            else:
                x = self.number(point, "expected_dim").value
            drawn[x] = Point(x, accuracy.value, accuracy.low, accuracy.high)
        if not drawn or min(drawn) <= 0:
            raise DataError(f"{self.where}: {label} has no points, or one at no dims")
        return Line(label, role, tuple(drawn[x] for x in sorted(drawn)), **style)


def _read(methods: Sequence[Method], split: str) -> list[Cascade]:
    named = "cascade", split
    return [
        Cascade(method, seed, values, run.artefacts.where(*named))
        for method in methods
        if method.kind not in ONE_DIM
        for seed, run in sorted(method.runs.items())
        if (values := run.artefacts.table(*named)) is not None
    ]


def _figure(cascade: Cascade, methods: Sequence[Method], split: str) -> Figure:
    label = cascade.method.label
    lines = [
        cascade.line(f"{label}, each dim alone", "ff_random", cascade.points("single")),
        cascade.line("fitted jointly", "mrl", cascade.points("joint"), band=True),
    ]
    if greedy := cascade.points("greedy"):
        lines.append(cascade.line("fitted one by one", "mrl_e", greedy, dashes=1))
    best = field(cascade.values, "oracle", dict, cascade.where)
    lines.append(cascade.line("recommended", "slim", cascade.points("headline"), dashes=None))
    lines.append(cascade.line("best per example", "ff_cut", [best], dashes=None))
    table = tables.build(methods, split, "top1")
    lines += [line(curve) for curve in (table.curves if table else ()) if curve.role == "ff"]
    dims = field(cascade.values, "dims", list, cascade.where)
    chart = Chart(f"Cascade of {label}, accuracy, %", "dims, mean per example", tuple(lines), dims)
    caption = (
        f"Accuracy against the dims that examples take on average, {label}, seed {cascade.seed}, "
        f"{tables.SPLIT_NAMES[split]}. Thresholds were fitted on "
        f"{field(cascade.values, 'fitted_on', str, cascade.where)}, jointly for all dims or one by "
        "one as the paper's code does. Band and bars: 95% intervals over resamplings of the "
        "examples."
    )
    return Figure("cascade.png", caption, plots.drawing(chart))


def _interval(number: Number, write: Any) -> str:
    return f"{write(number.value)} [{write(number.low)}, {write(number.high)}]"


def _dims(value: float) -> str:
    return f"{value:.1f}"


def _lead(cascade: Cascade) -> str:
    """What the policy gives that was fitted to lose no accuracy, and the one to lose most."""
    points = cascade.points("headline")
    if not points:
        return ""
    names = ("expected_dim", "full_width_by_expected_dim", "gain_on_full_width", "cumulative_dim")
    dim, ratio, gain, work = (cascade.number(points[0], name) for name in names)
    of = f" (seed {cascade.seed})" if len(cascade.method.runs) > 1 else ""
    text = (
        f"A cascade of {cascade.method.label}{of} takes {_interval(dim, _dims)} dims per example, "
        f"{_interval(ratio, _dims)} times fewer than the full width, and differs from its accuracy "
        f"by {_interval(gain, signed)} points."
    )
    if work.value > dim.value:
        text += f" Counting every prefix it tries, it takes {_dims(work.value)} dims."
    loss = field(points[-1], "loss", (int, float), cascade.where)
    if len(points) > 1:
        text += f" Fitted to lose up to {percent(loss)} points: {_short(cascade, points[-1])}."
    return text


def _short(cascade: Cascade, point: dict[str, Any]) -> str:
    dim, gain = (cascade.number(point, name) for name in ("expected_dim", "gain_on_full_width"))
    return f"{_dims(dim.value)} dims, {_interval(gain, signed)} points"


def _other_seeds(found: Sequence[Cascade]) -> list[str]:
    """The same of other seeds, a sentence for each method."""
    said = []
    for label in dict.fromkeys(cascade.method.label for cascade in found):
        _, *others = (cascade for cascade in found if cascade.method.label == label)
        parts = [
            f"{_short(cascade, points[0])} (seed {cascade.seed})"
            for cascade in others
            if (points := cascade.points("headline"))
        ]
        if parts:
            said.append(f"Other seeds of {label}: {'; '.join(parts)}.")
    return said


def _sentences(cascade: Cascade) -> list[str]:
    points = cascade.points("joint_for_greedy")
    gains = {
        field(p, "cap", int, cascade.where): cascade.number(p, "gain_on_greedy") for p in points
    }
    ahead = [cap for cap, gain in gains.items() if gain.low > 0]
    behind = [cap for cap, gain in gains.items() if gain.high < 0]
    said = []
    if gains:
        said.append(
            "Fitting all thresholds at once, against one by one at no more dims where fitted: "
            f"better with the last dim at {listing(ahead)}, worse at {listing(behind)} "
            f"(of {count(len(gains), 'cap')}, by the 95% interval of each)."
        )
    best = field(cascade.values, "oracle", dict, cascade.where)
    accuracy, dim = (cascade.number(best, name) for name in ("accuracy", "expected_dim"))
    said.append(
        f"The best choice for every example would give {percent(accuracy.value)}% at "
        f"{_dims(dim.value)} dims."
    )
    return said


def _sheets(cascade: Cascade) -> list[Sheet]:
    name = f"{cascade.method.label}, seed {cascade.seed}"

    def cell(point: Any, key: str, write: Any = percent) -> Cell:
        number = cascade.number(point, key)
        return Cell(write(number.value), f"[{write(number.low)}, {write(number.high)}]")

    single = [
        Row(
            str(field(p, "dim", int, cascade.where)),
            (cell(p, "accuracy"),),
        )
        for p in cascade.points("single")
    ]
    note = (
        "Below: 95% intervals over resamplings of the examples; they know nothing of other seeds."
    )
    sheets = [
        Sheet(
            f"{name}: every dim alone",
            ("dim", "accuracy, %"),
            tuple(single),
            (note,),
        )
    ]
    writers = {"accuracy": percent, "expected_dim": _dims, "cumulative_dim": _dims}
    titles = {
        "headline": ("loss", "thresholds jointly, by the share of accuracy they may lose"),
        "greedy": ("cap", "thresholds one by one, by last dim"),
        "joint_for_greedy": ("cap", "thresholds jointly, at no more dims than those"),
        "joint": ("budget", "thresholds jointly, by dims allowed"),
    }
    for curve, (key, title) in titles.items():
        rows = tuple(
            Row(
                f"{field(point, key, (int, float), cascade.where):g}",
                tuple(cell(point, k, w) for k, w in writers.items()),
            )
            for point in cascade.points(curve)
        )
        columns = (key, "accuracy, %", "dims", "dims of all prefixes tried")
        if rows:
            sheets.append(Sheet(f"{name}: {title}", columns, rows))
    return sheets


def section(methods: Sequence[Method], split: str) -> Section | None:
    """What cascades give, by method; drawn for the first. None where none was measured."""
    found = _read(methods, split)
    if not found:
        return None
    first: dict[str, Cascade] = {}
    for cascade in found:
        first.setdefault(cascade.method.label, cascade)
    said = [_lead(c) for c in first.values() if c.method.label != found[0].method.label]
    said += _other_seeds(found) + _sentences(found[0])
    said += published.cascade_sentences([cascade.method for cascade in first.values()])
    folded = [s for m in methods if m.label in first for s in _sheets(first[m.label])]
    figure = _figure(found[0], methods, split)
    return Section(
        "Adaptive classification",
        _lead(found[0]),
        tuple(t for t in said if t),
        (figure,),
        (),
        tuple(folded),
    )
