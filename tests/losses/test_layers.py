import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrl_jax import Nesting, nested
from mrl_jax.kernels import nested_info_nce
from mrl_jax.losses import pairs
from mrl_jax.losses.layers import every_layer, small_to_large

LAYERS, BATCH, DIM = 4, 6, 10
NESTING = Nesting((2, 8), (1.0, 2.0))
SIZES = Nesting((2, 5, 8), (1.0, 0.5, 2.0))
contrastive = functools.partial(nested_info_nce, temperature=0.2)
ROWS = np.arange(BATCH) != 2


def sides(seed=0):
    rng = np.random.default_rng(seed)
    return [np.float32(rng.normal(size=(LAYERS, BATCH, DIM))) for _ in range(2)]


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def info_nce(a, b):
    logits = unit(a) @ unit(b).T / 0.2
    return np.mean(np.log(np.exp(logits).sum(1)) - np.diag(logits))


def kl(student, teacher, temperature):
    """Of similarities to the other rows, teacher to student, mean over rows."""
    total = 0
    s, t = unit(student) @ unit(student).T, unit(teacher) @ unit(teacher).T
    for i in range(len(s)):
        q, p = (np.exp(np.delete(x[i], i) / temperature) for x in (s, t))
        q, p = q / q.sum(), p / p.sum()
        total += (p * np.log(p / q)).sum()
    return total / len(s)


def two_dimensional(z, layers, *, shallow, teacher, temperature):
    def at(layer):
        return sum(
            c * info_nce(*(x[layer][:, :m] for x in z))
            for m, c in zip(NESTING.dims, NESTING.weights, strict=True)
        )

    def differs(layer):
        return sum(
            c * np.mean([kl(x[layer][:, :m], x[-1], temperature) for x in z])
            for m, c in zip(NESTING.dims, NESTING.weights, strict=True)
        )

    return at(-1) + np.mean([shallow * at(i) + teacher * differs(i) for i in layers])


def test_all_layers_give_the_definition_in_float64_and_gradients_of_the_plain_sum():
    options = {"shallow_weight": 0.7, "teacher_weight": 1.5, "temperature": 0.4}
    lifted = every_layer(contrastive, NESTING, layers_per_step=None, **options)
    z = sides()
    step = jax.jit(jax.value_and_grad(lambda z: lifted(*z), has_aux=True))
    (loss, loss_g), gradients = step(z)
    wide = [np.float64(x) for x in z]
    expected = two_dimensional(wide, range(LAYERS - 1), shallow=0.7, teacher=1.5, temperature=0.4)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    last_g = [info_nce(*(x[-1][:, :m] for x in wide)) for m in NESTING.dims]
    np.testing.assert_allclose(loss_g, last_g, rtol=1e-5)

    @jax.jit
    @jax.grad
    def gradient(layer, last, shallow_weight, teacher_weight):
        """By the embeddings of one layer, of what it adds to the sum."""
        loss = shallow_weight * contrastive(*layer, nesting=NESTING)[0]
        for x_bd, teacher_bd in zip(layer, last, strict=True):
            differs = nested(pairs.distill_kl, NESTING)
            loss += teacher_weight * differs(x_bd, teacher_bd=teacher_bd, temperature=0.4)[0] / 2
        return loss

    for i in range(LAYERS):
        weights = (1.0, 0.0) if i == LAYERS - 1 else (0.7 / 3, 1.5 / 3)
        expected = gradient([x[i] for x in z], [x[-1] for x in z], *weights)
        for f, e in zip(gradients, expected, strict=True):
            np.testing.assert_allclose(np.asarray(f)[i], e, rtol=1e-4, atol=1e-6)


def test_drawn_layers_are_without_repetition_and_right_on_average():
    z = sides()
    drawn = jax.jit(every_layer(contrastive, NESTING, layers_per_step=2))
    wide = [np.asarray(x, np.float64) for x in z]
    options = {"shallow": 1.0, "teacher": 1.0, "temperature": 0.3}
    legal = [two_dimensional(wide, pair, **options) for pair in ((0, 1), (0, 2), (1, 2))]
    found = {round(float(drawn(*z, key=jax.random.key(i))[0]), 3) for i in range(24)}
    assert found == {round(x, 3) for x in legal}
    everything = two_dimensional(wide, range(3), **options)
    np.testing.assert_allclose(np.mean(legal), everything, rtol=1e-6)


def nothing(*z, nesting):
    """A nested loss without any gradient: what is left is the KL."""
    return jnp.float32(0), jnp.zeros(len(nesting))


@pytest.mark.parametrize("form", ["every_layer", "small_to_large"])
def test_teacher_gets_exactly_no_gradient_of_the_kl_and_students_do(form):
    lifted = {
        "every_layer": every_layer(nothing, NESTING, layers_per_step=None),
        "small_to_large": small_to_large(nothing, NESTING, (1, LAYERS)),
    }[form]
    loss, gradients = jax.jit(jax.value_and_grad(lambda z: lifted(*z)[0]))(sides())
    assert loss > 0.1
    for gradient_lbd in map(np.asarray, gradients):
        np.testing.assert_array_equal(gradient_lbd[-1], 0)
        assert np.abs(gradient_lbd[0]).max() > 1e-3


def test_student_layers_equal_to_the_last_differ_by_nothing_at_full_width():
    z = [np.broadcast_to(x[-1:, :, :8], (LAYERS, BATCH, 8)) for x in sides()]
    loss = jax.jit(every_layer(nothing, Nesting((8,)), layers_per_step=None))(*z)[0]
    assert abs(loss) < 1e-6


def test_rows_that_do_not_count_are_in_no_kl():
    z = sides()
    kept = [x[:, ROWS].astype(np.float64) for x in z]
    for x in z:
        x[:, 2] = np.nan
    lifted = (
        every_layer(nothing, Nesting((8,)), layers_per_step=None, temperature=0.4),
        small_to_large(nothing, NESTING, (1, LAYERS), temperature=0.4),
    )
    found = jax.jit(lambda z, rows_b: [f(*z, rows_b=rows_b)[0] for f in lifted])(z, ROWS)
    expected = (
        np.mean([kl(x[layer][:, :8], x[-1], 0.4) for x in kept for layer in range(LAYERS - 1)]),
        np.mean([kl(x[0][:, :2], x[-1][:, :8], 0.4) for x in kept]) / 3,
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.slow
def test_masks_and_context_are_handed_on():
    z = sides()
    for x in z:
        x[:, 2] = np.nan
    loss = jax.jit(every_layer(contrastive, NESTING, layers_per_step=None))
    found, _ = loss(*z, rows_b=jnp.asarray(ROWS), mask=jnp.asarray(ROWS, jnp.float32))
    expected, _ = loss(*(x[:, ROWS] for x in z))
    np.testing.assert_allclose(found, expected, rtol=1e-5)

    def cosent(*z, nesting, **context):
        return nested(pairs.cosent, nesting)(*z, **context)

    scores_b = jnp.arange(BATCH) % 3
    scored = jax.jit(every_layer(cosent, NESTING, layers_per_step=None, teacher_weight=0))
    last_g = scored(*sides(), scores_b=scores_b)[1]
    expected_g = cosent(*(x[-1] for x in sides()), nesting=NESTING, scores_b=scores_b)[1]
    np.testing.assert_allclose(last_g, expected_g, rtol=1e-6)


def test_network_of_one_layer_has_the_nested_loss_alone():
    z = [x[-1:] for x in sides()]
    found, _ = jax.jit(every_layer(contrastive, NESTING))(*z)
    expected = sum(
        c * info_nce(*(np.float64(x[0, :, :m]) for x in z))
        for m, c in zip(NESTING.dims, NESTING.weights, strict=True)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("depths", [(1, 2, 4), (1, 3, 3), (4, 4, 4), (1, 1, 2)])
def test_fixed_sizes_give_the_definition_in_float64(depths):
    z = sides()
    wide = [np.asarray(x, np.float64) for x in z]
    lifted = small_to_large(contrastive, SIZES, depths, teacher_weight=0.6, temperature=0.4)
    loss, per_size_g = jax.jit(lifted)(*z)
    sizes = list(zip(depths, SIZES.dims, SIZES.weights, strict=True))
    losses = [info_nce(*(x[depth - 1][:, :m] for x in wide)) for depth, m, _ in sizes]
    expected = sum(c * x for (_, _, c), x in zip(sizes, losses, strict=True))
    for depth, m, c in sizes[:-1]:
        whole = [x[depths[-1] - 1][:, :8] for x in wide]
        expected += (
            0.6
            * c
            * np.mean([kl(x[depth - 1][:, :m], t, 0.4) for x, t in zip(wide, whole, strict=True)])
        )
    np.testing.assert_allclose(per_size_g, losses, rtol=1e-5)
    np.testing.assert_allclose(loss, expected / sum(SIZES.weights), rtol=1e-5)


def test_sizes_not_listed_get_no_gradient():
    lifted = small_to_large(contrastive, SIZES, (1, 2, 4), teacher_weight=0)
    for gradient_lbd in map(np.asarray, jax.jit(jax.grad(lambda z: lifted(*z)[0]))(sides())):
        for layer, dims in enumerate((2, 5, 0, 8)):
            np.testing.assert_array_equal(gradient_lbd[layer, :, dims:], 0)
            assert (gradient_lbd[layer, :, :dims] != 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z: every_layer(nothing, NESTING)(*z), "key .* to draw 1 of 3 layers"),
        (lambda z: every_layer(contrastive, NESTING, layers_per_step=0), "layers_per_step .* 0"),
        (lambda z: every_layer(contrastive, NESTING, teacher_weight=-1), "teacher_weight .* -1"),
        (lambda z: every_layer(contrastive, NESTING)(z[0], z[1][1:]), "the same L and B"),
        (lambda z: every_layer(contrastive, Nesting((11,)))(*z), r"\[L, B, >= 11\]"),
        (lambda z: every_layer(contrastive, NESTING)(), "sides must all be"),
        (lambda z: small_to_large(contrastive, SIZES, (1, 2)), r"one per dim of .* got \(1, 2\)"),
        (lambda z: small_to_large(contrastive, SIZES, (2, 1, 4)), "never falling"),
        (lambda z: small_to_large(contrastive, SIZES, (0, 1, 4)), ">= 1"),
        (lambda z: small_to_large(contrastive, SIZES, (1, 2, 5))(*z), "at most 4"),
        (
            lambda z: small_to_large(contrastive, Nesting((1, 2), (0, 1)), (1, 2)),
            "every size needs a weight > 0",
        ),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call(sides())
