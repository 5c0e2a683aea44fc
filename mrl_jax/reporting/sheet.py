"""Tables as text: the cells, marks and notes that stdout, Markdown and HTML have in common."""

import dataclasses
from collections.abc import Sequence

from mrl_jax.reporting.headline import count, listing, percent
from mrl_jax.reporting.statistics import Difference, Summary
from mrl_jax.reporting.tables import SIGNIFICANCE, SPLIT_NAMES, Comparison, Table

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


def _difference_cell(entry: tuple[Difference, float] | None, usual_n: int) -> Cell:
    if entry is None:
        return Cell()
    difference, p = entry
    text = signed(difference.mean)
    if difference.low is not None:
        text += f" [{signed(difference.low)}, {signed(difference.high)}]"
    below = difference.verdict
    if below in ("better", "worse") and p <= SIGNIFICANCE:
        below += f" {HOLM}"
    # The verdict "one seed" says it already.
    if 1 < difference.n != usual_n:
        below += f", n = {difference.n}"
    return Cell(text, below)


def _cell_notes(table: Table) -> list[str]:
    over = (
        f"mean ± sample standard deviation over n = {table.n_seeds} seeds"
        if table.n_seeds > 1
        else "one seed (n = 1), so no spread"
    )
    notes = [
        f"Cells: accuracy in percent, {over}, unless another n is given. "
        "Bold: highest mean of its row, which need not be a real difference."
    ]
    low, high = (percent(error) for error in table.stderr)
    errors = f"{low}" if low == high else f"{low} to {high}"
    examples = listing([f"{n:,}" for n in table.n_examples])
    split = SPLIT_NAMES.get(table.split, table.split)
    notes.append(
        f"Measured on {examples} {split} examples: the binomial standard error of one run's "
        f"accuracy is {errors} points."
    )
    if any(dim not in table.trained for dim in table.dims):
        notes.append(f"{UNTRAINED} marks dims in between, at which nothing was trained.")
    return notes


def _comparison_notes(comparisons: Sequence[Comparison]) -> list[str]:
    if not comparisons:
        return []
    notes = [
        f"{listing([c.label for c in comparisons])}: difference in points against FF-m trained at "
        "that dim alone, paired by seed, with its 95% t interval; better or worse where the "
        "interval leaves out zero. The interval speaks of training again with other seeds, "
        "not of other test examples."
    ]
    for comparison in comparisons:
        verdicts = [d for v in ("better", "worse") for d in comparison.dims(v)]
        kept = [d for v in ("better", "worse") for d in comparison.dims(v, holm=True)]
        which = f" ({comparison.label})" if len(comparisons) > 1 else ""
        total = count(len(comparison.by_dim), "comparison")
        if verdicts:
            notes.append(
                f"{HOLM} marks what is still significant at 5% after Holm's correction for "
                f"{total}{which}: {len(kept)} of {count(len(verdicts), 'verdict')}."
            )
    return notes


def of_table(table: Table) -> Sheet:
    """The sheet of an accuracy table: dims down, curves and differences across."""
    rows = []
    for dim in table.dims:
        best = table.best(dim)
        cells = [
            _mean_cell(curve.summary(dim), table.n_seeds, curve.label in best)
            for curve in table.curves
        ]
        cells += [_difference_cell(c.by_dim.get(dim), table.n_seeds) for c in table.comparisons]
        faint = dim not in table.trained
        rows.append(Row(f"{dim} {UNTRAINED}" if faint else str(dim), tuple(cells), faint))
    labels = [curve.label for curve in table.curves]
    labels += [comparison.label for comparison in table.comparisons]
    notes = _cell_notes(table) + _comparison_notes(table.comparisons)
    return Sheet(table.title, ("dim", *labels), tuple(rows), tuple(notes))


def to_text(sheet: Sheet) -> str:
    """The sheet for a terminal: ASCII, aligned columns, * for the best of a row."""
    # A long label is written over several lines: "FF-64, first m dims" over two.
    labels = [label.replace(", ", ",\n").split("\n") for label in sheet.columns]
    height = max(map(len, labels))
    grid = [[""] * (height - len(label)) + label for label in labels]
    grid = [list(line) for line in zip(*grid, strict=True)]
    for row in sheet.rows:
        cells = [
            f"{cell.text}{' *' if cell.best else '  '} {cell.below}".rstrip() if cell.text else ""
            for cell in row.cells
        ]
        grid.append([row.head, *cells])
    grid = [[plain(text) for text in line] for line in grid]
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    lines = ["  ".join(t.rjust(w) for t, w in zip(line, widths, strict=True)) for line in grid]
    lines.insert(height, "-" * len(lines[0]))
    return "\n".join(line.rstrip() for line in (plain(sheet.title), *lines))


def plain(text: str) -> str:
    """`text` in printable ASCII: terminals differ, and names of runs are not to be trusted."""
    for sign, ascii_sign in (("±", "+-"), ("−", "-"), (UNTRAINED, "o"), (HOLM, "(Holm)")):
        text = text.replace(sign, ascii_sign)
    return "".join(c if " " <= c <= "~" else "?" for c in text)
