"""Checks that the processes of a group compute the same, before anything is compiled."""

import hashlib
import importlib.metadata
import json
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from jax._src.distributed import global_state

from mrl_jax import config as configs
from mrl_jax.errors import UsageError, cut
from mrl_jax.runtime import numerics

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain")
# Paths may differ between machines; what is read from them is compared once it has been read.
_PATHS = ("data.path", "data.cache")
# Reading the data may take one process hours longer. A process that fails ends all of them.
_TIMEOUT_MS = 24 * 3600 * 1000


def of_program(config: Any) -> dict[str, Any]:
    """What processes of one run must agree on: config, code, versions, settings of JAX."""
    package = pathlib.Path(__file__).parents[1]
    code = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        code.update(f"{path.relative_to(package)} ".encode() + path.read_bytes())
    keys = {key: value for key, value in configs.flatten(config).items() if key not in _PATHS}
    return {
        **{f"config.{key}": value for key, value in keys.items()},
        **{f"version of {name}": importlib.metadata.version(name) for name in _PACKAGES},
        "version of python": platform.python_version(),
        "code (digest)": code.hexdigest()[:12],
        **numerics.settings(),
    }


def differences(of_processes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where processes differ from the first: "name: VALUE in process 0, OTHER in process 3"."""
    first, lines = of_processes[0], {}
    for index, other in enumerate(of_processes):
        for name in [*first, *(name for name in other if name not in first)]:
            mine, theirs = (side.get(name, "nothing") for side in (first, other))
            if mine != theirs and name not in lines:
                quoted = (cut(str(value), 100) for value in (mine, theirs))
                lines[name] = "{}: {} in process 0, {} in process {}".format(name, *quoted, index)
    return list(lines.values())


def check(name: str, facts: Mapping[str, Any]) -> None:
    """Compares the facts of all processes of the group; all must call this, in the same order.

    `name` is that of the comparison, used once per group; facts are JSON values by name.

    Raises:
      UsageError: in every process, with the first three facts that differ.
    """
    client = global_state.client
    if client is None or global_state.num_processes == 1:
        return
    place = f"mrl_jax/{name}"
    client.key_value_set(f"{place}/{global_state.process_id}", json.dumps(facts))
    if global_state.process_id == 0:
        said = [
            json.loads(client.blocking_key_value_get(f"{place}/{index}", _TIMEOUT_MS))
            for index in range(global_state.num_processes)
        ]
        client.key_value_set(f"{place}/differences", json.dumps(differences(said)))
    found = json.loads(client.blocking_key_value_get(f"{place}/differences", _TIMEOUT_MS))
    if found:
        more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
        raise UsageError(f"the processes of this run disagree: {'; '.join(found[:3])}{more}")
