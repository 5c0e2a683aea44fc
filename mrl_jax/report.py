"""Joins finished runs into tables, plots and one page: `python -m mrl_jax.report R [--out DIR]`.

R is one run folder, the root of a sweep, or a folder that holds run folders. Writes report.md,
report.html, results.csv with every number, and a PNG per plot, and prints accuracy by dimension.
"""

import csv
import io
import os
import pathlib
from collections.abc import Sequence

from mrl_jax import cli
from mrl_jax.errors import UsageError
from mrl_jax.reporting import document, markdown, methods, page, plots, runs, sheet
from mrl_jax.reporting.runs import Study

TERMINAL = ("mrl", "mrl_e", "ff", "slim", "ff_cut")  # roles of what is printed
COLUMNS = ("run", "method", "seed", "split", "metric", "dim", "value", "stderr", "n")


def results_csv(study: Study) -> str:
    """Every measured number of the study, one per line, under `COLUMNS`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for method in methods.group(study.runs):
        for seed, run in sorted(method.runs.items()):
            for r in sorted(run.results, key=lambda r: (r.split, r.metric, r.dim)):
                numbers = (r.split, r.metric, r.dim, r.value, r.stderr, r.n)
                writer.writerow((run.folder, method.label, seed, *numbers))
    return text.getvalue()


def write_atomically(path: pathlib.Path, content: bytes) -> None:
    """Writes a file that a reader sees either whole or not at all.

    Raises:
      UsageError: it cannot be written there.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(content)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from error


def main(argv: Sequence[str]) -> None:
    """Reads, reports, writes.

    Raises:
      UsageError: a bad command line, R is no folder, or --out cannot be written.
      DataError: R holds no finished run, or a file in it cannot be used.
    """
    parser = cli.ArgumentParser(prog="python -m mrl_jax.report", description=__doc__)
    parser.add_argument(
        "root", metavar="R", type=pathlib.Path, help="run folder, sweep or folder of runs"
    )
    parser.add_argument("--out", type=pathlib.Path, help="where to write the report (default: R)")
    args = parser.parse_args(argv)
    study = runs.read_study(args.root)
    report, tables = document.compose(study)

    files = {figure.file: figure.draw(plots.LIGHT) for figure in report.figures}
    files["results.csv"] = results_csv(study).encode()
    files["report.md"] = markdown.render(report).encode()
    files["report.html"] = page.render(report).encode()
    out = args.out or args.root
    for name, content in files.items():
        write_atomically(out / name, content)

    if tables:
        # A terminal is narrow: the report has the columns of all baselines.
        print(sheet.to_text(sheet.of_table(tables[0].only(TERMINAL))))
    for name in study.unfinished:
        print(f"not finished: {sheet.plain(name)}")
    print(f"report: {out / 'report.html'}")


if __name__ == "__main__":
    cli.run(main)
