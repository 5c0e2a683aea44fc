"""The content of a report, in order, before it becomes Markdown or HTML."""

import dataclasses
import json
from collections.abc import Sequence

from mrl_jax.record.runs import Run, Study
from mrl_jax.reporting import methods, sections, sheet, tables
from mrl_jax.reporting.content import Document, Section
from mrl_jax.reporting.headline import count, listing
from mrl_jax.reporting.methods import Method
from mrl_jax.reporting.sheet import Cell, Row, Sheet
from mrl_jax.reporting.tables import Table

# What is shown of the validation split beside the test split.
VALIDATED = ("top1", "1nn", "top5", "match", "masked_accuracy", "spearman")

MOST_MISSING = 10  # measures that are named with the reason why they are missing


def _numbered(found: Sequence[Section]) -> list[Section]:
    """The same sections with numbers for their figures and open tables."""
    figures = tables_ = 0
    numbered = []
    for section in found:
        own_figures, own_sheets = [], []
        for figure in section.figures:
            figures += 1
            own_figures.append(
                dataclasses.replace(figure, caption=f"Figure {figures}. {figure.caption}")
            )
        for one in section.sheets:
            tables_ += 1
            own_sheets.append(dataclasses.replace(one, title=f"Table {tables_}. {one.title}"))
        numbered.append(
            dataclasses.replace(section, figures=tuple(own_figures), sheets=tuple(own_sheets))
        )
    return numbered


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
    measured = {result.series.place for run in study.runs for result in run.results}
    if "val" in measured and "test" not in measured:
        apart = sorted(measured - {*methods.OWN_SPLITS})
        which = f"all numbers but those of {listing(apart)}" if apart else "all numbers"
        warnings.append(
            f"The data has no test split: {which} are of the validation split, and flatter what "
            "was tuned on it."
        )
    if study.unfinished:
        verb = "has" if len(study.unfinished) == 1 else "have"
        warnings.append(
            f"{count(len(study.unfinished), 'run')} {verb} not finished and {verb} no part in this "
            f"report: {listing(study.unfinished)}."
        )
    warnings += _not_measured(study.runs)
    for what, values in (
        ("commits", {run.commit for run in study.runs}),
        (
            "sets of package versions",
            {json.dumps(run.versions, sort_keys=True) for run in study.runs},
        ),
        ("data sets", {run.data for run in study.runs if run.data}),
    ):
        if len(values) > 1:
            warnings.append(f"The runs come from {len(values)} different {what}; see Runs below.")
    return warnings


def _not_measured(runs: Sequence[Run]) -> list[str]:
    """A line for each measure that the data did not allow, with the runs that lack it."""
    missing: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        for name, reason in run.skipped.items():
            missing.setdefault((name, str(reason)), []).append(run.folder)
    lines = [
        f"{name} was not measured"
        + (f" in {listing(folders)}" if len(folders) < len(runs) else "")
        + f": {reason}."
        for (name, reason), folders in missing.items()
    ]
    more = len(lines) - MOST_MISSING
    return lines[:MOST_MISSING] + ([f"{more} more measures are missing."] if more > 0 else [])


def _facts(study: Study, found: Sequence[Method]) -> str:
    total = len(study.runs) + len(study.unfinished)
    return " · ".join(
        [
            f"{len(study.runs)} of {count(total, 'run')} finished",
            count(len(found), "method"),
            count(len({run.seed for run in study.runs}), "seed"),
            f"commit {listing(sorted({run.commit for run in study.runs}))}",
            f"on {listing(sorted({run.device for run in study.runs}))}",
        ]
    )


def _validation(found: Sequence[Method]) -> list[Table]:
    """What tuning may look at, beside the test split of the main tables."""
    built = (tables.build(found, "val", metric) for metric in VALIDATED)
    return [table for table in built if table]


def compose(study: Study) -> tuple[Document, list[Table]]:
    """The report of a study, and its tables, most important first.

    Raises:
      DataError: two runs are the same method with the same seed, or a file of one is damaged.
    """
    found = methods.group(study.runs)
    split = _main_split(study)
    parts, main = sections.of_split(found, split)
    val = _validation(found) if split == "test" else []
    parts = _numbered(parts)
    folded = [(f"{part.heading}: tables", part.folded) for part in parts if part.folded]
    if val:
        title = "Validation accuracy (the split that tuning may look at)"
        folded.append((title, tuple(sheet.of_table(t) for t in val)))
    warnings = _warnings(study)
    compared = [c for table in main for c in (*table.comparisons, *table.rivals)]
    if compared and all(c.one_seed for c in compared):
        warnings.append(
            "Compared at one seed: what is called better or worse here holds for these trained "
            "networks. Whether it would hold after training again is not known."
        )
    document = Document(
        title=study.title,
        facts=_facts(study, found),
        warnings=tuple(warnings),
        sections=tuple(parts),
        overview=sections.overview(main),
        legend=sections.LEGEND,
        folded=tuple(folded),
        runs=_runs_sheet(study, found),
        listings=(
            ("Commands", _commands(study.runs)),
            ("Versions", _versions(study.runs)),
            ("Config", _configs(study.runs)),
        ),
    )
    return document, [*main, *val]
