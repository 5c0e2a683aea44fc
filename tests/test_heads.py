import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrl_jax import NestedHead, Nesting
from mrl_jax.losses import nested_cross_entropy
from mrl_jax.nesting import powers_of_two

NESTING = Nesting((2, 4, 12))
CLASSES = 5


def make(kind="separate", nesting=NESTING, normalize="none", width=16):
    """A head with random parameters (also biases) and an embedding, as float64 numpy too."""
    head = NestedHead(nesting, CLASSES, kind, normalize)
    rng = np.random.default_rng(0)
    z_bd = rng.normal(size=(6, width))
    shapes = jax.eval_shape(head.init, jax.random.key(0), np.float32(z_bd))
    params = jax.tree.map(lambda p: np.float32(rng.normal(size=p.shape)), shapes)
    exact = jax.tree.map(np.float64, params["params"])
    return head, params, exact, z_bd


@functools.partial(jax.jit, static_argnums=0)
def apply(head, params, z_bd):
    return head.apply(params, z_bd)


def sliced_logits(kind, exact, z_bd, dims, normalize="none"):
    """The definition: one slice per granularity."""
    logits = []
    for m in dims:
        x = z_bd[:, :m]
        if normalize == "prefix":
            x = x / np.linalg.norm(x, axis=1, keepdims=True)
        if kind == "separate":
            logits.append(x @ exact[f"kernel_{m:04d}"] + exact[f"bias_{m:04d}"])
        else:
            logits.append(x @ exact["kernel"][:m] + exact["bias"])
    return np.stack(logits)


@pytest.mark.parametrize("normalize", ["none", "prefix"])
@pytest.mark.parametrize("kind", ["separate", "shared", "fixed"])
def test_logits_equal_slices(kind, normalize):
    nesting = Nesting((4,)) if kind == "fixed" else NESTING
    head, params, exact, z_bd = make(kind, nesting, normalize)
    found = apply(head, params, np.float32(z_bd))
    expected = sliced_logits(kind, exact, z_bd, nesting.dims, normalize)
    assert found.shape == (len(nesting), 6, CLASSES)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("normalize", ["none", "prefix"])
@pytest.mark.parametrize("kind", ["separate", "shared"])
def test_gradients_equal_those_of_slices(kind, normalize):
    head, params, _, z_bd = make(kind, NESTING, normalize)
    labels_b = np.arange(6, dtype=np.int32) % CLASSES

    def sliced(params, z):
        logits = []
        for m in NESTING.dims:
            x = z[:, :m]
            if normalize == "prefix":
                x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
            p = params["params"]
            if kind == "separate":
                bias = p[f"bias_{m:04d}"]
                logits.append(x @ p[f"kernel_{m:04d}"] + bias[None])
            else:
                logits.append(x @ p["kernel"][:m] + p["bias"][None])
        return jnp.stack(logits)

    def loss(logits_fn):
        return lambda p, z: nested_cross_entropy(logits_fn(p, z), labels_b, NESTING)[0]

    found, expected = (
        jax.jit(jax.grad(loss(fn), (0, 1)))(params, np.float32(z_bd)) for fn in (head.apply, sliced)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected
    )


def test_gradient_of_a_granularity_stops_at_its_dims():
    head, params, _, z_bd = make("separate")
    # Squares, so that no dim can cancel out.
    gradients_of = jax.jit(jax.jacrev(lambda z: (head.apply(params, z) ** 2).sum((1, 2))))
    for gradient, m in zip(np.asarray(gradients_of(np.float32(z_bd))), NESTING.dims, strict=True):
        assert (gradient[:, m:] == 0).all()
        assert (gradient[:, :m] != 0).all()


def test_shared_head_applies_at_dims_never_trained():
    head, params, exact, z_bd = make("shared")
    dims = (1, 3, 7, 12)
    found = apply(head.clone(nesting=Nesting(dims)), params, np.float32(z_bd))
    np.testing.assert_allclose(
        found, sliced_logits("shared", exact, z_bd, dims), rtol=1e-5, atol=1e-5
    )


def test_parameters_by_kind():
    def shapes(kind, nesting=NESTING):
        _, params, _, _ = make(kind, nesting)
        return {name: p.shape for name, p in params["params"].items()}

    assert shapes("separate") == {
        **{f"kernel_{m:04d}": (m, CLASSES) for m in NESTING.dims},
        **{f"bias_{m:04d}": (CLASSES,) for m in NESTING.dims},
    }
    assert shapes("shared") == {"kernel": (12, CLASSES), "bias": (CLASSES,)}
    assert shapes("fixed", Nesting((4,))) == {"kernel": (4, CLASSES), "bias": (CLASSES,)}


def test_kernels_start_like_torch_linear():
    head = NestedHead(Nesting((4, 400)), 300)
    params = jax.jit(head.init)(jax.random.key(0), np.zeros((1, 400)))["params"]
    for m in (4, 400):
        kernel = np.asarray(params[f"kernel_{m:04d}"])
        assert np.abs(kernel).max() <= m**-0.5
        assert np.abs(kernel).max() > 0.95 * m**-0.5
        assert (np.asarray(params[f"bias_{m:04d}"]) == 0).all()


def test_shared_head_costs_one_dense_layer():
    """Head and loss of the paper's nine granularities: within 3 % of the FLOPs of FF-2048."""
    nesting, batch, classes = powers_of_two(8, 2048), 256, 1000

    def flops(head, with_gradient):
        z_bd = jax.ShapeDtypeStruct((batch, 2048), jnp.float32)
        labels_b = jax.ShapeDtypeStruct((batch,), jnp.int32)
        params = jax.eval_shape(head.init, jax.random.key(0), z_bd)

        def loss(params, z_bd, labels_b):
            return nested_cross_entropy(head.apply(params, z_bd), labels_b, head.nesting)[0]

        function = jax.value_and_grad(loss, (0, 1)) if with_gradient else loss
        return jax.jit(function).lower(params, z_bd, labels_b).cost_analysis()["flops"]

    for with_gradient in (False, True):
        dense = flops(NestedHead(Nesting((2048,)), classes, "fixed"), with_gradient)
        assert flops(NestedHead(nesting, classes, "shared"), with_gradient) <= 1.03 * dense
        # The separate heads are what the saving is measured against: sum of dims / largest dim.
        separate = flops(NestedHead(nesting, classes, "separate"), with_gradient)
        assert separate >= 1.9 * dense


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: NestedHead(NESTING, 5, "tied"), "kind must be one of separate, shared, fixed"),
        (lambda: NestedHead(NESTING, 5, normalize="l2"), "normalize must be one of none, prefix"),
        (lambda: NestedHead(NESTING, 5, "fixed"), "one granularity, got dims"),
        (lambda: NestedHead(NESTING, 0), "num_classes must be >= 1, got 0"),
        (lambda: make(width=8), r"\[batch, >= 12\], got \(6, 8\)"),
    ],
)
def test_bad_heads_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
