import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrl_jax.losses import preserve
from mrl_jax.models import adaptors

BATCH, DIM = 9, 6


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def cosines(x, y):
    return unit(x) @ unit(y).T


def preserve_pairs(z, *, source_bd):
    differs = abs(cosines(z, z) - cosines(source_bd, source_bd))
    return np.mean([differs[i, j] for i in range(len(z)) for j in range(len(z)) if i != j])


def preserve_neighbours(z, *, source_bd, neighbours=10):
    before, after = cosines(source_bd, source_bd), cosines(z, z)
    found = []
    for i in range(len(z)):
        near = [j for j in np.argsort(-before[i]) if j != i][:neighbours]
        found += [abs(after[i, j] - before[i, j]) for j in near]
    return np.mean(found)


def reconstruct(z, source):
    return np.mean(np.linalg.norm(z - source, axis=1) / np.linalg.norm(source, axis=1))


def rank(query, document, *, scale=20.0):
    cos = cosines(query, document)
    rows = range(len(query))
    return np.mean(
        [np.log1p(np.exp(scale * (cos[i, j] - cos[i, i]))) for i in rows for j in rows if i != j]
    )


# name: (oracle, number of embeddings, further options)
CASES = {
    "preserve_pairs": (preserve_pairs, 1, {}),
    "preserve_neighbours": (preserve_neighbours, 1, {"neighbours": 3}),
    "reconstruct": (reconstruct, 2, {}),
    "rank": (rank, 2, {"scale": 5.0}),
}


def example(name, seed=0):
    rng = np.random.default_rng(seed)
    _, count, options = CASES[name]
    context = {}
    if name.startswith("preserve"):
        context["source_bd"] = rng.normal(size=(BATCH, DIM + 2))
    return [rng.normal(size=(BATCH, DIM)) for _ in range(count)], context, options


@functools.partial(jax.jit, static_argnames=("name", "options"))
def value_and_gradients(name, embeddings, context, options):
    loss = functools.partial(getattr(preserve, name), **context, **dict(options))
    return jax.value_and_grad(loss, tuple(range(len(embeddings))))(*embeddings)


def evaluate(name, embeddings, context, options, **mask):
    """The loss and its gradients by every embedding; compiled once for all tests of a loss."""
    context = {k: np.float32(v) for k, v in (context | mask).items()}
    return value_and_gradients(name, [*map(np.float32, embeddings)], context, (*options.items(),))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("defaults", [True, False])
def test_value_equals_the_definition_in_float64(name, defaults):
    embeddings, context, options = example(name)
    options = {} if defaults else options
    expected = CASES[name][0](*embeddings, **context, **options)
    found, _ = evaluate(name, embeddings, context, options)
    assert found.shape == ()
    np.testing.assert_allclose(found, expected, rtol=2e-5)


@pytest.mark.parametrize("name", CASES)
def test_gradient_equals_central_differences_of_the_definition(name):
    embeddings, context, options = example(name)
    oracle = CASES[name][0]
    for which, found in enumerate(evaluate(name, embeddings, context, options)[1]):
        expected = np.zeros((BATCH, DIM))
        for index in np.ndindex(BATCH, DIM):
            values = []
            for step in (1e-6, -1e-6):
                moved = [e.copy() for e in embeddings]
                moved[which][index] += step
                values.append(oracle(*moved, **context, **options))
            expected[index] = (values[0] - values[1]) / 2e-6
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("name", CASES)
def test_padded_rows_count_for_nothing_and_may_hold_nan(name):
    embeddings, context, options = example(name)
    padding = np.array([2, 6])
    kept = np.delete(np.arange(BATCH), padding)
    expected = CASES[name][0](
        *(e[kept] for e in embeddings), **{k: v[kept] for k, v in context.items()}, **options
    )
    for x in (*embeddings, *context.values()):
        x[padding] = np.nan
    mask_b = np.ones(BATCH)
    mask_b[padding] = 0
    value, gradients = evaluate(name, embeddings, context, options, mask_b=mask_b)
    gradient = np.asarray(gradients[0])
    np.testing.assert_allclose(value, expected, rtol=2e-5)
    np.testing.assert_array_equal(gradient[padding], 0)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[kept]).sum() > 0


@pytest.mark.parametrize("name", CASES)
def test_padding_alone_has_loss_zero(name):
    embeddings, context, options = example(name)
    value, gradients = evaluate(name, embeddings, context, options, mask_b=np.zeros(BATCH))
    assert value == 0
    np.testing.assert_array_equal(gradients, 0)


@pytest.mark.parametrize("name", ["preserve_pairs", "preserve_neighbours"])
def test_source_gets_no_gradient_and_unchanged_vectors_lose_nothing(name):
    x_bd = np.float32(example(name)[0][0])
    loss = getattr(preserve, name)
    by_source = jax.jit(jax.value_and_grad(lambda s, z: loss(z, source_bd=s)))
    assert by_source(x_bd, x_bd)[0] == 0
    np.testing.assert_array_equal(by_source(2 * x_bd[::-1], x_bd)[1], 0)


def test_reconstruction_of_unchanged_vectors_is_zero_with_a_finite_gradient():
    x_bd = example("reconstruct")[0][0]
    value, gradients = evaluate("reconstruct", [x_bd, x_bd], {}, {})
    assert value == 0
    np.testing.assert_array_equal(gradients[0], 0)


def test_documents_left_out_are_no_worse_answers():
    (query, document), _, _ = example("rank")
    keep = np.random.default_rng(1).random((BATCH, BATCH)) < 0.6
    cos = cosines(query, document)
    expected = np.mean(
        [
            np.log1p(np.exp(20 * (cos[i, j] - cos[i, i])))
            for i in range(BATCH)
            for j in range(BATCH)
            if i != j and keep[i, j]
        ]
    )
    found = jax.jit(preserve.rank)(np.float32(query), np.float32(document), keep_bb=keep)
    np.testing.assert_allclose(found, expected, rtol=2e-5)


MODULES = {
    "linear": adaptors.Linear(DIM),
    "residual": adaptors.Residual(16),
    "rotation": adaptors.Rotation(),
}


def dense(p, x):
    return x @ np.float64(p["kernel"]) + p["bias"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


ADAPTED = {
    "linear": lambda p, z: dense(p["dense"], z),
    "residual": lambda p, z: z + dense(p["out"], gelu(dense(p["hidden"], z))),
}


@pytest.mark.parametrize("name", MODULES)
def test_adaptors_begin_as_the_identity_and_every_parameter_learns(name):
    rng = np.random.default_rng(0)
    module, z_bd = MODULES[name], np.float32(rng.normal(size=(BATCH, DIM)))
    same_bd, params = jax.jit(module.init_with_output)(jax.random.key(1), z_bd)
    np.testing.assert_allclose(same_bd, z_bd, atol=1e-6)
    weight_d = np.arange(1, DIM + 1, dtype=np.float32)
    moved = jax.tree.map(lambda p: np.float32(p + 0.1 * rng.normal(size=p.shape)), params)

    def loss(params):
        adapted_bd = module.apply(params, z_bd)
        return jnp.tanh(adapted_bd * weight_d[None]).sum(), adapted_bd

    gradient, adapted_bd = jax.jit(jax.grad(loss, has_aux=True))(moved)
    if name in ADAPTED:  # a rotation has a test of its own
        expected = ADAPTED[name](moved["params"], np.float64(z_bd))
        np.testing.assert_allclose(adapted_bd, expected, rtol=1e-4, atol=1e-5)
    assert all(np.abs(g).max() > 1e-4 for g in jax.tree.leaves(gradient))


def test_rotation_is_orthogonal_whatever_its_parameters():
    rng = np.random.default_rng(0)
    z_bd = np.float32(rng.normal(size=(BATCH, DIM)))
    params = {"params": {"skew": np.float32(3 * rng.normal(size=(DIM, DIM)))}}
    found = np.asarray(jax.jit(adaptors.Rotation().apply)(params, z_bd), np.float64)
    np.testing.assert_allclose(found @ found.T, z_bd @ z_bd.T, rtol=1e-4, atol=1e-4)
    assert not np.allclose(found, z_bd, atol=0.1)
    lower = np.tril(np.asarray(params["params"]["skew"], np.float64), -1)
    skew = lower - lower.T
    q = np.linalg.inv(np.eye(DIM) - skew) @ (np.eye(DIM) + skew)
    np.testing.assert_allclose(found, np.asarray(z_bd, np.float64) @ q, rtol=1e-4, atol=1e-4)


def test_linear_adaptor_of_another_width_has_orthonormal_columns():
    init = jax.jit(adaptors.Linear(4).init)
    kernel = np.asarray(init(jax.random.key(0), np.ones((1, DIM)))["params"]["dense"]["kernel"])
    np.testing.assert_allclose(kernel.T @ kernel, np.eye(4), atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z: preserve.preserve_pairs(z, source_bd=z[1:]), r"source_bd must be \[9, any\]"),
        (lambda z: preserve.preserve_pairs(z, source_bd=z, mask_b=z), r"mask_b must be \[9\]"),
        (
            lambda z: preserve.preserve_neighbours(z, source_bd=z, neighbours=0),
            "neighbours must be >= 1, got 0",
        ),
        (lambda z: preserve.reconstruct(z, z[:, 1:]), "as wide after as before"),
        (lambda z: preserve.rank(z, z[1:]), "queries and documents must be alike"),
        (lambda z: preserve.rank(z, z, scale=0), "scale must be > 0, got 0"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.ones((BATCH, DIM), np.float32))
