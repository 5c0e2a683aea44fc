"""Eight virtual CPU devices for every test; silent rank promotion is an error."""

import contextlib
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


@contextlib.contextmanager
def _once(name):
    """A folder that all workers share, and whether nobody has filled it yet."""
    folder = pathlib.Path(os.environ["MRL_JAX_TEST_CACHE"]).with_name(name)
    folder.mkdir(exist_ok=True)
    done = folder / "done"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder, not done.exists()
        done.touch()


@pytest.fixture(scope="session")
def digits_run(_compilation_cache):
    """The folder of an uninterrupted run of the training command, and what the command printed.

    All workers share it: a test that changes the folder makes a copy of it first.
    """
    with _once("digits") as (folder, missing):
        printed = folder / "printed.txt"
        if missing:
            printed.write_text(commands.succeed(commands.train(folder / "run")))
    return folder / "run", printed.read_text()


@pytest.fixture(scope="session")
def towers_run(_compilation_cache):
    """The folder of a finished run of two towers, and that of its data; shared as `digits_run`."""
    with _once("towers") as (folder, missing):
        if missing:
            commands.captioned_photos(folder / "data")
            commands.here(commands.train_towers(folder / "run", folder / "data"))
    return folder / "run", folder / "data"
