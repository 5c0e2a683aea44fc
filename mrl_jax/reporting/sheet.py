"""Tables by dimension ready to be written down: cells, marks and the sentence that leads to them.

What marks mean is said once in a report, see `render.MARKS`.
"""

from collections.abc import Sequence

from mrl_jax import printing
from mrl_jax.record.metrics import Metric
from mrl_jax.reporting import text
from mrl_jax.reporting.content import Cell, Row, Sheet
from mrl_jax.reporting.statistics import Summary
from mrl_jax.reporting.tables import NESTED, Comparison, Curve, Table
from mrl_jax.reporting.text import HOLM, UNTRAINED, count, listing, percent, signed, spans

WITHIN = 0.01  # "within one point"
MOST_WINNERS = 3  # that a lead names
_MARKS = {"better": text.BETTER, "worse": text.WORSE}
_MARKS_HERE = {"better": text.BETTER_HERE, "worse": text.WORSE_HERE}


def mean_cell(
    summary: Summary | None, usual_n: int, best: bool = False, scale: float = 100
) -> Cell:
    """Mean ± standard deviation in percent, and the number of seeds where it is not the usual.

    `scale` as of `text.percent`.
    """
    if summary is None:
        return Cell()
    spread = "" if summary.sd is None else f" ± {percent(summary.sd, scale)}"
    seeds = "" if summary.n == usual_n else f"n = {summary.n}"
    return Cell(percent(summary.mean, scale) + spread, seeds, best)


def _difference_cell(comparison: Comparison, dim: int, usual_n: int, scale: float) -> Cell:
    difference = comparison.by_dim.get(dim)
    if not difference:
        return Cell()
    number = signed(difference.mean, scale)
    if difference.low is not None:
        number += f" [{signed(difference.low, scale)}, {signed(difference.high, scale)}]"
    below = []
    if mark := _MARKS.get(difference.verdict):
        below.append(f"{mark} {HOLM}" if difference.stands else mark)
    here = difference.networks
    if here and here.stands and here.verdict != difference.verdict:
        below.append(_MARKS_HERE[here.verdict])
    mine, its = (curve.values[dim].keys() for curve in (comparison.curve, comparison.against))
    if mine != its:
        seeds = sorted(mine & its)
        below.append(f"{'seed' if len(seeds) == 1 else 'seeds'} {listing(seeds)} only")
    elif difference.n != usual_n:
        below.append(f"n = {difference.n}")
    return Cell(number, ", ".join(below))


def _rests_on(comparisons: Sequence[Comparison]) -> str:
    """What intervals are over, as in "3 seeds and 400 examples"."""
    differences = [difference for c in comparisons for difference in c.by_dim.values()]
    units = sorted({c.unit for c in comparisons if c.unit})
    seeds = count(max(d.n for d in differences), "seed")
    if not units:
        one = all(d.n == 1 for d in differences)
        return f"{seeds}, without intervals" if one else f"95% t intervals over {seeds}"
    over = f"{max(d.units for d in differences):,} {listing(units)}"
    if all(d.n == 1 for d in differences):
        test = " (McNemar's exact test)" if units == ["examples"] else ""
        return f"95% intervals over {over}{test}, {seeds} each"
    return f"95% intervals over {seeds} and {over}"


def _about_comparisons(
    name: str, comparisons: Sequence[Comparison], groups: Sequence, about: Metric
) -> str:
    """What differences rest on, and over how many of them Holm's correction was made, by group."""
    rests = f"{name}: {'points, ' if about.percent else ''}{_rests_on(comparisons)}"
    if not any(comparison.has_verdicts for comparison in comparisons):
        return rests
    totals = [count(sum(len(c.by_dim) for c in group), "difference") for group in groups]
    return f"{rests}; Holm's correction over {listing(totals)}"


def _dim_row(table: Table, dim: int, cells: Sequence[Cell]) -> Row:
    faint = dim not in table.trained
    return Row(f"{dim} {UNTRAINED}" if faint else str(dim), tuple(cells), faint)


def of_table(table: Table) -> Sheet:
    """The sheet of a table: dims down, curves and differences across."""
    rows, scale = [], table.about.scale
    for dim in table.dims:
        best, n = table.best(dim), table.n_seeds
        cells = [mean_cell(c.summary(dim), n, c.label in best, scale) for c in table.curves]
        cells += [_difference_cell(comparison, dim, n, scale) for comparison in table.comparisons]
        rows.append(_dim_row(table, dim, cells))
    frame, n = table.frame, table.n_seeds
    low, high = (percent(end, scale) for end in (frame.stderr.min(), frame.stderr.max()))
    # Streams are drawn from examples, which are what is counted.
    unit = "examples" if table.about.unit == "streams" else table.about.unit
    examples = listing([f"{n:,}" for n in sorted(frame.n.unique())])
    parts = [
        f"Cells: {table.about.noun}{' in percent' if table.about.percent else ''}"
        + (f", mean ± sample sd of {n} seeds" if n > 1 else ", one seed"),
        f"{examples} {table.place} {unit}, standard error of a run "
        + (low if low == high else f"{low} to {high}"),
    ]
    if table.comparisons:
        labels = listing([c.label for c in table.comparisons])
        groups = [[c] for c in table.comparisons]
        parts.append(_about_comparisons(labels, table.comparisons, groups, table.about))
    labels = [each.label for each in (*table.curves, *table.comparisons)]
    return Sheet(table.title, ("dim", *labels), tuple(rows), "; ".join(parts) + ".")


def of_rivals(table: Table) -> Sheet | None:
    """MRL minus every baseline but FF-m, dims down; None where there is none."""
    if not table.rivals:
        return None
    n, scale = table.n_seeds, table.about.scale
    rows = [
        _dim_row(table, dim, [_difference_cell(c, dim, n, scale) for c in table.rivals])
        for dim in table.dims
        if any(dim in c.by_dim for c in table.rivals)
    ]
    note = _about_comparisons("Differences", table.rivals, [table.rivals], table.about)
    columns = ("dim", *(c.label for c in table.rivals))
    return Sheet(f"{table.title}: differences", columns, tuple(rows), f"{note}.")


def of_tables(tables: Sequence[Table]) -> list[Sheet]:
    """Every table, each with its differences from other baselines behind it."""
    return [s for table in tables for s in (of_table(table), of_rivals(table)) if s]


def _winners(table: Table) -> str:
    """Which columns have the best mean at which trained dims."""
    trained = [dim for dim in table.dims if dim in table.trained]
    wins: dict[str, list[int]] = {}
    for dim in trained:
        for label in table.best(dim):
            wins.setdefault(label, []).append(dim)
    most = sorted(wins.items(), key=lambda item: -len(item[1]))
    named = [f"{label} at {spans(dims, trained)}" for label, dims in most[:MOST_WINNERS]]
    return ", ".join([*named, *["others elsewhere"] * (len(most) > MOST_WINNERS)])


def _reach(table: Table, curve: Curve) -> str:
    """What a nested method reaches at its full width, and from which trained prefix on."""
    dims = sorted(curve.trained & curve.values.keys())
    means = {dim: curve.summary(dim).mean for dim in dims}
    about, width = table.about, dims[-1]
    sign, within = -1 if about.lower_is_better else 1, WITHIN if about.percent else 1
    near = width
    for dim in reversed(dims):
        if sign * (means[width] - means[dim]) > within + 1e-12:
            break
        near = dim
    whole = percent(means[width], about.scale) + ("%" if about.percent else "")
    reach = f"{curve.label} reaches {whole} at {width} dims"
    lost = "one point" if about.percent else "1"
    return f"{reach} and loses at most {lost} from {near} on" if near < width else reach


def _against(comparison: Comparison, about: Metric) -> str:
    """By how much MRL differs from FF-m, and where the difference is real."""
    means = [difference.mean for difference in comparison.by_dim.values()]
    ends = list(dict.fromkeys(signed(end, about.scale) for end in (min(means), max(means))))
    if not comparison.has_verdicts:
        verdicts = "no test of one seed" if comparison.one_seed else "the same in every seed"
    else:
        found = {v: comparison.dims(v) for v in _MARKS}
        here = {v: {*comparison.dims(v, networks=True)} - {*found[v]} for v in _MARKS}
        parts = [
            f"{verdict}{mark} at {spans(sorted(dims), [*comparison.by_dim])}"
            for mark, of_mark in ((f" {HOLM}", found), (" for these networks alone", here))
            for verdict, dims in of_mark.items()
            if dims
        ]
        verdicts = ", ".join(parts) or "no clear difference"
    unit = " points" if about.percent else ""
    return f"{comparison.label}: {' to '.join(ends)}{unit}, {verdicts}"


def lead(table: Table) -> str:
    """One sentence: how far prefixes carry, who is best where, by how much and if it is real."""
    nested = [c for c in table.curves if c.role in NESTED and c.trained & c.values.keys()]
    parts = [_reach(table, nested[0])] if nested else []
    if winners := _winners(table):
        word = "lowest" if table.about.lower_is_better else "highest"
        parts.append(f"{word} mean: {winners}")
    parts += [_against(comparison, table.about) for comparison in table.comparisons]
    sentence = "; ".join(parts)
    return f"{sentence[0].upper()}{sentence[1:]}." if parts else ""


def _verdicts(comparison: Comparison) -> Cell:
    """At how many dims it is better, not clearly different and worse; below, these networks."""

    def counts(networks: bool) -> str:
        better, worse = (len(comparison.dims(v, networks=networks)) for v in _MARKS)
        return f"{better} / {len(comparison.by_dim) - better - worse} / {worse}"

    again, here = counts(networks=False), counts(networks=True)
    return Cell(again, here if comparison.networks and here != again else "")


def overview(built: Sequence[Table]) -> Sheet | None:
    """MRL against every baseline in every measure, as counts of dims; None without verdicts."""
    rows: list[tuple[str, dict[str, Cell]]] = []
    names = set()
    for table in built:
        every = (*table.comparisons, *table.rivals)
        first = [c for c in every if c.curve.label == every[0].curve.label and c.has_verdicts]
        names |= {c.curve.label for c in first}
        cells = {c.against.short or c.against.label: _verdicts(c) for c in first}
        rows += [(table.about.title, cells)] if cells else []
    if not rows:
        return None
    labels = list(dict.fromkeys(label for _, cells in rows for label in cells))
    title = f"{listing(sorted(names))} against every baseline, {built[0].place}"
    written = [Row(head, tuple(of.get(label, Cell()) for label in labels)) for head, of in rows]
    note = "Trained dims at which it is better / not clearly different / worse, after Holm."
    return Sheet(title, ("measure", *labels), tuple(written), note)


# Of marks, on terminals.
_ASCII = {UNTRAINED: "o", HOLM: "(Holm)", text.BETTER: "better", text.WORSE: "worse"}
_ASCII |= {text.BETTER_HERE: "these networks better", text.WORSE_HERE: "these networks worse"}


def _plain(written: str) -> str:
    for mark, words in _ASCII.items():
        written = written.replace(mark, words)
    return printing.plain(written)


def to_text(sheet: Sheet) -> str:
    """The sheet for a terminal: ASCII, aligned columns, * for the best of a row."""
    # A long label is written over several lines: "FF-64, first m dims" over two.
    heads = [",\n".join(map(_plain, label.split(", "))) for label in sheet.columns]
    rows = []
    for row in sheet.rows:
        cells = [
            f"{cell.text}{' *' if cell.best else '  '} {cell.below}".rstrip() if cell.text else ""
            for cell in row.cells
        ]
        rows.append([_plain(each) for each in (row.head, *cells)])
    return f"{_plain(sheet.title)}\n{printing.table(heads, rows)}"
