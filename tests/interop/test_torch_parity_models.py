"""Imported weights beside the PyTorch networks themselves: torchvision, timm and transformers.

Runs where those are installed (`pip install torch torchvision timm transformers`); the stack
itself never needs them, and test_torch_weights.py covers the same with a numpy oracle.
"""

import functools
import shlex
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_reference as reference
from flax import traverse_util

from mrl_jax import NestedHead, Nesting
from mrl_jax.errors import UsageError
from mrl_jax.models import build
from mrl_jax.models.vit import ViT

torch = pytest.importorskip("torch", reason="the cross-check needs torch")
safetensors_torch = pytest.importorskip("safetensors.torch", reason="weights need safetensors")

from mrl_jax.interop import load_weights  # noqa: E402 (refuses to be imported without safetensors)

CLASSES = 7


class BlurPool(torch.nn.Module):
    """As FFCV's training of ImageNet wraps a convolution: names and arithmetic."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv
        filter_1133 = torch.tensor(reference.FILTER)[None, None]
        self.register_buffer("blur_filter", filter_1133.repeat(conv.in_channels, 1, 1, 1))

    def forward(self, x):
        channels = self.conv.in_channels
        blurred = torch.nn.functional.conv2d(x, self.blur_filter, padding=1, groups=channels)
        return self.conv(blurred)


def blur_strided(module):
    for name, child in list(module.named_children()):
        if isinstance(child, torch.nn.Conv2d) and child.stride[0] > 1 and child.in_channels >= 16:
            setattr(module, name, BlurPool(child))
        else:
            blur_strided(child)


class Nested(torch.nn.Module):
    """The names of the reference's MRL head; gives the features on."""

    def __init__(self, dims):
        super().__init__()
        for i, m in enumerate(dims):
            setattr(self, f"nesting_classifier_{i}", torch.nn.Linear(m, CLASSES))

    def forward(self, z):
        return z


def shaken(model, scale):
    """Leaves no parameter at a constant that would hide a swap."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return model


def abstract(backbone, head, size):
    def init():
        x_bhwc = jnp.zeros((1, size, size, 3))
        variables = backbone.init(jax.random.key(0), x_bhwc)
        params = {"backbone": variables.pop("params")}
        if head is not None:
            z_bd = jnp.zeros((1, backbone.out_dim))
            params["head"] = head.init(jax.random.key(1), z_bd)["params"]
        return params, variables

    return jax.eval_shape(init)


@functools.partial(jax.jit, static_argnums=(0, 4))
def apply(backbone, params, model_state, x_bhwc, train=False):
    variables = {"params": params["backbone"], **model_state}
    return backbone.apply(variables, x_bhwc, train, mutable=list(model_state))


def check(name, found, expected, most):
    error = float(np.abs(np.asarray(found) - np.asarray(expected)).max())
    print(f"{name}: {error:.2g} of {np.abs(np.asarray(expected)).max():.3g}")  # pytest -rP shows
    assert error < most


@pytest.mark.parametrize("blurpool", [False, True])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvision_resnets(tmp_path, name, blurpool):
    models = pytest.importorskip("torchvision.models", reason="the cross-check needs torchvision")
    torch.manual_seed(0)
    theirs = shaken(getattr(models, name)(), 0.005)
    ours = build(name, blurpool=blurpool)
    dims = (8, 64, ours.out_dim)
    theirs.fc = Nested(dims)
    if blurpool:
        blur_strided(theirs)
    x = torch.randn(8, 3, 96, 96)
    x_bhwc = x.numpy().transpose(0, 2, 3, 1)
    with torch.no_grad():
        theirs.train()(x)  # running statistics that are not those of the start
        state = {f"module.{key}": value.clone() for key, value in theirs.state_dict().items()}
        path = tmp_path / "weights.safetensors"
        safetensors_torch.save_file(state, path)
        evaluated = theirs.eval()(x).numpy()
        trained = theirs.train()(x).numpy()
    after = {key: value.numpy() for key, value in theirs.state_dict().items()}

    head = NestedHead(Nesting(dims), CLASSES)
    params, model_state = load_weights(path, ours, *abstract(ours, head, 96))
    z_bd, _ = apply(ours, params, model_state, x_bhwc)
    check("eval", z_bd, evaluated, 1e-4)
    logits = head.apply({"params": params["head"]}, z_bd)
    for g, m in enumerate(dims):
        linear = getattr(theirs.fc, f"nesting_classifier_{g}")
        expected = linear(torch.tensor(evaluated[:, :m])).detach().numpy()
        check(f"logits {m}", logits[g], expected, 1e-4)
    z_bd, new_state = apply(ours, params, model_state, x_bhwc, True)
    # Fifty layers of batch statistics: PyTorch in float32 is 1.8e-4 off itself in float64 here.
    check("train", z_bd, trained, 5e-4 if name == "resnet50" else 1e-4)
    # The statistics after a step, read as a file, are those that our step gives.
    updated = tmp_path / "updated.safetensors"
    safetensors_torch.save_file(theirs.state_dict(), updated)
    _, expected = load_weights(updated, ours, *abstract(ours, head, 96))
    expected = traverse_util.flatten_dict(expected)
    found = traverse_util.flatten_dict(new_state)
    error = max(float(np.abs(found[key] - expected[key]).max()) for key in expected)
    check("running statistics", error, 0.0, 1e-4)

    if name == "resnet18":
        before = {key.removeprefix("module."): value.numpy() for key, value in state.items()}
        check("oracle", reference.resnet(before, x.numpy())[0], evaluated, 1e-4)
        exact, updates = reference.resnet(before, x.numpy(), train=True)
        check("oracle in training", exact, trained, 1e-4)
        for key, value in updates.items():
            np.testing.assert_allclose(value, after[key], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("pool", ["cls", "gap"])
def test_timm_vits(tmp_path, pool):
    timm = pytest.importorskip("timm", reason="the cross-check needs timm")
    torch.manual_seed(0)
    options = {} if pool == "cls" else {"class_token": False, "global_pool": "avg"}
    theirs = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, num_classes=CLASSES, **options
    ).eval()
    shaken(theirs, 0.05)
    path = tmp_path / "weights.safetensors"
    safetensors_torch.save_file(theirs.state_dict(), path)
    x = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        expected = theirs.forward_head(theirs.forward_features(x), pre_logits=True).numpy()
        logits = theirs(x).numpy()
    ours = build("vit_ti16", pool=pool)
    head = NestedHead(Nesting((ours.out_dim,)), CLASSES, "fixed")
    params, state = load_weights(path, ours, *abstract(ours, head, 64))
    x_bhwc = x.numpy().transpose(0, 2, 3, 1)
    z_bd, _ = apply(ours, params, state, x_bhwc)
    check("features", z_bd, expected, 1e-4)
    check("logits", head.apply({"params": params["head"]}, z_bd)[0], logits, 1e-4)
    z_bd, _ = apply(ours, params, state, x_bhwc, True)
    check("train", z_bd, expected, 1e-4)
    names = {key: value.numpy() for key, value in theirs.state_dict().items()}
    check("oracle", reference.vit(names, x.numpy(), 3), expected, 1e-4)


@pytest.mark.parametrize("saved", ["save_pretrained", "state_dict"])
@pytest.mark.parametrize("classifier", [False, True])
def test_transformers_vits(tmp_path, classifier, saved):
    transformers = pytest.importorskip("transformers", reason="the cross-check needs transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=96,
        num_hidden_layers=11,
        num_attention_heads=3,
        intermediate_size=384,
        image_size=32,
        patch_size=8,
        num_labels=CLASSES,
        layer_norm_eps=1e-6,  # by default 1e-12: our features then differ in the fourth digit
    )
    kind = transformers.ViTForImageClassification if classifier else transformers.ViTModel
    theirs = shaken(kind(config), 0.05).eval()
    path = tmp_path / "model.safetensors"
    if saved == "save_pretrained":
        theirs.save_pretrained(tmp_path)
    else:
        safetensors_torch.save_file(theirs.state_dict(), path)
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        inner = theirs.vit if classifier else theirs
        expected = inner(x).last_hidden_state[:, 0].numpy()
    ours = ViT(8, 96, 11, 3, "cls")
    head = NestedHead(Nesting((96,)), CLASSES, "fixed") if classifier else None
    trees = abstract(ours, head, 32)
    params, state = load_weights(path, ours, *trees, head="load" if classifier else "skip")
    z_bd, _ = apply(ours, params, state, x.numpy().transpose(0, 2, 3, 1))
    check("features", z_bd, expected, 1e-4)
    if classifier:
        logits = head.apply({"params": params["head"]}, z_bd)[0]
        with torch.no_grad():
            check("logits", logits, theirs(x).logits.numpy(), 1e-4)


@pytest.mark.parametrize("nested", [False, True])
def test_the_command_in_the_message_converts_a_pickle(tmp_path, nested):
    backbone = build("resnet18", width=4)
    state = reference.resnet_state((2, 2, 2, 2), False, 4)
    tensors = {name: torch.tensor(value) for name, value in state.items()}
    path = tmp_path / "final weights.pt"
    torch.save({"state_dict": tensors, "epoch": 3} if nested else tensors, path)
    trees = abstract(backbone, None, 32)
    with pytest.raises(UsageError) as caught:
        load_weights(path, backbone, *trees)
    message = str(caught.value)
    _, *arguments = shlex.split(message[message.index("python -c") :])
    subprocess.run([sys.executable, *arguments], check=True)
    params, _ = load_weights(path.with_suffix(".safetensors"), backbone, *trees)
    expected = state["conv1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(params["backbone"]["conv1"]["conv"]["kernel"], expected)
