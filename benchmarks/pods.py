"""What a training step costs on TPU pods, compiled ahead of time without one (needs libtpu).

    python -m benchmarks.pods        # half an hour on two cores, all of it compiling

ResNet-50 and ViT-B/16 in bfloat16, 64 images of 224 pixels per chip, on 1, 16 and 256 chips of
TPU v5e, the batch split over all chips; with a plain head (FF at full width) and with MRL, the
dearer one of the two nested heads. Writes pods.jsonl, pods.md to --out.
"""

import argparse
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from benchmarks import harness
from mrl_jax import config as configs
from mrl_jax import experiment
from mrl_jax.config import tasks
from mrl_jax.runtime import cost

PER_CHIP, SIZE, CLASSES = 64, 224, 1000
CONFIGS = {"resnet50": "imagenet_resnet50", "vit_b16": "imagenet_vit"}
DIMS = {
    "resnet50": (8, 16, 32, 64, 128, 256, 512, 1024, 2048),
    "vit_b16": (12, 24, 48, 96, 192, 384, 768),
}
SLICES = {1: "v5e:2x2", 16: "v5e:4x4", 256: "v5e:16x16"}
HEADS = ("plain", "mrl")


def measure(model: str, chips: int, head: str) -> dict[str, Any]:
    """Compiles one step and reads its costs."""
    arg = f"fixed={DIMS[model][-1]}" if head == "plain" else head
    c = configs.load(str(harness.ROOT / "configs" / f"{CONFIGS[model]}.py:{arg}"))
    c.model.name = model
    c.model.batch_norm_groups = 1
    if head != "plain":
        c.nesting.dims = DIMS[model]
    c.data.mixup = 0.0
    c.batch_size = PER_CHIP * chips
    devices = cost.topology_devices(SLICES[chips])[:chips]
    mesh = experiment.make_mesh(c, devices)
    facts = {"classes": [*map(str, range(CLASSES))], "image_shape": [SIZE, SIZE, 3]}
    program = experiment.make_program(c, facts, mesh, tasks.builder(c.task))
    compiled = program.compile(program.largest_batch)
    memory = compiled.memory_analysis()
    params = sum(leaf.size for leaf in jax.tree.leaves(program.state["params"]))
    return {
        "model": model,
        "head": head,
        "chips": chips,
        "device": mesh.devices.flat[0].device_kind,
        "batch": c.batch_size,
        "parameters": params,
        "tflop_per_chip": compiled.cost_analysis()["flops"] / 1e12,
        "argument_mib": memory.argument_size_in_bytes / 2**20,
        "temporary_mib": memory.temp_size_in_bytes / 2**20,
        "collectives": cost.collectives(compiled.as_text()),
        "versions": harness.environment()["versions"],
        "date": harness.environment()["date"],
    }


def table(lines: Sequence[dict[str, Any]]) -> str:
    """The lines as Markdown, with the FLOPs over those of the plain head."""
    rows = [
        f"{lines[0]['device']}, compiled on {lines[0]['date'][:10]} with jax "
        f"{lines[0]['versions']['jax']}; bfloat16, {PER_CHIP} images of {SIZE} pixels per chip, "
        f"{CLASSES:,} classes.\n",
        "| model | chips | head | parameters | TFLOP per chip | over plain | arguments,"
        " MiB | temporary, MiB | collectives: how many, MiB |",
        "| --- | --: | --- | --: | --: | --: | --: | --: | --- |",
    ]
    plain = {}
    for line in lines:
        place = line["model"], line["chips"]
        if line["head"] == "plain":
            plain[place] = line["tflop_per_chip"]
        # Left out where a selection of cases has no plain head.
        more = (
            f"{100 * (line['tflop_per_chip'] / plain[place] - 1):+.3f} %" if place in plain else ""
        )
        found = ", ".join(
            f"{kind} {count}, {size / 2**20:.1f}"
            for kind, (count, size) in line["collectives"].items()
        )
        rows.append(
            f"| {line['model']} | {line['chips']} | {line['head']} | "
            f"{line['parameters'] / 1e6:.2f} M | {line['tflop_per_chip']:.4f} | "
            f"{more} | "
            f"{line['argument_mib']:.0f} | {line['temporary_mib']:.0f} | {found or 'none'} |"
        )
    return "\n".join(rows) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Training steps on TPU pods, compiled only.")
    parser.add_argument("--out", type=pathlib.Path, default=harness.ROOT / "benchmarks" / "results")
    parser.add_argument("--models", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument("--chips", nargs="+", type=int, choices=SLICES, default=list(SLICES))
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    todo = [
        (model, chips, head)
        for model in arguments.models
        for chips in arguments.chips
        for head in HEADS
    ]
    progress, lines = harness.Progress(len(todo)), []
    with (arguments.out / "pods.jsonl").open("w") as file:
        for case in todo:
            progress.advance(0, " ".join(map(str, case)))
            lines.append(measure(*case))
            print(json.dumps(lines[-1]), file=file, flush=True)
            progress.advance(1, "done")
            jax.clear_caches()
    text = table(lines)
    (arguments.out / "pods.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
