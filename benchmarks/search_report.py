"""Lines of the search benchmark as tables and as a plot."""

import pathlib
from collections.abc import Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from benchmarks import report
from benchmarks.search_data import GENERATED

Line = dict[str, Any]
OURS, PLANNED = "mrl_jax/", "mrl_jax/planned"
OTHERS = "#6b7280"
NOTES = """\
recall@10: share of the exact ten nearest that are found, mean over the queries, with a 95 %
bootstrap interval over queries. For every target, of the settings that reach it, the one with the
most queries a second (all at once) and the one with the lowest median latency (200, one by one)
were measured again: best of the rounds, all cases in turn, each in a fresh process; in a round a
short batch is repeated as said below, and the best counts. x exact: of faiss.knn on whole vectors,
in the same rounds. A number behind a name is the dims of a prefix, or, behind `rotated`, of
principal directions; other cases are of all dims. Prefixes by cosine have unit length, like whole
vectors; by inner they are as long as the part of the vector they are, and a row that has much of
its length in its first dims comes before nearer ones. Candidates of prefixes and of codes are
ranked again by the inner product of whole float32 vectors, by numpy or by the routine of
faiss.IndexRefineFlat, whichever is faster; our schedules and ScaNN do that themselves. `planned`
is the plan that our planner chose by itself for a target, with queries that are not measured here.

Held in memory is the index; mapped are whole vectors in a file, of which candidates alone are read.
Of exact search all vectors are held. OPENBLAS_CORETYPE names the kernels all use: by itself the
OpenBLAS in faiss takes some processors for very old ones, and its exact search is then several
times slower.

Of results kept here, `generated` are the vectors of benchmarks/search_vectors.py; `captions`
those of configs/static_sentence.py, trained with dims up to 384 on captions of Flickr30k;
`cifar10` training images, and test images as queries, by configs/cifar10.py with
model.name=resnet50, model.stem=imagenet, model.width=32, data.image_size=32,
nesting.dims=8,16,...,1024, seed 0.
"""


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """The first row is the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = [name in ("case", "setting") for name in rows[0]]
    marks = [
        "-" * width if is_left else "-" * (width - 1) + ":"
        for width, is_left in zip(widths, left, strict=True)
    ]
    lines = []
    for row in (rows[0], marks, *rows[1:]):
        cells = zip(row, widths, left, strict=True)
        text = (c.ljust(width) if is_left else c.rjust(width) for c, width, is_left in cells)
        lines.append("| " + " | ".join(text) + " |")
    return lines


def _number(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 1e-3 else "0"


def _recall(result: dict) -> str:
    low, high = (f"{x:.4f}".removeprefix("0") for x in result["interval"])
    return f"{result['recall']:.4f} [{low}, {high}]"


def _named(line: Line, found: dict) -> str:
    """The case, and whether it finds less than it should: a plan is measured all the same."""
    return line["case"] + ("" if found["recall"] >= line["target"] else " (misses the target)")


def _fastest(lines: Sequence[Line]) -> tuple[Line, Line] | None:
    """In a batch, and alone; None if there are no lines."""
    if not lines:
        return None
    by_rate = max(lines, key=lambda line: line["batch"]["qps"])
    return by_rate, min(lines, key=lambda line: line["single"]["p50_ms"])


def _compared(reached: Sequence[Line]) -> list[str]:
    """Our fastest beside the fastest of others, and plans beside our fastest, in a line each."""
    planned = [line for line in reached if line["case"].startswith(PLANNED)]
    rest = [line for line in reached if line not in planned]
    others = [line for line in rest if not line["case"].startswith(OURS)]
    ours = _fastest([line for line in rest if line["case"].startswith(OURS)])
    parts = []
    if ours and (best := _fastest(others)):
        sizes = (
            f"{(ours[0][key] / best[0][key]):.2f}x its {name}"
            for key, name in (
                ("index_bytes", "bytes in memory"),
                ("build_seconds", "time to build"),
            )
            if best[0][key]
        )
        rate, alone = _beside(ours, best)
        parts.append(
            f"\nOurs beside the fastest of others: {rate:.2f}x its queries a second "
            f"({ours[0]['case']}; {best[0]['case']}), with {', '.join(sizes)}; alone {alone:.2f}x "
            f"as fast ({ours[1]['case']}; {best[1]['case']})."
        )
    for line in planned:
        about = line["promised"]
        low, high = about["interval"]
        text = f"\n{line['case']} promised a recall of {about['recall']:.4f} [{low:.4f}, "
        text += f"{high:.4f}] and found {line['batch']['recall']:.4f}"
        if ours:
            rate, alone = _beside((line, line), ours)
            text += (
                f"; beside our fastest that reaches the target it has {rate:.2f}x the queries a "
                f"second, and is {alone:.2f}x as fast alone"
            )
        parts.append(f"{text}.")
    return parts


def _beside(some: tuple[Line, Line], best: tuple[Line, Line]) -> tuple[float, float]:
    """How many times as fast, in a batch and alone."""
    rate = some[0]["batch"]["qps"] / best[0]["batch"]["qps"]
    return rate, best[1]["single"]["p50_ms"] / some[1]["single"]["p50_ms"]


def _speed(lines: Sequence[Line]) -> list[str]:
    """Who reached the target, the fastest first."""
    reached = [line for line in lines if line["batch"]]
    batch = [["case", "queries/s", "x exact", "recall@10", "setting"]]
    single = [["case", "p50, ms", "p99, ms", "x exact", "recall@10", "setting"]]
    for line in sorted(reached, key=lambda line: -line["batch"]["qps"]):
        found, floor = line["batch"], line["floor"]["batch"]
        ratio = _number(found["qps"] / floor) if floor else "-"
        about = [_number(found["qps"]), ratio, _recall(found), found["asked"]]
        batch.append([_named(line, found), *about])
    for line in sorted(reached, key=lambda line: line["single"]["p50_ms"]):
        found, floor = line["single"], line["floor"]["single"]
        ratio = _number(floor / found["p50_ms"]) if floor else "-"
        times = [_number(found["p50_ms"]), _number(found["p99_ms"])]
        single.append([_named(line, found), *times, ratio, _recall(found), found["asked"]])
    parts = ["All queries at once:\n", *_table(batch), "\nOne by one:\n", *_table(single)]
    parts += _compared(reached)
    if missed := [x for x in lines if not x["batch"] and not x["skipped"]]:
        names = ", ".join(f"{x['case']} ({x['best_recall']:.3f})" for x in missed)
        parts.append(f"\nNot reached with any setting tried (its best): {names}.")
    return parts


def _sizes(lines: Sequence[Line]) -> list[str]:
    rows = [["case", "planning, s", "build, s", "held in memory, MB", "mapped, MB"]]
    for line in lines:
        sizes = (_number(line[key] / 1e6) for key in ("index_bytes", "vector_bytes"))
        planning = _number(line["planning_seconds"]) if "planning_seconds" in line else ""
        rows.append([line["case"], planning, _number(line["build_seconds"]), *sizes])
    return _table(rows)


def _bound(lines: Sequence[Line]) -> list[str]:
    rows = [["case", "target", "reads, MB", "limit, ms", "p50, ms", "measured / limit"]]
    for line in lines:
        if line["single"] and line["single"]["reads_bytes"]:
            reads, measured = line["single"]["reads_bytes"], line["single"]["p50_ms"]
            limit = 1e3 * reads / line["bandwidth"]
            about = [f"{reads / 1e6:.3g}", f"{limit:.3g}", _number(measured)]
            ratio = _number(measured / limit)
            rows.append([line["case"], f"{line['target']:g}", *about, ratio])
    if len(rows) == 1:
        return []
    gigabytes = lines[0]["bandwidth"] / 1e9
    text = f"""\
The limit is what a query alone reads, over the bandwidth at which all threads read memory in order,
{gigabytes:.1f} GB/s. Of lists of others it is what they would read if all had the same length, of a
graph that of the rows in view in the end, which is less than it reads:
"""
    return [text, *_table(rows)]


def _by(lines: Sequence[Line], key: str) -> dict[Any, list[Line]]:
    groups: dict[Any, list[Line]] = {}
    for line in lines:
        groups.setdefault(line[key], []).append(line)
    return groups


def _by_data(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """Vectors of models first, then generated ones."""
    groups = _by(lines, "data")
    return {title: groups[title] for title in sorted(groups, key=lambda x: x.startswith(GENERATED))}


def markdown(lines: Sequence[Line]) -> str:
    """Tables for every set of vectors and every target."""
    parts = [NOTES]
    for title, group in _by_data(lines).items():
        parts.append(f"## {title}\n")
        for command, same in _by(group, "command").items():
            about = f"{report.conditions(same[0])}; load before: {same[0]['load']}"
            about += f"; short batches repeated up to {same[0]['repeats']} times"
            about += f"; OPENBLAS_CORETYPE={same[0]['openblas']}" if same[0]["openblas"] else ""
            parts.append(f"`{command}`\n\n{about}.\n")
        for target, same in _by(group, "target").items():
            parts.append("\n".join([f"### recall@10 >= {target:g}\n", *_speed(same), ""]))
        once = list({line["case"]: line for line in group}.values())
        built = [line for line in once if not line["skipped"]]
        parts.append("\n".join(["### Time to build and bytes\n", *_sizes(built), ""]))
        if bound := _bound(group):
            parts.append("\n".join(["### The limit of memory\n", *bound, ""]))
        skipped = [f"Skipped {x['case']}: {x['skipped']}." for x in once if x["skipped"]]
        parts.append("\n".join([*skipped, ""]) if skipped else "")
    return "\n".join(parts).rstrip() + "\n"


def plot(lines: Sequence[Line], path: pathlib.Path) -> None:
    """Queries a second and latency of every case, a row per set of vectors, a dot per target."""
    reached = [line for line in lines if line["batch"]]
    groups = {title: _by(group, "case") for title, group in _by_data(reached).items()}
    heights = [len(cases) + 3 for cases in groups.values()]
    figure = Figure((9, 0.27 * sum(heights) + 0.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(groups), 2, squeeze=False, height_ratios=heights)
    kinds = (("batch", "qps", "queries a second, all at once"),)
    kinds += (("single", "p50_ms", "median latency of one query, ms"),)
    for row, (title, cases) in zip(panels, groups.items(), strict=True):
        for axes, (mode, key, label) in zip(row, kinds, strict=True):
            for at, (case, same) in enumerate(cases.items()):
                colour = report.COLOURS["mrl_jax"] if case.startswith(OURS) else OTHERS
                for line in same:
                    value, first = line[mode][key], line["target"] == lines[0]["target"]
                    height = at + (-0.2 if first else 0.2)
                    face = colour if first else "white"
                    axes.plot(value, height, "o", ms=4, mec=colour, mfc=face, mew=1)
                    target = f"{line['target']:g}".removeprefix("0")
                    text = f"{_number(value)}  ({target})"
                    about = {"textcoords": "offset points", "va": "center", "fontsize": 5.5}
                    axes.annotate(text, (value, height), (5, 0), **about)
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())  # they would overlap
            left, right = axes.get_xlim()
            axes.set_xlim(left, right * (right / left) ** 0.2)
            axes.set_yticks(range(len(cases)), list(cases), fontsize=7)
            axes.set_ylim(len(cases) - 0.4, -0.6)
            axes.grid(color="#e5e7eb", lw=0.6)
            axes.set_axisbelow(True)
            axes.tick_params(axis="x", labelsize=7)
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_xlabel(f"{label} (recall@10 at least)", fontsize=7)
        row[0].set_title(title, fontsize=8, loc="left")
    figure.savefig(path)
