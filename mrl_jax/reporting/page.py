"""A report as one HTML file that needs nothing else: no network, no scripts, images inside."""

import base64
import html
import re
from collections.abc import Sequence

from mrl_jax.reporting import plots
from mrl_jax.reporting.content import Document, Figure, Section
from mrl_jax.reporting.sheet import Cell, Sheet
from mrl_jax.reporting.style import STYLE

# Even if text of a run got past the escaping, the page may neither run nor load anything.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

MOST_COLUMNS = 8  # that fit a page beside each other with spreads on the same line


def _escape(text: str) -> str:
    return html.escape(text, quote=True)


def _cell(cell: Cell) -> str:
    below = f'<span class="below">{_escape(cell.below)}</span>' if cell.below else ""
    best = ' class="best"' if cell.best else ""
    # The spread or interval after a number may stand below it.
    start = found.start() if (found := re.search(r" [±\[]", cell.text)) else len(cell.text)
    number, spread = _escape(cell.text[:start]), _escape(cell.text[start + 1 :])
    spread = f' <span class="spread">{spread}</span>' if spread else ""
    return f"<td{best}>{number}{spread}{below}</td>"


def _sheet(sheet: Sheet) -> str:
    # "FF-m" is not to be broken at its hyphen.
    columns = (_escape(column.replace("-m", "\u2011m")) for column in sheet.columns)
    heads = "".join(f'<th scope="col">{column}</th>' for column in columns)
    rows = []
    for row in sheet.rows:
        faint = ' class="faint"' if row.faint else ""
        cells = "".join(_cell(cell) for cell in row.cells)
        rows.append(f'<tr{faint}><th scope="row">{_escape(row.head)}</th>{cells}</tr>')
    names = ["numbers"] * sheet.numbers + ["dense"] * (len(sheet.columns) > MOST_COLUMNS)
    kind = f' class="{" ".join(names)}"' if names else ""
    body = "\n".join(rows)
    items = "".join(f"<li>{_escape(note)}</li>" for note in sheet.notes)
    notes = f'<ul class="notes">{items}</ul>' if items else ""
    return (
        f'<div class="sheet"><div class="scroll"><table{kind}><caption>{_escape(sheet.title)}'
        f"</caption>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody>"
        f"</table></div>{notes}</div>"
    )


def _figure(figure: Figure, heading: str) -> str:
    light, dark = (
        "data:image/png;base64," + base64.b64encode(figure.draw(theme)).decode("ascii")
        for theme in (plots.LIGHT, plots.DARK)
    )
    source = f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
    if light == dark:
        source = ""  # a photograph is the same by day and night
    return (
        f"<figure><picture>{source}"
        f'<img alt="Figure: {heading}" src="{light}"></picture>'
        f"<figcaption>{_escape(figure.caption)}</figcaption></figure>"
    )


def _list(texts: Sequence[str]) -> str:
    items = "".join(f"<li>{_escape(text)}</li>" for text in texts)
    return f"<ul>{items}</ul>" if items else "<div></div>"


def _lead(section: Section) -> str:
    return f"<li><strong>{_escape(section.heading)}.</strong> {_escape(section.lead)}</li>"


def _section(section: Section) -> str:
    heading = _escape(section.heading)
    figures = "".join(_figure(figure, heading) for figure in section.figures)
    kind = ("", " wide", " plain")[_width(section)]
    return (
        f'<div class="finding{kind}"><h2>{heading}</h2><div>{figures}</div>'
        f"{_list(section.sentences)}</div>"
    )


def _width(section: Section) -> int:
    """0: a column of the page; 1: all of it, for a wide figure; 2: all of it, without a figure."""
    if not section.figures:
        return 2
    return int(any(figure.wide for figure in section.figures))


def _folded(title: str, body: str) -> str:
    return f'<details><summary>{_escape(title)}</summary><div class="fold">{body}</div></details>'


def render(document: Document) -> str:
    """The whole page."""
    title = _escape(document.title)
    warnings = "".join(f'<p class="warning">{_escape(text)}</p>' for text in document.warnings)
    leads = "\n".join(_lead(section) for section in document.sections if section.lead)
    overview = f"<section>{_sheet(document.overview)}</section>" if document.overview else ""
    drawn = [section for section in document.sections if section.sentences or section.figures]
    # What stands in two columns comes first, so that no gaps are left.
    findings = "\n".join(_section(section) for section in sorted(drawn, key=_width))
    sheets = [sheet for section in document.sections for sheet in section.sheets]
    tables = "\n".join(f"<section>{_sheet(sheet)}</section>" for sheet in sheets)
    folded = "\n".join(
        _folded(name, "\n".join(_sheet(sheet) for sheet in parts))
        for name, parts in document.folded
    )
    runs = _folded(f"{len(document.runs.rows)} runs", _sheet(document.runs))
    listings = "\n".join(
        _folded(name, f"<pre>{_escape(text)}</pre>") for name, text in document.listings
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p class="facts">{_escape(document.facts)}</p>
{warnings}
<ul class="leads">{leads}</ul>
{overview}
<p class="legend">{_escape(document.legend)}</p>
<div class="findings">{findings}</div>
{tables}
<h2>More numbers, and how they came about</h2>
{folded}
{runs}
{listings}
</main>
</body>
</html>
"""
