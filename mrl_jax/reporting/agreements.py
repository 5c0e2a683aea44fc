"""What the granularities of one network say of the same examples: oracle, vote, agreement."""

from collections.abc import Sequence
from typing import Any

from mrl_jax.errors import DataError
from mrl_jax.record.artefacts import fractions
from mrl_jax.reporting import sheet, statistics, tables
from mrl_jax.reporting.content import Section
from mrl_jax.reporting.headline import listing, percent
from mrl_jax.reporting.methods import ONE_DIM, Method, series
from mrl_jax.reporting.sheet import Cell, Row, Sheet
from mrl_jax.store.json_files import field

_TRENDS = {
    "rises": "get better with dims",
    "rises_then_dips": "get better, then worse",
    "dips_then_rises": "get worse, then better",
    "no_trend": "show no trend",
}


def _oracle_sentence(method: Method, split: str, found: Sequence[tuple[Any, str]]) -> str:
    oracle = [field(values, "oracle.accuracy", (int, float), where) for values, where in found]
    dims = [
        field(values, "oracle.expected_dim.smallest", (int, float), where)
        for values, where in found
    ]
    text = (
        f"Of {method.label} some granularity is right for "
        f"{percent(statistics.summarize(oracle).mean)}% of the examples: the most that choosing "
        f"one per example can give, at {statistics.summarize(dims).mean:.1f} dims on average."
    )
    votes = [r.value for run in method.runs.values() for r in run.measured(series(split, "vote"))]
    width = method.dims[-1]
    whole = list(method.values(series(split, "top1")).get(width, {}).values())
    if votes and whole:
        vote, full = (percent(statistics.summarize(values).mean) for values in (votes, whole))
        text += f" The vote of all granularities gives {vote}%, the full {width} dims {full}%."
    return text


def _trend_sentence(method: Method, values: Any, where: str, seed: int) -> str:
    counts = field(values, "classes.trends", dict, where)
    parts = [f"{field(counts, key, int, where):,} {words}" for key, words in _TRENDS.items()]
    of = f" (seed {seed})" if len(method.runs) > 1 else ""
    return f"Of the classes of {method.label}{of} {listing(parts)}."


def _agreement_sheet(method: Method, values: Any, where: str, seed: int) -> Sheet:
    dims = field(values, "dims", list, where)
    agree = [fractions(row, where) for row in field(values, "pairs.agree", list, where)]
    if [len(row) for row in agree] != [len(dims)] * len(dims):
        raise DataError(f"{where}: pairs.agree must be a square of {len(dims)} dims")
    rows = [
        Row(str(dim), tuple(Cell(percent(share)) for share in row))
        for dim, row in zip(dims, agree, strict=True)
    ]
    note = "Cells: percent of the examples of which two granularities say the same class."
    title = f"{method.label}, seed {seed}: how far granularities agree"
    return Sheet(title, ("dim", *map(str, dims)), tuple(rows), (note,))


def section(methods: Sequence[Method], split: str) -> Section | None:
    """Oracle, vote and class trends of the nested methods; None where they were not measured."""
    said, folded = [], []
    for method in (m for m in methods if m.kind not in ONE_DIM):
        named = "agreement", split
        runs = [
            (seed, values, run.artefacts.where(*named))
            for seed, run in sorted(method.runs.items())
            if (values := run.artefacts.table(*named))
        ]
        if not runs:
            continue
        said.append(_oracle_sentence(method, split, [(v, where) for _, v, where in runs]))
        seed, values, where = runs[0]
        said.append(_trend_sentence(method, values, where, seed))
        folded.append(_agreement_sheet(method, values, where, seed))
    built = (tables.build(methods, split, metric) for metric in ("oracle", "vote"))
    folded += sheet.of_tables([table for table in built if table])
    if not said and not folded:
        return None
    return Section(
        "Agreement of granularities",
        said[0] if said else "",
        tuple(said[1:]),
        (),
        (),
        tuple(folded),
    )
