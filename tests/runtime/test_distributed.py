import socket

import pytest

from mrl_jax.errors import UsageError
from mrl_jax.runtime.distributed import (
    _check_variables,
    _devices_of_a_lone_task,
    _from_environment,
    _port_of_step,
)

GROUP = {
    "JAX_COORDINATOR_ADDRESS": "host:1234",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "3",
}


def test_the_three_variables_name_a_process():
    assert _from_environment(GROUP) == {
        "coordinator_address": "host:1234",
        "num_processes": 4,
        "process_id": 3,
    }


@pytest.mark.parametrize("address", ["127.0.0.1:1234", "localhost:1234", "[::1]:1234"])
def test_the_coordinator_listens_at_its_address_only(address):
    found = _from_environment({**GROUP, "JAX_COORDINATOR_ADDRESS": address})
    assert found["coordinator_bind_address"] == address
    bind = {"JAX_COORDINATOR_ADDRESS": address, "JAX_COORDINATOR_BIND_ADDRESS": "10.0.0.1:9"}
    assert _from_environment({**GROUP, **bind})["coordinator_bind_address"] == "10.0.0.1:9"


@pytest.mark.parametrize("environment", [{}, {"JAX_COORDINATOR_ADDRESS": "host:1"}])
def test_without_them_there_is_no_group(environment):
    assert _from_environment(environment) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"JAX_PROCESS_ID": ""}, "is set but not JAX_PROCESS_ID"),
        ({"JAX_COORDINATOR_ADDRESS": ""}, "is set but not JAX_COORDINATOR_ADDRESS"),
        ({"JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID=4 must be in"),
        ({"JAX_PROCESS_ID": "-1"}, "JAX_PROCESS_ID=-1 must be in"),
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES must be an integer, got 'two'"),
        ({"JAX_COORDINATOR_ADDRESS": "host"}, "JAX_COORDINATOR_ADDRESS must be HOST:PORT"),
        ({"JAX_COORDINATOR_BIND_ADDRESS": "x:0"}, "JAX_COORDINATOR_BIND_ADDRESS must be HOST:PORT"),
    ],
)
def test_half_a_description_is_refused(change, message):
    with pytest.raises(UsageError, match=message):
        _from_environment({**GROUP, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"JAX_COORDINATOR_PORT": "x"}, "JAX_COORDINATOR_PORT must be a port"),
        ({"JAX_COORDINATOR_ADDRESS": "host:x"}, "JAX_COORDINATOR_ADDRESS must be HOST:PORT"),
    ],
)
def test_variables_that_jax_reads_itself_are_checked(change, message):
    with pytest.raises(UsageError, match=message):
        _check_variables(change)


def test_the_first_slurm_task_checks_its_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        port = {"JAX_COORDINATOR_PORT": str(listener.getsockname()[1])}
        _check_variables({**port, "SLURM_PROCID": "1"})
        with pytest.raises(UsageError, match="is in use on this machine"):
            _check_variables({**port, "SLURM_PROCID": "0"})


@pytest.mark.parametrize(
    ("tasks", "gpus", "expected"),
    [
        ("1(x2)", "0,1,2,3", [0, 1, 2, 3]),
        ("1", "5", [0]),
        ("4(x2)", "0,1,2,3", None),
        ("1(x2)", "", None),
        ("", "0,1", None),
    ],
)
def test_a_lone_slurm_task_takes_all_gpus_of_its_node(tasks, gpus, expected):
    environment = {"SLURM_STEP_TASKS_PER_NODE": tasks, "CUDA_VISIBLE_DEVICES": gpus}
    assert _devices_of_a_lone_task(environment) == expected


def test_steps_of_a_slurm_job_do_not_meet():
    """Nor do they meet the first steps of the jobs that follow on the same node."""
    ports = {
        _port_of_step({"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)})
        for job in range(4_000, 4_100)
        for step in range(4 if job == 4_000 else 1)
    }
    assert len(ports) == 103
    assert 61_440 <= min(ports) <= max(ports) <= 65_535
