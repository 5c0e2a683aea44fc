"""How many bytes a run keeps on every device, and whether a device has them; allocates nothing."""

import contextlib
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from mrl_jax.errors import UsageError
from mrl_jax.runtime.mesh import path_name

# What is to be changed where arrays of this kind do not fit, by the top of their path.
_ADVICE = {
    "batch": "config.batch_size",
    "evaluation batch": "config.eval.batch_size",
    "params": "a smaller config.model, config.text or config.head",
    "opt_state": "config.optimizer.name=adafactor or sgd",
    "ema_params": "config.optimizer.ema_decay=0",
}
_SHARE = "config.mesh.fsdp over more devices"
_ACTIVATIONS = "config.batch_size, config.optimizer.accumulate, config.model.remat"


def bytes_on_device(array: Any) -> int:
    """Of an array, or its shape with dtype and sharding, the part that one device holds."""
    return math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize


def bytes_by_kind(trees: Mapping[str, Any]) -> dict[str, int]:
    """Bytes that each device holds of every tree, by its name, the largest first."""
    sizes = {name: sum(map(bytes_on_device, jax.tree.leaves(tree))) for name, tree in trees.items()}
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def replicated(state: Any) -> dict[str, int]:
    """The arrays that every device of a mesh of several holds whole: bytes by path, largest first.

    What is split over some axes of the mesh only is none of them.
    """
    found = {
        path_name(path): bytes_on_device(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if leaf.sharding.is_fully_replicated and leaf.sharding.mesh.size > 1
    }
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def of_device(device: Any) -> int | None:
    """Bytes that a device of this process has; None where nobody knows, as of one that is not here.

    CPU devices have an equal share of what this machine, or the group of processes that it was
    put into, may use.
    """
    if device.platform == "cpu":
        return _of_host() // len(jax.local_devices(backend="cpu"))
    try:
        return (device.memory_stats() or {}).get("bytes_limit")
    except (AttributeError, NotImplementedError, RuntimeError):
        return None


def _of_host() -> int:
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    root = pathlib.Path("/sys/fs/cgroup")
    limits = [root / "memory" / "memory.limit_in_bytes", root / "memory.max"]
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/self/cgroup").read_text().splitlines():
            _, kinds, place = line.split(":", 2)
            inside = root / place.lstrip("/")
            if not kinds:
                limits += [folder / "memory.max" for folder in (inside, *inside.parents)]
            elif "memory" in kinds.split(","):
                limits.append(root / "memory" / place.lstrip("/") / "memory.limit_in_bytes")
    for limit in limits:
        with contextlib.suppress(OSError, ValueError):  # "max": there is none
            found.append(int(limit.read_text()))
    return min(found)


def check(trees: Mapping[str, Any], mesh: jax.sharding.Mesh) -> None:
    """Refuses arrays that no device of this process has the bytes for, before they are made.

    Args:
      trees: abstract arrays with shardings, by name: the state's parts, "batch", ...
      mesh: where they are to be.

    Raises:
      UsageError: what is needed, what there is, and the config keys that change it.
    """
    sizes = bytes_by_kind(trees)
    device = next(d for d in mesh.devices.flat if d.process_index == jax.process_index())
    limit = of_device(device)
    if limit is None or sum(sizes.values()) <= limit:
        return
    parts = ", ".join(f"{name} {written(size)}" for name, size in sizes.items() if size)
    # What is to blame: the largest kinds, which together are more than there is.
    advice, rest = [], sum(sizes.values())
    for name, size in sizes.items():
        if rest > limit:
            advice.append(_ADVICE.get(name, _ADVICE["params"]))
        rest -= size
    if any("batch" not in name for name in list(sizes)[: len(advice)]):
        advice.append(_SHARE)
    raise UsageError(
        f"the run does not fit: {written(sum(sizes.values()))} are needed on each device ({parts}),"
        f" {device.device_kind} has {written(limit)}; change {', '.join(dict.fromkeys(advice))}"
    )


def check_step(compiled: Any, mesh: jax.sharding.Mesh) -> None:
    """Refuses a compiled training step that needs more than a device of this process has.

    Raises:
      UsageError: what is needed, what there is, and the config keys that change it.
    """
    found = compiled.memory_analysis()
    limit = of_device(next(d for d in mesh.devices.flat if d.process_index == jax.process_index()))
    if found is None or limit is None:
        return
    needed = peak(found)
    if needed > limit:
        raise UsageError(
            f"a training step does not fit: {written(needed)} are needed on each device, "
            f"{written(found.temp_size_in_bytes)} of them for activations and gradients, there are "
            f"{written(limit)}; change {_ACTIVATIONS}"
        )


def peak(analysis: Any) -> int:
    """Bytes per device of a compiled program with its arguments and results."""
    return (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.temp_size_in_bytes
        + analysis.generated_code_size_in_bytes
    )


@contextlib.contextmanager
def exhausted() -> Iterator[None]:
    """A device that runs out of memory in the with-block becomes one line.

    Raises:
      UsageError: says how much was wanted, and the config keys that change it.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        if not text.startswith("RESOURCE_EXHAUSTED"):
            raise
        said = " ".join(text.split())[:200]
        raise UsageError(f"a device is out of memory ({said}); change {_ACTIVATIONS}") from error


def written(size: int) -> str:
    """Bytes for people: 8.6 MiB."""
    value, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.1f} {unit}" if unit != "B" else f"{size} B"
