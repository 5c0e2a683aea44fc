"""The content of a report, in order, before it becomes Markdown or HTML."""

import json
from collections import defaultdict
from collections.abc import Sequence

from mrl_jax.record.results import Series
from mrl_jax.record.runs import Run, Study
from mrl_jax.reporting import methods, sections, sheet, tables
from mrl_jax.reporting.content import Cell, Document, Row, Sheet
from mrl_jax.reporting.methods import Method
from mrl_jax.reporting.tables import Table
from mrl_jax.reporting.text import count, listing

# What is shown of the validation split beside the test split.
VALIDATED = ("top1", "1nn", "top5", "match", "text_to_image_recall1", "image_to_text_recall1")
VALIDATED += ("masked_accuracy", "spearman")
VALIDATION = "Validation accuracy (the split that tuning may look at)"
MOST_MISSING = 10  # measures that are named with the reason why they are missing


def _runs_sheet(study: Study, found: Sequence[Method]) -> Sheet:
    labels = {run.folder: m.label for m in found for run in m.runs.values()}
    told = ((r.folder, labels[r.folder], str(r.seed), r.commit, r.device) for r in study.runs)
    rows = tuple(Row(folder, tuple(map(Cell, texts))) for folder, *texts in told)
    return Sheet("Runs", ("run", "method", "seed", "commit", "device"), rows, numbers=False)


def _described(study: Study, texts: Sequence[dict[str, str]], group: bool) -> str:
    """Keys with their values: those that all runs share, then what each run has of its own.

    With `group`, keys that begin with the same part share a line.
    """
    shared = {key: text for key, text in texts[0].items() if all(t.get(key) == text for t in texts)}
    lines: dict[str, list[str]] = {}
    for key, text in shared.items():
        lines.setdefault(key.partition(".")[0] if group else key, []).append(f"{key} = {text}")
    blocks = ["all runs", *(f"    {', '.join(line)}" for line in lines.values())]
    for run, text in zip(study.runs, texts, strict=True):
        own = ", ".join(f"{key} = {value}" for key, value in text.items() if key not in shared)
        blocks += [run.folder, f"    {own}"] if own else []
    return "\n".join(blocks)


def _warnings(study: Study, main: Sequence[Table]) -> list[str]:
    warnings = []
    splits = {result.split for run in study.runs for result in run.results if not result.set}
    if "val" in splits and "test" not in splits:
        sets = sorted({result.set for run in study.runs for result in run.results} - {""})
        which = f"all numbers but those of {listing(sets)}" if sets else "all numbers"
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
    versions = {json.dumps(run.versions, sort_keys=True) for run in study.runs}
    for what, values in (
        ("commits", {run.commit for run in study.runs}),
        ("sets of package versions", versions),
        ("data sets", {run.data for run in study.runs if run.data}),
    ):
        if len(values) > 1:
            warnings.append(f"The runs come from {len(values)} different {what}; see Details.")
    compared = [c for table in main for c in (*table.comparisons, *table.rivals)]
    if compared and all(c.one_seed for c in compared):
        warnings.append(
            "Compared at one seed: what is called better or worse here holds for these trained "
            "networks. Whether it would hold after training again is not known."
        )
    return warnings


def _not_measured(runs: Sequence[Run]) -> list[str]:
    """A line for each measure that could not be taken, with the runs that lack it."""
    missing: dict[tuple[str, str], list[str]] = defaultdict(list)
    for run in runs:
        for name, reason in run.skipped.items():
            missing[name, str(reason)].append(run.folder)
    lines = [
        f"{name} was not measured"
        + (f" in {listing(folders)}" if len(folders) < len(runs) else "")
        + f": {reason}."
        for (name, reason), folders in missing.items()
    ]
    more = len(lines) - MOST_MISSING
    return lines[:MOST_MISSING] + ([f"{more} more measures are missing."] if more > 0 else [])


def compose(study: Study) -> tuple[Document, list[Table]]:
    """The report of a study, and its tables, most important first.

    Raises:
      DataError: two runs are the same method with the same seed, or a file of one is damaged.
    """
    runs, found = study.runs, methods.group(study.runs)
    tested = any(r.split == "test" and not r.set for run in runs for r in run.results)
    # Without a test split, the validation split is the main one, as is usual for ImageNet.
    parts, main = sections.of_study(found, "test" if tested else "val")
    of_val = (tables.build(found, Series(split="val", metric=name)) for name in VALIDATED)
    val = [table for table in of_val if table] if tested else []
    configs = [{key: json.dumps(value) for key, value in r.config.items()} for r in runs]
    document = Document(
        title=study.title,
        facts=(
            f"{len(runs)} of {count(len(runs) + len(study.unfinished), 'run')} finished",
            count(len(found), "method"),
            count(len({run.seed for run in runs}), "seed"),
            f"commit {listing(sorted({run.commit for run in runs}))}",
            f"on {listing(sorted({run.device for run in runs}))}",
        ),
        warnings=tuple(_warnings(study, main)),
        sections=tuple(parts),
        overview=sheet.overview(main),
        folded=(
            *[(VALIDATION, tuple(map(sheet.of_table, val)))] * bool(val),
            (count(len(runs), "run"), (_runs_sheet(study, found),)),
        ),
        listings=(
            ("Commands", "\n".join(f"{r.folder}: {' '.join(r.command.split())}" for r in runs)),
            ("Versions", _described(study, [run.versions for run in runs], group=False)),
            ("Config", _described(study, configs, group=True)),
        ),
    )
    return document, [*main, *val]
