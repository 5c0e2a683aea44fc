import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrl_jax import Nesting, nested
from mrl_jax.losses import pairs as pair_losses

BATCH, DIM = 7, 5


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def cosent(a, b, *, scores_b, scale=20.0):
    cos = (unit(a) * unit(b)).sum(-1)
    total = 1.0
    for i in range(len(a)):
        for j in range(len(a)):
            if scores_b[i] > scores_b[j]:
                total += np.exp(scale * (cos[j] - cos[i]))
    return np.log(total)


def angle(a, b, *, scores_b, scale=20.0):
    half = (a.shape[1] + 1) // 2
    pad = ((0, 0), (0, 2 * half - a.shape[1]))
    z, w = (np.pad(unit(x), pad) for x in (a, b))
    z, w = (x[:, :half] + 1j * x[:, half:] for x in (z, w))
    product = (z * w.conj()).sum(-1)
    turned = abs(product.real + product.imag)
    total = 1.0
    for i in range(len(a)):
        for j in range(len(a)):
            if scores_b[i] > scores_b[j]:
                total += np.exp(scale * (turned[j] - turned[i]))
    return np.log(total)


def cosine_mse(a, b, *, scores_b):
    return np.mean(((unit(a) * unit(b)).sum(-1) - scores_b) ** 2)


def triplet(a, p, n, *, margin=0.2):
    return np.mean(np.maximum(0, ((a - p) ** 2).sum(-1) - ((a - n) ** 2).sum(-1) + margin))


def contrastive(a, b, *, labels_b, margin=1.0):
    d = np.linalg.norm(a - b, axis=-1)
    return np.mean(np.where(labels_b == 1, d**2, np.maximum(0, margin - d) ** 2) / 2)


def distill_vectors(student, teacher):
    return np.mean(((unit(student) - unit(teacher)) ** 2).sum(-1))


def distill_similarity(student, *, teacher_bd):
    s, t = unit(student) @ unit(student).T, unit(teacher_bd) @ unit(teacher_bd).T
    rows = range(len(s))
    return np.mean([(s[i, j] - t[i, j]) ** 2 for i in rows for j in rows if i != j])


def distill_kl(student, *, teacher_bd, temperature=0.05):
    s, t = unit(student) @ unit(student).T, unit(teacher_bd) @ unit(teacher_bd).T
    divergences = []
    for i in range(len(s)):
        q, p = (np.exp(np.delete(x[i], i) / temperature) for x in (s, t))
        q, p = q / q.sum(), p / p.sum()
        divergences.append((p * np.log(p / q)).sum())
    return np.mean(divergences)


# name: (oracle, number of embeddings, further options)
CASES = {
    "cosent": (cosent, 2, {"scale": 7.0}),
    "angle": (angle, 2, {"scale": 7.0}),
    "cosine_mse": (cosine_mse, 2, {}),
    "triplet": (triplet, 3, {"margin": 2.5}),
    "contrastive": (contrastive, 2, {"margin": 3.0}),
    "distill_vectors": (distill_vectors, 2, {}),
    "distill_similarity": (distill_similarity, 1, {}),
    "distill_kl": (distill_kl, 1, {"temperature": 0.3}),
}


def example(name, batch=BATCH, seed=0):
    """Embeddings, and the context of a loss, in float64."""
    rng = np.random.default_rng(seed)
    _, count, options = CASES[name]
    context = {}
    if name in ("cosent", "angle", "cosine_mse"):
        context["scores_b"] = rng.integers(-2, 2, batch) / 4  # both signs, with ties
    if name == "contrastive":
        context["labels_b"] = np.arange(batch) % 2
    if name in ("distill_similarity", "distill_kl"):
        context["teacher_bd"] = rng.normal(size=(batch, DIM + 3))
    return [rng.normal(size=(batch, DIM)) for _ in range(count)], context, options


def arrays(context):
    return {k: v.astype("int32" if v.dtype.kind == "i" else "float32") for k, v in context.items()}


@functools.partial(jax.jit, static_argnames="name")
def value_and_gradients(name, embeddings, context):
    loss = getattr(pair_losses, name)
    every = tuple(range(len(embeddings)))
    return jax.value_and_grad(lambda *e: loss(*e, **context), every)(*embeddings)


def evaluate(name, embeddings, context, **options):
    """The loss and its gradients by every embedding; compiled once for all tests of a loss."""
    return value_and_gradients(name, [*map(np.float32, embeddings)], {**arrays(context), **options})


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("defaults", [True, False])
def test_value_equals_the_definition_in_float64(name, defaults):
    embeddings, context, options = example(name)
    options = {} if defaults else options
    expected = CASES[name][0](*embeddings, **context, **options)
    assert expected > 0.01  # not where everything is satisfied
    found, _ = evaluate(name, embeddings, context, **options)
    assert found.shape == ()
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=2e-5)


@pytest.mark.parametrize("name", CASES)
def test_gradient_equals_central_differences_of_the_definition(name):
    embeddings, context, options = example(name)
    oracle, count, _ = CASES[name]
    _, found = evaluate(name, embeddings, context, **options)
    # A teacher is positional where it is cut, too, and learns nothing.
    for which in range(1 if name == "distill_vectors" else count):
        expected = np.zeros((BATCH, DIM))
        for index in np.ndindex(BATCH, DIM):
            values = []
            for step in (1e-6, -1e-6):
                moved = [e.copy() for e in embeddings]
                moved[which][index] += step
                values.append(oracle(*moved, **context, **options))
            expected[index] = (values[0] - values[1]) / 2e-6
        np.testing.assert_allclose(found[which], expected, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("name", CASES)
def test_padded_rows_count_for_nothing_and_may_hold_nan(name):
    embeddings, context, options = example(name)
    padding = np.array([2, 6])
    kept = np.delete(np.arange(BATCH), padding)
    expected = CASES[name][0](
        *(e[kept] for e in embeddings), **{k: v[kept] for k, v in context.items()}, **options
    )
    embeddings = [e.copy() for e in embeddings]
    context = {k: v.copy() for k, v in context.items()}
    for x in (*embeddings, *context.values()):
        x[padding] = 9 if x.dtype.kind == "i" else np.nan
    mask_b = np.ones(BATCH, np.float32)
    mask_b[padding] = 0
    value, gradients = evaluate(name, embeddings, context, mask_b=mask_b, **options)
    np.testing.assert_allclose(value, expected, rtol=2e-5)
    gradients = [*map(np.asarray, gradients)]
    for gradient in gradients:
        np.testing.assert_array_equal(gradient[padding], 0)
        assert np.isfinite(gradient).all()
    assert np.abs(gradients[0][kept]).sum() > 0


@pytest.mark.parametrize("name", CASES)
def test_batch_of_padding_alone_has_loss_zero_and_no_nan(name):
    embeddings, context, options = example(name)
    mask_b = np.zeros(BATCH, np.float32)
    value, gradients = evaluate(name, embeddings, context, mask_b=mask_b, **options)
    assert value == 0
    np.testing.assert_array_equal(gradients, 0)


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_embeddings_give_a_float32_loss(name):
    embeddings, context, options = example(name)
    rounded = [e.astype(jnp.bfloat16) for e in embeddings]
    expected = CASES[name][0](*map(np.float64, rounded), **context, **options)
    loss = functools.partial(getattr(pair_losses, name), **options)
    found = jax.jit(loss)(*rounded, **arrays(context))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_equal_and_zero_embeddings_have_finite_gradients(name):
    _, context, _ = example(name)
    count = CASES[name][1]
    for fill in (0.0, 1.0):
        _, gradients = evaluate(name, [np.full((BATCH, DIM), fill)] * count, context)
        for gradient in gradients:
            assert np.isfinite(gradient).all()
            assert np.abs(gradient).max() < 100


@pytest.mark.parametrize("name", ["distill_similarity", "distill_kl"])
def test_student_equal_to_its_teacher_has_loss_exactly_zero(name):
    student_bd = np.float32(example(name)[0][0])
    # Lengths do not matter, on either side (a power of two, so that no digit changes).
    loss = jax.jit(getattr(pair_losses, name))
    assert loss(student_bd, teacher_bd=student_bd) == 0
    assert loss(student_bd, teacher_bd=4 * student_bd) == 0
    assert loss(student_bd, teacher_bd=student_bd[:, ::-1] ** 2) > 1e-3


@pytest.mark.parametrize("name", ["distill_similarity", "distill_kl"])
def test_teacher_gets_no_gradient(name):
    (student,), context, _ = example(name)
    loss = functools.partial(getattr(pair_losses, name), np.float32(student))
    gradient = jax.jit(jax.grad(lambda t: loss(teacher_bd=t)))(np.float32(context["teacher_bd"]))
    np.testing.assert_array_equal(gradient, 0)


def test_every_prefix_of_a_teacher_is_scaled_as_the_students_is():
    student, teacher = (np.float32(x) for x in example("distill_vectors")[0])
    lifted = nested(pair_losses.distill_vectors, Nesting((2, 3, DIM)))
    step = jax.jit(jax.value_and_grad(lambda t, s: lifted(s, t), has_aux=True))
    (_, loss_g), _ = step(4 * student, student)
    np.testing.assert_array_equal(loss_g, 0)
    (_, loss_g), gradient = step(teacher, student)
    expected_g = [
        distill_vectors(np.float64(student[:, :m]), np.float64(teacher[:, :m])) for m in (2, 3, DIM)
    ]
    np.testing.assert_allclose(loss_g, expected_g, rtol=1e-5)
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("dim", [4, 5])
@pytest.mark.parametrize("name", ["angle", "cosent"])
def test_ranking_losses_are_those_of_sentence_transformers(name, dim):
    torch = pytest.importorskip("torch")
    similarity = pytest.importorskip("sentence_transformers.util.similarity")
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    of_peer = {"angle": "pairwise_angle_sim", "cosent": "pairwise_cos_sim"}[name]
    (a, b), context, _ = example("angle")
    peer = losses.CoSENTLoss.__new__(losses.CoSENTLoss)
    torch.nn.Module.__init__(peer)
    peer.scale, peer.similarity_fct = 20.0, getattr(similarity, of_peer)
    pairs = [torch.tensor(x[:, :dim]) for x in (a, b)]
    expected = float(peer.compute_loss_from_embeddings(pairs, torch.tensor(context["scores_b"])))
    found, _ = evaluate(name, [a[:, :dim], b[:, :dim]], context)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_distill_kl_temperature_can_be_learned():
    (student,), context, _ = example("distill_kl")
    loss = functools.partial(pair_losses.distill_kl, np.float32(student), **arrays(context))
    gradient = jax.jit(jax.grad(lambda t: loss(temperature=t)))(0.3)
    step = 1e-5
    high, low = (distill_kl(student, **context, temperature=0.3 + s) for s in (step, -step))
    np.testing.assert_allclose(gradient, (high - low) / (2 * step), rtol=1e-3)


def test_cosent_depends_on_the_order_of_scores_alone():
    embeddings, context, _ = example("cosent")
    scores_b = context["scores_b"]
    found = [
        evaluate("cosent", embeddings, {"scores_b": s})[0] for s in (scores_b, np.exp(5 * scores_b))
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("cosent", {"scores_b": np.zeros(BATCH + 1)}, r"scores_b must be \[7\], got \(8,\)"),
        ("angle", {"scores_b": np.zeros(1)}, r"scores_b must be \[7\], got \(1,\)"),
        ("angle", {"scale": -1}, "scale must be > 0"),
        ("cosine_mse", {"scores_b": np.zeros((BATCH, 1))}, r"scores_b must be \[7\]"),
        ("contrastive", {"labels_b": np.zeros(1, int)}, r"labels_b must be \[7\]"),
        ("triplet", {"mask_b": np.ones(3)}, r"mask_b must be \[7\], got \(3,\)"),
        ("triplet", {"margin": -1}, "margin must be > 0, got -1"),
        ("contrastive", {"margin": 0}, "margin must be > 0, got 0"),
        ("cosent", {"scale": 0}, "scale must be > 0"),
        ("distill_kl", {"temperature": 0}, "temperature must be > 0"),
        ("distill_kl", {"teacher_bd": np.ones((6, 4))}, r"teacher_bd must be \[7, any\]"),
        ("distill_similarity", {"teacher_bd": np.ones(7)}, r"teacher_bd must be \[7, any\]"),
    ],
)
def test_bad_context_is_refused_by_name(name, change, message):
    embeddings, context, _ = example(name)
    with pytest.raises(ValueError, match=message):
        getattr(pair_losses, name)(*map(np.float32, embeddings), **{**arrays(context), **change})


@pytest.mark.parametrize(
    "name", ["cosent", "angle", "cosine_mse", "triplet", "contrastive", "distill_vectors"]
)
def test_embeddings_of_unlike_shapes_are_refused(name):
    embeddings, context, _ = example(name)
    for wrong in (np.ones((BATCH, DIM + 1)), np.ones((1, DIM)), np.ones(DIM)):
        with pytest.raises(ValueError, match=r"embeddings must all be \[B, D\]"):
            getattr(pair_losses, name)(*map(np.float32, embeddings[:-1]), wrong, **arrays(context))
