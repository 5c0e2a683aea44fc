import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrl_jax import NestedHead, Nesting
from mrl_jax.kernels import linear_softmax, nested_linear_cross_entropy
from mrl_jax.losses import nested_cross_entropy
from mrl_jax.nesting import powers_of_two
from mrl_jax.runtime.mesh import make_mesh

# 1 and 2 are at most a sixteenth of 32: recomputed in tiles. Of one piece, 2 is kept and 1 is got
# back from it by subtraction.
NESTING = Nesting((1, 2, 12, 32), (1.0, 0.5, 0.0, 3.0))
FORMS = ("blockwise", "streamed")


def problem(nesting=NESTING, kind="shared", batch=10, classes=7, dtype=jnp.float32, seed=0):
    """A head's parameters, embeddings and labels; the parameters as a tree of arrays."""
    head = NestedHead(nesting, classes, kind)
    rng = np.random.default_rng(seed)
    # None near zero: gradients of normalized prefixes divide by their norms.
    z_bd = rng.uniform(0.5, 1.5, (batch, nesting.width + 3))
    z_bd = (z_bd * rng.choice([-1, 1], z_bd.shape)).astype(dtype)
    params = jax.eval_shape(head.init, jax.random.key(0), z_bd)["params"]
    drawn = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), params)
    return head, drawn, z_bd, rng.integers(0, classes, batch).astype(np.int32)


def kernels_and_biases(params, nesting):
    if "kernel" in params:
        return params["kernel"], params["bias"]
    return (
        [params[f"kernel_{m:04d}"] for m in nesting.dims],
        [params[f"bias_{m:04d}"] for m in nesting.dims],
    )


def fused(params, z_bd, labels_b, nesting, **options):
    kernel, bias = kernels_and_biases(params, nesting)
    return nested_linear_cross_entropy(z_bd, kernel, bias, labels_b, nesting, **options)


@functools.cache
def compiled(nesting=NESTING, **options):
    """The loss with its gradients: one program for all tests that use the same options."""
    loss = functools.partial(fused, nesting=nesting, **options)
    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))


def exact(
    params, z_bd, labels_b, nesting, *, smoothing=0.0, mask_b=None, normalize="none", weights=None
):
    """The definition in float64: one slice, one softmax per granularity, and its gradients."""
    z_bd = np.asarray(z_bd, np.float64)
    kernel, bias = kernels_and_biases(params, nesting)
    shared = not isinstance(kernel, list)
    kernels, biases = ([kernel], [bias]) if shared else (kernel, bias)
    dkernels, dbiases = ([np.zeros(x.shape) for x in arrays] for arrays in (kernels, biases))
    dz_bd, losses = np.zeros_like(z_bd), []
    mask_b = np.ones(len(z_bd)) if mask_b is None else mask_b
    mean_b1 = mask_b[:, None] / mask_b.sum()
    weights_g = nesting.weights if weights is None else weights
    for g, (m, weight) in enumerate(zip(nesting.dims, weights_g, strict=True)):
        own = 0 if shared else g
        kernel_mc, bias_c = (np.asarray(x[own], np.float64) for x in (kernels, biases))
        kernel_mc, x_bm, norm_b1 = kernel_mc[:m], z_bd[:, :m], 1.0
        if normalize == "prefix":
            norm_b1 = np.linalg.norm(x_bm, axis=1, keepdims=True)
            x_bm = x_bm / norm_b1
        logits_bc = x_bm @ kernel_mc + bias_c
        log_p_bc = logits_bc - np.logaddexp.reduce(logits_bc, axis=1, keepdims=True)
        one_hot_bc = np.eye(len(bias_c))[labels_b]
        target_bc = (1 - smoothing) * one_hot_bc + smoothing / len(bias_c)
        losses.append(-(mean_b1 * target_bc * log_p_bc).sum())
        dlogits_bc = weight * mean_b1 * (np.exp(log_p_bc) - target_bc)
        dkernels[own][:m] += x_bm.T @ dlogits_bc
        dbiases[own] += dlogits_bc.sum(0)
        dx_bm = dlogits_bc @ kernel_mc.T
        if normalize == "prefix":
            # A unit vector moves across itself only.
            dx_bm -= (dx_bm * x_bm).sum(1, keepdims=True) * x_bm
        dz_bd[:, :m] += dx_bm / norm_b1
    names = (
        [("kernel", "bias")]
        if shared
        else [(f"kernel_{m:04d}", f"bias_{m:04d}") for m in nesting.dims]
    )
    gradients = {}
    for (of_kernel, of_bias), dkernel, dbias in zip(names, dkernels, dbiases, strict=True):
        gradients |= {of_kernel: dkernel, of_bias: dbias}
    return (np.dot(weights_g, losses), np.array(losses)), (gradients, dz_bd)


def close(found, expected, relative=1e-5):
    """Every array within `relative` of its largest entry."""
    found, expected = jax.tree.leaves(found), jax.tree.leaves(expected)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        scale = max(np.abs(b).max(), 1e-30)
        np.testing.assert_allclose(np.asarray(a, np.float64), b, rtol=0, atol=relative * scale)


def small_pieces(monkeypatch, elements=24, tile=2, rows=1024):
    """Cuts the work as large problems are cut: tiles of classes, a remainder, chunks of rows."""
    monkeypatch.setattr(linear_softmax, "WHOLE_ELEMENTS", elements)
    monkeypatch.setattr(linear_softmax, "TILE_ELEMENTS", 1)
    monkeypatch.setattr(linear_softmax, "MIN_TILE", tile)
    monkeypatch.setattr(linear_softmax, "CHUNK_ROWS", rows)


SLOW = pytest.mark.slow


CHUNKS = "class tiles of row chunks"


@pytest.mark.parametrize(
    ("form", "kind", "cut"),
    [
        *((form, kind, CHUNKS) for form in FORMS for kind in ("shared", "separate")),
        pytest.param("blockwise", "separate", "class tiles", marks=SLOW),
        pytest.param("streamed", "shared", "class tiles", marks=SLOW),
        pytest.param("blockwise", "separate", "whole", marks=SLOW),
        pytest.param("streamed", "shared", "whole", marks=SLOW),
    ],
)
def test_equals_the_definition(form, kind, cut, monkeypatch):
    if cut != "whole":
        small_pieces(monkeypatch, rows=1024 if cut == "class tiles" else 4)
    _, params, z_bd, labels_b = problem(kind=kind)
    mask_b = np.float32([1, 1, 0, 1, 1, 1, 0, 1, 1, 1])
    loss = functools.partial(
        fused, nesting=NESTING, form=form, label_smoothing=0.1, mask_b=mask_b, normalize="prefix"
    )
    found = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, z_bd, labels_b)
    expected = exact(
        params, z_bd, labels_b, NESTING, smoothing=0.1, mask_b=mask_b, normalize="prefix"
    )
    close(found, expected)
    close(jax.jit(loss)(params, z_bd, labels_b), expected[0])  # without gradients: another path


@pytest.mark.parametrize(
    ("form", "kind", "options"),
    [
        ("blockwise", "shared", {}),
        ("blockwise", "shared", {"normalize": "prefix"}),
        ("streamed", "separate", {"label_smoothing": 0.1}),
    ],
)
def test_options_one_by_one(form, kind, options):
    _, params, z_bd, labels_b = problem(kind=kind)
    found = compiled(form=form, **options)(params, z_bd, labels_b)
    renamed = {"smoothing" if k == "label_smoothing" else k: v for k, v in options.items()}
    close(found, exact(params, z_bd, labels_b, NESTING, **renamed))


@pytest.mark.parametrize(
    ("kind", "options"),
    [("shared", {"label_smoothing": 0.1, "normalize": "prefix"}), ("separate", {})],
)
def test_the_pallas_kernel_equals_the_definition(kind, options):
    """Here in Pallas' interpreter."""
    nesting = Nesting((3, 24), (1.0, 0.5))
    _, params, z_bd, labels_b = problem(nesting, kind)
    mask_b = np.arange(10) % 3 > 0
    loss = functools.partial(
        fused, nesting=nesting, mask_b=mask_b, form="streamed", implementation="pallas", **options
    )
    found = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, z_bd, labels_b)
    renamed = {"smoothing" if k == "label_smoothing" else k: v for k, v in options.items()}
    close(found, exact(params, z_bd, labels_b, nesting, mask_b=mask_b, **renamed))


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_long_and_dense_nestings(form, monkeypatch):
    small_pieces(monkeypatch, elements=300, tile=16)
    for nesting, classes in ((powers_of_two(4, 128), 50), (Nesting(tuple(range(4, 25, 4))), 37)):
        _, params, z_bd, labels_b = problem(nesting, batch=9, classes=classes)
        loss = functools.partial(fused, nesting=nesting, form=form)
        found = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, z_bd, labels_b)
        close(found, exact(params, z_bd, labels_b, nesting))


@pytest.mark.parametrize(
    ("form", "kind"),
    [("blockwise", "shared"), pytest.param("streamed", "separate", marks=SLOW)],
)
def test_bfloat16_inputs_are_summed_in_float32(form, kind):
    nesting = powers_of_two(32, 512)
    _, params, z_bd, labels_b = problem(nesting, kind, 16, 20, jnp.bfloat16)
    params = jax.tree.map(lambda p: np.float32(0.1) * p, params)
    (total, loss_g), gradients = compiled(nesting, form=form)(params, z_bd, labels_b)
    assert total.dtype == loss_g.dtype == jnp.float32
    assert gradients[1].dtype == jnp.bfloat16
    assert {p.dtype for p in jax.tree.leaves(gradients[0])} == {jnp.dtype("float32")}
    expected = exact(params, z_bd, labels_b, nesting)
    close(((total, loss_g), gradients), expected, 2e-2)
    close((total, loss_g), expected[0], 3e-3)  # a running sum in bfloat16 is off by more


def test_equals_head_and_loss():
    for kind in ("shared", "separate"):
        head, params, z_bd, labels_b = problem(kind=kind)

        def unfused(params, z_bd, labels_b, head=head):
            logits_gbc = head.apply({"params": params}, z_bd)
            return nested_cross_entropy(logits_gbc, labels_b, NESTING)

        loss = functools.partial(fused, nesting=NESTING)
        found = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
        unfused = jax.jit(jax.value_and_grad(unfused, (0, 1), has_aux=True))
        expected = unfused(params, z_bd, labels_b)
        close(found(params, z_bd, labels_b), jax.tree.map(np.asarray, expected), 2e-6)


@pytest.mark.parametrize("form", FORMS)
def test_each_granularity_can_be_differentiated(form, monkeypatch):
    """The second output has a gradient of its own, also mixed with that of the first."""
    small_pieces(monkeypatch)  # of rows without scales, which no other test cuts
    _, params, z_bd, labels_b = problem()
    scale_g = np.arange(1.0, 5.0, dtype=np.float32)

    def total(params, z_bd):
        loss, loss_g = fused(params, z_bd, labels_b, NESTING, form=form)
        return 2 * loss + (scale_g * loss_g).sum()

    def first(params):
        return fused(params, z_bd, labels_b, NESTING, form=form)[0]

    @jax.jit
    def gradients(params, z_bd):
        mixed = jax.value_and_grad(total, (0, 1))(params, z_bd)
        return mixed, jax.grad(jax.checkpoint(first))(params)

    mixed, rematerialised = gradients(params, z_bd)
    weights_g = 2 * np.array(NESTING.weights) + scale_g
    (expected, _), slopes = exact(params, z_bd, labels_b, NESTING, weights=weights_g)
    close(mixed, (expected, slopes))
    close(rematerialised, exact(params, z_bd, labels_b, NESTING)[1][0])


@pytest.mark.parametrize("form", FORMS)
def test_padding_may_hold_anything(form):
    _, params, z_bd, labels_b = problem()
    mask_b = np.arange(10) < 6
    spoiled = (np.where(mask_b[:, None], z_bd, np.nan), np.where(mask_b, labels_b, 99))
    grad = compiled(form=form, normalize="prefix")
    (total, loss_g), (dparams, dz_bd) = grad(params, *spoiled, mask_b=mask_b)
    expected = exact(params, z_bd[:6], labels_b[:6], NESTING, normalize="prefix")
    close(((total, loss_g), (dparams, dz_bd[:6])), expected)
    assert (np.asarray(dz_bd[6:]) == 0).all()
    nothing, _ = grad(params, *spoiled, mask_b=np.zeros(10, bool))
    assert nothing[0] == 0


def test_a_label_out_of_range_is_not_a_number():
    _, params, z_bd, labels_b = problem()
    for label in (-1, 7):
        wrong_b = np.where(np.arange(10) == 3, label, labels_b).astype(np.int32)
        (loss, loss_g), _ = compiled(form="blockwise")(params, z_bd, wrong_b)
        assert np.isnan(loss)
        assert np.isnan(loss_g).all()


@pytest.mark.parametrize(
    ("shape", "kind", "form"),
    [
        ((8, 1, 1), "shared", "blockwise"),
        pytest.param((1, 2, 4), "shared", "streamed", marks=SLOW),
        ((2, 2, 2), "shared", "blockwise"),
        ((2, 2, 2), "separate", "streamed"),
        pytest.param((1, 2, 4), "separate", "blockwise", marks=SLOW),
    ],
)
def test_every_layout_equals_one_device(shape, form, kind, monkeypatch):
    small_pieces(monkeypatch, elements=16, tile=3)
    mesh = make_mesh(*shape)
    _, params, z_bd, labels_b = problem(kind=kind, batch=16, classes=12)
    mask_b = np.arange(16) % 5 > 0
    options = {"label_smoothing": 0.1, "mask_b": mask_b, "normalize": "prefix"}
    loss = functools.partial(fused, nesting=NESTING, form=form, mesh=mesh, **options)
    found = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, z_bd, labels_b)
    # What one device computes is as close to it.
    options["smoothing"] = options.pop("label_smoothing")
    expected = exact(params, z_bd, labels_b, NESTING, **options)
    close(found, expected, 2e-6)
    if shape == (2, 2, 2):
        value = jax.jit(loss)(params, z_bd, labels_b)  # without gradients: another path
        close(value, expected[0], 2e-6)


def lowered(nesting, batch, classes, kind="shared", **options):
    width = nesting.width
    head = NestedHead(nesting, classes, kind)
    z_bd = jax.ShapeDtypeStruct((batch, width), jnp.float32)
    labels_b = jax.ShapeDtypeStruct((batch,), jnp.int32)
    params = jax.eval_shape(head.init, jax.random.key(0), z_bd)["params"]
    loss = functools.partial(fused, nesting=nesting, **options)
    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True)).lower(params, z_bd, labels_b)


def test_flops_are_those_of_one_dense_layer():
    """Head and loss, forward and backward, of 9 granularities against the largest alone."""
    flops = {
        nesting: lowered(nesting, 256, 1000).compile().cost_analysis()["flops"]
        for nesting in (powers_of_two(8, 2048), Nesting((2048,)))
    }
    nested, dense = flops.values()
    assert nested <= 1.05 * dense


@pytest.mark.slow
def test_memory_does_not_grow_with_the_granularities():
    """Blockwise: a few [B, C]; streamed: less than one. XLA's own count of temporary memory."""
    batch, classes, width = 256, 16384, 512
    logits_bytes, kernel_bytes = 4 * batch * classes, 4 * width * classes

    def temporary(nesting, form):
        program = lowered(nesting, batch, classes, form=form).compile()
        return program.memory_analysis().temp_size_in_bytes

    few, many = powers_of_two(64, 512), powers_of_two(4, 512)
    # Without halvings the rows come in chunks, whose gradients of the kernel are summed up.
    dense = Nesting(tuple(range(64, 513, 64)))
    assert temporary(dense, "blockwise") < 6.5 * logits_bytes + kernel_bytes
    for nesting in (few, many):
        assert temporary(nesting, "blockwise") < 6.5 * logits_bytes
    for nesting in (few, many, dense):
        assert temporary(nesting, "streamed") < 1.0 * logits_bytes
    assert temporary(many, "blockwise") < 1.2 * temporary(few, "blockwise")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"form": "fast"}, "form must be one of blockwise, streamed; got 'fast'"),
        ({"implementation": "cuda"}, "implementation must be one of auto, xla, pallas"),
        ({"implementation": "pallas"}, "'pallas' has form 'streamed' only and takes no mesh"),
        ({"normalize": "l2"}, "normalize must be one of none, prefix"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\)"),
        ({"mask_b": jnp.ones(3)}, r"mask must be \[10\], got \(3,\)"),
        ({"z_bd": jnp.ones((10, 31))}, r"embeddings must be \[B, >= 32\], got \(10, 31\)"),
        ({"z_bd": jnp.ones((10, 32), int)}, "embeddings must be floating point"),
        ({"labels_b": jnp.ones(10)}, r"labels must be \[10\] integers"),
        ({"kernel": jnp.ones((31, 7))}, r"must be \[32, C\] and \[C\], got \(31, 7\)"),
        ({"kernel": [jnp.ones((32, 7))], "bias": [jnp.ones(7)]}, "separate heads need 4 kernels"),
        ({"bias": jnp.ones(8)}, r"got \(32, 7\) and \(8,\)"),
        ({"mesh": "8x1x1"}, "a batch of 10 does not divide over 8 devices"),
        ({"mesh": "1x2x4"}, "7 classes do not divide over mesh tensor=4"),
        ({"mesh": "1x2x4", "class_axis": "model"}, "mesh axis must be one of data, fsdp, tensor"),
    ],
)
def test_bad_calls_are_refused(change, message):
    _, params, z_bd, labels_b = problem()
    arguments = {
        "z_bd": z_bd,
        "kernel": params["kernel"],
        "bias": params["bias"],
        "labels_b": labels_b,
        "nesting": NESTING,
    } | change
    if "mesh" in change:
        arguments["mesh"] = make_mesh(*map(int, change["mesh"].split("x")))
    with pytest.raises(ValueError, match=message):
        nested_linear_cross_entropy(**arguments)
