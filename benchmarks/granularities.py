"""What a further granularity costs: nested losses of 48 dims over those of 5, per instruction set.

    python -m benchmarks.granularities                    # two minutes on two idle cores
    taskset -c 0 python -m benchmarks.granularities       # one core: for machines that others use

Each instruction set is a process of its own, with XLA_FLAGS=--xla_cpu_max_isa. Times are of one
forward and backward pass, the least of all rounds. Where others use the machine, the CPU time on
one core is what to compare: cores that wait for each other count as busy. Writes granularities.md
to --out.
"""

import argparse
import json
import os
import pathlib
import time
from collections.abc import Sequence

from benchmarks import contrastive, harness
from benchmarks.losses import EVERY_16, FIVE

ISAS = ("AVX2", "AVX512")
BIAS = -10.0


def _sigmoid(setting: contrastive.Contrastive) -> harness.Step:
    from mrl_jax import Nesting
    from mrl_jax.kernels import nested_sigmoid_loss

    nesting = Nesting(setting.dims)

    def loss(a_bd, b_bd):
        return nested_sigmoid_loss(a_bd, b_bd, nesting, temperature=0.1, bias=BIAS)[0]

    return harness.jax_step(loss, contrastive.data(setting))


def measure(batch: int, rounds: int) -> list[dict]:
    """A line per loss: the least wall and CPU seconds of both numbers of dims, taken in turn."""
    builds = {"nested_info_nce": contrastive.ours, "nested_sigmoid_loss": _sigmoid}
    settings = [contrastive.Contrastive(batch, dims) for dims in (FIVE, EVERY_16)]
    steps = {(name, len(s.dims)): build(s) for name, build in builds.items() for s in settings}
    taken = {key: ([], []) for key in steps}
    for index in range(rounds + 1):
        for key, step in steps.items():
            wall, cpu = time.perf_counter(), time.process_time()
            step.run()
            if index:  # the first run touches memory for the first time
                taken[key][0].append(time.perf_counter() - wall)
                taken[key][1].append(time.process_time() - cpu)
    least = {key: [min(seconds) for seconds in samples] for key, samples in taken.items()}
    few, many = (len(s.dims) for s in settings)
    return [{"loss": name, "few": least[name, few], "many": least[name, many]} for name in builds]


def markdown(lines: Sequence[dict], batch: int, rounds: int) -> str:
    """The table, with where and when it was measured."""
    about = lines[0]
    text = (
        f"{about['device']}, {about['threads']} threads, {about['date'][:10]}, "
        f"jax {about['versions']['jax']}, load before: {about['load']}\n\n"
        f"B = {batch}, {len(FIVE)} and {len(EVERY_16)} dims up to {FIVE[-1]}: one forward and "
        f"backward pass, the least of {rounds} rounds. Where the load was high, others used the "
        "machine: compare CPU times.\n\n"
        "| instruction set | loss | 5 dims, ms | 48 dims, ms | ratio "
        "| 5 dims, CPU ms | 48 dims, CPU ms | ratio |\n"
        "| --- | --- | --: | --: | --: | --: | --: | --: |\n"
    )
    for line in lines:
        cells = [line["isa"], line["loss"]]
        for few, many in zip(line["few"], line["many"], strict=True):
            cells += [f"{1e3 * few:.1f}", f"{1e3 * many:.1f}", f"{many / few:.2f}"]
        text += f"| {' | '.join(cells)} |\n"
    return text


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="What a further granularity costs.")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=pathlib.Path, default=harness.ROOT / "benchmarks" / "results")
    parser.add_argument("--isa", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.batch < 1 or arguments.rounds < 1:
        parser.error("--batch and --rounds must be >= 1")
    sizes = ["--batch", str(arguments.batch), "--rounds", str(arguments.rounds)]
    if arguments.isa:
        about = {"isa": arguments.isa, **harness.environment()}
        lines = [about | line for line in measure(arguments.batch, arguments.rounds)]
        print(json.dumps(lines))
        return
    lines = []
    for isa in ISAS:
        os.environ["XLA_FLAGS"] = f"--xla_cpu_max_isa={isa}"
        text = harness.in_own_process(["benchmarks.granularities", "--isa", isa, *sizes])
        lines += json.loads(text.splitlines()[-1])
    text = markdown(lines, arguments.batch, arguments.rounds)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "granularities.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
