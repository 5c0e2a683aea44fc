"""What a training step of a config would cost; nothing runs."""

import pathlib

from ml_collections import ConfigDict

from mrl_jax import experiment
from mrl_jax.errors import UsageError
from mrl_jax.runtime import cost
from mrl_jax.runtime.memory import written
from mrl_jax.runtime.program import Program


def program_of(
    config: ConfigDict, topology: str = "", folder: pathlib.Path | None = None
) -> Program:
    """`experiment.program_of` for a TPU slice such as "v5e:16x16"; "": for this machine's devices.

    Raises:
      UsageError, DataError: as there; also names a slice that does not exist.
    """
    devices = cost.topology_devices(topology) if topology else None
    return experiment.program_of(config, devices, folder)


def report(config: ConfigDict, topology: str = "", folder: pathlib.Path | None = None) -> str:
    """Parameters, FLOPs, memory, collectives and shardings of a training step, as text.

    Raises:
      UsageError: see `program_of`; or the step does not fit a chip of the slice: names the bytes,
        the limit and the closest layout that fits.
      DataError: data missing or inconsistent.
    """
    program = program_of(config, topology, folder)

    def with_keys(keys: dict[str, int]) -> Program:
        other = config.copy_and_resolve_references()
        other.update_from_flattened_dict(keys)
        return program_of(other, topology, folder)

    try:
        compiled = cost.compile_step(program)
    except cost.TooLargeError as error:
        advice = (
            "a larger mesh.fsdp and optimizer.accumulate are not enough here: use a larger slice, "
            "a smaller batch_size or a smaller model"
        )
        if keys := cost.fitting_layout(program, error, with_keys):
            flags = " ".join(f"--config.{key}={value}" for key, value in keys.items())
            advice = f"compiled with these, it fits: {flags}"
        raise UsageError(
            f"a training step needs {written(error.needed)} on each "
            f"{program.mesh.devices.flat[0].device_kind}, which has {written(error.limit)}; "
            f"{advice}"
        ) from None
    return cost.report(program, compiled)
