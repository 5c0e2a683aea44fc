"""Kernels are compiled as users compile them where time allows it, that is in CI."""

import os

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def _optimized():
    if os.environ.get("CI") != "true":
        yield
        return
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
