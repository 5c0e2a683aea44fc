"""The looks of the page: light and dark, on phones and on paper."""

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
.leads { margin: 0; padding-left: 1.1rem; max-width: 52rem; }
.leads li { margin-bottom: 0.45rem; }
.leads li::marker { color: var(--strong); }
.legend { margin: 2.75rem 0 0; max-width: 52rem; }
.findings, .finding { display: grid; gap: 1.25rem 2.5rem; }
.finding { align-content: start; max-width: 40rem; }
.finding.wide { max-width: none; }
.finding { row-gap: 0.75rem; }
.finding h2 { margin: 1.5rem 0 0; }
.finding ul { margin: 0; padding-left: 1.1rem; font-size: 0.92rem; line-height: 1.5; }
.finding li { margin-bottom: 0.4rem; }
.finding li::marker { color: var(--strong); }
@media (min-width: 56rem) {
  /* Both columns share the rows, so that the figures stand side by side. */
  .findings { grid-template-columns: 1fr 1fr; }
  .finding { grid-row: span 3; grid-template-rows: subgrid; }
  .finding.wide, .finding.plain { grid-column: 1 / -1; }
}
figure { margin: 0; break-inside: avoid; }
figure img { display: block; width: 100%; max-width: 34rem; height: auto; }
.wide figure img { max-width: 44rem; }
figcaption, .notes, .legend { color: var(--quiet); font-size: 0.84rem; line-height: 1.5; }
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
.spread { color: var(--quiet); font-size: 0.88em; font-weight: 400; }
.dense .spread { display: block; }
.dense th, .dense td { padding-left: 0.5rem; padding-right: 0.5rem; }
.dense.numbers thead th { min-width: 4.2rem; }
.below {
  display: block; white-space: normal; font-size: 0.8em; font-weight: 400; color: var(--quiet);
}
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
  .numbers tbody th:first-child { white-space: normal; }
}
@media print {
  @page { margin: 16mm 14mm; }
  html { font-size: 9.5pt; }
  body { padding: 0; max-width: none; }
  .findings { grid-template-columns: 1fr 1fr; gap: 0.75rem 1.5rem; }
  .finding { grid-row: auto; display: block; break-inside: avoid; }
  .finding h2 { margin: 0.75rem 0 0.5rem; }
  figure img { max-width: 80mm; }
  .wide figure img { max-width: 120mm; }
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
