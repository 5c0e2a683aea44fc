"""Inference with a cascade really stops, and says what the whole head would."""

import numpy as np
import pytest
from evaluators.subjects import task_of
from scipy.special import softmax

from mrl_jax import cascade
from mrl_jax.cascade import Policy, inference


def head_params(task, seed=3):
    """Random parameters of the head, far from zero; `infer` needs no others."""
    rng, head = np.random.default_rng(seed), task.head
    suffixes = [f"_{m:04d}" for m in head.nesting.dims] if head.kind == "separate" else [""]
    dims = head.nesting.dims if head.kind == "separate" else (head.nesting.width,)
    params = {}
    for m, suffix in zip(dims, suffixes, strict=True):
        params[f"kernel{suffix}"] = rng.normal(size=(m, head.num_classes)).astype(np.float32)
        params[f"bias{suffix}"] = rng.normal(size=head.num_classes).astype(np.float32)
    return {"head": params}


def whole_head(task, params, z_bd, dims):
    """(confidence, class) [G, B] of every slice, in float64."""
    confidence, predicted = [], []
    for m in dims:
        suffix = f"_{m:04d}" if task.head.kind == "separate" else ""
        x = z_bd[:, :m].astype(np.float64)
        if task.head.normalize == "prefix":
            x /= np.linalg.norm(x, axis=1, keepdims=True)
        logits = x @ params["head"][f"kernel{suffix}"][:m] + params["head"][f"bias{suffix}"]
        confidence.append(softmax(logits, 1).max(1))
        predicted.append(logits.argmax(1))
    return np.array(confidence), np.array(predicted)


@pytest.mark.parametrize(
    ("kind", "normalize"), [("shared", "none"), ("shared", "prefix"), ("separate", "prefix")]
)
def test_inference_equals_apply_and_stops(kind, normalize):
    dims, classes, n = (2, 6, 16), 7, 21
    task = task_of(kind, dims, classes, normalize)
    params = head_params(task)
    z_bd = np.random.default_rng(1).normal(size=(n, 18)).astype(np.float32)
    confidence_gn, predicted_gn = whole_head(task, params, z_bd, dims)
    # Between the confidences, so that rounding decides nothing; about two thirds go on.
    cuts = [np.sort(confidence_n)[[13, 14]].mean() for confidence_n in confidence_gn[:2]]
    policy = Policy(dims, (*cuts, 0))
    expected, dim_n = cascade.apply(policy, dims, confidence_gn, predicted_gn)
    going_on = [int((dim_n > m).sum()) for m in dims[:2]]
    assert going_on[0] == 14
    assert 8 < going_on[1] < 14
    # What an example does not need is not read.
    unread = np.arange(18)[None] >= dim_n[:, None]
    found = cascade.infer(task, params, np.where(unread, np.nan, z_bd), policy)
    np.testing.assert_array_equal(found.predicted_b, expected)
    np.testing.assert_array_equal(found.dim_b, dim_n)
    # All 21 rows at first, then the next power of two.
    new_dims = (2, 6, 16) if kind == "separate" else (2, 4, 10)
    products = [rows * k for rows, k in zip((21, 16, 16), new_dims, strict=True)]
    assert found.multiplications == sum(products) * classes
    assert found.saving == pytest.approx(1 - sum(products) / (n * 16))


def test_inference_ends_when_all_have_stopped_and_never_stops_on_nan():
    task = task_of("shared", (2, 16))
    params = head_params(task)
    z_bd = np.random.default_rng(1).normal(size=(5, 16)).astype(np.float32)
    found = cascade.infer(task, params, z_bd, Policy((2, 16), (1e-3, 0)))
    assert (found.dim_b == 2).all()
    assert found.saving == 1 - 2 / 16
    z_bd[3, 0] = np.nan
    found = cascade.infer(task, params, z_bd, Policy((2, 16), (1e-3, 0)))
    assert found.dim_b.tolist() == [2, 2, 2, 16, 2]


def test_separate_heads_can_cost_more_than_one():
    task = task_of("separate", (2, 16))
    params = head_params(task)
    z_bd = np.random.default_rng(1).normal(size=(5, 16)).astype(np.float32)
    found = cascade.infer(task, params, z_bd, Policy((2, 16), (1, 0)))
    assert found.saving == pytest.approx(-2 / 16)
    assert (found.dim_b == 16).all()


def test_inference_compiles_once_per_dim_and_power_of_two():
    task = task_of("shared", (2, 16), classes=5)
    params = head_params(task)
    before = inference._look._cache_size()
    z_bd = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    confidence = np.sort(whole_head(task, params, z_bd, (2,))[0][0])
    for going_on in (3, 4, 5, 7, 8):
        threshold = confidence[going_on - 1 : going_on + 1].mean()
        found = cascade.infer(task, params, z_bd, Policy((2, 16), (threshold, 0)))
        assert (found.dim_b == 16).sum() == going_on
    # 16 rows at 2 dims; 4 and 8 at 16.
    assert inference._look._cache_size() - before == 3


@pytest.mark.parametrize(
    ("kind", "policy", "shape", "message"),
    [
        ("separate", Policy((2, 3), (0.5, 0)), (4, 16), "at dim 3, for which the separate head"),
        ("shared", Policy((2, 32), (0.5, 0)), (4, 16), "at dim 32, for which the shared head"),
        ("shared", Policy((2, 3), (0.5, 0)), (4, 8), r">= 16\], got \(4, 8\)"),
        ("shared", Policy((2, 3), (0.5, 0)), (0, 16), r"\[batch >= 1"),
    ],
)
def test_inference_that_cannot_be_is_refused(kind, policy, shape, message):
    task = task_of(kind, (2, 16))
    with pytest.raises(ValueError, match=message):
        cascade.infer(task, head_params(task), np.zeros(shape, np.float32), policy)
