"""What a training step costs, from the compiled program alone; nothing runs."""

import collections
import math
import os
import re
from collections.abc import Callable
from typing import Any

import jax

from mrl_jax import printing
from mrl_jax.errors import UsageError
from mrl_jax.runtime import flops as counted
from mrl_jax.runtime import memory
from mrl_jax.runtime.mesh import AXES, path_name
from mrl_jax.runtime.program import Program

# How HLO names a collective; "-start" opens an asynchronous one, whose "-done" is not counted.
_COLLECTIVE = re.compile(
    r"= (?P<result>.*?) (?P<kind>all-gather|all-reduce|reduce-scatter|all-to-all|"
    r"collective-permute|ragged-all-to-all)(?P<start>-start)?\(.*"
)
# XLA:TPU reports a program that is too large for the memory of a chip in one of two forms:
# "memory required for HLO temporaries (23.94G) exceeds available HBM (15.75G)", "Used 24.30G of
# 15.75G hbm".
_USED = re.compile(
    r"([0-9.]+)([KMGT]?)\)? (?:exceeds available HBM \(|of )([0-9.]+)([KMGT]?)(?:\)| hbm)"
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# If libtpu only compiles, it need not ask the cloud which machine this is, warn that it cannot
# find out, or keep other processes from using it too.
_NO_TPU_HERE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_TRIED = 3  # layouts compiled at most to find one that fits
_SHOWN = 5  # arrays listed at most
_CHANNEL = re.compile(r"channel_id=(\d+)")
_ARRAY = re.compile(r"(?P<type>pred|[a-z]+(?P<bits>[0-9]+)[a-z0-9]*)\[(?P<shape>[0-9,]*)\]")


def topology_devices(name: str) -> list[Any]:
    """Descriptions of the devices of a TPU slice, such as "v5e:16x16", on a machine without one.

    Raises:
      UsageError: libtpu is not installed, or it knows no such slice.
    """
    from jax.experimental import topologies

    # Compiling needs no chip: if libtpu looks for its own, it warns and locks them.
    jax.config.update("jax_platforms", "cpu")
    os.environ.update(_NO_TPU_HERE)
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
    it in every part, under the same channel.
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
    if math.isnan(value):
        return "unknown "
    for scale, suffix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= scale:
            return f"{value / scale:.2f}{suffix}"
    return f"{value:.0f} "


def flops(program: Program) -> float:
    """FLOPs of a whole step on all devices together, see `runtime.flops`; NaN if not known."""
    return counted.count(program.trace(program.largest_batch).jaxpr.jaxpr)


class TooLargeError(Exception):
    """A step needs more bytes of memory than a device has."""

    def __init__(self, needed: int, limit: int):
        super().__init__(needed, limit)
        self.needed, self.limit = needed, limit


def out_of_memory(said: str) -> tuple[int, int] | None:
    """The bytes that a program needs and a chip has, from XLA:TPU's error, or None."""
    found = _USED.search(said)
    if not found:
        return None
    used, used_unit, limit, limit_unit = found.groups()
    return round(float(used) * _UNITS[used_unit]), round(float(limit) * _UNITS[limit_unit])


def compile_step(program: Program) -> Any:
    """The compiled step of the largest batch.

    Raises:
      TooLargeError: it does not fit the device that it is compiled for.
    """
    try:
        return program.compile(program.largest_batch)
    except jax.errors.JaxRuntimeError as error:
        found = out_of_memory(str(error))
        if found is None:
            raise
        raise TooLargeError(*found) from None


def other_layouts(program: Program) -> list[dict[str, int]]:
    """Config keys of layouts that need less memory, those closest to the program's own first.

    They move devices from the data axis to the fsdp axis and cut the batch into more parts.
    """
    data, fsdp, tensor = (program.mesh.shape[axis] for axis in AXES)
    wider = [fsdp * n for n in range(1, data + 1) if data % n == 0]
    parts = [program.accumulate * 2**i for i in range(8)]
    names = ("mesh.data", "mesh.fsdp", "mesh.tensor", "optimizer.accumulate")
    layouts = [
        dict(zip(names, (data * fsdp // n, n, tensor, m), strict=True))
        for m in parts
        for n in wider
        if program.batch_size % (data * fsdp * m) == 0
    ]
    return layouts[1:]  # the first is its own


def fitting_layout(
    own: Program, error: TooLargeError, make: Callable[[dict[str, int]], Program]
) -> dict[str, int] | None:
    """The config keys of the closest layout that fits, compiled to be sure; None if none is found.

    `make` gives the program with other config keys, or UsageError for keys that do not go together.
    """
    # Memory other than the state, mostly activations, shrinks only with more parts of the batch.
    rest, tried = max(error.needed - _state_bytes(own), 0), 0
    for keys in other_layouts(own):
        if tried == _TRIED:
            break
        try:
            program = make(keys)
        except UsageError:  # a dimension does not divide by so many devices
            continue
        if _state_bytes(program) + rest * own.accumulate / program.accumulate > error.limit:
            continue
        tried += 1
        try:
            compile_step(program)
        except TooLargeError:
            continue
        return keys
    return None


def _state_bytes(program: Program) -> int:
    return sum(memory.bytes_by_kind(program.state).values())


def report(program: Program, compiled: Any) -> str:
    """Parameters, FLOPs, memory, collectives and shardings of a compiled training step, as text."""
    rows = [*_costs(program, compiled), *_memory(program, compiled)]
    found = collectives(compiled.as_text())
    rows += [
        (f"collective {kind}", f"{count} with {size / 2**20:.2f} MiB per device")
        for kind, (count, size) in found.items()
    ] or [("collectives", "none")]
    lines = [printing.pairs(rows)]
    params = jax.tree_util.tree_leaves_with_path(program.state["params"])
    split = [
        f"  {path_name(path)} {leaf.shape} {leaf.sharding.spec}"
        for path, leaf in params
        if any(axis is not None for axis in leaf.sharding.spec)
    ]
    lines += ["parameters that are split (all others are on every device):", *(split or ["  none"])]
    whole = list(memory.replicated(program.state).items())
    lines += ["largest arrays that every device holds whole:"]
    lines += [f"  {name} {memory.written(size)}" for name, size in whole[:_SHOWN]] or ["  none"]
    return "\n".join(lines)


def _costs(program: Program, compiled: Any) -> list[tuple[str, str]]:
    mesh, per_step = program.mesh, flops(program)
    count = sum(leaf.size for leaf in jax.tree.leaves(program.state["params"]))
    as_compiled = (compiled.cost_analysis() or {}).get("flops", math.nan)
    return [
        ("devices", f"{mesh.size} x {mesh.devices.flat[0].device_kind}"),
        ("mesh", ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())),
        ("parameters", _number(count)),
        ("FLOP per step", f"{_number(per_step)}FLOP in matrix products and convolutions"),
        ("FLOP per example", f"{_number(per_step / program.batch_size)}FLOP"),
        ("FLOP per step and device", f"{_number(as_compiled)}FLOP as compiled, loops once"),
    ]


def _memory(program: Program, compiled: Any) -> list[tuple[str, str]]:
    found, mib = compiled.memory_analysis(), 2**20
    kinds = memory.bytes_by_kind(program.state)
    parts = ", ".join(f"{name} {size / mib:.1f}" for name, size in kinds.items())
    state, whole = sum(kinds.values()), sum(memory.replicated(program.state).values())
    rows = [
        ("state", f"{state / mib:.1f} MiB" + (f" ({parts})" if parts else "")),
        ("state on every device", f"{whole / mib:.1f} MiB of it"),
        ("arguments", f"{found.argument_size_in_bytes / mib:.1f} MiB"),
        ("temporary", f"{found.temp_size_in_bytes / mib:.1f} MiB"),
        ("program", f"{found.generated_code_size_in_bytes / mib:.1f} MiB"),
    ]
    limit = memory.of_device(program.mesh.devices.flat[0])
    if limit:
        peak = memory.peak(found)
        fits = "" if peak <= limit else ": does not fit this device"
        rows.append(("all", f"{peak / mib:.1f} MiB of {limit / mib:.1f} MiB{fits}"))
    return [(f"memory per device: {name}", value) for name, value in rows]
