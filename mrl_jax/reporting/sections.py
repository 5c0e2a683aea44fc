"""The parts of a report that are tables by dimension: what they say and how they are drawn."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mrl_jax.reporting import (
    agreements,
    attribution,
    cascades,
    charts,
    headline,
    layers,
    plots,
    published,
    sheet,
    shifted,
    tables,
)
from mrl_jax.reporting.content import Figure, Section
from mrl_jax.reporting.headline import count, listing
from mrl_jax.reporting.methods import Method
from mrl_jax.reporting.sheet import Cell, Row, Sheet
from mrl_jax.reporting.tables import Comparison, Table

FILES = {"top1": "accuracy_by_dim", "1nn": "nn_by_dim"}


class Group(NamedTuple):
    """Metrics that are told of together.

    Attributes:
      pattern: of their names.
      main: of the name of the one that is drawn, if it was measured.
      shown: its table is open, not folded.
    """

    pattern: str
    main: str
    shown: bool = False


# In the order of the report: metrics by dimension, and measures with files of their own.
PARTS: tuple[Group | Callable[[Sequence[Method], str], Section | None], ...] = (
    Group(r"top\d+(_flip)?", "top1", True),
    Group(r"\d*k?nn\d*", "1nn", True),
    Group(r"(map|p|r)\d+", "map10"),
    Group(r"probe", "probe"),
    Group(r"match", "match", True),
    Group(r"masked_.*", "masked_accuracy", True),
    Group(r"overlap10|cosine_spearman", "overlap10", True),
    Group(r"spearman|pearson", "spearman", True),
    Group(r"(ndcg|mrr|recall)\d+", "ndcg10", True),
    layers.section,
    cascades.section,
    agreements.section,
    Group(r"ncm_.*", r"ncm_\d+way_5shot"),
    Group(r"tail_.*", "tail_novel_tail"),
    shifted.section,
    Group(r"superclass.*", "superclass"),
    Group(r"ece", "ece"),
    attribution.section,
)
# Told of by `agreements`.
APART = ("oracle", "vote")


LEGEND = (
    "In the figures: filled markers are dims a method was trained at, hollow ones prefixes or "
    "projections it was not trained for; bars are one sample standard deviation over seeds. In the "
    "panels below: the difference from FF-m with its 95% interval, filled where it remains after "
    "Holm's correction. Where there are thick bars, they are the interval for these networks "
    "alone, and the thin ones, which may leave the panel, that for training again as well."
)


def _searched(methods: Sequence[Method], split: str) -> int | None:
    """How many vectors retrieval searched, where all runs that say so agree."""
    tables_ = [
        r.artefacts.table("retrieval", split) or {} for m in methods for r in m.runs.values()
    ]
    found = {values["database"] for values in tables_ if type(values.get("database")) is int}
    return found.pop() if len(found) == 1 else None


def _figure(methods: Sequence[Method], table: Table) -> Figure:
    chart = charts.of_table(table)
    caption = f"{table.title}: {table.about.noun} by number of dims kept."
    rows = _searched(methods, table.split) if re.fullmatch(r"(map|p|r)\d+", table.metric) else None
    if rows:
        chart = charts.of_table(table, "multiply-adds per query", rows)
        caption = (
            f"{table.title}: {table.about.noun} by the multiply-adds of one query, {rows:,} "
            "searched vectors times the dims kept."
        )
    widest = {c.label.partition(",")[0] for c in charts.shown(table) if c.short}
    if widest:
        caption += f" Projections and probes are of {listing(sorted(widest))}."
    if left_out := len(table.curves) - len(chart.lines):
        caption += f" {count(left_out, 'column')} of the table left out for room."
    own = "" if table.split in tables.SPLIT_NAMES else f"{table.split}_"
    file = f"{own}{FILES.get(table.metric, f'{table.metric}_by_dim')}.png"
    return Figure(file, caption, plots.drawing(chart))


def _section(methods: Sequence[Method], built: Sequence[Table], shown: bool) -> Section:
    """What the first table says, its figure, and all of them as sheets."""
    table, (main, *folded) = built[0], sheet.of_tables(built)
    lead, beside = headline.lead(table), published.beside(table, methods)
    sheets = [main] * shown + [beside] * bool(beside)
    return Section(
        heading=table.about.title,
        lead=lead,
        sentences=tuple(text for text in headline.sentences(table) if text not in lead),
        figures=(_figure(methods, table),),
        sheets=tuple(sheets),
        folded=tuple(folded if shown else [main, *folded]),
    )


def of_split(methods: Sequence[Method], split: str) -> tuple[list[Section], list[Table]]:
    """The sections of all that was measured on a split and on other sets; the main tables."""
    sections, main = _of_set(methods, split, PARTS)
    groups = [part for part in PARTS if isinstance(part, Group)]
    for name in shifted.names(methods):
        if not shifted.is_shift(methods, name):
            found, tables_ = _of_set(methods, name, groups)
            sections += [dataclasses.replace(s, heading=f"{name}: {s.heading}") for s in found]
            main += tables_
    return sections, main


def _of_set(
    methods: Sequence[Method], split: str, parts: Sequence[Group | Callable]
) -> tuple[list[Section], list[Table]]:
    left = [name for name in tables.names(methods, split) if name not in APART]
    sections, main = [], []
    for part in parts:
        if not isinstance(part, Group):
            sections.append(part(methods, split))
            continue
        names = [name for name in left if re.fullmatch(part.pattern, name)]
        left = [name for name in left if name not in names]
        names.sort(key=lambda name: not re.fullmatch(part.main, name))
        built = [table for name in names if (table := tables.build(methods, split, name))]
        if built:
            sections.append(_section(methods, built, part.shown))
            main.append(built[0])
    others = [table for name in left if (table := tables.build(methods, split, name))]
    if others:
        sections.append(Section("Other measures", folded=tuple(sheet.of_tables(others))))
    return [section for section in sections if section], main


def _verdicts(comparison: Comparison) -> Cell:
    """At how many dims it is better, not clearly different and worse; below, these networks."""

    def counts(better: list[int], worse: list[int]) -> str:
        unclear = len(comparison.by_dim) - len(better) - len(worse)
        return f"{len(better)} / {unclear} / {len(worse)}"

    text = counts(*(comparison.dims(verdict, holm=True) for verdict in ("better", "worse")))
    networks = counts(*(comparison.dims_of_networks(verdict) for verdict in ("better", "worse")))
    below = networks if comparison.networks and networks != text else ""
    return Cell(text, below)


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
    name, below = listing(sorted(names)), any(c.below for _, cells in rows for c in cells.values())
    notes = [
        f"Cells: the number of trained dims at which {name} is better / not clearly different / "
        "worse, after Holm's correction: for the dims of FF-m, and for all other baselines "
        "together."
    ]
    if below:
        notes.append(
            "The second line is of these trained networks alone, on other examples. The first is "
            "of training again as well, which two or three seeds can seldom tell."
        )
    return Sheet(
        f"{name} against every baseline, {tables.SPLIT_NAMES.get(built[0].split, built[0].split)}",
        ("measure", *labels),
        tuple(
            Row(title, tuple(cells.get(label, Cell()) for label in labels)) for title, cells in rows
        ),
        tuple(notes),
    )
