import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrl_jax.models import BACKBONES, DEFAULTS, build
from mrl_jax.models.batch_norm import BatchNorm
from mrl_jax.models.resnet import ResNet, blur
from mrl_jax.models.vit import ViT


def images(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


SMALL = {
    "mlp": build("mlp", embedding_dim=6, width=4, depth=2),
    "cnn": build("cnn", embedding_dim=6, width=4, depth=2),
    "basic blocks": ResNet((1, 1), bottleneck=False, width=4, stem="small", embedding_dim=6),
    "bottlenecks": ResNet((1, 1), bottleneck=True, width=4, blurpool=True, embedding_dim=6),
    "vit gap": ViT(4, 8, depth=2, heads=2, embedding_dim=6),
    "vit cls": ViT(4, 8, depth=1, heads=2, pool="cls", embedding_dim=6),
}


SHAPE = (12, 8, 3)


@functools.cache
def variables_of(name):
    """Random numbers of the right shapes; compiling the true initialisation takes longer."""
    rng = np.random.default_rng(1)

    def draw(keys, p):
        if keys[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, p.shape).astype(np.float32)
        deviation = 0.1 if p.ndim == 1 else (p.shape[-1] / p.size) ** 0.5
        return (deviation * rng.normal(size=p.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes_of(SMALL[name], SHAPE))


@functools.partial(jax.jit, static_argnums=0)
def apply(model, variables, x_bhwc):
    return model.apply(variables, x_bhwc)


def shapes_of(model, shape):
    x_bhwc = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), x_bhwc)


# Compiling takes a while: some of them by default, all of them in CI.
QUICK = ("mlp", "basic blocks", "vit gap")


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=() if x in QUICK else pytest.mark.slow) for x in SMALL]
)
def test_embeds_each_image_by_itself(name):
    model = SMALL[name]
    x_bhwc = images(3, *SHAPE)
    z_bd = apply(model, variables_of(name), x_bhwc)
    assert z_bd.shape == (3, model.out_dim)
    assert model.out_dim == 6
    # Examples do not look at each other outside of training.
    one_bd = apply(model, variables_of(name), x_bhwc[1:2])
    np.testing.assert_allclose(one_bd, z_bd[1:2], rtol=1e-5, atol=1e-6)
    # The embedding is linear: both signs appear.
    assert (np.asarray(z_bd) < 0).any()
    assert (np.asarray(z_bd) > 0).any()


@pytest.mark.parametrize("name", ["cnn", "basic blocks", "bottlenecks"])
def test_batch_statistics_are_learned_in_training_only(name):
    x_bhwc = 5 + images(16, *SHAPE)

    @jax.jit
    def train(variables):
        return SMALL[name].apply(variables, x_bhwc, train=True, mutable=["batch_stats"])[1]

    variables = variables_of(name)
    both = (jax.tree.leaves(v["batch_stats"]) for v in (variables, train(variables)))
    assert all((before != np.asarray(after)).any() for before, after in zip(*both, strict=True))


PARAMETERS = {  # without a classifier; He et al. and Dosovitskiy et al., torchvision and timm
    "resnet18": 11_176_512,
    "resnet34": 21_284_672,
    "resnet50": 23_508_032,
    "resnet101": 42_500_160,
    "vit_ti16": 5_524_416 - 192 - 192,  # no class token, and none in the positions
    "vit_s16": 21_665_664 - 384 - 384,
    "vit_b16": 85_798_656 - 768 - 768,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_networks_have_the_published_size(name):
    def size(model):
        shapes = shapes_of(model, (224, 224, 3))["params"]
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    model = build(name)
    if name.startswith("vit"):  # of equal layers, of which tracing all takes a second
        one, two = (size(model.clone(depth=depth)) for depth in (1, 2))
        assert one + (model.depth - 1) * (two - one) == PARAMETERS[name]
    else:
        assert size(model) == PARAMETERS[name]
    assert model.out_dim == {"t": 192, "s": 384, "b": 768}.get(
        name[4:5] if name.startswith("vit") else "", 512 if name[-2:] in ("18", "34") else 2048
    )


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_batch_norm_normalises_each_group_by_itself(groups):
    norm = BatchNorm(groups)
    x_bhwc = 3 + 2 * images(8, 3, 2, 5)
    variables = jax.jit(norm.init, static_argnums=2)(jax.random.key(0), x_bhwc, True)
    train = jax.jit(lambda v: norm.apply(v, x_bhwc, True, mutable=["batch_stats"]))
    found, state = train(variables)
    wide = np.asarray(x_bhwc, np.float64).reshape(groups, -1, 5)
    mean, var = wide.mean(1, keepdims=True), wide.var(1, keepdims=True)
    expected = ((wide - mean) / np.sqrt(var + 1e-5)).reshape(found.shape)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # PyTorch's running variance is the unbiased one, of each group's batch.
    unbiased = wide.var(1, ddof=1).mean(0)
    stats = jax.tree.map(np.asarray, state["batch_stats"])
    np.testing.assert_allclose(stats["mean"], 0.1 * mean.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * unbiased, rtol=1e-5)
    measured = jax.jit(lambda v: norm.apply(v, x_bhwc, False))({**variables, **state})
    running = (np.asarray(x_bhwc) - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    np.testing.assert_allclose(measured, running, atol=1e-5)


def test_batch_norm_groups_must_divide_the_batch():
    with pytest.raises(ValueError, match="cannot cut a batch of 6 into 4 groups"):
        BatchNorm(4).init(jax.random.key(0), images(6, 2), True)


def test_blur_is_the_filter_of_the_paper():
    x_bhwc = images(2, 5, 4, 3)
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    padded = np.pad(np.asarray(x_bhwc), ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = sum(
        kernel[i, j] * padded[:, i : i + 5, j : j + 4] for i in range(3) for j in range(3)
    )
    np.testing.assert_allclose(jax.jit(blur)(x_bhwc), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["basic blocks", "vit cls"])
def test_remat_computes_the_same_gradients(name):
    x_bhwc, variables = images(4, *SHAPE), variables_of(name)

    def gradients(model):
        def loss(params):
            z_bd, _ = model.apply(
                {**variables, "params": params}, x_bhwc, train=True, mutable=["batch_stats"]
            )
            return (z_bd**2).sum()

        return jax.jit(jax.grad(loss)).trace(variables["params"])

    traced = gradients(SMALL[name]), gradients(SMALL[name].clone(remat=True))
    plain, again = (x.lower().compile()(variables["params"]) for x in traced)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), plain, again)
    assert "remat" in str(traced[1].jaxpr)


@pytest.mark.parametrize("name", ["bottlenecks", "vit gap"])
def test_bfloat16_computes_close_to_float32_with_float32_parameters(name):
    x_bhwc, variables = images(3, *SHAPE), variables_of(name)
    narrow = SMALL[name].clone(dtype=jnp.bfloat16)
    z_bd, narrow_bd = (np.asarray(apply(m, variables, x_bhwc)) for m in (SMALL[name], narrow))
    assert narrow_bd.dtype == jnp.float32
    error = np.abs(narrow_bd - z_bd).max() / np.abs(z_bd).max()
    assert 0 < error < 0.03
    shapes = shapes_of(narrow, SHAPE)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


def test_options_reach_the_network():
    model = build(
        "resnet18", width=8, stem="small", blurpool=True, batch_norm_groups=2, dtype="bfloat16"
    )
    assert (model.width, model.stem, model.blurpool, model.batch_norm_groups) == (8, "small", 1, 2)
    assert model.dtype == jnp.bfloat16
    assert model.out_dim == 64
    assert build("vit_b8", pool="cls", remat=True).pool == "cls"
    assert build("resnet50", embedding_dim=128).out_dim == 128
    assert ResNet((1, 1), bottleneck=True, width=8).out_dim == 8 * 2 * 4
    for name in BACKBONES:
        build(name, **{**DEFAULTS, "embedding_dim": 7})


def own(name):
    return f"{__name__}:{name}"


def narrow_mlp(embedding_dim, **others):
    assert others.keys() <= {"depth", "pool"}
    return BACKBONES["mlp"](embedding_dim, width=3, **others)


def failing():
    return 1 / 0


def test_a_function_at_an_import_path_makes_a_backbone_of_what_is_set():
    model = build(own("narrow_mlp"), **{**DEFAULTS, "embedding_dim": 4, "depth": 1})
    assert (model.embedding_dim, model.width, model.depth) == (4, 3, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "vgg"}, "must be one of mlp, cnn, resnet18.*, or an import path; got 'vgg'"),
        ({"name": "nowhere:make"}, "config.model.name nowhere:make: there is no module nowhere"),
        ({"name": own("SHAPE")}, r"must be a function, got \(12, 8, 3\)"),
        ({"name": own("narrow_mlp")}, ":narrow_mlp needs embedding_dim, got 0"),
        ({"name": own("failing")}, ":failing fails with ZeroDivisionError: division by zero"),
        ({"name": own("failing"), "width": 3}, ":failing has no option width; it has none"),
        ({"name": own("own"), "embedding_dim": 3}, ":own has no option embedding_dim"),
        ({"name": "builtins:dict"}, "no signature found"),
        ({"name": "collections:Counter"}, "must make a Flax module with an integer out_dim, got C"),
        ({"name": "mlp"}, "model mlp needs embedding_dim, got 0"),
        ({"name": "cnn", "embedding_dim": 4, "width": -1}, "model width must be >= 0, got -1"),
        ({"name": "resnet18", "depth": 3}, "resnet18 has no option depth; it has embedding_dim, w"),
        ({"name": "resnet18", "batch_norm_groups": 0}, "batch_norm_groups must be >= 1, got 0"),
        ({"name": "vit_s16", "stem": "small"}, "vit_s16 has no option stem"),
        ({"name": "vit_s16", "pool": "max"}, "model pool must be one of gap, cls; got 'max'"),
        ({"name": "vit_s16", "dtype": "float16"}, "must be one of float32, bfloat16"),
    ],
)
def test_bad_models_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)


def test_images_that_do_not_divide_into_patches_are_refused():
    with pytest.raises(ValueError, match="30x32 pixels do not divide into patches of 16"):
        shapes_of(build("vit_ti16"), (30, 32, 3))
