"""The numbers a run ends with, and results.json, the file that holds them."""

import importlib.metadata
import math
import os
import pathlib
import platform
import subprocess
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from mrl_jax import printing
from mrl_jax.record import metrics
from mrl_jax.record.metrics import TRAINED, Metric

SCHEMA = 2
COLUMNS = 6  # of a printed table
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scikit-learn")


class Series(NamedTuple):
    """What is measured, at any number of dims.

    Attributes:
      set: a set of `eval`, such as "stsb" or a shift; "" = the run's own data.
      split: "train", "val" or "test"; "" of a set without splits.
      metric: see `metrics`.
      space: where the coordinates come from, see `metrics.SPACES`.
      layer: after how many layers of the encoder; None = after all.
    """

    set: str = ""
    split: str = ""
    metric: str = ""
    space: str = TRAINED
    layer: int | None = None

    @property
    def place(self) -> str:
        """The set, or the split of the run's own data."""
        return self.set or self.split

    @property
    def label(self) -> str:
        """Metric, space and layer as logs name them: "spearman_pca_layer3". Never parsed."""
        space = "" if self.space == TRAINED else f"_{self.space}"
        return self.metric + space + ("" if self.layer is None else f"_layer{self.layer}")

    @property
    def name(self) -> str:
        """How logs name it: "test/spearman_pca_layer3". Never parsed."""
        return f"{self.place}/{self.label}"

    def of(self, metric: str, space: str = TRAINED) -> "Series":
        """Another metric of the same set or split, after the same layers."""
        return self._replace(metric=metric, space=space)

    def result(self, dim: int, value: float, stderr: float, n: int) -> "Result":
        """Its number at a prefix."""
        return Result(*self, dim, float(value), float(stderr), n)

    def proportion(self, dim: int, hits: int, n: int) -> "Result":
        """A fraction of n examples with its binomial standard error."""
        value = hits / n
        return self.result(dim, value, math.sqrt(value * (1 - value) / n), n)

    def mean(self, dim: int, value_n: np.ndarray) -> "Result":
        """The mean of n values with its standard error, which is 0 where there is but one."""
        n = len(value_n)
        stderr = value_n.std(ddof=1) / np.sqrt(n) if n > 1 else 0.0
        return self.result(dim, value_n.mean(), stderr, n)


class Result(NamedTuple):
    """One number of a `Series`: `value` at prefix `dim` over `n` examples, with standard error."""

    set: str
    split: str
    metric: str
    space: str
    layer: int | None
    dim: int
    value: float
    stderr: float
    n: int

    @property
    def series(self) -> Series:
        """What was measured."""
        return Series(*self[:5])

    @property
    def name(self) -> str:
        """See `Series.name`."""
        return self.series.name


def release() -> str:
    """The version of the package."""
    try:
        return importlib.metadata.version("mrl_jax")
    except importlib.metadata.PackageNotFoundError:  # a copy of the code, not installed
        return "of unknown version"


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that numbers depend on."""
    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **packages}


def commit() -> str:
    """The commit of the code that runs, marked if files differ from it.

    "unknown" without git, or where no repository tracks the package, even if one surrounds it.
    """
    here = pathlib.Path(__file__)
    # Git sets these for its hooks and scripts, and they may point to another repository.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}

    def git(*arguments):
        command = ["git", "--no-optional-locks", *arguments]
        return subprocess.run(
            command, cwd=here.parent, env=environment, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)
        head = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}-dirty" if changed else head


def by_name(results: Sequence[Result]) -> dict[str, float]:
    """Results as scalars called "val/top1/0064"."""
    return {f"{r.name}/{r.dim:04d}": r.value for r in results}


def headline(results: Sequence[Result]) -> list[Result]:
    """The results that a person looks at first."""
    return [
        r
        for r in results
        if metrics.describe(r.metric).headline and r.space == TRAINED and r.layer is None
    ]


def table(results: Sequence[Result], rows: Mapping[str, Metric] = MappingProxyType({})) -> str:
    """Results as text, a line per dim and a column per metric, most of them in percent.

    More columns than fit a wide terminal go on in further blocks of lines. `rows` are of metrics
    from elsewhere.
    """
    names = list(dict.fromkeys(r.name for r in results))
    blocks = [names[i : i + COLUMNS] for i in range(0, len(names), COLUMNS)]
    return "\n\n".join(_block([r for r in results if r.name in block], rows) for block in blocks)


def not_measured(skipped: dict[str, str]) -> list[str]:
    """A line for each measurement that could not be taken."""
    return [f"not measured: {name}: {reason}" for name, reason in skipped.items()]


def _block(results: Sequence[Result], rows: Mapping[str, Metric]) -> str:
    names = list(dict.fromkeys(r.name for r in results))
    values = {(r.name, r.dim): r for r in results}

    def cell(name: str, dim: int) -> str:
        r = values.get((name, dim))
        if not r:
            return ""
        scale = metrics.describe(r.metric, rows).scale
        return f"{scale * r.value:.2f} +- {scale * r.stderr:.2f}"

    dims = sorted({r.dim for r in results})
    lines = [(str(dim), *(cell(name, dim) for name in names)) for dim in dims]
    return printing.table(("dim", *names), lines)
