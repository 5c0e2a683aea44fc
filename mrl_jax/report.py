"""Joins finished runs into tables, plots and one page: `python -m mrl_jax.report R [--out DIR]`.

R is one run folder, the root of a sweep, or a folder that holds run folders. Writes report.md,
report.html, results.csv with every number, and a PNG per plot, and prints accuracy by dimension.
"""

from mrl_jax import cli

if __name__ == "__main__":
    cli.start(uses_jax=False)  # before the imports below, which take seconds

import pathlib
from collections.abc import Sequence

import pandas as pd

from mrl_jax.printing import plain
from mrl_jax.record import runs
from mrl_jax.record.results import Series
from mrl_jax.record.runs import Study
from mrl_jax.reporting import document, methods, render, sheet
from mrl_jax.store import outputs

TERMINAL = ("mrl", "mrl_e", "ff", "slim", "ff_cut")  # roles of what is printed
PAGE = "report.md"
WRITTEN, END = "<!-- files of mrl_jax.report: ", " -->"


def results_csv(study: Study) -> str:
    """Every measured number of the study, one per line, under `methods.COLUMNS`."""
    order = ["seed", *Series._fields, "dim"]
    frames = [
        method.frame.astype({"layer": "Int64"}).sort_values(order)
        for method in methods.group(study.runs)
    ]
    return pd.concat(frames).to_csv(index=False, lineterminator="\n")


def write_files(out: pathlib.Path, files: dict[str, bytes]) -> None:
    """Writes the files of a report in place of those of an earlier one; other files stay.

    The last line of report.md lists the files in its folder that belong to a report.

    Raises:
      UsageError: a file cannot be written, or one of that name exists that no report wrote.
    """
    listing = out / PAGE

    def listed() -> set[str]:
        try:
            *_, last = listing.read_text().splitlines() or [""]
        except (OSError, ValueError):
            return set()
        found = last.startswith(WRITTEN) and last.endswith(END)
        return set(last[len(WRITTEN) : -len(END)].split("/")) if found else set()

    def own(name: str) -> outputs.Own:
        return lambda _: name in listed()

    for name in files:
        outputs.check_file(out / name, own(name))
    names = sorted({*files, *listed()})
    # The page comes first, as its list makes the others a report's own.
    text = files[PAGE] + f"\n{WRITTEN}{'/'.join(names)}{END}\n".encode()
    for name, content in {**files, PAGE: text}.items():
        outputs.write_file(out / name, content, own(name))


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

    # Paths and classes may have names that are not Unicode.
    texts = {
        PAGE: render.written(report, PAGE),
        "results.csv": results_csv(study),
        "report.html": render.written(report, "report.html"),
    }
    files = {name: text.encode(errors="backslashreplace") for name, text in texts.items()}
    files |= {figure.file: figure.draw(False) for figure in report.figures}
    out = args.out or args.root
    write_files(out, files)

    if tables:
        # A terminal is narrow: the report has the columns of all baselines.
        print(sheet.to_text(sheet.of_table(tables[0].only(TERMINAL))))
    for name in study.unfinished:
        print(f"not finished: {plain(name)}")
    print(f"report: {out / 'report.html'}")


if __name__ == "__main__":
    cli.run(main)
