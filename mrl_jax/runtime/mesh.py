"""The device mesh and where each array lives on it."""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

Rules = Sequence[tuple[str, str]]


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, *, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh over devices (all of all processes); one size may be -1, which takes what is left.

    Raises:
      ValueError: sizes that are not positive or do not multiply to the number of devices.
    """
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    devices = jax.devices() if devices is None else devices
    written = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 for axis, size in sizes.items() if axis not in free):
        raise ValueError(f"mesh sizes must be positive, at most one of them -1; got {written}")
    fixed = math.prod(size for axis, size in sizes.items() if axis not in free)
    if free and len(devices) % fixed == 0:
        sizes[free[0]] = len(devices) // fixed
    if math.prod(sizes.values()) != len(devices):
        raise ValueError(f"mesh {written} does not fit {len(devices)} devices")
    # Explicit axes, the default since jax 0.9, refuse class-sharded heads and prefix slices.
    types = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=types, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first dimension is split over the data and fsdp axes; every other one is whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def one_per_device(mesh: Mesh) -> NamedSharding:
    """The first dimension is split over all axes."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def batch_divisor(mesh: Mesh) -> int:
    """Batch sizes must be multiples of this."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def path_name(path: tuple) -> str:
    """A pytree path as "params/head/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _spec(rule: str, name: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    tactic, _, axis = rule.partition(":")
    if rule == "replicate":
        return PartitionSpec()
    if tactic not in ("first", "last", "largest") or axis not in AXES:
        raise ValueError(
            f"sharding rule {rule!r} is none of replicate, first:AXIS, last:AXIS, largest:AXIS "
            f"with AXIS one of {', '.join(AXES)}"
        )
    size = mesh.shape[axis]
    if not shape or size == 1:
        return PartitionSpec()
    if tactic in ("first", "last"):
        chosen = 0 if tactic == "first" else len(shape) - 1
        if shape[chosen] % size:
            raise ValueError(
                f"sharding rule {rule!r}: {tactic} dimension of {name} {shape} "
                f"does not divide by mesh {axis}={size}"
            )
    else:
        fitting = [d for d in range(len(shape)) if shape[d] % size == 0]
        if not fitting:
            return PartitionSpec()
        chosen = max(fitting, key=lambda d: shape[d])
    return PartitionSpec(*(axis if d == chosen else None for d in range(len(shape))))


def shardings(tree: Any, rules: Rules, mesh: Mesh) -> Any:
    """A `NamedSharding` for every leaf of a (possibly abstract) pytree, by ordered rules.

    Args:
      tree: arrays or shapes. Leaves are called by path, e.g. "params/head/kernel"; optimiser
        state repeats the parameter's path at its end, so one rule places both.
      rules: (regex, placement) pairs, see `config.default_config`; the first regex that is found
        in the path wins.
      mesh: the mesh whose axes the rules name.

    Raises:
      ValueError: a bad rule, a rule that matches nothing, a leaf no rule matches, or a dimension
        that does not divide.
    """
    matched = [False] * len(rules)
    for regex, _ in rules:
        try:
            re.compile(regex)
        except re.error as error:
            raise ValueError(f"sharding rule {regex!r} is no regular expression: {error}") from None

    params = tree.get("params", {}) if isinstance(tree, dict) else {}
    shapes = {
        path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }

    def place(path, leaf):
        name, chosen = path_name(path), None
        for i, (regex, rule) in enumerate(rules):
            if re.search(regex, name):
                matched[i] = True
                chosen = rule if chosen is None else chosen
        if chosen is None:
            raise ValueError(f"no sharding rule matches {name}")
        owner = max((p for p in shapes if name.endswith(f"/{p}")), key=len, default=name)
        if shapes.get(owner, leaf.shape) != leaf.shape:
            # Adafactor keeps sums over rows and columns of a kernel: small, of another shape.
            chosen = "replicate"
        return NamedSharding(mesh, _spec(chosen, name, leaf.shape, mesh))

    placed = jax.tree_util.tree_map_with_path(place, tree)
    for (regex, _), used in zip(rules, matched, strict=True):
        if not used:
            raise ValueError(f"sharding rule {regex!r} matches nothing")
    return placed
