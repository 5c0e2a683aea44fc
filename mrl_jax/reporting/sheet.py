"""Tables as text: the cells, marks and notes that stdout, Markdown and HTML have in common."""

import dataclasses
from collections.abc import Sequence

from mrl_jax import printing
from mrl_jax.reporting import methods
from mrl_jax.reporting.headline import count, listing, percent, rests_on
from mrl_jax.reporting.statistics import Summary
from mrl_jax.reporting.tables import SIGNIFICANCE, Comparison, Table

UNTRAINED = "○"
HOLM = "‡"


@dataclasses.dataclass(frozen=True)
class Cell:
    """Text of one cell, a second small line under it, and whether it is the best of its row."""

    text: str = ""
    below: str = ""
    best: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
    """One row; `faint` sets the never-trained dims apart."""

    head: str
    cells: tuple[Cell, ...]
    faint: bool = False


@dataclasses.dataclass(frozen=True)
class Sheet:
    """A table ready to be written down. `numbers` aligns the cells to the right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    numbers: bool = True


def _mean_cell(summary: Summary | None, usual_n: int, best: bool) -> Cell:
    if summary is None:
        return Cell()
    spread = "" if summary.sd is None else f" ± {percent(summary.sd)}"
    seeds = "" if summary.n == usual_n else f"n = {summary.n}"
    return Cell(percent(summary.mean) + spread, seeds, best)


def signed(fraction: float) -> str:
    """A difference in points with its sign: -0.0123 -> "−1.23"."""
    text = f"{100 * fraction:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text.replace("-", "−")


def _difference_cell(comparison: Comparison, dim: int, usual_n: int) -> Cell:
    if dim not in comparison.by_dim:
        return Cell()
    difference, p = comparison.by_dim[dim]
    text = signed(difference.mean)
    if difference.low is not None:
        text += f" [{signed(difference.low)}, {signed(difference.high)}]"
    below = difference.verdict
    if below in ("better", "worse") and p <= SIGNIFICANCE:
        below += f" {HOLM}"
    if not comparison.is_even(dim):
        seeds = comparison.seeds(dim)
        only = f"{'seed' if len(seeds) == 1 else 'seeds'} {listing(seeds)} only"
        below = only if difference.verdict == "one seed" else f"{below}, {only}"
    elif 1 < difference.n != usual_n:  # the verdict "one seed" says it already
        below += f", n = {difference.n}"
    for verdict in ("better", "worse"):
        if dim in comparison.dims_of_networks(verdict) and difference.verdict != verdict:
            below += f"; these networks {verdict}"
    return Cell(text, below)


def _cell_notes(table: Table) -> list[str]:
    over = (
        f"mean ± sample standard deviation over n = {table.n_seeds} seeds"
        if table.n_seeds > 1
        else "one seed (n = 1), so no spread"
    )
    word = "lowest" if table.about.lower_is_better else "highest"
    among = (
        ", among the columns that were measured on the same data"
        if len({methods.read_of(curve.variant) for curve in table.curves}) > 1
        else ""
    )
    notes = [
        f"Cells: {table.about.noun} in percent, {over}, unless another n is given. "
        f"Bold: {word} mean of its row{among}, which need not be a real difference."
    ]
    low, high = (percent(error) for error in table.stderr)
    errors = f"{low}" if low == high else f"{low} to {high}"
    units = f"{listing([f'{n:,}' for n in table.n_examples])} {table.unit}"
    notes.append(
        f"Measured on {units}: the standard error of one run's {table.about.noun} is {errors} "
        "points."
    )
    if any(dim not in table.trained for dim in table.dims):
        notes.append(f"{UNTRAINED} marks dims in between, at which nothing was trained.")
    return notes


def _interval_note(comparisons: Sequence[Comparison]) -> str:
    """What the intervals are and what they speak of; "" where there is none."""
    differences = [d for c in comparisons for d, _ in c.by_dim.values() if d.low is not None]
    units = {c.unit for c in comparisons if c.unit}
    if not differences:
        return ""
    where = "better or worse where the interval leaves out zero"
    if not units:
        return (
            f"paired by seed, with its 95% t interval; {where}. The interval speaks of training "
            "again with other seeds, not of other test examples."
        )
    noun = listing(sorted(units))
    if all(d.n == 1 for d in differences):
        how = "McNemar's exact test" if units == {"examples"} else "paired over them"
        return (
            f"between {rests_on(comparisons)} ({how}), with its 95% interval; {where}. It speaks "
            f"of other {noun}, not of training again."
        )
    return (
        f"paired by seed and by {noun}, with its 95% interval; {where}. The interval speaks of "
        f"training again with other seeds and of other {noun}. These networks are better or worse "
        f"where other {noun} alone would not change it, after Holm's correction."
    )


def _holm_notes(groups: Sequence[tuple[str, Sequence[Comparison]]]) -> list[str]:
    """What Holm's correction leaves, for every (name, comparisons) that it was made for."""
    notes = []
    for name, comparisons in groups:
        found = [entry for c in comparisons for entry in c.by_dim.values()]
        verdicts = [p for d, p in found if d.verdict in ("better", "worse")]
        kept = sum(p <= SIGNIFICANCE for p in verdicts)
        which = f" ({name})" if len(groups) > 1 else ""
        if verdicts:
            notes.append(
                f"{HOLM} marks what is still significant at 5% after Holm's correction for "
                f"{count(len(found), 'comparison')}{which}: {kept} of "
                f"{count(len(verdicts), 'verdict')}."
            )
    return notes


def _comparison_notes(comparisons: Sequence[Comparison]) -> list[str]:
    if not comparisons:
        return []
    about = _interval_note(comparisons) or "from one seed, so without a verdict."
    notes = [
        f"{listing([c.label for c in comparisons])}: difference in points against FF-m trained at "
        f"that dim alone, {about}"
    ]
    return notes + _holm_notes([(c.label, [c]) for c in comparisons])


def _dim_row(table: Table, dim: int, cells: Sequence[Cell]) -> Row:
    faint = dim not in table.trained
    return Row(f"{dim} {UNTRAINED}" if faint else str(dim), tuple(cells), faint)


def of_table(table: Table) -> Sheet:
    """The sheet of a table: dims down, curves and differences across."""
    rows = []
    for dim in table.dims:
        best = table.best(dim)
        cells = [
            _mean_cell(curve.summary(dim), table.n_seeds, curve.label in best)
            for curve in table.curves
        ]
        cells += [_difference_cell(c, dim, table.n_seeds) for c in table.comparisons]
        rows.append(_dim_row(table, dim, cells))
    labels = [curve.label for curve in table.curves]
    labels += [comparison.label for comparison in table.comparisons]
    notes = _cell_notes(table) + _comparison_notes(table.comparisons)
    return Sheet(table.title, ("dim", *labels), tuple(rows), tuple(notes))


def of_rivals(table: Table) -> Sheet | None:
    """MRL minus every baseline but FF-m, dims down; None where there is none."""
    if not table.rivals:
        return None
    dims = [dim for dim in table.dims if any(dim in c.by_dim for c in table.rivals)]
    rows = [
        _dim_row(table, dim, [_difference_cell(c, dim, table.n_seeds) for c in table.rivals])
        for dim in dims
    ]
    about = _interval_note(table.rivals) or "from one seed, so without a verdict."
    notes = [f"Difference in points, {about}", *_holm_notes([("", table.rivals)])]
    columns = ("dim", *(c.label for c in table.rivals))
    return Sheet(f"{table.title}: differences", columns, tuple(rows), tuple(notes))


def of_tables(tables: Sequence[Table]) -> list[Sheet]:
    """Every table, each with its differences from other baselines behind it.

    A note that holds for several of them stands under the first.
    """
    sheets: list[Sheet] = []
    said: set[str] = set()
    for sheet in (s for table in tables for s in (of_table(table), of_rivals(table)) if s):
        fresh = tuple(note for note in sheet.notes if note not in said)
        said |= {*fresh}
        sheets.append(dataclasses.replace(sheet, notes=fresh))
    return sheets


def to_text(sheet: Sheet) -> str:
    """The sheet for a terminal: ASCII, aligned columns, * for the best of a row."""
    # A long label is written over several lines: "FF-64, first m dims" over two.
    heads = [",\n".join(map(plain, label.split(", "))) for label in sheet.columns]
    rows = []
    for row in sheet.rows:
        cells = [
            f"{cell.text}{' *' if cell.best else '  '} {cell.below}".rstrip() if cell.text else ""
            for cell in row.cells
        ]
        rows.append([plain(text) for text in (row.head, *cells)])
    return f"{plain(sheet.title)}\n{printing.table(heads, rows)}"


def plain(text: str) -> str:
    """`text` in printable ASCII: terminals differ, and names of runs are not to be trusted."""
    for sign, ascii_sign in (("±", "+-"), ("−", "-"), (UNTRAINED, "o"), (HOLM, "(Holm)")):
        text = text.replace(sign, ascii_sign)
    return "".join(c if " " <= c <= "~" else "?" for c in text)
