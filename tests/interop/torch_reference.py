"""PyTorch's ResNet and ViT, computed from their state dicts in numpy, float64 and NCHW.

Written from PyTorch's documentation and the papers, and checked against torchvision, timm and
transformers by test_torch_parity_models.py where those are installed.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.special import erf

FILTER = np.float32([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16


def _windows(x_nchw, size, stride, padding, fill=0.0):
    border = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    padded = np.pad(x_nchw, border, constant_values=fill)
    return sliding_window_view(padded, (size, size), (2, 3))[:, :, ::stride, ::stride]


def conv2d(x_nchw, w_oihw, stride=1, padding=0):
    windows = _windows(x_nchw, w_oihw.shape[-1], stride, padding)
    return np.einsum("nchwij,ocij->nohw", windows, np.float64(w_oihw), optimize=True)


def _batch_norm(state, name, x, train, updates):
    mean, var = (np.float64(state[f"{name}.running_{kind}"]) for kind in ("mean", "var"))
    if train:
        flat = x.transpose(1, 0, 2, 3).reshape(x.shape[1], -1)
        updates[f"{name}.running_mean"] = 0.9 * mean + 0.1 * flat.mean(1)
        updates[f"{name}.running_var"] = 0.9 * var + 0.1 * flat.var(1, ddof=1)
        mean, var = flat.mean(1), flat.var(1)
    gain = state[f"{name}.weight"] / np.sqrt(var + 1e-5)
    shift = state[f"{name}.bias"] - mean * gain
    return x * gain[:, None, None] + shift[:, None, None]


def _convolve(state, name, x, stride):
    if f"{name}.blur_filter" in state:  # FFCV's BlurPoolConv2d
        windows = _windows(x, 3, 1, 1)
        x = np.einsum("nchwij,cij->nchw", windows, state[f"{name}.blur_filter"][:, 0])
        name = f"{name}.conv"
    w_oihw = state[f"{name}.weight"]
    return conv2d(x, w_oihw, stride, w_oihw.shape[-1] // 2)


def resnet(state, x_nchw, train=False):
    """(features [N, D], running statistics after the batch) of torchvision's ResNet."""
    updates = {}
    stem = state["conv1.weight"].shape[-1]
    x = _convolve(state, "conv1", x_nchw, 2 if stem == 7 else 1)
    x = np.maximum(_batch_norm(state, "bn1", x, train, updates), 0)
    if stem == 7:
        x = _windows(x, 3, 2, 1, -np.inf).max((-2, -1))
    blocks = sorted({tuple(key.split(".")[:2]) for key in state if key.startswith("layer")})
    for stage, index in blocks:
        block = f"{stage}.{index}"
        halves = stage != "layer1" and index == "0"
        count = 3 if f"{block}.bn3.weight" in state else 2
        y = x
        for i in range(1, count + 1):
            # Version 1.5: a bottleneck halves the resolution in its 3x3 convolution.
            stride = 2 if halves and i == count - 1 else 1
            y = _convolve(state, f"{block}.conv{i}", y, stride)
            y = _batch_norm(state, f"{block}.bn{i}", y, train, updates)
            if i < count:
                y = np.maximum(y, 0)
        if f"{block}.downsample.1.weight" in state:
            x = _convolve(state, f"{block}.downsample.0", x, 2 if halves else 1)
            x = _batch_norm(state, f"{block}.downsample.1", x, train, updates)
        x = np.maximum(x + y, 0)
    return x.mean((2, 3)), updates


def _layer_norm(state, name, x):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-6) * state[f"{name}.weight"] + state[f"{name}.bias"]


def _linear(state, name, x):
    return x @ np.float64(state[f"{name}.weight"]).T + state[f"{name}.bias"]


def vit(state, x_nchw, heads):
    """Features [N, D] of timm's VisionTransformer: cls_token with norm, or fc_norm of the mean."""
    w_oihw = state["patch_embed.proj.weight"]
    x = conv2d(x_nchw, w_oihw, w_oihw.shape[-1])
    x = x.reshape(*x.shape[:2], -1).swapaxes(1, 2) + state["patch_embed.proj.bias"]
    batch, _, width = x.shape
    if "cls_token" in state:
        x = np.concatenate([np.broadcast_to(state["cls_token"], (batch, 1, width)), x], 1)
    x = x + state["pos_embed"]
    for index in range(len({key.split(".")[1] for key in state if key.startswith("blocks")})):
        block = f"blocks.{index}"
        y = _linear(state, f"{block}.attn.qkv", _layer_norm(state, f"{block}.norm1", x))
        y = y.reshape(batch, -1, 3, heads, width // heads)
        query, key, value = (y[:, :, i].swapaxes(1, 2) for i in range(3))
        scores = query @ key.swapaxes(2, 3) / np.sqrt(width // heads)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        y = weights / weights.sum(-1, keepdims=True) @ value
        x = x + _linear(state, f"{block}.attn.proj", y.swapaxes(1, 2).reshape(batch, -1, width))
        y = _linear(state, f"{block}.mlp.fc1", _layer_norm(state, f"{block}.norm2", x))
        x = x + _linear(state, f"{block}.mlp.fc2", y * (1 + erf(y / np.sqrt(2))) / 2)
    if "cls_token" in state:
        return _layer_norm(state, "norm", x[:, 0])
    return _layer_norm(state, "fc_norm", x.mean(1))


def _normal(rng, *shape, scale=1.0):
    return (scale * rng.normal(size=shape)).astype(np.float32)


def linear_state(rng, name, inputs, outputs):
    """Random weight and bias of torch.nn.Linear."""
    return {
        f"{name}.weight": _normal(rng, outputs, inputs, scale=inputs**-0.5),
        f"{name}.bias": _normal(rng, outputs, scale=0.1),
    }


def resnet_state(stages, bottleneck, width, *, stem=7, blurpool=False, seed=0):
    """A random state dict without classifier."""
    rng = np.random.default_rng(seed)
    state = {}

    def conv(name, inputs, outputs, size, stride=1):
        if blurpool and stride > 1 and inputs >= 16:
            state[f"{name}.blur_filter"] = np.tile(FILTER, (inputs, 1, 1, 1))
            name = f"{name}.conv"
        scale = (2 / (inputs * size**2)) ** 0.5
        state[f"{name}.weight"] = _normal(rng, outputs, inputs, size, size, scale=scale)

    def norm(name, channels):
        state[f"{name}.weight"] = rng.uniform(0.5, 1, channels).astype(np.float32)
        state[f"{name}.bias"] = _normal(rng, channels, scale=0.1)
        state[f"{name}.running_mean"] = _normal(rng, channels, scale=0.1)
        state[f"{name}.running_var"] = rng.uniform(0.5, 2, channels).astype(np.float32)
        state[f"{name}.num_batches_tracked"] = np.array(7)

    conv("conv1", 3, width, stem, 2 if stem == 7 else 1)
    norm("bn1", width)
    inputs = width
    for stage, blocks in enumerate(stages):
        inner = width * 2**stage
        outputs = inner * (4 if bottleneck else 1)
        for index in range(blocks):
            name, stride = f"layer{stage + 1}.{index}", 2 if stage and not index else 1
            plan = [(inputs, inner, 3, stride), (inner, inner, 3, 1)]
            if bottleneck:
                plan = [(inputs, inner, 1, 1), (inner, inner, 3, stride), (inner, outputs, 1, 1)]
            for i, (*sizes, step) in enumerate(plan, 1):
                conv(f"{name}.conv{i}", *sizes, step)
                norm(f"{name}.bn{i}", sizes[1])
            if stride > 1 or inputs != outputs:
                conv(f"{name}.downsample.0", inputs, outputs, 1, stride)
                norm(f"{name}.downsample.1", outputs)
            inputs = outputs
    return state


def vit_state(patch, width, depth, tokens, *, pool, seed=0):
    """A random state dict in timm's names without classifier; `tokens` with the class token."""
    rng = np.random.default_rng(seed)

    def norm(name):
        return {f"{name}.weight": 1 + _normal(rng, width, scale=0.2)} | {
            f"{name}.bias": _normal(rng, width, scale=0.1)
        }

    state = {
        "pos_embed": _normal(rng, 1, tokens, width),
        "patch_embed.proj.weight": _normal(rng, width, 3, patch, patch, scale=0.2),
        "patch_embed.proj.bias": _normal(rng, width),
        **norm("norm" if pool == "cls" else "fc_norm"),
    }
    if pool == "cls":
        state["cls_token"] = _normal(rng, 1, 1, width)
    for index in range(depth):
        block = f"blocks.{index}"
        state |= norm(f"{block}.norm1") | norm(f"{block}.norm2")
        state |= linear_state(rng, f"{block}.attn.qkv", width, 3 * width)
        state |= linear_state(rng, f"{block}.attn.proj", width, width)
        state |= linear_state(rng, f"{block}.mlp.fc1", width, 4 * width)
        state |= linear_state(rng, f"{block}.mlp.fc2", 4 * width, width)
    return state


def to_transformers(state, version):
    """A state dict of timm's class-token ViT in the names of transformers, version 4 or 5."""
    layer = "encoder.layer." if version == 4 else "layers."
    attention = ["attention.query", "attention.key", "attention.value"]
    if version == 5:
        attention = ["q_proj", "k_proj", "v_proj"]
    inside = {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.output.dense" if version == 4 else "attention.o_proj",
        "mlp.fc1": "intermediate.dense" if version == 4 else "mlp.fc1",
        "mlp.fc2": "output.dense" if version == 4 else "mlp.fc2",
    }
    outside = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "norm": "layernorm",
    }
    renamed = {}
    for name, value in state.items():
        if not name.startswith("blocks."):
            theirs, ours = next(item for item in outside.items() if name.startswith(item[0]))
            renamed[name.replace(theirs, ours)] = value
            continue
        _, index, rest = name.split(".", 2)
        rest, kind = rest.rsplit(".", 1)
        if rest == "attn.qkv":
            for part, third in zip(attention, np.split(value, 3), strict=True):
                renamed[f"{layer}{index}.attention.{part}.{kind}"] = third
        else:
            renamed[f"{layer}{index}.{inside[rest]}.{kind}"] = value
    return renamed
