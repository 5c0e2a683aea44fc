import jax
import numpy as np
import pytest

from mrl_jax import config as configs
from mrl_jax import experiment
from mrl_jax.errors import CheckpointError, UsageError
from mrl_jax.runtime import numerics


@pytest.fixture(scope="module")
def setup():
    config = configs.load("configs/digits.py:mrl", ["--config.seed=3"])
    return experiment.from_config(config)


@pytest.fixture(autouse=True)
def _restore():
    before = numerics.settings()
    yield
    numerics.pin(before)


def drawn(setup):
    """Random numbers as a run draws them."""
    return np.asarray(jax.random.normal(setup.program.run_key(3), (5,)))


OTHERS = [
    ("jax_default_prng_impl", "rbg"),
    ("jax_threefry_partitionable", False),
    ("jax_random_seed_offset", 1),
    ("jax_default_matmul_precision", "bfloat16"),
]


@pytest.mark.parametrize(("name", "value"), OTHERS)
def test_a_run_goes_on_by_the_settings_that_it_began_with(setup, capsys, name, value):
    facts, expected = setup.remembered(), drawn(setup)
    jax.config.update(name, value)
    assert setup.remembered() != facts
    setup.adopt_and_check(facts)
    assert f"{name}: {value} -> {numerics.DEFAULTS[name]}" in capsys.readouterr().out
    assert setup.remembered() == facts
    np.testing.assert_array_equal(drawn(setup), expected)
    setup.adopt_and_check(facts)
    assert capsys.readouterr().out == ""


def test_a_run_that_began_elsewhere_keeps_that(setup):
    numerics.pin(dict(OTHERS))
    facts, expected = setup.remembered(), drawn(setup)
    numerics.pin(numerics.DEFAULTS)
    setup.adopt_and_check(facts)
    np.testing.assert_array_equal(drawn(setup), expected)


def test_checkpoints_that_do_not_say_were_made_by_the_defaults(setup):
    older = {"data": setup.dataset.fingerprint()}
    numerics.pin(dict(OTHERS))
    setup.adopt_and_check(older)
    assert numerics.settings() == numerics.DEFAULTS


def test_another_config_is_named(setup):
    facts = setup.remembered()
    # A key that came later had its default then.
    without = {key: value for key, value in facts["config"].items() if key != "pairs.layers"}
    setup.adopt_and_check({**facts, "config": without})
    other = {**without, "seed": 0, "nesting.dims": [2, 4], "optimizer.momentum": 0.9}
    with pytest.raises(CheckpointError) as error:
        setup.adopt_and_check({**facts, "config": other})
    for part in ("seed: 0 -> 3", "nesting.dims: [2, 4] -> [", "momentum: 0.9 -> no such key"):
        assert part in str(error.value)
    # What changes no weight may change.
    free = ["--config.eval.dims=8", "--config.log_every=3", "--config.name=other"]
    assert configs.changed_since(facts["config"], configs.override(setup.config, free)) == []


@pytest.mark.parametrize(
    ("scope", "named"),
    [
        (lambda: jax.enable_x64(True), "JAX_ENABLE_X64"),
        (lambda: jax.numpy_dtype_promotion("strict"), "JAX_NUMPY_DTYPE_PROMOTION"),
        (lambda: jax.transfer_guard("disallow"), "JAX_TRANSFER_GUARD"),
        (jax.disable_jit, "JAX_DISABLE_JIT"),
    ],
)
def test_settings_that_no_run_works_with_are_refused(setup, scope, named):
    with scope(), pytest.raises(UsageError, match=named):
        experiment.from_config(setup.config)


def test_the_environment_is_what_jax_reads(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_flag=1")
    monkeypatch.setenv("NOT_OF_JAX", "secret")
    found = numerics.environment()
    assert found["XLA_FLAGS"] == "--xla_flag=1"
    assert "NOT_OF_JAX" not in found
