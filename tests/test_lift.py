import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrl_jax import Nesting, pair_losses
from mrl_jax.lift import nested, unit_length

BATCH, DIM = 6, 13
NESTING = Nesting((2, 3, 7, 9, 12), (1.0, 0.5, 0.0, 2.0, 3.0))
SAMPLED = Nesting((2, 3, 7, 9, 12), (1.0, 0.5, 0.25, 2.0, 3.0))


def embeddings(count=2, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.float32(rng.normal(size=(BATCH, DIM))) for _ in range(count)]


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
    loss, loss_g = nested(dot_loss, NESTING, normalize=normalize)(a, b)
    np.testing.assert_allclose(loss_g, expected_g, rtol=1e-5)
    np.testing.assert_allclose(loss, (expected_g * NESTING.weights).sum(), rtol=1e-5)
    assert loss.dtype == loss_g.dtype == jnp.float32


def test_gradients_of_both_outputs_equal_those_of_the_plain_sum():
    a, b = embeddings()
    upstream_g = jnp.float32([0.3, -1, 2, 0, 0.7])
    weights_g = jnp.float32(NESTING.weights)

    def plain(a, b):
        loss_g = jnp.stack(
            [dot_loss(unit_length(a[:, :m]), unit_length(b[:, :m])) for m in NESTING.dims]
        )
        return ((weights_g + upstream_g) * loss_g).sum()

    def ours(a, b):
        loss, loss_g = nested(dot_loss, NESTING)(a, b)
        return loss + (upstream_g * loss_g).sum()

    for found, expected in zip(
        jax.grad(ours, (0, 1))(a, b), jax.grad(plain, (0, 1))(a, b), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("position", range(len(NESTING)))
def test_granularity_has_no_gradient_beyond_its_dims_and_none_before_is_missing(position):
    a, b = embeddings()
    gradient = jax.grad(lambda a: nested(dot_loss, NESTING)(a, b)[1][position])(a)
    m = NESTING.dims[position]
    np.testing.assert_array_equal(gradient[:, m:], 0)
    assert (gradient[:, :m] != 0).all()


def test_gradient_scales_with_the_weight_of_its_granularity():
    a, b = embeddings()

    def gradient(*weights):
        return jax.grad(lambda a: nested(dot_loss, Nesting((4, 8), weights))(a, b)[0])(a)

    np.testing.assert_allclose(gradient(3, 0), 3 * gradient(1, 0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(
        gradient(3, 2), 3 * gradient(1, 0) + 2 * gradient(0, 1), rtol=1e-5, atol=1e-7
    )
    np.testing.assert_array_equal(gradient(1, 0)[:, 4:], 0)


def test_context_is_handed_over_whole():
    # Everything here has as many columns (or rows) as the embeddings have dims.
    square = jnp.float32(np.random.default_rng(1).normal(size=(DIM, DIM)))
    seen = []

    def loss(x_bd, *, labels_b, teacher_bd, name):
        seen.append((x_bd.shape, labels_b.shape, teacher_bd.shape, name))
        np.testing.assert_array_equal(teacher_bd, square)
        return x_bd.sum()

    nested(loss, NESTING)(square, labels_b=jnp.arange(DIM), teacher_bd=square, name="static")
    assert seen == [((DIM, m), (DIM,), (DIM, DIM), "static") for m in NESTING.dims]


def test_context_and_closed_over_values_get_gradients():
    a, b = embeddings()
    dims_per_step, key = 3, jax.random.key(4)
    for k in (None, dims_per_step):

        def by_context(target, k=k):
            return nested(dot_loss, SAMPLED, dims_per_step=k)(a, b, key=key, target=target)[0]

        def by_closure(target, k=k):
            loss = nested(lambda a, b: dot_loss(a, b, target=target), SAMPLED, dims_per_step=k)
            return loss(a, b, key=key)[0]

        found = jax.grad(by_context)(0.5)
        assert found != 0
        np.testing.assert_allclose(found, jax.grad(by_closure)(0.5), rtol=1e-6)
        # The loss is quadratic in the target: the difference is exact but for rounding.
        expected = (by_context(0.6) - by_context(0.4)) / 0.2
        np.testing.assert_allclose(found, expected, rtol=1e-3)


@pytest.mark.parametrize("name", ["distill_similarity", "distill_kl"])
def test_full_width_teacher_equal_to_the_student_is_matched_at_full_width(name):
    (x,) = embeddings(1)
    lifted = nested(getattr(pair_losses, name), Nesting((4, DIM)))
    _, loss_g = lifted(x, teacher_bd=x)
    assert loss_g[1] < 1e-9
    assert loss_g[0] > 1e-3
    exact = nested(getattr(pair_losses, name), Nesting((4, DIM)), normalize=False)
    assert exact(x, teacher_bd=x)[1][1] == 0


def test_triplets_and_leading_axes():
    rng = np.random.default_rng(2)
    triple = [jnp.float32(rng.normal(size=(4, DIM))) for _ in range(3)]
    loss, loss_g = nested(pair_losses.triplet, NESTING)(*triple, margin=0.7)
    expected_g = [
        pair_losses.triplet(*(unit(x[:, :m]) for x in triple), margin=0.7) for m in NESTING.dims
    ]
    np.testing.assert_allclose(loss_g, expected_g, rtol=1e-5)
    stacked = jnp.stack(triple)
    loss_of_stack, _ = nested(lambda x_nbd: pair_losses.triplet(*x_nbd, margin=0.7), NESTING)(
        stacked
    )
    np.testing.assert_allclose(loss_of_stack, loss, rtol=1e-6)


def subsets_by_key(lifted, a, b, keys=80):
    """{drawn granularities: (loss, gradient, losses)}, over many keys."""
    step = jax.jit(jax.value_and_grad(lambda a, key: lifted(a, b, key=key), has_aux=True))
    found = {}
    for seed in range(keys):
        (loss, loss_g), gradient = step(a, jax.random.key(seed))
        found[tuple(np.flatnonzero(~np.isnan(loss_g)))] = (loss, gradient, loss_g)
    return found


@pytest.mark.parametrize("k", [2, 3, 4])
def test_mean_over_all_subsets_is_the_full_loss_and_gradient(k):
    a, b = embeddings()
    full = nested(dot_loss, SAMPLED)
    (expected, expected_g), gradient = jax.value_and_grad(lambda a: full(a, b), has_aux=True)(a)
    found = subsets_by_key(nested(dot_loss, SAMPLED, dims_per_step=k), a, b)
    # Every subset, each of k granularities with the largest among them.
    assert set(found) == {(*s, 4) for s in itertools.combinations(range(4), k - 1)}
    losses, gradients, _ = zip(*found.values(), strict=True)
    np.testing.assert_allclose(np.mean(losses), expected, rtol=1e-5)
    np.testing.assert_allclose(np.mean(gradients, 0), gradient, rtol=1e-4, atol=1e-6)
    p = (k - 1) / 4
    for subset, (loss, subset_gradient, loss_g) in found.items():
        np.testing.assert_allclose(
            loss_g[jnp.array(subset)], expected_g[jnp.array(subset)], rtol=1e-5
        )
        by_hand = sum(SAMPLED.weights[g] / (p if g < 4 else 1) * expected_g[g] for g in subset)
        np.testing.assert_allclose(loss, by_hand, rtol=1e-5)
        assert np.isfinite(subset_gradient).all()


def test_every_granularity_is_drawn_equally_often():
    a, b = embeddings()
    lifted = nested(dot_loss, SAMPLED, dims_per_step=3)
    keys = jax.random.split(jax.random.key(0), 2000)
    loss_n, loss_ng = jax.jit(lambda keys: jax.lax.map(lambda k: lifted(a, b, key=k), keys))(keys)
    drawn_g = (~np.isnan(loss_ng)).mean(0)
    # Standard error of a share of 1/2: 0.011.
    np.testing.assert_allclose(drawn_g, [0.5, 0.5, 0.5, 0.5, 1], atol=0.05)
    full, _ = nested(dot_loss, SAMPLED)(a, b)
    assert abs(loss_n.mean() - full) < 4 * loss_n.std() / np.sqrt(len(keys))
    np.testing.assert_allclose(
        np.nanmean(loss_ng, 0), nested(dot_loss, SAMPLED)(a, b)[1], rtol=1e-4
    )


def test_only_the_drawn_prefixes_are_executed():
    a, b = embeddings()
    executed = []

    def loss(a_bd, b_bd):
        jax.debug.callback(lambda m=a_bd.shape[1]: executed.append(m))
        return dot_loss(a_bd, b_bd)

    _, loss_g = jax.jit(nested(loss, SAMPLED, dims_per_step=3))(a, b, key=jax.random.key(1))
    jax.block_until_ready(loss_g)
    jax.effects_barrier()
    measured = [m for m, x in zip(SAMPLED.dims, loss_g, strict=True) if not np.isnan(x)]
    assert len(measured) == 3
    assert sorted(executed) == measured


@pytest.mark.slow
def test_memory_grows_neither_with_the_prefixes_nor_with_those_drawn():
    x = jax.ShapeDtypeStruct((512, 64), jnp.float32)

    def memory(dims, k):
        def gram(a_bd, b_bd):
            logits_bb = a_bd @ b_bd.T
            return jax.nn.logsumexp(jnp.sin(logits_bb) * logits_bb, axis=-1).mean()

        lifted = nested(gram, Nesting(dims), dims_per_step=k)
        step = jax.jit(jax.grad(lambda a, b, key: lifted(a, b, key=key)[0]))
        return step.lower(x, x, jax.random.key(0)).compile().memory_analysis().temp_size_in_bytes

    few, many = memory((16, 32, 64), 2), memory(tuple(range(4, 65, 4)), 2)
    one_bb = 512 * 512 * 4
    assert many < few + one_bb
    assert memory((16, 24, 32, 48, 64), 4) < few + one_bb


def test_one_dim_per_step_is_the_largest_alone_and_needs_no_key():
    a, b = embeddings()
    loss, loss_g = nested(dot_loss, SAMPLED, dims_per_step=1)(a, b)
    np.testing.assert_array_equal(np.isnan(loss_g), [True] * 4 + [False])
    np.testing.assert_allclose(loss, 3 * loss_g[-1], rtol=1e-6)
    gradient = jax.grad(lambda a: nested(dot_loss, SAMPLED, dims_per_step=1)(a, b)[0])(a)
    expected = jax.grad(lambda a: nested(dot_loss, Nesting((12,), (3.0,)))(a, b)[0])(a)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


def test_all_dims_per_step_equal_none_and_need_no_key():
    a, b = embeddings()
    np.testing.assert_array_equal(
        nested(dot_loss, SAMPLED, dims_per_step=5)(a, b)[1], nested(dot_loss, SAMPLED)(a, b)[1]
    )
    one = Nesting((12,))
    assert nested(dot_loss, one, dims_per_step=1)(a, b)[0] == nested(dot_loss, one)(a, b)[0]


@pytest.mark.parametrize("k", [None, pytest.param(3, marks=pytest.mark.slow)])
def test_under_jit_checkpoint_and_repeated_calls(k):
    a, b = embeddings()
    lifted, key = nested(dot_loss, SAMPLED, dims_per_step=k), jax.random.key(3)

    def loss(a):
        return lifted(a, b, key=key)[0]

    expected = jax.grad(loss)(a)
    for variant in (loss, jax.jit(loss), jax.checkpoint(loss), jax.jit(jax.checkpoint(loss))):
        np.testing.assert_allclose(jax.grad(variant)(a), expected, rtol=1e-5, atol=1e-6)


def test_bfloat16_norms_are_taken_in_float32():
    x = jnp.bfloat16(np.random.default_rng(3).normal(size=(64, 256)))
    found = unit_length(x)
    assert found.dtype == jnp.bfloat16
    expected = jnp.bfloat16(jnp.float32(unit(np.float64(x))))
    # Rounded once, at the end: a norm of 8 bits would put half of the numbers one unit off.
    assert (found == expected).mean() > 0.99
    a, b = (x.astype(jnp.bfloat16) for x in embeddings())
    loss, loss_g = nested(dot_loss, NESTING)(a, b)
    assert loss.dtype == loss_g.dtype == jnp.float32


@pytest.mark.parametrize("k", [None, 2])
def test_prefixes_of_zeros_have_a_zero_gradient(k):
    a, b = embeddings()
    a = a.at[0].set(0).at[1, :7].set(0)
    lifted = nested(dot_loss, SAMPLED, dims_per_step=k)
    (loss, _), gradient = jax.value_and_grad(
        lambda a: lifted(a, b, key=jax.random.key(0)), has_aux=True
    )(a)
    assert np.isfinite(loss)
    np.testing.assert_array_equal(gradient[0], 0)
    assert np.abs(gradient).max() < 100


@pytest.mark.parametrize("k", [0, 6, -1, True, 2.0, "all"])
def test_dims_per_step_out_of_range_is_refused(k):
    with pytest.raises(ValueError, match=r"dims_per_step must be an integer in \[1, 5\]"):
        nested(dot_loss, NESTING, dims_per_step=k)


def test_missing_key_is_refused():
    with pytest.raises(ValueError, match=r"needs key=.* to draw 2 of 4 dims"):
        nested(dot_loss, NESTING, dims_per_step=3)(*embeddings())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (jnp.ones((BATCH, 11)), r"positional argument 1 must be embeddings \[..., >= 12\]"),
        (jnp.ones(20), r"positional argument 1 must be floating-point embeddings .*\(20,\)"),
        (jnp.ones((BATCH, DIM), int), r"positional argument 1 must be floating-point .* int32"),
    ],
)
def test_what_is_no_embedding_is_refused_by_position(wrong, message):
    with pytest.raises(ValueError, match=message):
        nested(dot_loss, NESTING)(embeddings(1)[0], wrong)


def test_call_without_embeddings_is_refused():
    with pytest.raises(ValueError, match="at least one embedding"):
        nested(dot_loss, NESTING)(target=0.1)


@pytest.mark.parametrize("k", [None, 1, 3])
@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda a: a.sum(-1), r"scalar, got shape \(6,\)"),
        (lambda a: (a.sum(), a), "scalar, got a tuple"),
        (lambda a: {"loss": a.sum()}, "scalar, got a dict"),
        (lambda a: None, "scalar, got a NoneType"),
    ],
)
def test_losses_that_are_no_scalar_are_refused(result, message, k):
    with pytest.raises(ValueError, match=message):
        nested(result, NESTING, dims_per_step=k)(embeddings(1)[0], key=jax.random.key(0))
