"""Test sets from elsewhere: accuracy on each beside the clean one, and what is lost."""

from collections.abc import Sequence

from mrl_jax.errors import DataError
from mrl_jax.reporting import charts, headline, plots, sheet, statistics, tables
from mrl_jax.reporting.content import Figure, Section
from mrl_jax.reporting.headline import percent
from mrl_jax.reporting.methods import Method
from mrl_jax.reporting.sheet import Cell, Row, Sheet
from mrl_jax.reporting.tables import Table
from mrl_jax.store.json_files import field

CLEAN = "top1_clean"

# By label of a curve and by dim, for every seed: (clean - shifted) / clean.
Drops = dict[str, dict[int, list[float]]]


def names(methods: Sequence[Method]) -> list[str]:
    """The test sets that are no split of the data set."""
    sets = {r.set for m in methods for run in m.runs.values() for r in run.results}
    return sorted(sets - {""})


def is_shift(methods: Sequence[Method], name: str) -> bool:
    """Whether a set holds other examples of the trained classes, and not texts."""
    return "top1" in tables.names(methods, name)


def _drops(shifted: Table, clean: Table) -> Drops:
    of_clean = {curve.label: curve for curve in clean.curves}
    found: Drops = {}
    for curve in shifted.curves:
        reference = of_clean[curve.label].values if curve.label in of_clean else {}
        for dim, values in curve.values.items():
            clean_values = reference.get(dim, {})
            if lost := [1 - v / clean_values[s] for s, v in values.items() if clean_values.get(s)]:
                found.setdefault(curve.label, {})[dim] = lost
    return found


def _intervals(methods: Sequence[Method], name: str) -> dict[tuple[str, int], str]:
    """Of drops that one run tells of, the 95% interval over examples, by curve and dim."""
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
                    text = f"[{percent(low)}, {percent(high)}]"
                    found[method.curve_label, dim] = text
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: relative_drop_95 of {name} is damaged") from error
    return found


def _drop_sheet(methods: Sequence[Method], name: str, table: Table, found: Drops) -> Sheet:
    curves = [curve for curve in table.curves if curve.label in found]
    intervals = _intervals(methods, name)

    def cell(label: str, dim: int) -> Cell:
        lost = found[label].get(dim)
        if not lost:
            return Cell()
        summary = statistics.summarize(lost)
        if summary.sd is None:
            return Cell(percent(summary.mean), intervals.get((label, dim), ""))
        return Cell(f"{percent(summary.mean)} ± {percent(summary.sd)}")

    rows = [
        Row(str(dim), tuple(cell(curve.label, dim) for curve in curves))
        for dim in sorted({dim for drops in found.values() for dim in drops})
    ]
    note = (
        "Cells: (clean - shifted) / clean in percent. Clean are the examples of the same classes, "
        "asked in the same way. Over seeds: mean and sample standard deviation; of one seed: the "
        "95% interval over examples."
    )
    columns = ("dim", *(curve.label for curve in curves))
    return Sheet(f"{name}: share of the clean accuracy that is lost", columns, tuple(rows), (note,))


def _drop_sentence(name: str, table: Table, found: Drops) -> str:
    curve = charts.first_nested(table)
    drops = found.get(curve.label, {}) if curve else {}
    dims = sorted(drops.keys() & curve.trained) if curve else []
    if not dims:
        return ""
    ends = sorted({dims[0], dims[-1]})

    def lost(of: dict[int, list[float]]) -> str:
        parts = [f"{percent(statistics.summarize(of[dim]).mean)}% at {dim}" for dim in ends]
        return headline.listing(parts)

    fixed = next((found.get(c.label, {}) for c in table.curves if c.role == "ff"), {})
    beside = f"; FF-m {lost(fixed)}" if all(dim in fixed for dim in ends) else ""
    return f"{name}: {curve.label} loses of its clean accuracy {lost(drops)} dims{beside}."


def section(methods: Sequence[Method], split: str) -> Section | None:
    """Accuracy on every shifted test set, by dim; None where there is none."""
    del split  # the sets stand beside whichever split is the last
    found, folded, lost, said = [], [], [], []
    for name in filter(lambda name: is_shift(methods, name), names(methods)):
        measured = [m for m in tables.names(methods, name) if m != CLEAN]
        built = [t for metric in measured if (t := tables.build(methods, name, metric))]
        folded += sheet.of_tables(built)
        table = next((t for t in built if t.metric == "top1"), None)
        if not table:
            continue
        found.append((name, table))
        said += [f"{name}: {headline.comparison_sentence(c)}" for c in table.comparisons]
        clean = tables.build(methods, name, CLEAN)
        if clean and (drops := _drops(table, clean)):
            folded.append(_drop_sheet(methods, name, table, drops))
            lost.append(_drop_sentence(name, table, drops))
    if not folded:
        return None
    figures = ()
    if found:
        chart = charts.overlay("Accuracy on shifted test sets, %", found)
        caption = (
            "Linear top-1 on test sets from elsewhere by number of dims kept. Solid: "
            f"{charts.solid(found)}; dashed: FF-m."
        )
        figures = (Figure("shifts_by_dim.png", caption, plots.drawing(chart)),)
    return Section(
        "Shifted test sets",
        lead=" ".join(text for text in lost if text),
        sentences=tuple(said),
        figures=figures,
        folded=tuple(folded),
    )
