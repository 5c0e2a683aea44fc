"""The device mesh and where each array lives on it."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mrl_jax.errors import shown

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

Rules = Sequence[tuple[str, str]]


def axis_sizes(count: int, data: int = -1, fsdp: int = 1, tensor: int = 1) -> dict[str, int]:
    """The axes of a mesh over `count` devices; one size may be -1, which takes what is left.

    Raises:
      ValueError: sizes that are not positive or do not multiply to the number of devices.
    """
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    written = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 for axis, size in sizes.items() if axis not in free):
        raise ValueError(f"mesh sizes must be positive, at most one of them -1; got {written}")
    fixed = math.prod(size for axis, size in sizes.items() if axis not in free)
    if free and count % fixed == 0:
        sizes[free[0]] = count // fixed
    if math.prod(sizes.values()) != count:
        raise ValueError(f"mesh {written} does not fit {count} devices")
    return sizes


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, *, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh over these devices (default: those of all processes); see `axis_sizes`."""
    devices = jax.devices() if devices is None else devices
    sizes = axis_sizes(len(devices), data, fsdp, tensor)
    # Explicit axes, the default since jax 0.9, refuse class-sharded heads and prefix slices.
    types = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=types, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first dimension is split over the data and fsdp axes; every other one is whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def on_host(tree: Any, mesh: Mesh) -> Any:
    """Whole arrays on the host of every process, however the mesh splits them."""
    whole = jax.jit(lambda x: x, out_shardings=replicated(mesh))

    def of(leaf):
        return np.asarray(leaf if leaf.is_fully_addressable else whole(leaf))

    return jax.tree.map(of, tree)


def rows_split(x: jax.Array, mesh: Mesh | None) -> jax.Array:
    """`x` laid out as `batch_sharding` says; as it is without a mesh."""
    return x if mesh is None else jax.lax.with_sharding_constraint(x, batch_sharding(mesh))


def one_per_device(mesh: Mesh) -> NamedSharding:
    """The first dimension is split over all axes."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def votes(mesh: Mesh, voted: bool) -> jax.Array:
    """One int32 per device, 1 on those of a process that votes; summing it counts the votes."""
    local = np.full(mesh.size, int(voted), np.int32)
    return jax.make_array_from_callback(local.shape, one_per_device(mesh), lambda at: local[at])


def batch_divisor(sizes: Mapping[str, int]) -> int:
    """What batch sizes must be multiples of, for a mesh whose axes have these sizes."""
    return math.prod(sizes[axis] for axis in BATCH_AXES)


def path_name(path: tuple) -> str:
    """A pytree path as "params/head/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def check_rules(rules: Rules) -> None:
    """Refuses malformed sharding rules.

    Raises:
      ValueError: names the first one.
    """
    for pair in rules:
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise ValueError(
                f"a sharding rule must be a pair (regex, placement), got {shown(pair)}"
            )
        regex, rule = pair
        try:
            re.compile(regex)
        except re.error as error:
            raise ValueError(
                f"sharding rule {shown(regex)} is not a regular expression: {error}"
            ) from None
        parts = [part.partition(":")[::2] for part in rule.split("+")]
        axes = [axis for _, axis in parts]
        known = all(tactic in ("first", "last", "largest") for tactic, _ in parts)
        if rule != "replicate" and not (known and set(axes) <= {*AXES}):
            raise ValueError(
                f"sharding rule {shown(rule)} must be replicate, or first:AXIS, last:AXIS or "
                f"largest:AXIS with AXIS one of {', '.join(AXES)}, or several of these joined by +"
            )
        if len(set(axes)) < len(axes):
            raise ValueError(f"sharding rule {shown(rule)} names an axis twice")


def _spec(rule: str, name: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec | None:
    """Where a rule puts an array; None if it splits nothing."""
    if rule == "replicate":
        return PartitionSpec()
    placed: dict[int, str] = {}
    for part in rule.split("+"):
        tactic, _, axis = part.partition(":")
        size = mesh.shape[axis]
        if not shape or size == 1:
            continue
        fitting = [d for d in range(len(shape)) if shape[d] % size == 0 and d not in placed]
        if tactic == "largest":
            chosen = max(fitting, key=lambda d: shape[d], default=None)
        else:
            chosen = 0 if tactic == "first" else len(shape) - 1
            if chosen not in fitting:
                taken = f"is split over {placed.get(chosen)} already"
                odd = f"does not divide by mesh {axis}={size}"
                why = taken if chosen in placed else odd
                raise ValueError(
                    f"sharding rule {shown(rule)}: {tactic} dimension of {name} {shape} {why}"
                )
        if chosen is not None:
            placed[chosen] = axis
    return PartitionSpec(*(placed.get(d) for d in range(len(shape)))) if placed else None


def shardings(tree: Any, rules: Rules, mesh: Mesh) -> Any:
    """A `NamedSharding` for every leaf of a (possibly abstract) pytree, by ordered rules.

    Args:
      tree: arrays or shapes. Leaves are called by path, e.g. "params/head/kernel"; optimiser
        state repeats the parameter's path at its end, so one rule places both.
      rules: (regex, placement) pairs, see `config.default_config`. Of the rules whose regex is
        found in the path, the first that splits something wins: a rule whose mesh axes have one
        device each, or whose "largest" finds no dimension that divides, passes the array on.
      mesh: the mesh whose axes the rules name.

    Raises:
      ValueError: a bad rule, a rule that matches nothing, a leaf no rule matches, or a dimension
        that does not divide.
    """
    matched = [False] * len(rules)
    check_rules(rules)
    params = tree.get("params", {}) if isinstance(tree, dict) else {}
    shapes = {
        path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }

    def place(path, leaf):
        name = path_name(path)
        found = [i for i, (regex, _) in enumerate(rules) if re.search(regex, name)]
        for i in found:
            matched[i] = True
        if not found:
            raise ValueError(f"no sharding rule matches {name}")
        owner = max((p for p in shapes if name.endswith(f"/{p}")), key=len, default=name)
        if shapes.get(owner, leaf.shape) != leaf.shape:
            # Adafactor keeps sums over rows and columns of a kernel: small, of another shape.
            return replicated(mesh)
        specs = (_spec(rules[i][1], name, leaf.shape, mesh) for i in found)
        return NamedSharding(mesh, next((s for s in specs if s is not None), PartitionSpec()))

    placed = jax.tree_util.tree_map_with_path(place, tree)
    for (regex, _), used in zip(rules, matched, strict=True):
        if not used:
            raise ValueError(f"sharding rule {shown(regex)} matches nothing")
    return placed
