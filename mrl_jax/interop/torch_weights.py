"""Loads PyTorch weights, saved as safetensors, into our backbones and heads."""

import json
import math
import os
import pathlib
import re
import shlex
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from mrl_jax.errors import DataError, UsageError, check_choice
from mrl_jax.interop.tensor_names import KNOWN, TensorNames, detect, find
from mrl_jax.models.resnet import ResNet
from mrl_jax.models.vit import ViT
from mrl_jax.runtime.task import Tree
from mrl_jax.store import inputs

Head = Literal["load", "skip"]

# What PyTorch inserts anywhere in the names of modules that it compiles or splits.
_WRAPPERS = "_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module"
# torch.optim.swa_utils stores the number of averaged models among the tensors.
_COUNTS = r"(.*\.)?n_averaged"
# Where checkpoints keep weights, averages first.
_KEYS = (
    "state_dict_ema model_ema ema_state_dict ema_model ema teacher "
    "state_dict model_state_dict model net module student"
)
# Prefixes of averages over training steps, which classify better than the last step's weights.
_AVERAGED = {"ema", "ema_model", "model_ema", "averaged_model", "swa_model", "teacher"}

_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".tar")
_DTYPES = {
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}
# The filter that FFCV puts before convolutions of stride 2.
_FILTER = np.outer((1, 2, 1), (1, 2, 1)) / 16
# What a network adds on top of pretrained features; `head="skip"` leaves these as they are.
_ON_TOP = ("head/", "backbone/embedding/")


def load_weights(
    path: str | os.PathLike,
    backbone: nn.Module,
    params: Tree,
    model_state: Tree,
    *,
    head: Head = "load",
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Tree, Tree]:
    """The parameters and batch statistics of a PyTorch network as trees of our network.

    Reads, by their names, a ResNet of torchvision or of the paper's reference (RAIVNLab/MRL, with
    or without blurpool; heads of MRL, MRL-E and FF-m) and a ViT of timm or transformers, with
    whatever prefixes these have: "module.", "model.", "backbone.", "_orig_mod." and so on. If there
    is a teacher or another moving average besides the network itself, the average is read.

    Position embeddings of a square grid of patches are resized to another one, as timm does.

    Four things are not in such files and are up to the caller: how a ViT pools where its names do
    not tell (timm's `global_pool` other than "token", or "avg" with `fc_norm`), how images were
    normalised (torchvision and the reference: `data.mean` 123.675, 116.28, 103.53 and `data.std`
    58.395, 57.12, 57.375), the number of attention heads, and the epsilon of layer norms (ours is
    timm's 1e-6; transformers has 1e-12).

    Args:
      path: of a .safetensors file.
      backbone: the module that `params` belong to; says whether and where it blurs and pools.
      params: {"backbone": ..., "head": ...}, arrays or their shapes and dtypes. A head is a
        `NestedHead`'s; a separate one takes the file's classifiers in their order.
      model_state: {"batch_stats": ...} of a ResNet, {} of a ViT.
      head: "load" needs a tensor for every parameter. "skip" leaves the head as it is, and the
        backbone's `embedding` if there is one; it reads neither the file's classifiers nor what
        does not belong to the network.
      say: receives one line for whatever is chosen, resized or not read.

    Returns:
      (params, model_state) of the same structure, shapes and dtypes, as arrays on the host.

    Raises:
      UsageError: no such file, a pickle (the message has the command that converts it), or a
        network that is not the model: parameters without a tensor, tensors without a parameter,
        other shapes, pooling or blurring.
      DataError: not a safetensors file, unknown names, dtypes other than F16, BF16, F32 and F64,
        NaN or infinite values.
      ValueError: `head` is neither "load" nor "skip".
    """
    check_choice("head", head, get_args(Head))
    path = pathlib.Path(path)
    table, tensors, others = _network(path, read_tensors(path), say)
    if not isinstance(backbone, table.network):
        raise UsageError(
            f"{path} holds a {table.title}, the model's backbone is a {type(backbone).__name__}; "
            f"legal: {table.network.__name__}"
        )
    if isinstance(backbone, ViT):
        _check_pool(path, tensors, backbone)
    if head == "skip":
        left = [name for name in tensors if _of_head(table, name)] + list(others)
        if left:
            say(f"not read of {path}: {some(left)}")
    else:
        tensors |= others  # which have no place and are named
    wanted = {
        name: leaf.shape
        for name, leaf in (*named(params), *named(model_state))
        if head == "load" or not name.startswith(_ON_TOP)
    }
    legal = "the very network that the model is (layers, widths, image size, classes)"
    if head == "load":
        legal += ", or head='skip' to leave the model's head as it is"
    parts = assign(path, table, tensors, wanted, _classifiers(params), head, legal)
    if isinstance(backbone, ResNet):
        _check_blur(path, tensors, parts, backbone)
    else:
        _resize_positions(path, parts, wanted, backbone, say)
    found = {target: numbers(path, target, part) for target, part in parts.items()}

    def replace(keys, leaf):
        name = _path_name(keys)
        return found[name].astype(leaf.dtype) if name in found else leaf

    return (
        jax.tree_util.tree_map_with_path(replace, params),
        jax.tree_util.tree_map_with_path(replace, model_state),
    )


class Part(NamedTuple):
    """A tensor, or a part of one, in our shape."""

    name: str  # in the file
    array: np.ndarray


def _path_name(keys: tuple) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def named(tree: Tree) -> list[tuple[str, Any]]:
    """The leaves of a tree with their paths, as "backbone/fc1/kernel"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(_path_name(keys), leaf) for keys, leaf in leaves]


def some(names: Iterable[str]) -> str:
    """Up to three of them and how many more."""
    names = list(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def read_tensors(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Name -> {"dtype", "shape", "data"} of every tensor in a file."""
    if path.suffix.lower() in _PICKLES:
        raise UsageError(
            f"{path} is a pickle, which can run any code when it is read; legal is .safetensors. "
            "Convert it where torch is installed (this takes averaged weights, EMA, before others "
            f"and prints which): {_conversion(path)}"
        )
    if path.suffix.lower() != ".safetensors":
        raise UsageError(f"weights must be a .safetensors file, got {path}")
    inputs.check_file(path)
    try:
        # Not `safetensors.numpy`, which does not know bfloat16.
        tensors = safetensors.deserialize(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(f"weights file {path} not found") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except safetensors.SafetensorError as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{path}: not a safetensors file, or cut short ({reason})") from error
    return dict(sorted(tensors, key=lambda item: item[0]))


def _conversion(path: pathlib.Path) -> str:
    """The command that turns a PyTorch checkpoint into a safetensors file.

    It looks for the weights under the names that training scripts give them, averages first, and
    prints what it took. Copies, because safetensors refuses tensors that share memory.
    """
    code = (
        "import argparse, torch, safetensors.torch as s; "
        "torch.serialization.add_safe_globals([argparse.Namespace]); "
        f'keys = "{_KEYS}".split(); '
        "has = lambda c: isinstance(c, dict) and (any(map(torch.is_tensor, c.values())) or "
        "any(has(c.get(k)) for k in keys)); "
        "pick = lambda c, at: "
        "next((pick(c[k], at + [k]) for k in keys if has(c.get(k))), (c, at)); "
        f'c = torch.load({json.dumps(str(path))}, map_location="cpu", weights_only=True); '
        "w, at = pick(c, []); "
        "s.save_file({k: v.clone().contiguous() for k, v in w.items() if torch.is_tensor(v)}, "
        f"{json.dumps(str(path.with_suffix('.safetensors')))}); "
        'print("weights taken:", "/".join(at) or "the whole file", "of", '
        "[k for k in keys if has(c.get(k))])"
    )
    return f"python -c {shlex.quote(code)}"


def _network(
    path: pathlib.Path, tensors: dict[str, Any], say: Callable[[str], None]
) -> tuple[TensorNames, dict[str, Any], dict[str, Any]]:
    """The network to read: its table, its tensors by name without prefix, and what is left.

    The last are the tensors outside of every network.

    Raises:
      DataError: no known network, or two tensors of one name.
      UsageError: several networks.
    """
    plain: dict[str, Any] = {}
    for name, tensor in tensors.items():
        short = re.sub(rf"(?<![^.])(?:{_WRAPPERS})\.", "", name)
        if short in plain:
            raise DataError(f"{path}: two tensors are called {short}, one of them {name}")
        if not re.fullmatch(_COUNTS, short):
            plain[short] = tensor
    found = detect(plain)
    if not found:
        raise DataError(
            f"{path}: names such as {some(tensors) or '(none)'} belong to no known network; "
            f"legal: {', '.join(known.title for known in KNOWN)}"
        )
    averaged = [pair for pair in found if _AVERAGED & set(pair[1].split("."))]
    chosen = averaged or found
    if len(chosen) > 1:
        names = ", ".join(repr(prefix) for _, prefix in chosen)
        raise UsageError(
            f"{path} holds {len(chosen)} networks, whose names begin with {names}; "
            "legal: a file with one of them"
        )
    table, prefix = chosen[0]
    inside = {name.removeprefix(prefix): t for name, t in plain.items() if name.startswith(prefix)}
    unread = tuple(other for _, other in found if other != prefix)
    if unread:
        say(
            f"of {path} the averaged network is read, whose names begin with {prefix!r}, not "
            f"{', '.join(map(repr, unread))}"
        )
    others = {n: t for n, t in plain.items() if not n.startswith((prefix, *unread))}
    return table, inside, others


def _of_head(table: TensorNames, name: str) -> bool:
    targets, _ = find(table, name) or (("",), None)
    return targets[0].startswith("head/")


def array(path: pathlib.Path, name: str, tensor: dict[str, Any]) -> np.ndarray:
    """A tensor of `read_tensors`; raises a DataError for a dtype that is not read."""
    if tensor["dtype"] not in _DTYPES:
        raise DataError(
            f"{path}: {name} has dtype {tensor['dtype']}, legal are {', '.join(_DTYPES)}"
        )
    # The file is little-endian, as is every machine that JAX runs on.
    return np.frombuffer(tensor["data"], _DTYPES[tensor["dtype"]]).reshape(tensor["shape"])


def numbers(path: pathlib.Path, target: str, part: Part) -> np.ndarray:
    """The part as finite float32."""
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(part.array, np.float32)
    if not np.isfinite(array).all():
        bad = np.count_nonzero(~np.isfinite(array))
        raise DataError(f"{path}: {part.name} has {bad} values that are NaN or infinite as float32")
    if target.endswith("/var") and (array < 0).any():
        raise DataError(f"{path}: {part.name} has negative variances")
    return array


def _classifiers(params: Tree) -> dict[str, str]:
    """The names that `tensor_names` has for the head's parameters -> their real names."""
    if "head" not in params:
        return {}
    names = [name for name, _ in named(params["head"]) if name.startswith("kernel")]
    # "kernel" of a shared or fixed head; else kernel_0008, kernel_0016..., sorted by their number.
    names.sort(key=lambda name: int(name.partition("_")[2] or 0))
    return {
        f"head/{g}/{kind}": f"head/{name.replace('kernel', kind)}"
        for g, name in enumerate(names)
        for kind in ("kernel", "bias")
    }


def assign(
    path: pathlib.Path,
    table: TensorNames,
    tensors: dict[str, Any],
    wanted: dict[str, tuple[int, ...]],
    classifiers: dict[str, str],
    head: Head,
    legal: str,
) -> dict[str, Part]:
    """Every wanted parameter's part of the file; refuses what is missing, left over or misshapen.

    Args:
      path, tensors: the file.
      table: of its names.
      wanted: shapes of the parameters to load.
      classifiers: see `_classifiers`.
      head: see `load_weights`.
      legal: what would fit, for the message.

    Raises:
      UsageError: names up to three of each kind.
    """
    parts: dict[str, Part] = {}
    left, wrong = [], []
    for name, tensor in tensors.items():
        if re.fullmatch(table.ignored, name):
            continue
        targets, form = find(table, name) or ((), None)
        if head == "skip" and targets and targets[0].startswith("head/"):
            continue
        targets = [classifiers.get(target, target) for target in targets]
        # A second tensor for one parameter is as wrong as a tensor without a parameter.
        if not targets or any(target not in wanted or target in parts for target in targets):
            left.append(name)
            continue
        shape = tensor["shape"]
        fits = len(shape) == form.rank and shape[0] % len(targets) == 0
        cut = np.split(array(path, name, tensor), len(targets)) if fits else [None] * len(targets)
        for target, piece in zip(targets, cut, strict=True):
            parts[target] = Part(name, None if piece is None else form.convert(piece))
            if piece is None or not _fits(target, parts[target].array.shape, wanted[target]):
                wrong.append(f"{name} {list(shape)} for {target} {list(wanted[target])}")
    missing = [target for target in wanted if target not in parts]
    found = {"no tensor for": missing, "no parameter for": left, "wrong shape:": wrong}
    problems = [f"{text} {some(names)}" for text, names in found.items() if names]
    if problems:
        raise UsageError(
            f"{path} ({table.title}) does not fit the model: {'; '.join(problems)}; legal: {legal}"
        )
    return parts


def _fits(target: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether a parameter has the wanted shape or can be resized to it by `_resize_positions`."""
    if target != "backbone/position" or shape[1:] != wanted[1:]:
        return shape == wanted
    # Both are square grids of patches, after a class token or none.
    return shape == wanted or any(
        _side(shape[0] - first) and _side(wanted[0] - first) for first in (0, 1)
    )


def _side(patches: int) -> int:
    """Patches per side of a square of so many; 0 if they do not form a square."""
    side = math.isqrt(max(patches, 0))
    return side if side**2 == patches else 0


def _resize_positions(
    path: pathlib.Path,
    parts: dict[str, Part],
    wanted: dict[str, tuple[int, ...]],
    backbone: ViT,
    say: Callable[[str], None],
) -> None:
    """Brings the position embeddings to the model's grid: bicubic, the class token's as it is."""
    target = "backbone/position"
    name, position_td = parts[target]
    if position_td.shape == wanted[target]:
        return
    first = backbone.pool == "cls"
    old, new = (_side(tokens - first) for tokens in (len(position_td), wanted[target][0]))
    grid_hwd = numbers(path, target, Part(name, position_td[first:])).reshape(old, old, -1)
    # As timm's resample_abs_pos_embed: with antialiasing, corners not aligned.
    grid_hwd = jax.image.resize(grid_hwd, (new, new, grid_hwd.shape[-1]), "cubic", antialias=True)
    grid_td = np.asarray(grid_hwd).reshape(new * new, -1)
    parts[target] = Part(name, np.concatenate([position_td[:first], grid_td]))
    say(f"{name} of {path} resized from {old}x{old} to {new}x{new} patches")


def _check_pool(path: pathlib.Path, tensors: dict[str, Any], backbone: ViT) -> None:
    """Refuses a ViT that pools its tokens differently from the backbone."""
    last = {name.rpartition(".")[0] for name in tensors}
    class_token = any(re.fullmatch(r"(.*\.)?cls_token", name) for name in tensors)
    norm_of_mean = "fc_norm" in last
    if class_token == norm_of_mean:
        both = "both" if class_token else "neither"
        raise UsageError(
            f"{path}: a ViT with {both} of class token and fc_norm is not supported; legal: a "
            "class token and the norm of all tokens (pool 'cls'), or fc_norm alone (pool 'gap')"
        )
    pool = "cls" if class_token else "gap"
    if pool != backbone.pool:
        raise UsageError(
            f"{path} was trained with pool {pool!r}, the model has {backbone.pool!r}; "
            f"legal: a model with pool {pool!r}"
        )


def _check_blur(
    path: pathlib.Path, tensors: dict[str, Any], parts: dict[str, Part], backbone: ResNet
) -> None:
    """Refuses a ResNet that does not blur where the backbone does, or blurs with another filter."""
    strided = "conv2" if backbone.bottleneck else "conv1"
    ours = {
        target
        for target, part in parts.items()
        if backbone.blurpool
        and re.fullmatch(rf"backbone/layer[2-9]_0/({strided}|downsample_conv)/conv/kernel", target)
        and part.array.shape[2] >= 16
    }
    theirs = {target for target, part in parts.items() if part.name.endswith(".conv.weight")}
    if ours != theirs:
        differ = some(sorted(ours ^ theirs))
        legal = f"a model with blurpool={bool(theirs)}"
        if backbone.blurpool == bool(theirs):
            legal = "FFCV's rule: convolutions of stride 2 that read 16 channels or more"
        raise UsageError(
            f"{path} blurs before {len(theirs)} convolutions, the model before {len(ours)} "
            f"(different: {differ}); legal: {legal}"
        )
    for name, tensor in tensors.items():
        if name.endswith(".blur_filter"):
            filter_cihw = array(path, name, tensor)
            if filter_cihw.shape[1:] != (1, 3, 3) or not np.allclose(filter_cihw, _FILTER):
                raise UsageError(f"{path}: {name} is not FFCV's filter [1 2 1] x [1 2 1] / 16")
