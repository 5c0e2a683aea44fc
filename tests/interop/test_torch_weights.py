import functools
import re
import shlex
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_reference as reference
from flax import traverse_util

from mrl_jax import NestedHead, Nesting
from mrl_jax.errors import DataError, UsageError
from mrl_jax.models.cnn import Cnn
from mrl_jax.models.resnet import ResNet
from mrl_jax.models.vit import ViT

safetensors_numpy = pytest.importorskip("safetensors.numpy", reason="weights need safetensors")

from mrl_jax.interop import load_weights  # noqa: E402 (refuses to be imported without safetensors)

CLASSES = 5
STAGES = {"basic": (1, 2, 1, 1), "bottleneck": (2, 1, 1, 1)}
TINY = (1, 1, 1, 1)
PATCH, WIDTH, HEADS, IMAGE = 4, 24, 3, (8, 12)


def save(folder, state, prefix=""):
    path = folder / "weights.safetensors"
    state = {prefix + name: np.ascontiguousarray(value) for name, value in state.items()}
    safetensors_numpy.save_file(state, path)
    return path


@functools.cache
def backbone_shapes(backbone, image):
    x_bhwc = jax.ShapeDtypeStruct((1, *image, 3), jnp.float32)
    return jax.eval_shape(backbone.init, jax.random.key(0), x_bhwc)


def abstract(backbone, head=None, image=(32, 32)):
    """Shapes and dtypes of (params, model_state), as a task has them."""
    variables = dict(backbone_shapes(backbone, image))
    params = {"backbone": variables.pop("params")}
    if head is not None:
        z_bd = jax.ShapeDtypeStruct((1, backbone.out_dim), jnp.float32)
        params["head"] = jax.eval_shape(head.init, jax.random.key(1), z_bd)["params"]
    return params, variables


@functools.partial(jax.jit, static_argnums=(0, 4))
def apply(backbone, params, model_state, x_bhwc, train=False):
    variables = {"params": params["backbone"], **model_state}
    return backbone.apply(variables, x_bhwc, train, mutable=list(model_state))


def images(size, batch=3):
    x_nchw = np.random.default_rng(9).normal(size=(batch, 3, *size)).astype(np.float32)
    return x_nchw, x_nchw.transpose(0, 2, 3, 1)


def torch_name(path):
    """The name in torchvision of an array of our batch statistics."""
    path = re.sub(r"^batch_stats/(layer\d)_(\d+)", r"\1.\2", path).replace("batch_stats/", "")
    path = path.replace("downsample_bn", "downsample.1")
    return path.replace("/mean", ".running_mean").replace("/var", ".running_var").replace("/", ".")


def mrl_head(dims, kind, width, plain=False):
    """(state dict of the reference's head, logits by dims in numpy)."""
    rng = np.random.default_rng(3)
    sizes = dims if kind == "separate" else (dims[-1],)
    names = ["fc"] if plain else [f"fc.nesting_classifier_{i}" for i in range(len(sizes))]
    state = {}
    for name, size in zip(names, sizes, strict=True):
        state |= reference.linear_state(rng, name, size, CLASSES)

    def logits(z_nd):
        found = []
        for g, m in enumerate(dims):
            name = names[g if kind == "separate" else 0]
            found.append(z_nd[:, :m] @ state[f"{name}.weight"][:, :m].T + state[f"{name}.bias"])
        return np.stack(found)

    assert width >= dims[-1]
    return state, logits


def refusal(kind, path, backbone, trees):
    with pytest.raises(kind) as caught:
        load_weights(path, backbone, *trees)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("blurpool", [False, True])
@pytest.mark.parametrize("name", STAGES)
def test_a_resnet_is_the_torch_one_in_evaluation_and_training(tmp_path, name, blurpool):
    bottleneck = name == "bottleneck"
    backbone = ResNet(STAGES[name], bottleneck, width=8, blurpool=blurpool)
    nesting = Nesting((4, 16, 64))
    head = NestedHead(nesting, CLASSES)
    state = reference.resnet_state(STAGES[name], bottleneck, 8, blurpool=blurpool)
    assert any("blur_filter" in key for key in state) == blurpool
    head_state, logits = mrl_head(nesting.dims, "separate", backbone.out_dim)
    path = save(tmp_path, state | head_state, prefix="module." if blurpool else "")
    trees = abstract(backbone, head)
    params, model_state = load_weights(path, backbone, *trees)
    assert jax.tree.map(jax.typeof, (params, model_state)) == jax.tree.map(jax.typeof, trees)

    x_nchw, x_bhwc = images((64, 96))
    exact, _ = reference.resnet(state, x_nchw)
    z_bd, _ = apply(backbone, params, model_state, x_bhwc)
    np.testing.assert_allclose(z_bd, exact, atol=2e-5 * abs(exact).max())
    found = head.apply({"params": params["head"]}, z_bd)
    np.testing.assert_allclose(found, logits(exact), atol=1e-4)

    exact, updates = reference.resnet(state, x_nchw, train=True)
    z_bd, new_state = apply(backbone, params, model_state, x_bhwc, True)
    np.testing.assert_allclose(z_bd, exact, atol=2e-4 * abs(exact).max())
    flat = traverse_util.flatten_dict(new_state, sep="/")
    assert {torch_name(path) for path in flat} == set(updates)
    for path, value in flat.items():
        np.testing.assert_allclose(value, updates[torch_name(path)], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "dims", "plain"),
    [
        ("separate", (4, 8, 32), False),
        ("separate", (32,), True),
        ("shared", (4, 8, 32), False),
        ("shared", (4, 8, 32), True),  # checkpoints that the reference calls old
        ("fixed", (8,), True),
        ("fixed", (32,), True),  # torchvision's own classifier
    ],
)
def test_heads_of_the_reference(tmp_path, kind, dims, plain):
    backbone = ResNet(TINY, False, width=4)
    head = NestedHead(Nesting(dims), CLASSES, kind)
    head_state, logits = mrl_head(dims, kind, 32, plain)
    path = save(tmp_path, reference.resnet_state(TINY, False, 4) | head_state)
    params, _ = load_weights(path, backbone, *abstract(backbone, head))
    z_bd = np.random.default_rng(1).normal(size=(6, 32)).astype(np.float32)
    found = head.apply({"params": params["head"]}, z_bd)
    np.testing.assert_allclose(found, logits(z_bd), atol=1e-5)


def test_classifiers_are_ordered_by_their_dims_as_numbers(tmp_path):
    dims = tuple(range(1, 12))  # eleven classifiers: _10 comes after _9, not after _1
    backbone = ResNet(TINY, False, width=4)
    head_state, _ = mrl_head(dims, "separate", 32)
    path = save(tmp_path, reference.resnet_state(TINY, False, 4) | head_state)
    params, _ = load_weights(
        path, backbone, *abstract(backbone, NestedHead(Nesting(dims), CLASSES))
    )
    for g, m in enumerate(dims):
        expected = head_state[f"fc.nesting_classifier_{g}.weight"].T
        np.testing.assert_array_equal(params["head"][f"kernel_{m:04d}"], expected)


def vit_tensors(names, pool="cls", depth=2):
    """(state dict in timm's names, the same in the names of the file), with a classifier."""
    state = reference.vit_state(PATCH, WIDTH, depth, 6 + (pool == "cls"), pool=pool)
    classifier = reference.linear_state(np.random.default_rng(3), "head", WIDTH, CLASSES)
    stored = state
    if names != "timm":
        version, _, prefix = names.partition(" ")
        stored = reference.to_transformers(state, int(version))
        stored = {prefix + name: value for name, value in stored.items()}
        stored |= {n.replace("head", "classifier"): value for n, value in classifier.items()}
    else:
        stored = state | classifier
    return state | classifier, stored


@pytest.mark.parametrize(
    ("names", "pool", "depth"),
    [  # as names, block 10 comes before block 2
        ("timm", "cls", 11),
        ("timm", "gap", 2),
        ("4 ", "cls", 11),
        ("4 vit.", "cls", 11),
        ("5 vit.", "cls", 11),
    ],
)
def test_a_vit_is_the_torch_one(tmp_path, names, pool, depth):
    state, stored = vit_tensors(names, pool, depth)
    backbone = ViT(PATCH, WIDTH, depth, HEADS, pool)
    head = NestedHead(Nesting((6, WIDTH)), CLASSES, "shared")
    path = save(tmp_path, stored, prefix="module." if names == "5 vit." else "")
    params, model_state = load_weights(path, backbone, *abstract(backbone, head, IMAGE))
    assert model_state == {}
    x_nchw, x_bhwc = images(IMAGE)
    exact = reference.vit(state, x_nchw, HEADS)
    z_bd, _ = apply(backbone, params, model_state, x_bhwc)
    np.testing.assert_allclose(z_bd, exact, atol=1e-5 * abs(exact).max())
    logits = exact @ state["head.weight"].T + state["head.bias"]
    found = head.apply({"params": params["head"]}, z_bd)
    np.testing.assert_allclose(found[-1], logits, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_float_dtypes_become_float32(tmp_path, dtype):
    backbone = ResNet(TINY, False, width=4)
    state = reference.resnet_state(TINY, False, 4)
    stored = {name: value.astype(jnp.dtype(dtype)) for name, value in state.items()}
    params, model_state = load_weights(save(tmp_path, stored), backbone, *abstract(backbone))
    assert {leaf.dtype for leaf in jax.tree.leaves((params, model_state))} == {jnp.dtype("float32")}
    expected = stored["layer1.0.bn1.running_mean"].astype(np.float32)
    np.testing.assert_array_equal(model_state["batch_stats"]["layer1_0"]["bn1"]["mean"], expected)


def test_a_skipped_head_and_what_belongs_to_it_stay_as_they_are(tmp_path):
    backbone = ViT(PATCH, WIDTH, 2, HEADS, "cls", embedding_dim=10)
    head = NestedHead(Nesting((2, 10)), 7)
    _, stored = vit_tensors("4 ")
    stored |= reference.linear_state(np.random.default_rng(4), "pooler.dense", WIDTH, WIDTH)
    path = save(tmp_path, stored)
    shapes = abstract(backbone, head, IMAGE)
    params, model_state = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.5), shapes)
    loaded, _ = load_weights(path, backbone, params, model_state, head="skip")
    for mine, given in (
        (loaded["head"], params["head"]),
        (loaded["backbone"]["embedding"], params["backbone"]["embedding"]),
    ):
        jax.tree.map(np.testing.assert_array_equal, mine, given)
    np.testing.assert_array_equal(
        loaded["backbone"]["cls"], stored["embeddings.cls_token"].reshape(-1)
    )
    # Nothing that was given is changed, and without "skip" all that does not fit is named.
    assert (np.asarray(params["backbone"]["cls"]) == 0.5).all()
    message = refusal(UsageError, path, backbone, (params, model_state))
    for part in (
        "no tensor for backbone/embedding/bias, backbone/embedding/kernel, head/bias_0010 and 1 mo",
        "no parameter for pooler.dense.bias, pooler.dense.weight",
        "wrong shape: classifier.bias [5] for head/bias_0002 [7], classifier.weight [5, 24] for",
    ):
        assert part in message


def put(name, value):
    return lambda state: state | {name: np.asarray(value, np.float32)}


def drop(*names):
    return lambda state: {name: value for name, value in state.items() if name not in names}


def poison(name, value, dtype=np.float32):
    def change(state):
        array = state[name].astype(dtype)
        array.flat[0] = value
        return state | {name: array}

    return change


RESNET_CASES = [
    (drop("layer1.0.bn1.bias"), UsageError, "no tensor for backbone/layer1_0/bn1/bias; legal: the"),
    (
        lambda state: state | reference.resnet_state((1, 3, 1, 1), False, 4) | head_of_five(),
        UsageError,
        r"no parameter for layer2.1.bn1.bias, layer2.1.bn1.running_mean, \S+ and 17 more; legal",
    ),
    (
        put("fc.weight", np.zeros((9, 32))),
        UsageError,
        r"wrong shape: fc.weight \[9, 32\] for head/kernel \[32, 5\]; legal: .* head='skip'",
    ),
    (put("conv1.weight", np.zeros(4)), UsageError, r"conv1.weight \[4\] for .*\[7, 7, 3, 4\]"),
    (drop("fc.weight", "fc.bias"), UsageError, "no tensor for head/bias, head/kernel; legal"),
    (put("fc.nesting_classifier_0.bias", np.zeros(5)), UsageError, "no parameter for fc.nesting"),
    (put("layer1.0.conv1.conv.weight", np.zeros((4, 4, 3, 3))), UsageError, "no parameter for lay"),
    (put("module.fc.bias", np.zeros(5)), UsageError, "no parameter for module.fc.bias"),
    (poison("bn1.running_var", -1.0), DataError, "bn1.running_var has negative variances"),
    (poison("fc.bias", np.nan), DataError, "fc.bias has 1 values that are NaN or infinite"),
    (poison("conv1.weight", 1e300, np.float64), DataError, "conv1.weight has 1 values that are"),
    (
        lambda state: state | {"fc.bias": np.zeros(5, np.int8)},
        DataError,
        "fc.bias has dtype I8, legal are F16, BF16, F32, F64",
    ),
    (
        drop("layer1.0.bn1.weight"),
        DataError,
        r"such as bn1.bias, .* to no known network; .* timm ViT, tra",
    ),
    (lambda state: {}, DataError, r"names such as \(none\) belong to no known"),
]


def head_of_five():
    return reference.linear_state(np.random.default_rng(3), "fc", 32, CLASSES)


@pytest.mark.parametrize(("change", "kind", "message"), RESNET_CASES)
def test_a_resnet_that_does_not_fit_is_refused(tmp_path, change, kind, message):
    backbone = ResNet(TINY, False, width=4)
    state = change(reference.resnet_state(TINY, False, 4) | head_of_five())
    trees = abstract(backbone, NestedHead(Nesting((8, 32)), CLASSES, "shared"))
    assert re.search(message, refusal(kind, save(tmp_path, state), backbone, trees))


@pytest.mark.parametrize(
    ("pool", "change", "message"),
    [
        ("gap", drop(), r"with pool 'cls', the model has 'gap'; legal: a model with pool 'cls'"),
        ("cls", drop("cls_token"), "neither of class token and fc_norm .* legal: a class token"),
        ("cls", put("fc_norm.bias", np.zeros(WIDTH)), "both of class token and fc_norm"),
        ("cls", drop("blocks.1.attn.qkv.bias"), "no tensor for backbone/block_01/attention/key/b"),
        ("cls", put("reg_token", np.zeros((1, 1, WIDTH))), "no parameter for reg_token"),
        ("cls", put("pos_embed", np.zeros((1, 5, WIDTH))), r"pos_embed \[1, 5, 24\] for .*\[7, 24"),
        ("cls", put("blocks.0.attn.qkv.bias", np.zeros(71)), r"qkv.bias \[71\] for .*key/bias \["),
    ],
)
def test_a_vit_that_does_not_fit_is_refused(tmp_path, pool, change, message):
    _, stored = vit_tensors("timm")
    backbone = ViT(PATCH, WIDTH, 2, HEADS, pool)
    trees = abstract(backbone, NestedHead(Nesting((WIDTH,)), CLASSES, "fixed"), IMAGE)
    path = save(tmp_path, change(stored))
    assert re.search(message, refusal(UsageError, path, backbone, trees))


def test_the_network_and_its_blurs_must_be_the_models(tmp_path):
    blurred, plain = (ResNet(TINY, False, width=8, blurpool=value) for value in (True, False))
    trees = abstract(plain)
    state = reference.resnet_state(TINY, False, 8, blurpool=True)
    path = save(tmp_path, state)
    message = "blurs before 4 convolutions, the model before 0 .*; legal: .* blurpool=True"
    assert re.search(message, refusal(UsageError, path, plain, trees))
    path = save(tmp_path, put("layer3.0.conv1.blur_filter", np.ones((16, 1, 3, 3)))(state))
    assert "layer3.0.conv1.blur_filter is not FFCV's" in refusal(UsageError, path, blurred, trees)
    weight = state.pop("layer4.0.conv1.conv.weight")
    path = save(tmp_path, state | {"layer4.0.conv1.weight": weight})
    message = "before 3 convolutions, the model before 4 .*layer4_0/conv1/.* legal: FFCV's rule"
    assert re.search(message, refusal(UsageError, path, blurred, trees))
    path = save(tmp_path, reference.resnet_state(TINY, False, 8))
    assert "legal: a model with blurpool=False" in refusal(UsageError, path, blurred, trees)
    message = refusal(UsageError, path, Cnn(4), trees)
    assert "holds a torchvision or RAIVNLab/MRL ResNet, the model's backbone is a Cnn" in message


def test_files_that_are_not_safetensors_are_refused(tmp_path):
    backbone = ResNet(TINY, False, width=4)
    trees = abstract(backbone)
    path = save(tmp_path, reference.resnet_state(TINY, False, 4))
    whole = path.read_bytes()
    for content in (b"", b"PK\x03\x04 no header", whole[:-1], whole[:40]):
        path.write_bytes(content)
        assert "not a safetensors file, or cut short" in refusal(DataError, path, backbone, trees)
    assert "not found" in refusal(UsageError, tmp_path / "no.safetensors", backbone, trees)
    folder = tmp_path / "folder.safetensors"
    folder.mkdir()
    assert "is a folder, where a file is needed" in refusal(DataError, folder, backbone, trees)
    message = refusal(UsageError, tmp_path / "weights.npz", backbone, trees)
    assert "must be a .safetensors file" in message
    with pytest.raises(ValueError, match="head must be one of load, skip; got 'drop'"):
        load_weights(path, backbone, *trees, head="drop")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
def test_pickles_are_refused_with_the_command_that_converts_them(tmp_path, suffix):
    backbone = ResNet(TINY, False, width=4)
    path = tmp_path / f"final weights{suffix}"
    message = refusal(UsageError, path, backbone, abstract(backbone))
    command = message[message.index("python -c '") :]
    code = command.removeprefix("python -c '").removesuffix("'")
    compile(code, "command", "exec")
    assert f'torch.load("{path}", map_location="cpu", weights_only=True)' in code
    assert f'"{path.with_suffix(".safetensors")}")' in code


class Tensor:
    """What the converting command uses of torch.Tensor."""

    def __init__(self, value):
        self.value = value

    def clone(self):
        return self

    def contiguous(self):
        return self


RAW, AVERAGE = ({"module.fc.bias": Tensor(value)} for value in (1, 2))
CHECKPOINTS = {
    "the whole file": (RAW, 1),
    "state_dict": ({"epoch": 3, "state_dict": RAW, "hyper_parameters": {"lr": 0.1}}, 1),
    "model": ({"model": RAW, "optimizer": {"state": {0: Tensor(0)}}, "model_ema": None}, 1),
    "model_ema": ({"model": RAW, "model_ema": AVERAGE | {"n_averaged": Tensor(9)}}, 2),
    "state_dict_ema": ({"state_dict": RAW, "state_dict_ema": AVERAGE}, 2),
    "ema/state_dict": ({"model": RAW, "ema": {"decay": 0.9, "state_dict": AVERAGE}}, 2),
    "teacher": ({"student": RAW, "teacher": AVERAGE}, 2),
    "model/state_dict": ({"model": {"state_dict": RAW}, "ema": {"decay": 0.9}}, 1),
}


@pytest.mark.parametrize("place", CHECKPOINTS)
def test_the_converting_command_takes_averages_first_and_says_so(
    tmp_path, monkeypatch, capsys, place
):
    checkpoint, value = CHECKPOINTS[place]
    path, backbone = tmp_path / "a b.pth", ResNet(TINY, False, width=4)
    message = refusal(UsageError, path, backbone, abstract(backbone))
    assert "takes averaged weights, EMA, before others" in message
    _, _, code = shlex.split(message[message.index("python -c ") :])
    saved = {}
    torch = types.SimpleNamespace(
        load=lambda file, map_location, weights_only: {str(path): checkpoint}[file],
        is_tensor=lambda x: isinstance(x, Tensor),
        serialization=types.SimpleNamespace(add_safe_globals=lambda kinds: None),
    )
    writer = types.SimpleNamespace(save_file=lambda state, out: saved.update({out: state}))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "safetensors.torch", writer)
    monkeypatch.setattr("safetensors.torch", writer, raising=False)
    exec(code, {})
    (state,) = saved.values()
    assert list(saved) == [str(tmp_path / "a b.safetensors")]
    assert state["module.fc.bias"].value == value
    assert f"weights taken: {place} of" in capsys.readouterr().out


@pytest.mark.parametrize(
    "prefix",
    [
        "model.",
        "backbone.",
        "encoder.",
        "student.",
        "_orig_mod.",
        "module.module.",
        "module._orig_mod.model.",
        "_orig_mod.module.backbone.",
    ],
)
def test_whatever_modules_are_around_a_network_it_is_found(tmp_path, prefix):
    backbone = ResNet(TINY, False, width=4)
    state = reference.resnet_state(TINY, False, 4) | head_of_five()
    trees = abstract(backbone, NestedHead(Nesting((32,)), CLASSES, "fixed"))
    expected = load_weights(save(tmp_path, state), backbone, *trees)
    wrapped = {prefix + name: value for name, value in state.items()}
    # torch.compile of a part, and the count of torch.optim.swa_utils.
    name = f"{prefix}layer1.0.conv1.weight"
    wrapped[name.replace("layer1.0", "layer1._orig_mod.0")] = wrapped.pop(name)
    wrapped["n_averaged"] = np.array(3, np.int64)
    found = load_weights(save(tmp_path, wrapped), backbone, *trees)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_of_several_networks_the_average_is_read_or_one_is_asked_for(tmp_path):
    backbone = ResNet(TINY, False, width=4)
    state = reference.resnet_state(TINY, False, 4)
    trees, lines = abstract(backbone), []
    both = {f"student.backbone.{name}": value + 1 for name, value in state.items()}
    both |= {f"teacher.backbone.{name}": value for name, value in state.items()}
    path = save(tmp_path, both)
    params, _ = load_weights(path, backbone, *trees, say=lines.append)
    np.testing.assert_array_equal(params["backbone"]["bn1"]["bias"], state["bn1.bias"])
    assert lines == [
        f"of {path} the averaged network is read, whose names begin with 'teacher.backbone.', not "
        "'student.backbone.'"
    ]
    renamed = {name.replace("teacher", "other"): value for name, value in both.items()}
    message = refusal(UsageError, save(tmp_path, renamed), backbone, trees)
    assert "holds 2 networks, whose names begin with 'other.backbone.', 'student.back" in message
    twice = {**state, "_orig_mod.bn1.bias": state["bn1.bias"]}
    message = refusal(DataError, save(tmp_path, twice), backbone, trees)
    assert "two tensors are called bn1.bias" in message


def test_what_is_not_read_of_a_file_is_said(tmp_path):
    backbone, lines = ResNet(TINY, False, width=4), []
    state = reference.resnet_state(TINY, False, 4) | head_of_five()
    wrapped = {f"backbone.{name}": value for name, value in state.items()}
    wrapped["projector.weight"] = np.zeros((2, 2), np.float32)
    path = save(tmp_path, wrapped)
    trees = abstract(backbone, NestedHead(Nesting((8, 32)), 7))
    load_weights(path, backbone, *trees, head="skip", say=lines.append)
    assert lines == [f"not read of {path}: fc.bias, fc.weight, projector.weight"]
    message = refusal(UsageError, path, backbone, trees)
    assert "no parameter for projector.weight" in message


# What timm 1.0.31 makes of sin(0.7 i^2), i the place in the embedding, by resample_abs_pos_embed.
RESIZED = {
    (
        3,
        5,
    ): """0.0 0.79186 0.66884 0.4339 0.14573 -0.01875 0.03622 -0.06819 -0.20106 -0.06044 0.04824
        -0.97945 -1.02463 -0.97563 -0.2984 0.14591 -0.2752 -0.13956 0.0728 0.12034 0.12755 0.30928
        0.55825 0.85827 0.42586 0.10414""",
    (5, 2): "0.0 0.23804 -0.13608 0.19613 0.11385",
}


@pytest.mark.parametrize("pool", ["cls", "gap"])
@pytest.mark.parametrize("sides", RESIZED)
def test_position_embeddings_are_resized_as_timm_resizes_them(tmp_path, sides, pool):
    old, new = sides
    state = reference.vit_state(PATCH, WIDTH, 1, old * old + (pool == "cls"), pool=pool)
    position_t = np.sin(np.arange(1 + old * old) ** 2 * 0.7)[pool == "gap" :]
    state["pos_embed"] = np.repeat(position_t[None, :, None], WIDTH, 2).astype(np.float32)
    backbone, lines = ViT(PATCH, WIDTH, 1, HEADS, pool), []
    path = save(tmp_path, state)
    trees = abstract(backbone, None, (PATCH * new, PATCH * new))
    params, _ = load_weights(path, backbone, *trees, say=lines.append)
    exact_t = np.array([float(x) for x in RESIZED[sides].split()])[pool == "gap" :]
    found_td = params["backbone"]["position"]
    np.testing.assert_allclose(found_td, np.repeat(exact_t[:, None], WIDTH, 1), atol=2e-5)
    assert lines == [f"pos_embed of {path} resized from {old}x{old} to {new}x{new} patches"]


def test_without_safetensors_the_import_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("mrl_jax.interop")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(UsageError, match=r"needs more packages: pip install .*mrl_jax\[weights\]"):
        import mrl_jax.interop  # noqa: F401


def test_training_starts_from_weights_and_keeps_what_they_do_not_have(tmp_path):
    from mrl_jax import config as configs
    from mrl_jax.config import tasks
    from mrl_jax.experiment import make_mesh, make_program
    from mrl_jax.tasks.classification import build

    c = configs.default_config()
    c.model.name, c.model.embedding_dim, c.model.width, c.model.stem = "resnet18", 0, 4, "small"
    c.nesting.dims = (4, 32)
    c.optimizer.ema_decay = 0.5
    c.mesh.data, c.mesh.fsdp = 2, 4
    mesh = make_mesh(c)
    facts = {"classes": [*"abcdefgh"], "image_shape": [8, 8, 3]}
    program = make_program(c, facts, mesh, tasks.builder(c.task))
    shapes = program.state
    state = jax.tree.map(lambda s: jax.device_put(np.full(s.shape, 7, s.dtype), s.sharding), shapes)
    tensors = reference.resnet_state((2, 2, 2, 2), False, 4, stem=3)
    c.weights = str(save(tmp_path, tensors))
    _, put_in = build.start(c, facts, program, None)
    found = put_in(state)
    kernel = np.moveaxis(tensors["layer3.0.conv1.weight"], (0, 1), (3, 2))
    for name in ("params", "ema_params"):
        mine = found[name]["backbone"]["layer3_0"]["conv1"]["conv"]["kernel"]
        np.testing.assert_array_equal(mine, kernel)
        assert (np.asarray(found[name]["head"]["kernel_0004"]) == 7).all()
    for name in ("model_state", "ema_model_state"):
        variance = found[name]["batch_stats"]["bn1"]["var"]
        np.testing.assert_allclose(variance, tensors["bn1.running_var"], rtol=1e-6)
    assert int(found["step"]) == 7
    assert jax.tree.map(lambda x: x.sharding, found) == jax.tree.map(lambda x: x.sharding, shapes)
