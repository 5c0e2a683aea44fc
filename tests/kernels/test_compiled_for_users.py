"""Most tests have their programs compiled quickly; here the kernels are as users have them."""

import os
import subprocess
import sys

import commands
import pytest

# One test of values and gradients for each kernel and layout.
WHICH = (
    "equals_the_definition or every_prefix_by_itself or every_row_of_every_device "
    "or every_layout_equals_one_device"
)


@pytest.mark.slow
def test_kernels_are_right_as_users_compile_them():
    argv = [sys.executable, "-m", "pytest", "tests/kernels", "-k", WHICH, "-m", "not slow"]
    # A run of its own, not one of pytest-xdist's workers.
    environment = {key: value for key, value in os.environ.items() if "XDIST" not in key}
    done = subprocess.run(
        argv,
        cwd=commands.ROOT,
        env={**environment, "JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
