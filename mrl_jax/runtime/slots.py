"""Which part of this machine each of several jobs gets: processor cores, and GPUs or TPU chips.

Devices are found without JAX: a process that asks JAX for them opens them all, and takes most of
the memory that the jobs need.
"""

import dataclasses
import importlib.metadata
import importlib.util
import itertools
import os
import pathlib
import re
import subprocess
from collections.abc import Mapping

from mrl_jax.errors import UsageError

# The share of a GPU's memory that JAX takes if it has the GPU to itself.
_MEMORY = 0.75
_FRACTIONS = {"XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"}
_HOST_DEVICES = re.compile(r"--xla_force_host_platform_device_count=(\d+)")


@dataclasses.dataclass(frozen=True)
class Slot:
    """A part of this machine, for one job at a time.

    Attributes:
      cores: to which its threads are bound; empty for no binding.
      variables: environment variables that show JAX only the devices of the slot.
      devices: how many JAX will find; None if that is not known.
    """

    cores: frozenset[int]
    variables: Mapping[str, str]
    devices: int | None


def slots(jobs: int | None = None) -> list[Slot]:
    """Divides this machine among `jobs` jobs; None means one per GPU or TPU chip, else per core.

    All jobs get the same number of cores and devices. If there are more jobs than devices, they
    share them as evenly as possible. A GPU or TPU that the user has hidden stays hidden.

    Raises:
      UsageError: more jobs than TPU chips, which two processes cannot share.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    gpus, chips = _gpus(), []
    if not gpus:
        chips = _tpu_chips()
    jobs = jobs or len(gpus or chips or cores) or os.cpu_count() or 1
    if chips and jobs > len(chips):
        raise UsageError(
            f"--jobs {jobs}: a TPU chip takes one process at a time, and there are {len(chips)}"
        )
    if gpus:
        parts = _shares(gpus, jobs)
        shown = [({"CUDA_VISIBLE_DEVICES": ",".join(part)}, len(part)) for part in parts]
        most = -(-jobs // len(gpus))
        if most > 1 and not _FRACTIONS & os.environ.keys():
            for variables, _ in shown:
                variables["XLA_CLIENT_MEM_FRACTION"] = f"{_MEMORY / most:.3f}"
    elif chips and jobs > 1:
        # The settings for independent processes on one TPU machine.
        one = {"TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1"}
        shown = [({**one, "TPU_VISIBLE_CHIPS": chip}, None) for chip in chips[:jobs]]
    else:
        shown = [({}, None if chips else _host_devices())] * jobs
    per_job = [cores[index::jobs] if len(cores) >= jobs else [] for index in range(jobs)]
    return [
        Slot(frozenset(own), variables, devices)
        for own, (variables, devices) in zip(per_job, shown, strict=True)
    ]


def _shares(items: list[str], jobs: int) -> list[list[str]]:
    """As many neighbouring items for each job; one each, in turn, if there are too few."""
    each = len(items) // jobs
    if not each:
        return [[items[index % len(items)]] for index in range(jobs)]
    return [items[index * each : (index + 1) * each] for index in range(jobs)]


def _may_use(platform: str) -> bool:
    """Whether the user lets JAX look for these devices."""
    wanted = os.environ.get("JAX_PLATFORMS", "")
    return not wanted or platform in wanted.split(",")


def _gpus() -> list[str]:
    """The GPUs that JAX may use, each as CUDA_VISIBLE_DEVICES would name it."""
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    asked = "JAX_PLATFORMS" in os.environ and (_may_use("cuda") or _may_use("gpu"))
    if not (_may_use("cuda") or _may_use("gpu")):
        return []
    if not asked and not any("cuda" in plugin.name for plugin in plugins):
        return []
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        # Like CUDA, which stops at the first name that is not a device.
        names = (name.strip() for name in given.split(","))
        return list(dict.fromkeys(itertools.takewhile(lambda n: n and n != "-1", names)))
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        found = pathlib.Path("/dev").glob("nvidia[0-9]*")
        return [str(index) for index, _ in enumerate(found)]
    return _in_listing(listed)


def _in_listing(listed: str) -> list[str]:
    """The ids that `nvidia-smi -L` prints; for a GPU divided by MIG, those of its instances."""
    gpus: list[list[str]] = []
    for line in listed.splitlines():
        found = re.search(r"\(UUID: (\S+)\)", line)
        if found and line.startswith("GPU "):
            gpus.append([found[1]])
        elif found and gpus:
            gpus[-1].append(found[1])
    return [name for gpu, *parts in gpus for name in (parts or [gpu])]


def _tpu_chips() -> list[str]:
    if not _may_use("tpu") or importlib.util.find_spec("libtpu") is None:
        return []
    given = os.environ.get("TPU_VISIBLE_CHIPS") or os.environ.get("TPU_VISIBLE_DEVICES")
    if given:
        return given.split(",")
    # Older generations are accel0, accel1, ...; from v5 on they are VFIO groups.
    found = [*pathlib.Path("/dev").glob("accel[0-9]*"), *pathlib.Path("/dev/vfio").glob("[0-9]*")]
    return [str(index) for index, _ in enumerate(found)]


def _host_devices() -> int:
    """How many CPU devices JAX will find."""
    forced = _HOST_DEVICES.search(os.environ.get("XLA_FLAGS", ""))
    asked = os.environ.get("JAX_NUM_CPU_DEVICES") or (forced[1] if forced else "1")
    return int(asked) if asked.isdecimal() and int(asked) else 1
