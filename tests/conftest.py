"""Eight virtual CPU devices for every test; silent rank promotion is an error."""

import fcntl
import os
import pathlib

import commands
import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Programs of tests are small and run a few times: most of their time would go into making them
# fast. JAX_DISABLE_MOST_OPTIMIZATIONS=0 compiles them as users do, at twice the time.
# Commands that tests start are told by the same variables.
if os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1":
    jax.config.update("jax_disable_most_optimizations", True)
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false "
        "--xla_cpu_parallel_codegen_split_count=1"
    ).strip()


@pytest.fixture(scope="session", autouse=True)
def _compilation_cache(tmp_path_factory):
    """Commands that tests start share compiled programs with each other, not with other runs."""
    base = tmp_path_factory.getbasetemp()
    # pytest-xdist gives each worker a folder of its own inside one folder of the run.
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    os.environ["MRL_JAX_TEST_CACHE"] = str(shared / "compiled")


@pytest.fixture(scope="session")
def digits_run(_compilation_cache):
    """The folder of an uninterrupted run of the training command, and what the command printed.

    All workers share it: a test that changes the folder makes a copy of it first.
    """
    folder = pathlib.Path(os.environ["MRL_JAX_TEST_CACHE"]).with_name("digits")
    folder.mkdir(exist_ok=True)
    printed = folder / "printed.txt"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not printed.exists():
            printed.write_text(commands.succeed(commands.train(folder / "run")))
    return folder / "run", printed.read_text()
