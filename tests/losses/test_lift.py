import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrl_jax import Nesting
from mrl_jax.losses import pairs
from mrl_jax.losses.lift import nested, unit_length

BATCH, DIM = 6, 13
NESTING = Nesting((2, 3, 7, 9, 12), (1.0, 0.5, 0.0, 2.0, 3.0))


def embeddings(count=2, seed=0):
    rng = np.random.default_rng(seed)
    return [np.float32(rng.normal(size=(BATCH, DIM))) for _ in range(count)]


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def dot_loss(a_bd, b_bd, *, target=0.5):
    return jnp.square((a_bd * b_bd).sum(-1) - target).mean()


def dot_oracle(a, b, target=0.5):
    return np.square((a * b).sum(-1) - target).mean()


@pytest.mark.parametrize("normalize", [True, False])
def test_loss_is_the_weighted_sum_over_prefixes_in_float64(normalize):
    a, b = embeddings()
    scale = unit if normalize else lambda x: x
    prefixes = [(scale(np.float64(a[:, :m])), scale(np.float64(b[:, :m]))) for m in NESTING.dims]
    expected_g = np.array([dot_oracle(*pair) for pair in prefixes])
    loss, loss_g = jax.jit(nested(dot_loss, NESTING, normalize=normalize))(a, b)
    np.testing.assert_allclose(loss_g, expected_g, rtol=1e-5)
    np.testing.assert_allclose(loss, (expected_g * NESTING.weights).sum(), rtol=1e-5)
    assert loss.dtype == loss_g.dtype == jnp.float32


def test_gradients_of_both_outputs_equal_those_of_the_plain_sum():
    a, b = embeddings()
    upstream_g = np.float32([0.3, -1, 2, 0, 0.7])
    weights_g = np.float32(NESTING.weights)

    def plain(a, b):
        loss_g = jnp.stack(
            [dot_loss(unit_length(a[:, :m]), unit_length(b[:, :m])) for m in NESTING.dims]
        )
        return ((weights_g + upstream_g) * loss_g).sum()

    def ours(a, b):
        loss, loss_g = nested(dot_loss, NESTING)(a, b)
        return loss + (upstream_g * loss_g).sum()

    gradients = (jax.jit(jax.grad(f, (0, 1)))(a, b) for f in (ours, plain))
    for found, expected in zip(*gradients, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_granularity_has_no_gradient_beyond_its_dims_and_none_before_is_missing():
    a, b = embeddings()
    gradient_gbd = jax.jit(jax.jacrev(lambda a: nested(dot_loss, NESTING)(a, b)[1]))(a)
    for gradient, m in zip(np.asarray(gradient_gbd), NESTING.dims, strict=True):
        np.testing.assert_array_equal(gradient[:, m:], 0)
        assert (gradient[:, :m] != 0).all()


def test_gradient_scales_with_the_weight_of_its_granularity():
    a, b = embeddings()

    def gradient(*weights):
        lifted = nested(dot_loss, Nesting((4, 8), weights))
        return np.asarray(jax.jit(jax.grad(lambda a: lifted(a, b)[0]))(a))

    np.testing.assert_allclose(gradient(3, 0), 3 * gradient(1, 0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(
        gradient(3, 2), 3 * gradient(1, 0) + 2 * gradient(0, 1), rtol=1e-5, atol=1e-7
    )
    np.testing.assert_array_equal(gradient(1, 0)[:, 4:], 0)


def test_context_is_handed_over_whole():
    # Everything here has as many columns (or rows) as the embeddings have dims.
    square = np.float32(np.random.default_rng(1).normal(size=(DIM, DIM)))
    seen = []

    def loss(x_bd, *, labels_b, teacher_bd, name):
        seen.append((x_bd.shape, labels_b.shape, teacher_bd.shape, name))
        assert teacher_bd is square
        return x_bd[0, 0]

    lifted = nested(loss, NESTING, normalize=False)
    lifted(square, labels_b=np.arange(DIM), teacher_bd=square, name="static")
    assert seen == [((DIM, m), (DIM,), (DIM, DIM), "static") for m in NESTING.dims]


def test_context_and_closed_over_values_get_gradients():
    a, b = embeddings()

    def by_context(target):
        return nested(dot_loss, NESTING)(a, b, target=target)[0]

    def by_closure(target):
        return nested(lambda a, b: dot_loss(a, b, target=target), NESTING)(a, b)[0]

    step = jax.jit(jax.value_and_grad(by_context))
    _, found = step(0.5)
    assert found != 0
    np.testing.assert_allclose(found, jax.jit(jax.grad(by_closure))(0.5), rtol=1e-6)
    # The loss is quadratic in the target: the difference is exact but for rounding.
    expected = (step(0.6)[0] - step(0.4)[0]) / 0.2
    np.testing.assert_allclose(found, expected, rtol=1e-3)


@pytest.mark.parametrize("name", ["distill_similarity", "distill_kl"])
def test_full_width_teacher_equal_to_the_student_is_matched_at_full_width(name):
    (x,) = embeddings(1)
    lifted = jax.jit(nested(getattr(pairs, name), Nesting((4, DIM))))
    _, loss_g = lifted(x, teacher_bd=x)
    assert loss_g[1] < 1e-9
    assert loss_g[0] > 1e-3
    exact = jax.jit(nested(getattr(pairs, name), Nesting((4, DIM)), normalize=False))
    assert exact(x, teacher_bd=x)[1][1] == 0


def test_triplets_and_leading_axes():
    rng = np.random.default_rng(2)
    triple = [np.float32(rng.normal(size=(4, DIM))) for _ in range(3)]
    loss, loss_g = jax.jit(nested(pairs.triplet, NESTING))(*triple, margin=0.7)
    expected_g = []
    for m in NESTING.dims:
        a, p, n = (unit(np.float64(x[:, :m])) for x in triple)
        lead_b = np.square(a - n).sum(-1) - np.square(a - p).sum(-1)
        expected_g.append(np.maximum(0.7 - lead_b, 0).mean())
    np.testing.assert_allclose(loss_g, expected_g, rtol=1e-5)
    of_stack = nested(lambda x_nbd: pairs.triplet(*x_nbd, margin=0.7), NESTING)
    loss_of_stack, _ = jax.jit(of_stack)(np.stack(triple))
    np.testing.assert_allclose(loss_of_stack, loss, rtol=1e-6)


def test_under_jit_checkpoint_and_repeated_calls():
    a, b = embeddings()
    lifted = nested(dot_loss, Nesting((3, 12), (1.0, 2.0)))

    def loss(a):
        return lifted(a, b)[0]

    expected = jax.grad(loss)(a)
    for variant in (loss, jax.jit(loss), jax.checkpoint(loss), jax.jit(jax.checkpoint(loss))):
        np.testing.assert_allclose(jax.grad(variant)(a), expected, rtol=1e-5, atol=1e-6)


def test_bfloat16_norms_are_taken_in_float32():
    x = np.random.default_rng(3).normal(size=(64, 256)).astype(jnp.bfloat16)
    found = np.asarray(jax.jit(unit_length)(x))
    assert found.dtype == jnp.bfloat16
    expected = np.float32(unit(np.float64(x))).astype(jnp.bfloat16)
    # Rounded once, at the end: a norm of 8 bits would put half of the numbers one unit off.
    assert (found == expected).mean() > 0.99
    a, b = (x.astype(jnp.bfloat16) for x in embeddings())
    loss, loss_g = jax.jit(nested(dot_loss, NESTING))(a, b)
    assert loss.dtype == loss_g.dtype == jnp.float32


def test_prefixes_of_zeros_have_a_zero_gradient():
    a, b = embeddings()
    a[0], a[1, :7] = 0, 0
    step = jax.jit(jax.value_and_grad(nested(dot_loss, NESTING), has_aux=True))
    (loss, _), gradient = step(a, b)
    gradient = np.asarray(gradient)
    assert np.isfinite(loss)
    np.testing.assert_array_equal(gradient[0], 0)
    assert np.abs(gradient).max() < 100


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            np.ones((BATCH, 11), np.float32),
            r"positional argument 1 must be embeddings \[..., >= 12\]",
        ),
        (
            np.ones(20, np.float32),
            r"positional argument 1 must be floating-point embeddings .*\(20,\)",
        ),
        (np.ones((BATCH, DIM), np.int32), r"positional argument 1 must be floating-point .* int32"),
    ],
)
def test_what_is_no_embedding_is_refused_by_position(wrong, message):
    with pytest.raises(ValueError, match=message):
        nested(dot_loss, NESTING)(embeddings(1)[0], wrong)


def test_call_without_embeddings_is_refused():
    with pytest.raises(ValueError, match="at least one embedding"):
        nested(dot_loss, NESTING)(target=0.1)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda a: a.sum(-1), r"scalar, got shape \(6,\)"),
        (lambda a: (a.sum(), a), "scalar, got a tuple"),
        (lambda a: {"loss": a.sum()}, "scalar, got a dict"),
        (lambda a: None, "scalar, got a NoneType"),
    ],
)
def test_losses_that_are_no_scalar_are_refused(result, message):
    with pytest.raises(ValueError, match=message):
        nested(result, NESTING)(embeddings(1)[0])
