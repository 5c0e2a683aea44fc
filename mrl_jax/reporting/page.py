"""A report as one HTML file that needs nothing else: no network, no scripts, images inside."""

import base64
import html

from mrl_jax.reporting import plots
from mrl_jax.reporting.document import Document, Finding
from mrl_jax.reporting.sheet import Cell, Sheet

# Even if text of a run got past the escaping, the page may neither run nor load anything.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --ink: #1f2328; --quiet: #59636e; --line: #d8dde3; --strong: #8c959f;
  --wash: #f5f7f9; --best: #e4f0f8; --note: #fff6e0; --note-line: #d9a520;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --ink: #d9dee3; --quiet: #98a2ad; --line: #2c3238; --strong: #59636e;
    --wash: #1b1f23; --best: #17344a; --note: #2e2714; --note-line: #b98b1c;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 66rem;
  background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  -webkit-text-size-adjust: 100%;
}
h1 { margin: 0; font-size: 1.75rem; line-height: 1.2; font-weight: 650; overflow-wrap: anywhere; }
h2 { margin: 3rem 0 0.75rem; font-size: 1.15rem; font-weight: 650; }
.facts { margin: 0.4rem 0 1.75rem; color: var(--quiet); overflow-wrap: anywhere; }
.warning {
  margin: 0 0 1rem; padding: 0.6rem 0.9rem; overflow-wrap: anywhere;
  background: var(--note); border-left: 3px solid var(--note-line);
}
.findings, .finding { display: grid; gap: 1.25rem 2.5rem; }
.finding { align-content: start; max-width: 40rem; }
.finding h2 { margin: 0 0 0.6rem; }
.finding ul { margin: 0; padding-left: 1.1rem; }
.finding li { margin-bottom: 0.4rem; }
.finding li::marker { color: var(--strong); }
@media (min-width: 56rem) {
  /* Both columns share the rows, so that the figures stand side by side. */
  .findings { grid-template: auto auto / 1fr 1fr; }
  .finding { grid-row: span 2; grid-template-rows: subgrid; }
}
figure { margin: 0; break-inside: avoid; }
figure img { display: block; width: 100%; max-width: 34rem; height: auto; }
figcaption, .notes { color: var(--quiet); font-size: 0.84rem; line-height: 1.5; }
figcaption { margin-top: 0.5rem; }
.notes { margin: 0.6rem 0 0; padding-left: 1.1rem; max-width: 52rem; }
.scroll { overflow-x: auto; }
table {
  border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums;
  border-top: 1.5px solid var(--strong); border-bottom: 1.5px solid var(--strong);
}
caption { text-align: left; font-weight: 650; padding: 0 0 0.5rem; white-space: nowrap; }
th, td { padding: 0.32rem 0.75rem; text-align: left; vertical-align: baseline; }
.numbers th, .numbers td { text-align: right; white-space: nowrap; }
.numbers thead th { white-space: normal; vertical-align: bottom; min-width: 5.2rem; }
.numbers th:first-child { min-width: 0; white-space: nowrap; }
thead th { font-weight: 600; border-bottom: 1px solid var(--strong); }
tbody tr + tr > * { border-top: 1px solid var(--line); }
tbody th { font-weight: 600; }
th:first-child { position: sticky; left: 0; background: var(--paper); }
.faint td, .faint th { color: var(--quiet); font-weight: 400; background-color: var(--wash); }
td.best { font-weight: 700; background: var(--best); color: var(--ink); }
.below { display: block; font-size: 0.8em; color: var(--quiet); font-weight: 400; }
section { margin-top: 2.75rem; }
details { border-top: 1px solid var(--line); }
details:last-of-type { border-bottom: 1px solid var(--line); }
summary { padding: 0.6rem 0; cursor: pointer; }
details > .fold { padding: 0.25rem 0 1.5rem; }
.fold > div + div { margin-top: 1.75rem; }
pre {
  margin: 0; padding: 0.8rem 1rem; background: var(--wash); overflow-x: auto;
  font: 0.8rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace;
  white-space: pre-wrap; overflow-wrap: anywhere;
}
@media (max-width: 40rem) {
  body { padding: 1.5rem 1rem 3rem; }
  h1 { font-size: 1.4rem; }
  table { font-size: 0.84rem; }
  th, td { padding: 0.3rem 0.5rem; }
}
@media print {
  @page { margin: 16mm 14mm; }
  html { font-size: 9.5pt; }
  body { padding: 0; max-width: none; }
  .findings { grid-template: auto auto / 1fr 1fr; gap: 0.75rem 1.5rem; }
  .finding { grid-row: span 2; grid-template-rows: subgrid; }
  .scroll { overflow: visible; }
  table { font-size: 7.6pt; }
  th, td { padding: 0.2rem 0.4rem; }
  .numbers thead th { min-width: 0; }
  .warning, .notes li, li { break-inside: avoid; }
  table, tr { break-inside: avoid; }
  section, h2 { margin-top: 1.5rem; }
  h2, summary { break-after: avoid; }
  /* Paper cannot be unfolded. */
  details::details-content { content-visibility: visible; display: block; }
  pre { font-size: 7pt; padding: 0.4rem 0.6rem; }
}
"""


def _escape(text: str) -> str:
    return html.escape(text, quote=True)


def _cell(cell: Cell) -> str:
    below = f'<span class="below">{_escape(cell.below)}</span>' if cell.below else ""
    best = ' class="best"' if cell.best else ""
    return f"<td{best}>{_escape(cell.text)}{below}</td>"


def _sheet(sheet: Sheet) -> str:
    heads = "".join(f'<th scope="col">{_escape(column)}</th>' for column in sheet.columns)
    rows = []
    for row in sheet.rows:
        faint = ' class="faint"' if row.faint else ""
        cells = "".join(_cell(cell) for cell in row.cells)
        rows.append(f'<tr{faint}><th scope="row">{_escape(row.head)}</th>{cells}</tr>')
    kind = ' class="numbers"' if sheet.numbers else ""
    body = "\n".join(rows)
    items = "".join(f"<li>{_escape(note)}</li>" for note in sheet.notes)
    notes = f'<ul class="notes">{items}</ul>' if items else ""
    return (
        f'<div class="sheet"><div class="scroll"><table{kind}><caption>{_escape(sheet.title)}'
        f"</caption>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody>"
        f"</table></div>{notes}</div>"
    )


def _finding(finding: Finding) -> str:
    light, dark = (
        "data:image/png;base64," + base64.b64encode(finding.plot.draw(theme)).decode("ascii")
        for theme in (plots.LIGHT, plots.DARK)
    )
    items = "".join(f"<li>{_escape(text)}</li>" for text in finding.sentences)
    heading = _escape(finding.heading)
    return (
        f'<div class="finding"><div><h2>{heading}</h2><ul>{items}</ul></div>'
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img alt="Line plot of the numbers of the table {heading}" src="{light}"></picture>'
        f"<figcaption>{_escape(finding.plot.caption)}</figcaption></figure></div>"
    )


def _folded(title: str, body: str) -> str:
    return f'<details><summary>{_escape(title)}</summary><div class="fold">{body}</div></details>'


def render(document: Document) -> str:
    """The whole page."""
    title = _escape(document.title)
    warnings = "".join(f'<p class="warning">{_escape(text)}</p>' for text in document.warnings)
    findings = "\n".join(_finding(finding) for finding in document.findings)
    sections = "\n".join(f"<section>{_sheet(sheet)}</section>" for sheet in document.sheets)
    folded = "\n".join(
        _folded(name, "\n".join(_sheet(sheet) for sheet in sheets))
        for name, sheets in document.folded
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
<div class="findings">{findings}</div>
{sections}
<h2>More numbers, and how they came about</h2>
{folded}
{runs}
{listings}
</main>
</body>
</html>
"""
