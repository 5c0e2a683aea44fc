import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrl_jax import Nesting
from mrl_jax.losses import nested_cross_entropy

NESTING = Nesting((2, 4, 8), (1.0, 0.5, 2.0))
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(3, 7, 5)) * 3
LABELS = RNG.integers(0, 5, 7).astype(np.int32)
MASK = np.array([1, 1, 0, 1, 0, 1, 1])


@functools.partial(jax.jit, static_argnames="label_smoothing")
def evaluate(logits_gbc, labels_b=LABELS, **options):
    """((loss, loss of each granularity), gradient)."""

    def loss(logits_gbc):
        return nested_cross_entropy(logits_gbc, labels_b, NESTING, **options)

    return jax.value_and_grad(loss, has_aux=True)(logits_gbc)


def oracle(logits_gbc, labels_b, weights, smoothing, mask_b):
    """Written from the definition, in float64, one example at a time."""
    per_g = []
    for logits_bc in logits_gbc:
        losses = []
        for logits_c, label, valid in zip(logits_bc, labels_b, mask_b, strict=True):
            if valid:
                log_p = logits_c - np.log(np.exp(logits_c).sum())
                target = np.full(len(logits_c), smoothing / len(logits_c))
                target[label] += 1 - smoothing
                losses.append(-(target * log_p).sum())
        per_g.append(np.mean(losses))
    return np.dot(weights, per_g), np.array(per_g)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_definition(smoothing, masked):
    mask = MASK if masked else np.ones(7)
    expected = oracle(LOGITS, LABELS, NESTING.weights, smoothing, mask)
    mask_b = np.float32(MASK) if masked else None
    (loss, loss_g), _ = evaluate(np.float32(LOGITS), label_smoothing=smoothing, mask_b=mask_b)
    np.testing.assert_allclose(loss, expected[0], rtol=1e-5)
    np.testing.assert_allclose(loss_g, expected[1], rtol=1e-5)


def test_closed_form_of_uniform_logits():
    # log C at every granularity, whatever the label and the smoothing.
    (loss, loss_g), _ = evaluate(np.zeros((3, 7, 5), np.float32), label_smoothing=0.3)
    np.testing.assert_allclose(loss_g, np.log(5), rtol=1e-6)
    np.testing.assert_allclose(loss, 3.5 * np.log(5), rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradient_is_softmax_minus_target(smoothing):
    softmax = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
    target = (1 - smoothing) * np.eye(5)[LABELS] + smoothing / 5
    weights = np.array(NESTING.weights)[:, None, None]
    expected = weights * MASK[:, None] / MASK.sum() * (softmax - target)
    _, found = evaluate(np.float32(LOGITS), label_smoothing=smoothing, mask_b=np.float32(MASK))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_padding_may_hold_anything():
    logits = np.where(MASK[None, :, None] > 0, LOGITS, np.nan)
    masked = functools.partial(evaluate, mask_b=np.float32(MASK), label_smoothing=0.0)
    (loss, _), gradient = masked(np.float32(logits))
    np.testing.assert_allclose(loss, masked(np.float32(LOGITS))[0][0], rtol=1e-6)
    assert np.isfinite(np.asarray(gradient)[:, MASK > 0]).all()


def test_a_batch_of_padding_has_loss_zero():
    mask_b = np.zeros(7, np.float32)
    (loss, loss_g), _ = evaluate(np.float32(LOGITS), mask_b=mask_b, label_smoothing=0.0)
    assert loss == 0
    assert (np.asarray(loss_g) == 0).all()


def test_large_logits_stay_finite_and_bfloat16_is_summed_in_float32():
    (loss, _), _ = evaluate(np.full((3, 7, 5), 1e30, np.float32), label_smoothing=0.1, mask_b=None)
    assert np.isfinite(loss)
    (loss, loss_g), _ = evaluate(LOGITS.astype(jnp.bfloat16))
    assert loss.dtype == loss_g.dtype == jnp.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"logits_gbc": np.zeros((2, 7, 5), np.float32)},
            r"logits must be \[3, B, C\], got \(2, 7, 5\)",
        ),
        ({"logits_gbc": np.zeros((7, 5), np.float32)}, "logits must be"),
        ({"labels_b": np.zeros(6, np.int32)}, r"labels must be \[7\] integers, got \(6,\)"),
        ({"labels_b": np.zeros(7, np.float32)}, "labels must be .* float32"),
        ({"mask_b": np.zeros((7, 1), np.float32)}, r"mask must be \[7\]"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1.0"),
        ({"label_smoothing": -0.1}, "got -0.1"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    arguments = {
        "logits_gbc": np.float32(LOGITS),
        "labels_b": LABELS,
        "nesting": NESTING,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        nested_cross_entropy(**arguments)
