import jax.numpy as jnp
import numpy as np
import pytest

from mrl_jax.runtime.optimizer import make_optimizer, schedule

PARAMS = {"head": {"kernel": jnp.ones(3), "bias": jnp.ones(3)}}


def test_schedule_rises_and_falls():
    rate = schedule(0.5, warmup_steps=10, steps=110)
    assert [float(rate(s)) for s in (0, 5, 10, 60, 110)] == pytest.approx([0, 0.25, 0.5, 0.25, 0])


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_only_masked_parameters_decay(name):
    optimizer = make_optimizer(name, lambda step: 0.1, weight_decay=0.5, decay_mask="kernel")
    zeros = {"head": {"kernel": jnp.zeros(3), "bias": jnp.zeros(3)}}
    updates, _ = optimizer.update(zeros, optimizer.init(PARAMS), PARAMS)
    assert (np.asarray(updates["head"]["kernel"]) < 0).all()
    assert (np.asarray(updates["head"]["bias"]) == 0).all()


def test_sgd_is_nesterov():
    optimizer = make_optimizer("sgd", lambda step: 0.1, weight_decay=0.0, decay_mask="kernel")
    state = optimizer.init(PARAMS)
    gradient = {"head": {"kernel": jnp.ones(3), "bias": jnp.ones(3)}}
    updates, _ = optimizer.update(gradient, state, PARAMS)
    # momentum m = g, step = -rate * (g + 0.9 m)
    np.testing.assert_allclose(updates["head"]["bias"], -0.19, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: schedule(0.0, 0, 10), "learning_rate must be > 0, got 0.0"),
        (lambda: schedule(float("nan"), 0, 10), "got nan"),
        (lambda: schedule(0.1, 10, 10), r"warmup_steps must be in \[0, steps=10\), got 10"),
        (
            lambda: make_optimizer("lion", None, weight_decay=0, decay_mask=""),
            "must be adamw or sgd, got 'lion'",
        ),
        (
            lambda: make_optimizer("sgd", None, weight_decay=-1, decay_mask=""),
            "weight_decay must be >= 0, got -1",
        ),
        (
            lambda: make_optimizer("sgd", None, weight_decay=0, decay_mask="("),
            r"decay_mask '\(' is no regular expression",
        ),
    ],
)
def test_bad_values_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
