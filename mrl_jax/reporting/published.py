"""The paper's own numbers, to be read beside ours: ResNet-50 on ImageNet-1K.

Numbers of arXiv 2205.13147 (Matryoshka Representation Learning), Tables 1 and 2. MRL, MRL-E, SVD
and random rows are as Tables 4 and 5 of arXiv 2503.01776 print them again; FF at some dims and its
1-NN row come from other articles that quote the paper. Cells that no source at hand quotes are
left out, and so is its slimmable network, which is another baseline than one narrow network per
width.
"""

from collections.abc import Sequence
from typing import NamedTuple

from mrl_jax.reporting.content import Cell, Row, Sheet
from mrl_jax.reporting.methods import ONE_DIM, Method
from mrl_jax.reporting.tables import Table
from mrl_jax.reporting.text import percent, signed

CONFIG, CLASSES = "imagenet_resnet50", 1000
DIMS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)


class Published(NamedTuple):
    """A table of the paper, and what in it is not quite what we measure.

    Attributes:
      columns: (role of our curves, the paper's name, percentages at `DIMS` with 0 for unknown).
    """

    name: str
    columns: tuple[tuple[str, str, tuple[float, ...]], ...]
    notes: str


_TOP1 = (
    ("mrl", "MRL", (66.63, 73.53, 75.03, 75.82, 76.30, 76.47, 76.65, 76.76, 76.80)),
    ("mrl_e", "MRL-E", (56.66, 71.94, 74.48, 75.35, 75.80, 76.22, 76.36, 76.48, 76.51)),
    ("ff", "FF", (65.29, 72.85, 0, 0, 75.29, 0, 0, 0, 76.87)),
    ("ff_svd", "SVD", (2.34, 7.17, 20.46, 48.10, 67.24, 74.59, 76.78, 76.87, 0)),
    ("ff_probe", "Rand. LP", (4.56, 11.29, 27.21, 49.47, 65.70, 72.43, 74.94, 76.10, 76.87)),
)
_1NN = (
    ("mrl", "MRL", (62.19, 67.91, 69.46, 70.17, 70.52, 70.62, 70.82, 70.89, 70.97)),
    ("mrl_e", "MRL-E", (57.45, 67.05, 68.60, 69.61, 70.12, 70.36, 70.74, 71.07, 71.21)),
    ("ff", "FF", (58.93, 66.77, 68.84, 69.41, 69.35, 69.72, 70.18, 0, 71.19)),
    ("ff_cut", "Rand. FS", (2.36, 12.06, 32.91, 49.91, 60.91, 65.75, 68.77, 70.41, 71.19)),
    ("ff_pca", "SVD", (19.14, 46.02, 60.78, 67.04, 69.63, 70.67, 71.06, 71.22, 71.21)),
)
TABLES = {
    "top1": Published(
        "Table 1",
        _TOP1,
        "Rand. LP is a linear classifier on m random dims; ours is a ridge regression.",
    ),
    "1nn": Published(
        "Table 2",
        _1NN,
        "Its Rand. FS are the first m dims of FF-2048, not random ones. Its SVD is of the "
        "features, which our PCA also centres. In the paper as well SVD of FF-2048 is ahead of MRL "
        "from 256 dims up.",
    ),
}
SOURCE = (
    "Ours, below it the difference in points from the paper's number to its right; "
    "paper: Kusupati et al., arXiv 2205.13147, {name}, as quoted by arXiv 2503.01776 and others; "
    "empty where no source at hand quotes a cell. Evaluated without mirrored images, as ours."
)


def _as_published(method: Method) -> bool:
    """Whether it is the paper's network on the paper's data, with its dims and weights."""
    return all(
        str(run.config.get("name")).partition(":")[0] == CONFIG
        and run.config.get("data.classes") == CLASSES
        and not run.config.get("nesting.weights")
        and (method.kind in ONE_DIM or run.dims == DIMS)
        for run in method.runs.values()
    )


def beside(table: Table, methods: Sequence[Method]) -> Sheet | None:
    """Our means beside the paper's numbers; None where the paper has no such table."""
    about = TABLES.get(table.series.label)
    others = {m.label for m in methods if not _as_published(m)}
    if not about or any(m.kind == "fixed" and m.label in others for m in methods):
        return None
    pairs = [
        (curve, name, values)
        for role, name, values in about.columns
        for curve in table.curves
        if curve.role == role and curve.label not in others
    ]
    if not pairs:
        return None
    rows = []
    for i, dim in enumerate(DIMS):
        cells = []
        for curve, _, values in pairs:
            ours, its = curve.summary(dim), values[i]
            below = signed(ours.mean - its / 100) if ours and its else ""
            cells.append(Cell(f"{percent(ours.mean)}" if ours else "", below))
            cells.append(Cell(f"{its:.2f}" if its else ""))
        rows.append(Row(str(dim), tuple(cells)))
    names = [each for curve, name, _ in pairs for each in (curve.label, f"paper: {name}")]
    title = f"{table.title}, beside the paper's {about.name}"
    note = f"{SOURCE.format(name=about.name)} {about.notes}"
    return Sheet(title, ("dim", *names), tuple(rows), note)


def cascade(methods: Sequence[Method]) -> list[str]:
    """What the paper says of its cascade, where these are its network and data."""
    if not any(m.kind == "separate" and _as_published(m) for m in methods):
        return []
    return [
        "The paper's cascade (section 4.2.1, images seen from both sides): 76.30% at about 37 "
        "dims, 62 with all prefixes tried, against 76.3% of FF-512; some granularity is right for "
        "81.54%."
    ]
