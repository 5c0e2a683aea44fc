import os
import textwrap

import pytest

from mrl_jax.errors import UsageError
from mrl_jax.runtime.slots import slots

VARIABLES = (
    *("CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES", "XLA_FLAGS"),
    *("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"),
    *("TPU_VISIBLE_CHIPS", "TPU_VISIBLE_DEVICES"),
)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Five cores; what nvidia-smi lists and the environment says is up to the test."""

    def of(listed="", **variables):
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{textwrap.dedent(listed)}\nEND\n")
        program.chmod(0o755)

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 4, 6, 7}, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return of


FOUR = """
    GPU 0: NVIDIA H200 (UUID: GPU-a)
    GPU 1: NVIDIA H200 (UUID: GPU-b)
    GPU 2: NVIDIA H200 (UUID: GPU-c)
    GPU 3: NVIDIA H200 (UUID: GPU-d)
"""


def shown(jobs=None):
    return [slot.variables.get("CUDA_VISIBLE_DEVICES") for slot in slots(jobs)]


def test_cores_are_shared_out(machine):
    machine(JAX_PLATFORMS="cpu")
    assert [{*slot.cores} for slot in slots(2)] == [{0, 4, 7}, {2, 6}]
    assert [{*slot.cores} for slot in slots(1)] == [{0, 2, 4, 6, 7}]
    assert [{*slot.cores} for slot in slots()] == [{0}, {2}, {4}, {6}, {7}]
    assert [{*slot.cores} for slot in slots(6)] == [set()] * 6
    assert {slot.devices for slot in slots()} == {1}
    machine(JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES="8")
    assert slots(1)[0].devices == 8


def test_every_gpu_is_a_slot(machine):
    machine(FOUR, JAX_PLATFORMS="cuda")
    assert shown() == shown(4) == ["GPU-a", "GPU-b", "GPU-c", "GPU-d"]
    assert shown(2) == ["GPU-a,GPU-b", "GPU-c,GPU-d"]
    assert shown(3) == ["GPU-a", "GPU-b", "GPU-c"]
    assert shown(1) == ["GPU-a,GPU-b,GPU-c,GPU-d"]
    assert [slot.devices for slot in slots(2)] == [2, 2]
    assert all("XLA_CLIENT_MEM_FRACTION" not in slot.variables for slot in slots())


def test_more_jobs_than_gpus_share_them_and_their_memory(machine):
    machine(FOUR, JAX_PLATFORMS="cuda,cpu")
    assert shown(6) == ["GPU-a", "GPU-b", "GPU-c", "GPU-d", "GPU-a", "GPU-b"]
    assert {slot.variables["XLA_CLIENT_MEM_FRACTION"] for slot in slots(6)} == {"0.375"}
    machine(FOUR, JAX_PLATFORMS="cuda", XLA_PYTHON_CLIENT_MEM_FRACTION=".2")
    assert all("XLA_CLIENT_MEM_FRACTION" not in slot.variables for slot in slots(6))


def test_what_the_user_hides_stays_hidden(machine):
    machine(FOUR, JAX_PLATFORMS="cuda", CUDA_VISIBLE_DEVICES="2, GPU-a,2")
    assert shown() == ["2", "GPU-a"]
    machine(FOUR, JAX_PLATFORMS="cuda", CUDA_VISIBLE_DEVICES="1,-1,0")
    assert shown() == ["1"]
    for variables in (
        {"JAX_PLATFORMS": "cuda,cpu", "CUDA_VISIBLE_DEVICES": ""},
        {"JAX_PLATFORMS": "cuda,cpu", "CUDA_VISIBLE_DEVICES": "-1"},
        {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "0,1"},
    ):
        machine(FOUR, **variables)
        assert shown() == [None] * 5


def test_the_parts_of_a_divided_gpu_are_slots(machine):
    machine(
        """
        GPU 0: NVIDIA H200 (UUID: GPU-a)
          MIG 3g.71gb     Device  0: (UUID: MIG-1)
          MIG 1g.18gb     Device  1: (UUID: MIG-2)
        GPU 1: NVIDIA H200 (UUID: GPU-b)
        """,
        JAX_PLATFORMS="cuda",
    )
    assert shown() == ["MIG-1", "MIG-2", "GPU-b"]


@pytest.mark.parametrize("variable", ["TPU_VISIBLE_CHIPS", "TPU_VISIBLE_DEVICES"])
def test_a_tpu_chip_takes_one_job(machine, variable):
    pytest.importorskip("libtpu")
    machine(JAX_PLATFORMS="tpu", **{variable: "0,1,2,3"})
    assert [slot.variables["TPU_VISIBLE_CHIPS"] for slot in slots()] == ["0", "1", "2", "3"]
    assert [dict(slot.variables) for slot in slots(1)] == [{}]
    with pytest.raises(UsageError, match="--jobs 5: a TPU chip takes one process at a time"):
        slots(5)
