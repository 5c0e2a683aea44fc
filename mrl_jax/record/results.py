"""The numbers a run ends with, and results.json, the file that holds them."""

import importlib.metadata
import json
import math
import os
import pathlib
import platform
import subprocess
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from mrl_jax import printing
from mrl_jax.runtime import numerics

SCHEMA = 1
HEADLINES = ("/top1", "/1nn", "/match", "/masked_accuracy", "/spearman", "/ndcg10", "/overlap10")
COLUMNS = 6  # of a printed table
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scikit-learn")


class Result(NamedTuple):
    """One measured number: `value` at prefix `dim` over `n` examples, with its standard error."""

    name: str
    dim: int
    value: float
    stderr: float
    n: int


def proportion(name: str, dim: int, hits: int, n: int) -> Result:
    """A fraction of n examples with its binomial standard error."""
    value = hits / n
    return Result(name, dim, value, math.sqrt(value * (1 - value) / n), n)


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


def write(
    path: pathlib.Path,
    *,
    config: dict[str, Any],
    command: str,
    step: int,
    data: str,
    read: dict[str, str],
    prompts: dict[str, str],
    results: Sequence[Result],
    skipped: dict[str, str],
) -> None:
    """Writes results.json atomically: the numbers, and what it takes to get them again.

    `data` is the fingerprint of the data set that was measured. `read` holds digests of everything
    else that was read, `prompts` what was put before texts, and `skipped` why measures are missing;
    see `evaluators.Finding`.
    """
    content = {
        "schema": SCHEMA,
        "run": config["name"],
        "config": config,
        "commit": commit(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "command": command,
        "step": step,
        "data": data,
        "read": read,
        "prompts": prompts,
        "environment": numerics.environment(),
        "settings": numerics.settings(),
        "device": f"{jax.devices()[0].device_kind} x{jax.device_count()}",
        "results": [result._asdict() for result in results],
        "skipped": skipped,
    }
    write_text(path, json.dumps(content, indent=1) + "\n")


def by_name(results: Sequence[Result]) -> dict[str, float]:
    """Results as scalars called "val/top1/0064"."""
    return {f"{r.name}/{r.dim:04d}": r.value for r in results}


def headline(results: Sequence[Result]) -> list[Result]:
    """The results that a person looks at first."""
    return [r for r in results if r.name.endswith(HEADLINES)]


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file so that it is there whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def table(results: Sequence[Result]) -> str:
    """Results as text, a line per dim and a column per metric, in percent.

    More columns than fit a wide terminal go on in further blocks of lines.
    """
    names = list(dict.fromkeys(r.name for r in results))
    blocks = [names[i : i + COLUMNS] for i in range(0, len(names), COLUMNS)]
    return "\n\n".join(_block([r for r in results if r.name in block]) for block in blocks)


def not_measured(skipped: dict[str, str]) -> list[str]:
    """A line for each measurement that could not be taken."""
    return [f"not measured: {name}: {reason}" for name, reason in skipped.items()]


def _block(results: Sequence[Result]) -> str:
    names = list(dict.fromkeys(r.name for r in results))
    values = {(r.name, r.dim): r for r in results}

    def cell(name: str, dim: int) -> str:
        r = values.get((name, dim))
        return f"{100 * r.value:.2f} +- {100 * r.stderr:.2f}" if r else ""

    dims = sorted({r.dim for r in results})
    rows = [(str(dim), *(cell(name, dim) for name in names)) for dim in dims]
    return printing.table(("dim", *names), rows)
