"""The sections of a report: which measures are shown together, in which order, and how."""

import re
import urllib.parse
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mrl_jax import plots
from mrl_jax.record.results import Series
from mrl_jax.reporting import charts, findings, published, sheet, tables
from mrl_jax.reporting.content import Figure, Section
from mrl_jax.reporting.methods import Method
from mrl_jax.reporting.tables import Table
from mrl_jax.reporting.text import count, listing

FILES = {"top1": "accuracy_by_dim", "1nn": "nn_by_dim"}


class Group(NamedTuple):
    """Families of metrics that share a section.

    Attributes:
      main: pattern of the name of the one that is drawn, if it was measured.
      shown: its table is open, not folded.
    """

    families: tuple[str, ...]
    main: str
    shown: bool = False


# In the order of the report: metrics by dimension, and what evaluators wrote to files.
PARTS: tuple[Group | Callable[[Sequence[Method], Series], Section | None], ...] = (
    Group(("top",), "top1", True),
    Group(("neighbours",), "1nn", True),
    Group(("retrieval",), "map10"),
    Group(("probe",), "probe"),
    Group(("match",), "match", True),
    Group(("photo_search",), "text_to_image_recall1", True),
    Group(("caption_search",), "image_to_text_recall1", True),
    findings.found_photos,
    Group(("zero_shot",), "zero_shot", True),
    Group(("caption_neighbours",), "caption_1nn"),
    Group(("masked",), "masked_accuracy", True),
    Group(("preservation",), "overlap10", True),
    Group(("similarity",), "spearman", True),
    Group(("search",), "ndcg10", True),
    Group(("text_classes",), "logreg", True),
    Group(("text_clusters",), "v_measure", True),
    findings.layers,
    findings.cascades,
    findings.agreements,
    Group(("few_shot",), r"ncm_\d+way_5shot"),
    Group(("long_tail",), "tail_novel_tail"),
    findings.shifts,
    Group(("superclass",), "superclass"),
    Group(("calibration",), "ece"),
    findings.attribution,
)
APART = ("agreement",)  # the family that `findings.agreements` shows


def _searched(methods: Sequence[Method], place: str) -> int | None:
    """How many vectors retrieval searched, if all runs that say so agree."""
    told = findings.files(methods, "retrieval", place)
    found = {rows for file in told if type(rows := file.values.get("database")) is int}
    return found.pop() if len(found) == 1 else None


def _figure(methods: Sequence[Method], table: Table) -> Figure:
    series = table.series
    chart = charts.of_table(table)
    caption = f"{table.title}: {table.about.noun} by number of dims kept."
    if table.about.family == "retrieval" and (rows := _searched(methods, series.place)):
        chart = charts.of_table(table, "multiply-adds per query", rows)
        caption = (
            f"{table.title}: {table.about.noun} by the multiply-adds of one query, {rows:,} "
            "searched vectors times the dims kept."
        )
    if widest := {c.label.partition(",")[0] for c in charts.shown(table) if c.short}:
        caption += f" Projections and probes are of {listing(sorted(widest))}."
    if left_out := len(table.curves) - len(chart.lines):
        caption += f" {count(left_out, 'column')} of the table left out for room."
    # The name of a set may hold characters that the name of a file may not.
    own = "" if series.place in tables.SPLIT_NAMES else f"{series.place}_"
    name = f"{own}{FILES.get(series.label, f'{series.label}_by_dim')}"
    file = f"{urllib.parse.quote(name, safe=' ', errors='surrogateescape')}.png"
    return Figure(file, caption, plots.drawing(chart))


def _section(methods: Sequence[Method], built: Sequence[Table], shown: bool) -> Section:
    """What the first table says, its figure, and all of them as sheets."""
    table, (main, *folded) = built[0], sheet.of_tables(built)
    beside = published.beside(table, methods)
    return Section(
        heading=table.about.title,
        lead=sheet.lead(table),
        figures=(_figure(methods, table),),
        sheets=(*[main] * shown, *[beside] * bool(beside)),
        folded=tuple(folded if shown else [main, *folded]),
    )


def of_study(methods: Sequence[Method], split: str) -> tuple[list[Section], list[Table]]:
    """The sections of all that was measured on a split and on other sets; the main tables."""
    sections, main = _of_place(methods, Series(split=split), PARTS)
    groups = [part for part in PARTS if isinstance(part, Group)]
    for base in findings.sets(methods):
        if not findings.is_shift(methods, base):
            found, tables_ = _of_place(methods, base, groups)
            sections += [s._replace(heading=f"{base.place}: {s.heading}") for s in found]
            main += tables_
    return sections, main


def _of_place(
    methods: Sequence[Method], base: Series, parts: Sequence[Group | Callable]
) -> tuple[list[Section], list[Table]]:
    left = tables.measured(methods, base)
    family = {series: tables.describe(methods, series.metric).family for series in left}
    left = [series for series in left if family[series] not in APART]
    sections, main = [], []
    for part in parts:
        if not isinstance(part, Group):
            sections.append(part(methods, base))
            continue
        own = [series for series in left if family[series] in part.families]
        left = [series for series in left if series not in own]
        own.sort(key=lambda series: not re.fullmatch(part.main, series.metric))
        if built := [table for series in own if (table := tables.build(methods, series))]:
            sections.append(_section(methods, built, part.shown))
            main.append(built[0])
    if others := [table for series in left if (table := tables.build(methods, series))]:
        sections.append(Section("Other measures", folded=tuple(sheet.of_tables(others))))
    return [section for section in sections if section], main
