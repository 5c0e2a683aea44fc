"""How many bytes a run needs on each device, and whether a device has them; allocates nothing."""

import contextlib
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from mrl_jax.errors import UsageError
from mrl_jax.runtime.mesh import path_name

# What to change if arrays of a kind do not fit, by the first part of their path.
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
    """The bytes of an array, or of its shape with dtype and sharding, that one device holds."""
    return math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize


def bytes_by_kind(trees: Mapping[str, Any]) -> dict[str, int]:
    """The bytes of each tree that one device holds, by the name of the tree, largest first."""
    sizes = {name: sum(map(bytes_on_device, jax.tree.leaves(tree))) for name, tree in trees.items()}
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def replicated(state: Any) -> dict[str, int]:
    """The arrays that every device of a larger mesh holds whole: bytes by path, largest first.

    An array that is split over any axis of the mesh is not one of them.
    """
    found = {
        path_name(path): bytes_on_device(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if leaf.sharding.is_fully_replicated and leaf.sharding.mesh.size > 1
    }
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def of_device(device: Any) -> int | None:
    """The memory of a device of this process in bytes; None if it is not known.

    CPU devices share equally what this process may use: the memory of the machine, or the limit of
    its control group.
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
        with contextlib.suppress(OSError, ValueError):  # "max" means no limit
            found.append(int(limit.read_text()))
    return min(found)


def check(trees: Mapping[str, Any], mesh: jax.sharding.Mesh) -> None:
    """Refuses arrays that do not fit into the memory of a device, before they are allocated.

    Args:
      trees: abstract arrays with shardings, by name: the state's parts, "batch", ...
      mesh: the devices that will hold them.

    Raises:
      UsageError: says how much is needed, how much there is, and which config keys to change.
    """
    sizes, device = bytes_by_kind(trees), _own(mesh)
    limit = of_device(device)
    if limit is None or sum(sizes.values()) <= limit:
        return
    parts = ", ".join(f"{name} {written(size)}" for name, size in sizes.items() if size)
    # Advice on the largest kinds, as many as must shrink before the rest fits.
    advice, rest = [], sum(sizes.values())
    for name, size in sizes.items():
        if rest > limit:
            advice.append(_ADVICE.get(name, _ADVICE["params"]))
        rest -= size
    if any("batch" not in name for name in list(sizes)[: len(advice)]):
        advice.append(_SHARE)
    raise UsageError(
        f"the run does not fit: it needs {written(sum(sizes.values()))} on each device ({parts}), "
        f"and {device.device_kind} has {written(limit)}; change {', '.join(dict.fromkeys(advice))}"
    )


def _own(mesh: jax.sharding.Mesh) -> Any:
    """A device of this process."""
    return next(d for d in mesh.devices.flat if d.process_index == jax.process_index())


def check_step(compiled: Any, mesh: jax.sharding.Mesh) -> None:
    """Refuses a compiled training step that needs more memory than a device of this process has.

    Raises:
      UsageError: as `check`.
    """
    found, limit = compiled.memory_analysis(), of_device(_own(mesh))
    if found is not None and limit is not None and peak(found) > limit:
        raise UsageError(
            f"a training step does not fit: it needs {written(peak(found))} on each device, "
            f"{written(found.temp_size_in_bytes)} of it for activations and gradients, and a "
            f"device has {written(limit)}; change {_ACTIVATIONS}"
        )


def peak(analysis: Any) -> int:
    """The bytes that a compiled program needs per device, with its arguments and results."""
    return (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.temp_size_in_bytes
        + analysis.generated_code_size_in_bytes
    )


@contextlib.contextmanager
def exhausted() -> Iterator[None]:
    """Turns a device that runs out of memory in the with-block into a one-line error.

    Raises:
      UsageError: says how much was requested, and which config keys to change.
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
    """A number of bytes for messages, such as "8.6 MiB"."""
    value, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.1f} {unit}" if unit != "B" else f"{size} B"
