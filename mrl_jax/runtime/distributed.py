"""Starts JAX in one process or many, and finds out which of them this one is."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax._src.distributed import global_state
from jax.experimental import multihost_utils

from mrl_jax.errors import UsageError
from mrl_jax.runtime import coordinator, preemption

COORDINATOR = "JAX_COORDINATOR_ADDRESS"
BIND = "JAX_COORDINATOR_BIND_ADDRESS"
PORT = "JAX_COORDINATOR_PORT"
COUNT = "JAX_NUM_PROCESSES"
INDEX = "JAX_PROCESS_ID"

# Variables that launchers set per process of a group, and that plain shells on such machines
# do not: under Slurm only srun sets the step variables.
_CLUSTERS = {"slurm": "SLURM_STEP_NUM_TASKS", "openmpi": "OMPI_COMM_WORLD_SIZE"}


def _integer(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError:
        raise UsageError(f"{name} must be an integer, got {environment[name]!r}") from None


def _from_environment(environment: Mapping[str, str]) -> dict | None:
    names = (COORDINATOR, COUNT, INDEX)
    given = [name for name in names if environment.get(name)]
    # A coordinator alone may be left over from JAX's own use of the variable; JAX reads it then.
    if not set(given) & {COUNT, INDEX}:
        return None
    if len(given) != len(names):
        missing = ", ".join(name for name in names if name not in given)
        raise UsageError(f"{', '.join(given)} is set but not {missing}: set all three or none")
    count, index = _integer(environment, COUNT), _integer(environment, INDEX)
    if not 0 <= index < count:
        raise UsageError(f"{INDEX}={index} must be in [0, {COUNT}={count})")
    address = coordinator.parse(COORDINATOR, environment[COORDINATOR])
    found = {"coordinator_address": str(address), "num_processes": count, "process_id": index}
    # By itself JAX listens on all network interfaces.
    if environment.get(BIND):
        found["coordinator_bind_address"] = str(coordinator.parse(BIND, environment[BIND]))
    elif address.alone:
        found["coordinator_bind_address"] = str(address)
    return found


def _check_place(arguments: Mapping[str, Any]) -> None:
    """Refuses an address of the coordinator at which this process would wait in vain."""
    text = arguments["coordinator_address"]
    address = coordinator.parse(COORDINATOR, text)
    if arguments["process_id"] == 0:
        bind = arguments.get("coordinator_bind_address", text)
        name = COORDINATOR if bind == text else BIND
        coordinator.check_free(name, coordinator.parse(name, bind))
    coordinator.check_reached(COORDINATOR, address)


def _check_variables(environment: Mapping[str, str]) -> None:
    """Refuses variables that JAX reads by itself and cannot work with."""
    for name in (COORDINATOR, BIND):
        if environment.get(name):
            coordinator.parse(name, environment[name])
    if environment.get(PORT):
        port = coordinator.parse_port(PORT, environment[PORT])
        ranks = [environment.get(name) for name in ("SLURM_PROCID", "OMPI_COMM_WORLD_RANK")]
        if "0" in ranks and not environment.get(COORDINATOR) and not environment.get(BIND):
            coordinator.check_free(PORT, coordinator.Address("", port))


def _devices_of_a_lone_task(environment: Mapping[str, str]) -> list[int] | None:
    """All GPUs of the node where Slurm started one task on each node.

    JAX gives every Slurm task the one GPU of its local index; a lone task would leave the others
    of its node idle.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    if not visible or tasks.partition("(")[0] != "1":
        return None
    return list(range(len(visible.split(","))))


def _port_of_step(environment: Mapping[str, str]) -> int:
    """The port at which the first task of a Slurm step listens, different for each step of a job.

    JAX itself derives the port from the job's number alone. Steps are far apart, so that they do
    not collide with steps of the jobs that follow either.
    """
    job, step = (int(environment.get(f"SLURM_{name}_ID", "0")) for name in ("JOB", "STEP"))
    return 61440 + (job + 1031 * step) % 4096


def initialize(*, detect: bool = False, timeout_s: int = 300) -> str:
    """Joins this process to its group, before anything else touches a device.

    The first that applies: the three environment variables JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID; a Slurm step or Open MPI run of several tasks, whose
    variables JAX reads itself; `detect`, which lets JAX ask the platform (TPU pods, Kubernetes);
    else a single process without any service.

    Args:
      detect: ask JAX to detect the cluster even where no variable shows one.
      timeout_s: how long to wait for the other processes.

    Returns:
      One line that says what was used.

    Raises:
      UsageError: half a description of a group, or an address at which it cannot come together. If
        it does not come together in time, the process ends with the exit code of a hang.
    """
    environment = os.environ
    # JAX's own preemption notice only reaches runs that count their steps from zero without gaps;
    # that of `preemption` reaches all.
    jax.config.update("jax_enable_preemption_service", False)
    arguments = _from_environment(environment)
    how, others = "environment variables", "the other processes of the group"
    if arguments is not None:
        _check_place(arguments)
        others += f" at {COORDINATOR}={arguments['coordinator_address']}"
    else:
        tasks = {name: environment.get(variable) for name, variable in _CLUSTERS.items()}
        found = [name for name, count in tasks.items() if count not in (None, "", "0", "1")]
        if not found and not detect:
            return "one process"
        arguments, how = {}, found[0] if found else "detected by jax"
        if found == ["slurm"]:
            environment.setdefault(PORT, str(_port_of_step(environment)))
            arguments["local_device_ids"] = _devices_of_a_lone_task(environment)
        _check_variables(environment)
    try:
        # Only the CPU backend reads this; without it CPU processes cannot exchange arrays.
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        with coordinator.waiting(others, timeout_s):
            jax.distributed.initialize(
                **arguments, initialization_timeout=timeout_s + 60, heartbeat_timeout_seconds=60
            )
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"cannot join the process group ({how}): {error}") from error
    # No public function of JAX returns the client. Orbax gets it in the same way.
    if global_state.client is not None:
        preemption.share(global_state.client, jax.process_index())
    return f"process {jax.process_index()} of {jax.process_count()} ({how})"


def of_first_process(number: int) -> int:
    """The first process's number, on all processes; each of them must call this."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def barrier(name: str) -> None:
    """Waits until all processes have come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
