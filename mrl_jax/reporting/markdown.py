"""A report as Markdown that GitHub and plain viewers show alike."""

import html
import re
from collections.abc import Sequence

from mrl_jax.reporting.content import Document, Section
from mrl_jax.reporting.sheet import Cell, Sheet


def escape(text: str) -> str:
    """`text` as Markdown and inline HTML show it literally, on one line."""
    text = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_\[\]#|~])", r"\\\1", text)


def _fenced(text: str) -> str:
    longest = max((len(ticks) for ticks in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _cell(cell: Cell) -> str:
    text = escape(cell.text)
    if cell.best:
        text = f"**{text}**"
    return f"{text}<br>{escape(cell.below)}" if cell.below else text


def _sheet(sheet: Sheet) -> str:
    aligned = "---:" if sheet.numbers else "---"
    lines = [
        f"| {' | '.join(escape(column) for column in sheet.columns)} |",
        f"|{'|'.join([aligned] * len(sheet.columns))}|",
    ]
    for row in sheet.rows:
        lines.append(f"| {' | '.join([escape(row.head), *map(_cell, row.cells)])} |")
    notes = "\n".join(f"- {escape(note)}" for note in sheet.notes)
    return "\n".join([f"**{escape(sheet.title)}**", "", *lines, "", notes]).rstrip() + "\n"


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{escape(title)}</summary>\n\n{body}\n\n</details>\n"


def _section(section: Section) -> str:
    parts = [f"## {escape(section.heading)}\n"]
    if section.sentences:
        parts.append(_list(section.sentences))
    for figure in section.figures:
        alt, caption = escape(section.heading), escape(figure.caption)
        parts.append(f"![{alt}]({figure.file})\n\n*{caption}*\n")
    return "\n".join(parts)


def _list(texts: Sequence[str]) -> str:
    return "\n".join(f"- {escape(text)}" for text in texts) + "\n"


def render(document: Document) -> str:
    """The whole report; its plots are files beside it."""
    parts = [f"# {escape(document.title)}\n", f"{escape(document.facts)}\n"]
    parts += [f"> **Note:** {escape(warning)}\n" for warning in document.warnings]
    leads = [f"- **{escape(s.heading)}.** {escape(s.lead)}" for s in document.sections if s.lead]
    parts += ["\n".join(leads) + "\n"] if leads else []
    if document.overview:
        parts.append(_sheet(document.overview))
    parts.append(f"*{escape(document.legend)}*\n")
    parts += [_section(s) for s in document.sections if s.sentences or s.figures]
    sheets = [sheet for section in document.sections for sheet in section.sheets]
    if sheets:
        parts.append("## Tables\n")
    parts += [_sheet(sheet) for sheet in sheets]
    for title, folded in document.folded:
        parts.append(_folded(title, "\n".join(_sheet(sheet) for sheet in folded)))
    parts.append("## Runs\n")
    parts.append(_folded(f"{len(document.runs.rows)} runs", _sheet(document.runs)))
    parts += [_folded(title, _fenced(text)) for title, text in document.listings]
    return "\n".join(parts)
