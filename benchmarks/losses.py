"""What nested losses cost: time, memory and FLOPs, forward + backward, beside plain JAX and torch.

    python -m benchmarks.losses                          # twenty minutes on two cores
    python -m benchmarks.losses --full                   # all sizes; hours, 16 GB of memory
    python -m benchmarks.losses --cases 'ce-*:mrl_jax/*' 'nce-b256-*'

Prints a JSON line per case and, at the end, tables; writes losses.jsonl, losses.md and losses.png
to --out. Every library gets the same numbers, and a benchmark whose implementations find different
losses stops. What is compared: seconds and `peak_mb` (a process of its own per case) across
libraries; `xla_*` among the JAX cases only. The floor, 1.00 in every table, is ONE plain loss in
plain JAX: a dense classifier, or InfoNCE at full width. torch and sentence-transformers are run
where they are installed and JAX runs on CPU.
"""

import argparse
import fnmatch
import json
import math
import pathlib
from collections.abc import Sequence

import jax

from benchmarks import classification, contrastive, harness, report
from benchmarks.classification import Classification
from benchmarks.contrastive import Contrastive

Setting = Classification | Contrastive
FIVE = (64, 128, 256, 512, 768)
EVERY_16 = tuple(range(16, 769, 16))
FULL: tuple[Setting, ...] = (
    *(Classification(b, c) for c in (1000, 21841) for b in (256, 1024, 4096)),
    *(Contrastive(b, dims) for dims in (FIVE, EVERY_16) for b in (256, 1024, 4096)),
)
DEFAULT = (
    "ce-b256-c1000-*",
    "ce-b1024-c1000-*",
    "ce-b256-c21841-*",
    "nce-b256-*",
    "nce-b1024-g5",
    "nce-b4096-g5",
    "nce-b4096-g48:mrl_jax/*",
)
SMOKE: tuple[Setting, ...] = (Classification(8, 10, (2, 4, 8)), Contrastive(8, (2, 4, 8)))
# Of losses that should be equal; float32 sums in another order differ by far less.
TOLERANCE = 1e-3


def cases_of(setting: Setting) -> list[harness.Case]:
    """All implementations for one size, the floor first."""
    module = classification if isinstance(setting, Classification) else contrastive
    return module.cases(setting)


def select(patterns: Sequence[str]) -> dict[Setting, list[harness.Case]]:
    """What to run, the floor always with it.

    Patterns are SETTING or SETTING:CASE, with wildcards; "smoke" is two sizes for tests.

    Raises:
      ValueError: a pattern that matches nothing.
    """
    chosen: dict[Setting, list[harness.Case]] = {}
    unused = set(patterns)
    for setting in (*SMOKE, *FULL):
        name = "smoke" if setting in SMOKE else setting.name
        picked = []
        for case in cases_of(setting):
            hits = {
                p
                for p in patterns
                if fnmatch.fnmatchcase(f"{name}:{case.name}", p if ":" in p else f"{p}:*")
                and (name != "smoke" or p.startswith("smoke"))
            }
            unused -= hits
            if hits:
                picked.append(case)
        if picked:
            chosen[setting] = [
                c for c in cases_of(setting) if c.name in {setting.floor, *(p.name for p in picked)}
            ]
    if unused:
        names = ", ".join(s.name for s in FULL)
        raise ValueError(f"no case is called {', '.join(sorted(unused))}; settings: {names}")
    return chosen


def build(case: harness.Case) -> harness.Step | str:
    """The case, ready to run, or why it cannot run here."""
    if not case.name.startswith(("jax/", "mrl_jax/")) and jax.default_backend() != "cpu":
        return "compared on CPU only"
    try:
        return case.build()
    except ImportError as error:
        return str(error).split(" (")[0]  # without the path


def check_losses(cases: Sequence[harness.Case], losses: dict[str, float]) -> None:
    """Stops a benchmark of things that are not the same.

    Raises:
      ValueError: cases that should find the same loss do not.
    """
    expected: dict[str, tuple[str, float]] = {}
    for case in cases:
        loss = losses[case.name]
        name, other = expected.setdefault(case.computes, (case.name, loss))
        if not math.isclose(loss, other, rel_tol=TOLERANCE):
            raise ValueError(f"{case.name} finds a loss of {loss}, {name} one of {other}")


def _identifier(setting: Setting, case: harness.Case) -> str:
    return f"{'smoke-' if setting in SMOKE else ''}{setting.name}:{case.name}"


def measure(
    setting: Setting, cases: Sequence[harness.Case], rounds: int, progress: harness.Progress
) -> list[report.Line]:
    """All cases of one setting, a line each."""
    about = {
        "setting": setting.name,
        "title": setting.title,
        "batch": setting.batch,
        "classes": getattr(setting, "classes", None),
        "dims": setting.dims,
        "rounds": rounds,
        **harness.environment(),
    }
    steps, peaks, skipped, losses = {}, {}, {}, {}
    for case in cases:
        progress.advance(0, f"{setting.name}: building {case.name}")
        step = build(case)
        if isinstance(step, str):
            skipped[case.name] = step
            progress.advance(_work(case, rounds), f"{setting.name}: skipped {case.name}")
            continue
        steps[case.name] = step
        losses[case.name] = step.run()
        # Device memory is not in this process: the counters say nothing there.
        if jax.default_backend() == "cpu":
            arguments = ["benchmarks.losses", "--peak-of", _identifier(setting, case)]
            peaks[case.name] = json.loads(harness.in_own_process(arguments).splitlines()[-1])
        progress.advance(_work(case, 0), f"{setting.name}: built {case.name}")
    running = [case for case in cases if case.name in steps]
    check_losses(running, losses)

    round_work = sum(_work(case, 1) - _work(case, 0) for case in running)

    def between(index: int) -> None:
        progress.advance(round_work if index else 0, f"{setting.name}: round {index + 1}/{rounds}")

    seconds = harness.in_turn(steps, rounds, between)
    progress.advance(round_work, f"{setting.name}: done")
    lines = []
    for case in cases:
        line = {
            "case": case.name,
            "computes": case.computes,
            "skipped": skipped.get(case.name),
            "gflop_by_hand": round(case.gflop, 6),
            **about,
        }
        if case.name in steps:
            line |= {
                "loss": losses[case.name],
                **harness.timing_of(seconds[case.name], seconds[setting.floor]),
                "peak_mb": peaks.get(case.name),
                **harness.xla_numbers(steps[case.name].compiled),
            }
        lines.append(line)
    return lines


def _work(case: harness.Case, rounds: int) -> float:
    """Rough seconds, to say how long it will take: 8 for building, 50 GFLOP/s from then on."""
    return 8 + (rounds + 6) * max(harness.MIN_SAMPLE_SECONDS, case.gflop / 50)


def _peak_of(identifier: str) -> None:
    """Prints the peak memory of one case, as JSON."""
    for setting in (*SMOKE, *FULL):
        for case in cases_of(setting):
            if _identifier(setting, case) == identifier:
                print(json.dumps(harness.peak_of_this_process(case.build())))


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Time and memory of nested losses.")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--cases", nargs="+", default=DEFAULT, help="SETTING or SETTING:CASE")
    which.add_argument("--full", action="store_true", help="all settings, also the large ones")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=pathlib.Path, default=harness.ROOT / "benchmarks" / "results")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.peak_of:
        _peak_of(arguments.peak_of)
        return
    if arguments.rounds < 1:
        parser.error(f"--rounds must be >= 1, got {arguments.rounds}")
    try:
        chosen = select("*" if arguments.full else arguments.cases)
    except ValueError as error:
        parser.error(str(error))

    progress = harness.Progress(
        sum(_work(case, arguments.rounds) for cases in chosen.values() for case in cases)
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    lines = []
    with (arguments.out / "losses.jsonl").open("w") as file:
        for setting, cases in chosen.items():
            for line in measure(setting, cases, arguments.rounds, progress):
                lines.append(line)
                print(json.dumps(line), flush=True)
                print(json.dumps(line), file=file, flush=True)
            jax.clear_caches()
    text = report.markdown(lines)
    (arguments.out / "losses.md").write_text(text)
    report.plot(lines, arguments.out / "losses.png")
    print(text)


if __name__ == "__main__":
    main()
