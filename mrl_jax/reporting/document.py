"""The content of a report, in order, before it becomes Markdown or HTML."""

import dataclasses
import json
from collections.abc import Callable, Sequence

from mrl_jax.reporting import headline, methods, plots, sheet, tables
from mrl_jax.reporting.headline import count, listing
from mrl_jax.reporting.methods import Method
from mrl_jax.reporting.runs import Run, Study
from mrl_jax.reporting.sheet import Cell, Row, Sheet
from mrl_jax.reporting.tables import Table

FILES = {"top1": "accuracy_by_dim", "1nn": "nn_by_dim"}


@dataclasses.dataclass(frozen=True)
class Plot:
    """One figure: the PNG file beside the report, a caption, and its drawing by theme."""

    file: str
    caption: str
    table: Table
    draw: Callable[[plots.Theme], bytes]


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one main table says in words, with its figure."""

    heading: str
    sentences: tuple[str, ...]
    plot: Plot


@dataclasses.dataclass(frozen=True)
class Document:
    """A report: what it says, what it shows, and the folded parts with their titles."""

    title: str
    facts: str
    warnings: tuple[str, ...]
    findings: tuple[Finding, ...]
    sheets: tuple[Sheet, ...]
    folded: tuple[tuple[str, tuple[Sheet, ...]], ...]
    runs: Sheet
    listings: tuple[tuple[str, str], ...]  # title and preformatted text


def _plot(table: Table, number: int) -> Plot:
    spread = " Bars: one sample standard deviation over seeds." if table.n_seeds > 1 else ""
    left_out = len(table.curves) - len(plots.shown(table))
    if left_out:
        spread += f" {count(left_out, 'column')} of table {number} left out for room."
    caption = (
        f"Figure {number}. {table.title}: accuracy by number of dims kept. Filled markers: "
        "dims the method was trained at; hollow: prefixes or projections it was not trained for."
        f"{spread}"
    )
    return Plot(f"{FILES[table.metric]}.png", caption, table, lambda t: plots.draw(table, t))


def _numbered(sheets: Sequence[Sheet]) -> tuple[Sheet, ...]:
    return tuple(
        dataclasses.replace(s, title=f"Table {i}. {s.title}") for i, s in enumerate(sheets, 1)
    )


def _runs_sheet(study: Study, found: Sequence[Method]) -> Sheet:
    labels = {run.folder: m.label for m in found for run in m.runs.values()}
    rows = [
        Row(
            run.folder,
            tuple(Cell(t) for t in (labels[run.folder], str(run.seed), run.commit, run.device)),
        )
        for run in study.runs
    ]
    columns = ("run", "method", "seed", "commit", "device")
    return Sheet("Runs", columns, tuple(rows), numbers=False)


def _commands(runs: Sequence[Run]) -> str:
    return "\n".join(f"{run.folder}\n    {' '.join(run.command.split())}" for run in runs)


def _versions(runs: Sequence[Run]) -> str:
    """Versions once for all runs that share them."""
    groups: dict[str, list[str]] = {}
    for run in runs:
        text = "\n".join(f"    {name} {version}" for name, version in sorted(run.versions.items()))
        groups.setdefault(text, []).append(run.folder)
    if len(groups) == 1:
        return f"all runs\n{next(iter(groups))}"
    return "\n".join(f"{', '.join(folders)}\n{text}" for text, folders in groups.items())


def _configs(runs: Sequence[Run]) -> str:
    """The keys that all runs share, then what each run has of its own."""
    texts = [{key: json.dumps(value) for key, value in run.config.items()} for run in runs]
    shared = {key: text for key, text in texts[0].items() if all(t.get(key) == text for t in texts)}
    blocks = ["all runs", *(f"    {key} = {text}" for key, text in shared.items())]
    for run, text in zip(runs, texts, strict=True):
        own = ", ".join(f"{key} = {value}" for key, value in text.items() if key not in shared)
        blocks += [run.folder, f"    {own}"] if own else []
    return "\n".join(blocks)


def _main_split(study: Study) -> str:
    """The split of the main tables: "test", or "val" of data without one, as ImageNet is used."""
    tested = any(result.split == "test" for run in study.runs for result in run.results)
    return "test" if tested else "val"


def _warnings(study: Study) -> list[str]:
    warnings = []
    if _main_split(study) == "val":
        warnings.append(
            "The data has no test split: all numbers are of the validation split, and flatter what "
            "was tuned on it."
        )
    if study.unfinished:
        verb = "has" if len(study.unfinished) == 1 else "have"
        warnings.append(
            f"{count(len(study.unfinished), 'run')} {verb} not finished and {verb} no part in this "
            f"report: {listing(study.unfinished)}."
        )
    for what, values in (
        ("commits", {run.commit for run in study.runs}),
        (
            "sets of package versions",
            {json.dumps(run.versions, sort_keys=True) for run in study.runs},
        ),
    ):
        if len(values) > 1:
            warnings.append(f"The runs come from {len(values)} different {what}; see Runs below.")
    return warnings


def compose(study: Study) -> tuple[Document, list[Table]]:
    """The report of a study, and its tables, most important first.

    Raises:
      DataError: two runs are the same method with the same seed.
    """
    found = methods.group(study.runs)

    def build(split: str, *metrics: str) -> list[Table]:
        built = (tables.build(found, split, metric) for metric in metrics)
        return [table for table in built if table]

    split = _main_split(study)
    main, top5 = build(split, "top1", "1nn"), build(split, "top5")
    val = build("val", "top1", "1nn", "top5") if split == "test" else []
    folded = []
    if top5:
        title = f"Top-5 accuracy, {tables.SPLIT_NAMES[split]}"
        folded.append((title, tuple(sheet.of_table(t) for t in top5)))
    if val:
        title = "Validation accuracy (the split that tuning may look at)"
        folded.append((title, tuple(sheet.of_table(t) for t in val)))
    seeds = {run.seed for run in study.runs}
    total = len(study.runs) + len(study.unfinished)
    facts = [
        f"{len(study.runs)} of {count(total, 'run')} finished",
        count(len(found), "method"),
        count(len(seeds), "seed"),
        f"commit {listing(sorted({run.commit for run in study.runs}))}",
        f"on {listing(sorted({run.device for run in study.runs}))}",
    ]
    document = Document(
        title=study.title,
        facts=" · ".join(facts),
        warnings=tuple(_warnings(study)),
        findings=tuple(
            Finding(table.title, tuple(headline.sentences(table)), _plot(table, i))
            for i, table in enumerate(main, 1)
        ),
        sheets=_numbered([sheet.of_table(table) for table in main]),
        folded=tuple(folded),
        runs=_runs_sheet(study, found),
        listings=(
            ("Commands", _commands(study.runs)),
            ("Versions", _versions(study.runs)),
            ("Config", _configs(study.runs)),
        ),
    )
    return document, [*main, *val, *top5]
