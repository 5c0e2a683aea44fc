"""What a training step would cost, from the compiled program alone; nothing runs."""

import collections
import math
import re
from typing import Any

import jax
from ml_collections import ConfigDict

from mrl_jax import experiment
from mrl_jax.errors import UsageError
from mrl_jax.runtime.mesh import path_name

# How HLO names a collective; "-start" opens an asynchronous one whose "-done" is not counted.
_COLLECTIVE = re.compile(
    r"= (?P<result>.*?) (?P<kind>all-gather|all-reduce|reduce-scatter|all-to-all|"
    r"collective-permute|ragged-all-to-all)(?:-start)?\("
)
_ARRAY = re.compile(r"(?P<type>pred|[a-z]+(?P<bits>[0-9]+)[a-z0-9]*)\[(?P<shape>[0-9,]*)\]")


def program_of(config: ConfigDict, topology: str = "") -> tuple[experiment.Program, Any]:
    """The training step of a config, compiled ahead of time: (program, compiled step).

    The data set is opened only where `data.classes` does not say how many classes there are. Of
    several resolutions the largest is compiled.

    Args:
      config: of a run.
      topology: a TPU slice such as "v5e:16x16"; "" = the devices of this machine.

    Raises:
      UsageError: names the config key or the slice, and what would be legal.
      DataError: data missing or inconsistent.
    """
    experiment.check_numbers(config)
    mesh = experiment.make_mesh(config, topology_devices(topology) if topology else None)
    size = max((pixels for _, pixels in config.data.resolutions), default=config.data.image_size)
    classes, image_shape = config.data.classes, (size, size, 3)
    if not classes:
        dataset = experiment.open_data(config)
        classes = len(dataset.class_names)
        image_shape = (*image_shape[:2], dataset.image_shape[2])
        if not config.data.resolutions:
            image_shape = dataset.image_shape
    program = experiment.make_program(config, classes=classes, image_shape=image_shape, mesh=mesh)
    return program, program.compile(image_shape)


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


def _bytes(text: str) -> int:
    total = 0
    for found in _ARRAY.finditer(text):
        bits = 8 if found["type"] == "pred" else int(found["bits"])
        total += math.prod(int(n) for n in found["shape"].split(",") if n) * bits // 8
    return total


def collectives(hlo: str) -> dict[str, tuple[int, int]]:
    """Collectives of a compiled program: kind -> (how many, bytes of their results per device).

    Those inside a loop count once.
    """
    counted = collections.defaultdict(lambda: (0, 0))
    for found in _COLLECTIVE.finditer(hlo):
        result = found["result"]
        count, size = counted[found["kind"]]
        # An asynchronous start returns its operand beside its result.
        halves = 2 if f"{found['kind']}-start(" in found[0] else 1
        counted[found["kind"]] = (count + 1, size + _bytes(result) // halves)
    return dict(sorted(counted.items()))


def _number(value: float) -> str:
    for scale, suffix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= scale:
            return f"{value / scale:.2f}{suffix}"
    return f"{value:.0f} "


def report(program: experiment.Program, compiled: Any) -> str:
    """Parameters, FLOPs, memory, collectives and shardings of a compiled training step, as text."""
    mesh, batch_size = program.mesh, program.batch_size
    params = jax.tree_util.tree_leaves_with_path(program.state["params"])
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    flops = cost.get("flops", math.nan)
    mib = 2**20
    rows = [
        ("devices", f"{mesh.size} x {mesh.devices.flat[0].device_kind}"),
        ("mesh", ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())),
        ("parameters", f"{_number(sum(leaf.size for _, leaf in params))}"),
        ("FLOP per step and device", f"{_number(flops)}FLOP (bodies of loops once)"),
        ("FLOP per example", f"{_number(flops * mesh.size / batch_size)}FLOP"),
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
