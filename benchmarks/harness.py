"""Measuring: cases in turn within one process, memory in processes of their own."""

import dataclasses
import datetime
import importlib.metadata
import math
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

# A sample is at least this long: shorter steps are repeated and averaged.
MIN_SAMPLE_SECONDS = 0.05
# Idle time before a sample. OpenMP threads keep spinning for a while after a step of PyTorch and
# would slow the next case down.
SETTLE_SECONDS = 0.02
ROOT = pathlib.Path(__file__).resolve().parent.parent
_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "sentence-transformers")


@dataclasses.dataclass(frozen=True)
class Step:
    """One forward and backward pass, ready to run.

    Attributes:
      run: does it, waits for the gradients and returns the loss.
      compiled: XLA's program, where there is one.
    """

    run: Callable[[], float]
    compiled: Any = None


@dataclasses.dataclass(frozen=True)
class Case:
    """One implementation.

    Attributes:
      name: "library/form".
      computes: cases of one setting with the same `computes` must find the same loss.
      gflop: the matrix products that one forward and backward pass needs, by hand.
      build: makes inputs and compiles, but runs nothing. Raises ImportError where its library
        is missing.
    """

    name: str
    computes: str
    gflop: float
    build: Callable[[], Step]

    @property
    def library(self) -> str:
        """What it is written in: the part of the name before the slash."""
        return self.name.split("/")[0]


def jax_step(function: Callable, parameters: tuple, data: tuple = ()) -> Step:
    """Value and gradients of `function(*parameters, *data)` with respect to all parameters."""
    gradients = jax.value_and_grad(function, tuple(range(len(parameters))))
    arguments = jax.device_put((*parameters, *data))
    compiled = jax.jit(gradients).lower(*arguments).compile()
    return Step(lambda: float(jax.block_until_ready(compiled(*arguments))[0]), compiled)


def dims_text(dims: Sequence[int]) -> str:
    """Dims for a title: how many, the first and the last."""
    return f"{len(dims)} dims {dims[0]} to {dims[-1]}"


class Progress:
    """A line on stderr: how far, and when it will be done, from the work that is left."""

    def __init__(self, total: float):
        self.total, self.done, self.start = total, 0.0, time.monotonic()

    def advance(self, work: float, text: str) -> None:
        """Says what comes next; `work` is what was done since the last call."""
        self.done += work
        elapsed = time.monotonic() - self.start
        line = f"[{self.done / self.total:4.0%}, {elapsed:.0f} s"
        if self.done:
            line += f", ~{elapsed / self.done * (self.total - self.done):.0f} s left"
        line += f"] {text}"
        if sys.stderr.isatty():
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)


def _sample(step: Step, repeats: int) -> float:
    time.sleep(SETTLE_SECONDS)
    start = time.perf_counter()
    for _ in range(repeats):
        step.run()
    return (time.perf_counter() - start) / repeats


def in_turn(
    steps: dict[str, Step], rounds: int, between: Callable[[int], None]
) -> dict[str, list[float]]:
    """Seconds per step of every case, one sample per round: A B C A B C ...

    What slows the machine down for a while then slows all cases down alike, and the ratio of two
    samples of one round stays true. `between` is called before every round. The steps must have
    been run before: the first run touches memory for the first time.
    """
    repeats = {}
    for name, step in steps.items():
        repeats[name] = max(1, math.ceil(MIN_SAMPLE_SECONDS / _sample(step, 1)))
    seconds = {name: [] for name in steps}
    for index in range(rounds):
        between(index)
        for name, step in steps.items():
            seconds[name].append(_sample(step, repeats[name]))
    return seconds


def spread(samples: Sequence[float]) -> tuple[float, list[float]]:
    """The median and the two quartiles."""
    if len(samples) == 1:
        return samples[0], [samples[0]] * 2
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return median, [low, high]


def timing_of(seconds: Sequence[float], floor: Sequence[float]) -> dict[str, Any]:
    """What a line says of a case: its samples, and their ratios to the floor's of each round."""
    median, quartiles = spread(seconds)
    ratio, ratio_quartiles = spread([x / y for x, y in zip(seconds, floor, strict=True)])
    return {
        "seconds_median": median,
        "seconds_quartiles": quartiles,
        "ratio_median": ratio,
        "ratio_quartiles": ratio_quartiles,
    }


def _status_mb(field: str) -> float | None:
    try:
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(x.split()[1]) / 1024 for x in lines if x.startswith(field)), None)


def peak_of_this_process(step: Step, runs: int = 3) -> float | None:
    """MB by which this process grows while it runs the step: VmHWM minus VmRSS before.

    Inputs, parameters, libraries and compiled code are there before; temporary arrays and
    gradients are what is counted, in every library. None where the system has no such counters.
    """
    before = _status_mb("VmRSS")
    try:
        # Compiling may have needed more than the step will: start the high-water mark afresh.
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    for _ in range(runs):
        step.run()
    peak = _status_mb("VmHWM")
    return None if before is None or peak is None else max(0.0, peak - before)


def in_own_process(arguments: Sequence[str]) -> str:
    """Stdout of `python -m ...` in a new process; what it prints on failure is raised."""
    result = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed: {result.stderr.strip()[-2000:]}")
    return result.stdout


def xla_numbers(compiled: Any) -> dict[str, float | None]:
    """What XLA says about a program. It counts the body of a loop once, however often it runs."""
    names = ("xla_temp_mb", "xla_argument_mb", "xla_output_mb", "xla_gflop_loops_once")
    if compiled is None:
        return dict.fromkeys(names)
    memory = compiled.memory_analysis()
    sizes = (memory.temp_size_in_bytes, memory.argument_size_in_bytes, memory.output_size_in_bytes)
    flops = (compiled.cost_analysis() or {}).get("flops", math.nan)
    values = [size / 2**20 for size in sizes] + [flops / 1e9]
    return dict(zip(names, (round(value, 6) for value in values), strict=True))


def threads() -> int:
    """The cores this process may use; XLA and PyTorch both get all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def environment() -> dict[str, Any]:
    """Where and when a line was measured."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "versions": {"python": platform.python_version(), **versions},
        "device": jax.devices()[0].device_kind,
        "machine": platform.machine(),
        "threads": threads(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "load": round(os.getloadavg()[0], 2),
    }


def lines_in_turn(
    cases: Sequence[Case],
    rounds: int,
    *,
    setting: str,
    title: str,
    check: Callable[[dict[str, float]], None] = lambda losses: None,
) -> list[dict[str, Any]]:
    """All cases of one setting in turn, a line each; ratios are to the first.

    Args:
      cases: the floor first; those whose library is missing are skipped.
      rounds: samples of each.
      setting: as in --cases.
      title: for tables and plots.
      check: of what every case found at its first step; raises if they differ.
    """
    progress = Progress(len(cases) * (rounds + 4))
    steps, skipped = {}, {}
    for case in cases:
        progress.advance(0, f"{setting}: building {case.name}")
        try:
            steps[case.name] = case.build()
        except ImportError as error:
            skipped[case.name] = str(error).split(" (")[0]
        progress.advance(4, f"{setting}: built {case.name}")
    losses = {name: step.run() for name, step in steps.items()}
    check(losses)

    def between(index):
        progress.advance(len(steps) if index else 0, f"{setting}: round {index + 1}/{rounds}")

    seconds = in_turn(steps, rounds, between)
    about = {"setting": setting, "title": title, "rounds": rounds, **environment()}
    lines = []
    for case in cases:
        line = {"case": case.name, "skipped": skipped.get(case.name), "peak_mb": None}
        line |= {"gflop_by_hand": case.gflop, **about}
        if case.name in steps:
            timing = timing_of(seconds[case.name], seconds[cases[0].name])
            line |= {
                "loss": losses[case.name],
                **timing,
                "tflops_by_hand": case.gflop / timing["seconds_median"] / 1e3,
                **xla_numbers(steps[case.name].compiled),
            }
        lines.append(line)
    return lines
