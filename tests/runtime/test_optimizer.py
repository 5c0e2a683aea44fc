import math

import jax
import numpy as np
import pytest

from mrl_jax.runtime.optimizer import check_decay_mask, make_optimizer, schedule

ONES = np.ones(3, np.float32)
PARAMS = {"head": {"kernel": ONES, "bias": ONES}}


def updates_of(optimizer, kernel, bias):
    """The first updates by gradients that are everywhere the same."""

    @jax.jit
    def update(gradient):
        return optimizer.update(gradient, optimizer.init(PARAMS), PARAMS)[0]

    return update({"head": {"kernel": kernel * ONES, "bias": bias * ONES}})["head"]


def test_cosine_rises_and_falls():
    rate = jax.jit(schedule("cosine", 0.5, warmup_steps=10, steps=110))
    assert [float(rate(s)) for s in (0, 5, 10, 60, 110)] == pytest.approx([0, 0.25, 0.5, 0.25, 0])


def test_linear_is_the_reference_schedule():
    """numpy.interp over epochs 0, 2, 40 with rates 1e-4, 1, 0 times the peak."""
    rate = jax.jit(schedule("linear", 0.425, warmup_steps=20, steps=400))
    steps = np.array([0, 1, 7, 19, 20, 21, 200, 399, 400])
    expected = np.interp(steps / 10, [0, 2, 40], [1e-4 * 0.425, 0.425, 0])
    np.testing.assert_allclose([rate(s) for s in steps], expected, rtol=1e-5, atol=1e-7)
    assert float(schedule("linear", 0.1, 0, 10)(0)) == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor"])
def test_only_masked_parameters_decay(name):
    """The gradient is zero: what moves, moves by rate x decay."""
    optimizer = make_optimizer(name, lambda step: 0.1, weight_decay=0.5, decay_mask="kernel")
    updates = updates_of(optimizer, 0, 0)
    np.testing.assert_allclose(updates["kernel"], -0.05, rtol=1e-5)
    np.testing.assert_array_equal(updates["bias"], 0)


@pytest.mark.parametrize(("nesterov", "expected"), [(False, [0.1, 0.19]), (True, [0.19, 0.271])])
def test_sgd_has_momentum(nesterov, expected):
    """m = g + 0.9 m; the step is rate x m, or rate x (g + 0.9 m) once more with Nesterov."""
    optimizer = make_optimizer(
        "sgd", lambda step: 0.1, weight_decay=0.0, decay_mask="kernel", nesterov=nesterov
    )
    state, update = optimizer.init(PARAMS), jax.jit(optimizer.update)
    for step in expected:
        updates, state = update(PARAMS, state, PARAMS)
        np.testing.assert_allclose(updates["head"]["bias"], -step, rtol=1e-6)


def test_adafactor_steps_down_by_the_rate_and_the_size_of_the_parameter():
    optimizer = make_optimizer("adafactor", lambda s: 0.1, weight_decay=0.0, decay_mask="kernel")
    updates = updates_of(optimizer, 7, -7)
    np.testing.assert_allclose(updates["kernel"], -0.1, rtol=1e-5)
    np.testing.assert_allclose(updates["bias"], 0.1, rtol=1e-5)


def test_gradients_are_clipped_by_their_global_norm():
    optimizer = make_optimizer(
        "sgd", lambda step: 1.0, weight_decay=0.0, decay_mask="kernel", clip_norm=1.0
    )
    updates = updates_of(optimizer, 3, 4)
    norm = np.sqrt(3 * 9 + 3 * 16)
    np.testing.assert_allclose(updates["kernel"], -3 / norm, rtol=1e-6)
    np.testing.assert_allclose(updates["bias"], -4 / norm, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: schedule("cosine", 0.0, 0, 10), "learning_rate must be > 0, got 0.0"),
        (lambda: schedule("linear", float("nan"), 0, 10), "got nan"),
        (lambda: schedule("cosine", 0.1, 10, 10), r"warmup_steps must be in \[0, steps=10\), got"),
        (lambda: schedule("step", 0.1, 0, 10), "schedule must be one of cosine, linear"),
        (
            lambda: make_optimizer("adamw", None, weight_decay=0, decay_mask="", nesterov=True),
            "nesterov is an option of sgd, not of adamw",
        ),
        (
            lambda: make_optimizer("lion", None, weight_decay=0, decay_mask=""),
            "must be one of adamw, sgd, adafactor; got 'lion'",
        ),
        (
            lambda: make_optimizer("sgd", None, weight_decay=-1, decay_mask=""),
            "weight_decay must be >= 0, got -1",
        ),
        (
            lambda: make_optimizer("sgd", None, weight_decay=0, decay_mask="", clip_norm=math.nan),
            "clip_norm must be >= 0, got nan",
        ),
        (lambda: check_decay_mask("kernl", PARAMS), "decay_mask 'kernl' matches no parameter"),
        (
            lambda: make_optimizer("sgd", None, weight_decay=0, decay_mask="("),
            r"decay_mask '\(' is not a regular expression",
        ),
    ],
)
def test_bad_values_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
