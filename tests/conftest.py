"""Eight virtual CPU devices for every test; silent rank promotion is an error."""

import os

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Programs of tests are small and run a few times: most of their time would go into making them
# fast. HLO stays as it is, only LLVM does less. Commands that tests start are told by the variable.
jax.config.update("jax_disable_most_optimizations", True)
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"


@pytest.fixture(scope="session", autouse=True)
def _compilation_cache(tmp_path_factory):
    """Commands that tests start share compiled programs with each other, not with other runs."""
    base = tmp_path_factory.getbasetemp()
    # pytest-xdist gives each worker a folder of its own inside one folder of the run.
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    os.environ["MRL_JAX_TEST_CACHE"] = str(shared / "compiled")
