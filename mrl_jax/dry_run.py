"""What a training step would cost, from the compiled program alone; nothing runs."""

import collections
import dataclasses
import math
import re
from typing import Any

import jax
from ml_collections import ConfigDict

from mrl_jax import experiment
from mrl_jax.errors import UsageError
from mrl_jax.program import Program
from mrl_jax.runtime.mesh import path_name

# How HLO names a collective; "-start" opens an asynchronous one whose "-done" is not counted.
_COLLECTIVE = re.compile(
    r"= (?P<result>.*?) (?P<kind>all-gather|all-reduce|reduce-scatter|all-to-all|"
    r"collective-permute|ragged-all-to-all)(?P<start>-start)?\(.*"
)
_CHANNEL = re.compile(r"channel_id=(\d+)")
_ARRAY = re.compile(r"(?P<type>pred|[a-z]+(?P<bits>[0-9]+)[a-z0-9]*)\[(?P<shape>[0-9,]*)\]")


def program_of(config: ConfigDict, topology: str = "") -> Program:
    """What a config trains, made for its largest batch; nothing is compiled.

    Args:
      config: of a run.
      topology: a TPU slice such as "v5e:16x16"; "" = the devices of this machine.

    Raises:
      UsageError: names the config key or the slice, and what would be legal.
      DataError: data missing or inconsistent.
    """
    experiment.check_config(config)
    mesh = experiment.make_mesh(config, topology_devices(topology) if topology else None)
    return experiment.of_task(config.task).planned_program(config, mesh)


def topology_devices(name: str) -> list[Any]:
    """Descriptions of a TPU slice's devices, e.g. "v5e:16x16", on a machine that has none.

    Raises:
      UsageError: libtpu is not installed, or it knows no such slice.
    """
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(name, platform="tpu").devices)
    except Exception as error:  # what fails, and how, depends on libtpu's version
        reason = " ".join(str(error).split())[:160]
        raise UsageError(
            f"--topology {name}: {reason}; needs pip install libtpu, and a slice such as v5e:4x4, "
            "v5p:2x2x1 or v6e:16x16"
        ) from error


def _sizes(text: str) -> list[int]:
    """Bytes of every array that a type, or a tuple of types, names."""
    sizes = []
    for found in _ARRAY.finditer(text):
        bits = 8 if found["type"] == "pred" else int(found["bits"])
        sizes.append(math.prod(int(n) for n in found["shape"].split(",") if n) * bits // 8)
    return sizes


def collectives(hlo: str) -> dict[str, tuple[int, int]]:
    """Collectives of a compiled program: kind -> (how many, bytes of their results per device).

    Those inside a loop count once. So does one whose parts run beside other work: XLA:TPU repeats
    it, under one channel, in every such part.
    """
    counted, seen = collections.defaultdict(lambda: (0, 0)), set()
    for found in _COLLECTIVE.finditer(hlo):
        kind, sizes = found["kind"], _sizes(found["result"])
        channel = _CHANNEL.search(found[0])
        if channel:
            if (kind, channel[1]) in seen:
                continue
            seen.add((kind, channel[1]))
        if found["start"] and kind == "all-gather":
            sizes = sizes[len(sizes) // 2 :]  # the operands stand before the results
        elif found["start"] and kind == "collective-permute":
            sizes = sizes[1:2]  # operand, result, two contexts
        count, size = counted[kind]
        counted[kind] = (count + 1, size + sum(sizes))
    return dict(sorted(counted.items()))


def _number(value: float) -> str:
    for scale, suffix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= scale:
            return f"{value / scale:.2f}{suffix}"
    return f"{value:.0f} "


def flops(program: Program) -> float:
    """FLOPs of a whole step on all devices together, as accelerators compute it.

    Of the batch in one part and not of the CPU program: both would have loops, and XLA counts the
    body of a loop once.
    """
    traced = dataclasses.replace(program, accumulate=1).trace(program.largest_batch)
    return (traced.lower(lowering_platforms=("tpu",)).cost_analysis() or {}).get("flops", math.nan)


def report(program: Program) -> str:
    """Parameters, FLOPs, memory, collectives and shardings of a training step, as text."""
    mesh, batch_size = program.mesh, program.batch_size
    per_step = flops(program)
    compiled = program.compile(program.largest_batch)
    params = jax.tree_util.tree_leaves_with_path(program.state["params"])
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    mib = 2**20
    rows = [
        ("devices", f"{mesh.size} x {mesh.devices.flat[0].device_kind}"),
        ("mesh", ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())),
        ("parameters", f"{_number(sum(leaf.size for _, leaf in params))}"),
        ("FLOP per step", f"{_number(per_step)}FLOP"),
        ("FLOP per example", f"{_number(per_step / batch_size)}FLOP"),
        (
            "FLOP per step and device",
            f"{_number(cost.get('flops', math.nan))}FLOP as compiled, bodies of loops once",
        ),
        ("memory per device: arguments", f"{memory.argument_size_in_bytes / mib:.1f} MiB"),
        ("memory per device: temporary", f"{memory.temp_size_in_bytes / mib:.1f} MiB"),
        ("memory per device: program", f"{memory.generated_code_size_in_bytes / mib:.1f} MiB"),
    ]
    found = collectives(compiled.as_text())
    rows += [
        (f"collective {kind}", f"{count} with {size / mib:.2f} MiB per device")
        for kind, (count, size) in found.items()
    ] or [("collectives", "none")]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name.ljust(width)}  {value}" for name, value in rows]
    split = [
        f"  {path_name(path)} {leaf.shape} {leaf.sharding.spec}"
        for path, leaf in params
        if any(axis is not None for axis in leaf.sharding.spec)
    ]
    lines += ["parameters that are split (all others are on every device):", *(split or ["  none"])]
    return "\n".join(lines)
