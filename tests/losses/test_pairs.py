import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrl_jax import Nesting, nested
from mrl_jax.losses import pairs

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
    if name in ("distill_similarity", "distill_kl"):
        context["teacher_bd"] = rng.normal(size=(batch, DIM + 3))
    return [rng.normal(size=(batch, DIM)) for _ in range(count)], context, options


def arrays(context):
    return {k: v.astype("int32" if v.dtype.kind == "i" else "float32") for k, v in context.items()}


@functools.partial(jax.jit, static_argnames="name")
def value_and_gradients(name, embeddings, context):
    loss = getattr(pairs, name)
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
    loss = functools.partial(getattr(pairs, name), **options)
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
    loss = jax.jit(getattr(pairs, name))
    assert loss(student_bd, teacher_bd=student_bd) == 0
    assert loss(student_bd, teacher_bd=4 * student_bd) == 0
    assert loss(student_bd, teacher_bd=student_bd[:, ::-1] ** 2) > 1e-3


@pytest.mark.parametrize("name", ["distill_similarity", "distill_kl"])
def test_teacher_gets_no_gradient(name):
    (student,), context, _ = example(name)
    loss = functools.partial(getattr(pairs, name), np.float32(student))
    gradient = jax.jit(jax.grad(lambda t: loss(teacher_bd=t)))(np.float32(context["teacher_bd"]))
    np.testing.assert_array_equal(gradient, 0)


def test_every_prefix_of_a_teacher_is_scaled_as_the_students_is():
    student, teacher = (np.float32(x) for x in example("distill_vectors")[0])
    lifted = nested(pairs.distill_vectors, Nesting((2, 3, DIM)))
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
    sides = [torch.tensor(x[:, :dim]) for x in (a, b)]
    expected = float(peer.compute_loss_from_embeddings(sides, torch.tensor(context["scores_b"])))
    found, _ = evaluate(name, [a[:, :dim], b[:, :dim]], context)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_distill_kl_temperature_can_be_learned():
    (student,), context, _ = example("distill_kl")
    loss = functools.partial(pairs.distill_kl, np.float32(student), **arrays(context))
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
        ("triplet", {"mask_b": np.ones(3)}, r"mask_b must be \[7\], got \(3,\)"),
        ("triplet", {"margin": -1}, "margin must be > 0, got -1"),
        ("cosent", {"scale": 0}, "scale must be > 0"),
        ("distill_kl", {"temperature": 0}, "temperature must be > 0"),
        ("distill_kl", {"teacher_bd": np.ones((6, 4))}, r"teacher_bd must be \[7, any\]"),
        ("distill_similarity", {"teacher_bd": np.ones(7)}, r"teacher_bd must be \[7, any\]"),
    ],
)
def test_bad_context_is_refused_by_name(name, change, message):
    embeddings, context, _ = example(name)
    with pytest.raises(ValueError, match=message):
        getattr(pairs, name)(*map(np.float32, embeddings), **{**arrays(context), **change})


@pytest.mark.parametrize("name", ["cosent", "angle", "cosine_mse", "triplet", "distill_vectors"])
def test_embeddings_of_unlike_shapes_are_refused(name):
    embeddings, context, _ = example(name)
    for wrong in (np.ones((BATCH, DIM + 1)), np.ones((1, DIM)), np.ones(DIM)):
        with pytest.raises(ValueError, match=r"embeddings must all be \[B, D\]"):
            getattr(pairs, name)(*map(np.float32, embeddings[:-1]), wrong, **arrays(context))


def own_loss(name):
    return f"{__name__}:{name}"


def of_pairs(a_bd, b_bd, *, mask_b):
    return ((a_bd - b_bd) ** 2).sum(-1) @ mask_b


def of_pairs_at_all_dims(a_bd, b_bd, *, nesting, mask_b):
    loss_g = jnp.stack([of_pairs(unit(a_bd), unit(b_bd), mask_b=mask_b)] * len(nesting))
    return loss_g.sum(), loss_g


def without_a_mask(a_bd, b_bd):
    return 0.0


def of_one_alone(a_bd, *, mask_b):
    return 0.0


def with_unknowns(a_bd, b_bd, *, weights_b, mask_b):
    return 0.0


def of_scores(a_bd, b_bd, scores_b, mask_b, margin, sharpness=2.0):
    return 0.0


def of_some_negatives(a_bd, b_bd, *negatives, mask_b, keep_bn):
    return 0.0


@pytest.mark.parametrize(
    ("name", "needs", "reads", "takes"),
    [
        ("info_nce", "", "negatives teacher", "temperature symmetric mask_b keep_bn nesting mesh"),
        ("cosent", "score", "", "scores_b mask_b"),
        ("triplet", "negatives", "", "margin mask_b"),
        ("distill_vectors", "teacher", "", "teacher_bd mask_b"),
        ("distill_kl", "teacher", "", "teacher_bd temperature mask_b"),
        (own_loss("of_pairs"), "", "", "mask_b"),
        (own_loss("of_scores"), "score", "", "scores_b mask_b margin"),
        (own_loss("of_some_negatives"), "", "negatives teacher", "keep_bn mask_b"),
    ],
)
def test_parameters_of_a_loss_say_what_it_needs(name, needs, reads, takes):
    found = pairs.find(name)
    assert (found.needs, found.reads) == (needs, {*reads.split()})
    assert found.takes == {*takes.split()}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnrl", r"must be one of info_nce, cosent, .*, or an import path; got 'mnrl'"),
        ("nowhere:loss", "config.pairs.loss nowhere:loss: there is no module nowhere"),
        (own_loss("BATCH"), "must be a function, got an? int"),
        (own_loss("without_a_mask"), "must have a parameter mask_b"),
        (own_loss("of_one_alone"), "must take two embeddings.* its parameters are a_bd, mask_b"),
        (own_loss("with_unknowns"), "weights_b needs a default; what is given is mask_b, scores_b"),
    ],
)
def test_losses_that_cannot_be_called_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        pairs.find(name)


def test_every_hard_negative_counts_the_same():
    (a, p, n), _, _ = example("triplet")
    nesting, given = (
        Nesting((2, DIM), (1.0, 2.0)),
        {"mask_b": np.ones(BATCH, np.float32), "margin": 2.5},
    )
    sides = [np.float32(x) for x in (a, p, n, p)]
    _, found_g = pairs.find("triplet").on_prefixes(sides, nesting, **given)
    cut = [[unit(x[:, :m]) for x in (a, p, n)] for m in (2, DIM)]
    expected_g = [
        (triplet(a, p, n, margin=2.5) + triplet(a, p, p, margin=2.5)) / 2 for a, p, n in cut
    ]
    np.testing.assert_allclose(found_g, expected_g, rtol=1e-5)


def test_a_loss_with_a_nesting_sees_whole_embeddings():
    a, b = (np.float32(x) for x in example("cosent")[0])
    given = {"mask_b": np.ones(BATCH, np.float32), "scores_b": "not taken"}
    whole = pairs.find(own_loss("of_pairs_at_all_dims")).on_prefixes([a, b], Nesting((2,)), **given)
    cut = pairs.find(own_loss("of_pairs")).on_prefixes([a, b], Nesting((2, DIM)), **given)
    np.testing.assert_allclose(whole[1][0], cut[1][1], rtol=1e-6)
    assert abs(whole[1][0] - cut[1][0]) > 0.1
