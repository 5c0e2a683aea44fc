"""What a step of two towers costs on a TPU pod, compiled ahead of time without one (needs libtpu).

    python -m benchmarks.pods_two_towers     # an hour on two cores, all of it compiling

The configs align_like and siglip_like as they are, on 256 chips of TPU v5e, with one granularity
(plain, 768 dims) and with all (mrl). FLOPs are those of products and convolutions, counted in the
program before it is compiled. Writes pods_two_towers.jsonl, pods_two_towers.md to --out; lines that
are there are kept, so that a stopped run goes on.
"""

import argparse
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from benchmarks import harness
from mrl_jax import config as configs
from mrl_jax import dry_run
from mrl_jax.runtime import cost

CONFIGS = ("align_like", "siglip_like")
HEADS = {"plain": "fixed=768", "mrl": "mrl"}
SLICE = "v5e:16x16"


def measure(name: str, head: str) -> dict[str, Any]:
    """Compiles one step and reads its costs."""
    config = configs.load(str(harness.ROOT / "configs" / f"{name}.py:{HEADS[head]}"))
    program = dry_run.program_of(config, SLICE)
    compiled = cost.compile_step(program)
    memory, environment = compiled.memory_analysis(), harness.environment()
    return {
        "config": name,
        "head": head,
        "slice": SLICE,
        "device": program.mesh.devices.flat[0].device_kind,
        "batch": config.batch_size,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(program.state["params"])),
        "gflop_per_pair": cost.flops(program) / config.batch_size / 1e9,
        "argument_mib": memory.argument_size_in_bytes / 2**20,
        "temporary_mib": memory.temp_size_in_bytes / 2**20,
        "collectives": cost.collectives(compiled.as_text()),
        "versions": environment["versions"],
        "date": environment["date"],
    }


def table(lines: Sequence[dict[str, Any]]) -> str:
    """The lines as Markdown, with the FLOPs over those of one granularity."""
    first = lines[0]
    rows = [
        f"256 x {first['device']} ({first['slice']}), compiled on {first['date'][:10]} with jax "
        f"{first['versions']['jax']}; bfloat16, images of 224 pixels, texts of 64 tokens.\n",
        "| config | head | pairs a step | parameters | GFLOP a pair | over plain | arguments, MiB a"
        " chip | temporary, MiB a chip | collectives: how many, MiB a chip |",
        "| --- | --- | --: | --: | --: | --: | --: | --: | --- |",
    ]
    plain = {line["config"]: line["gflop_per_pair"] for line in lines if line["head"] == "plain"}
    for line in lines:
        found = ", ".join(
            f"{kind} {count}, {size / 2**20:.1f}"
            for kind, (count, size) in line["collectives"].items()
        )
        more = line["gflop_per_pair"] / plain[line["config"]] - 1
        rows.append(
            f"| {line['config']} | {line['head']} | {line['batch']:,} | "
            f"{line['parameters'] / 1e6:.2f} M | {line['gflop_per_pair']:.2f} | {more:+.3%} | "
            f"{line['argument_mib']:.0f} | {line['temporary_mib']:.0f} | {found} |"
        )
    return "\n".join(rows) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Steps of two towers on a pod, compiled only.")
    parser.add_argument("--out", type=pathlib.Path, default=harness.ROOT / "benchmarks" / "results")
    out = parser.parse_args(argv).out
    out.mkdir(parents=True, exist_ok=True)
    path = out / "pods_two_towers.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(line["config"], line["head"]) for line in lines}
    todo = [(name, head) for name in CONFIGS for head in HEADS if (name, head) not in done]
    progress = harness.Progress(len(todo))
    with path.open("a") as file:
        for case in todo:
            progress.advance(0, " ".join(case))
            lines.append(measure(*case))
            print(json.dumps(lines[-1]), file=file, flush=True)
            progress.advance(1, "done")
            jax.clear_caches()
    text = table(sorted(lines, key=lambda line: CONFIGS.index(line["config"])))
    (out / "pods_two_towers.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
