"""Every key of a run, declared once; reading, checking and comparing configs.

A config file is Python (an `ml_collections` config), so run only files you trust. It starts from
`default_config()` and changes what its experiment needs; the command line may override any key.
"""

import ast
import difflib
import hashlib
import importlib.util
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from mrl_jax.errors import UsageError

# What these keys say changes how a run is carried out, never what it computes (beyond rounding):
# a run may be resumed with other values of them.
OPERATIONAL_KEYS = (
    "mesh",
    "sharding",
    "checkpoint",
    "log_every",
    "head.loss",
    "eval.every",
    "eval.batch_size",
    "eval.measures",
    "eval.hierarchy",
    "eval.shifts",
    "data.threads",
    "data.path",  # data may move; checkpoints hold a fingerprint of what it must contain
)

_LISTS_OF_WORDS = {"eval.measures", "eval.shifts"}


def default_config() -> ConfigDict:
    """All keys with their defaults. Locked: a config file can set keys but not invent them."""
    c = ConfigDict()
    c.name = "run"  # what the run is called in results and reports
    c.seed = 0  # everything random follows from it: initial weights, order of data, augmentation
    c.steps = 1000  # optimiser steps in all
    c.batch_size = 128  # examples per step over all devices and processes
    # .safetensors file of a PyTorch network (torchvision, the reference, timm, transformers) that
    # the backbone starts from; heads start fresh. "" = all starts fresh.
    c.weights = ""
    c.log_every = 20  # steps between lines of metrics.jsonl and of the console

    c.data = ConfigDict()
    c.data.source = "digits"  # digits | image_folder | tfds
    c.data.path = ""  # image_folder: folder with train/CLASS/*; tfds: folder of data sets, or ""
    c.data.dataset = ""  # tfds: name of a data set prepared as ArrayRecord, e.g. "mnist"
    c.data.classes = 0  # how many the data must have; 0 = as many as it has
    c.data.image_size = 32  # image_folder, tfds: images become this many pixels high and wide
    # Share of the short side kept in evaluation, 0.875 = 224 of 256; and in training, in memory
    # or where random_crop is 0.
    c.data.eval_crop = 1.0
    c.data.mean = (127.5,)  # of pixels, 0 to 255; one number or one per channel. Subtracted,
    c.data.std = (127.5,)  # then divided by this
    # False: all images are decoded once and kept in memory, as squares of image_size. True: they
    # are read when they are needed, for sets that do not fit.
    c.data.stream = False
    c.data.threads = 0  # that decode images; 0 = one per core
    # Stream only: sizes in training as (step, pixels) points, linear between them, in multiples of
    # 32; () = image_size.
    c.data.resolutions = ()
    # Stream only, training: (changes per image, strength 0 to 10) of RandAugment; () = off
    c.data.rand_augment = ()
    c.data.random_crop = 0.0  # training: smallest share of the area a random part shows; 0 = off
    c.data.flip = False  # training: left and right change sides in half of the images
    c.data.random_shift = 0  # training: images move by up to this many pixels in x and y
    c.data.mixup = 0.0  # training: images are mixed in pairs, shares from Beta(mixup, mixup)

    c.model = ConfigDict()
    # mlp | cnn | resnet18, 34, 50, 101 | vit_ti16, vit_s16, vit_b16 and the same with 8
    c.model.name = "cnn"
    # Width of the embedding, at least the largest nesting dim. 0 = the network's own: 512 or 2048
    # for resnets, 192 to 768 for vits; another number adds a linear layer there.
    c.model.embedding_dim = 64
    # The next eight keys change a network that has what they say; others refuse them.
    c.model.width = 0  # mlp: hidden units; cnn, resnet: channels of the first stage; 0 = default
    c.model.depth = 0  # mlp: hidden layers; cnn: stages, each halves the resolution; 0 = default
    c.model.stem = "imagenet"  # resnet: imagenet | small, for images of 32 or 64 pixels
    c.model.blurpool = False  # resnet: blur before strides, as the reference's recipe
    c.model.batch_norm_groups = 1  # resnet: parts of the batch with statistics of their own
    c.model.pool = "gap"  # vit: gap, the mean of all tokens | cls
    c.model.dtype = "float32"  # resnet, vit: of the products, float32 | bfloat16
    c.model.remat = False  # resnet, vit: less memory, blocks are computed again backwards

    c.nesting = ConfigDict()
    c.nesting.dims = (8, 16, 32, 64)  # the granularities: prefixes that get a loss of their own
    c.nesting.weights = ()  # importance c_m of each granularity; () = 1 each, as in the paper

    c.head = ConfigDict()
    c.head.kind = "separate"  # separate = MRL | shared = MRL-E | fixed = FF-m, one granularity
    c.head.normalize = "none"  # none | prefix: scale every prefix to unit length first
    c.head.label_smoothing = 0.0  # in [0, 1), on the loss of every granularity

    # auto | plain | blockwise | streamed. Plain computes all logits, then the loss; blockwise and
    # streamed do both in one, without [G, B, C] logits; streamed is slower and needs least memory.
    # auto: blockwise from 2**21 logits (granularities x batch x classes) per device, else plain.
    c.head.loss = "auto"

    c.optimizer = ConfigDict()
    c.optimizer.name = "adamw"  # adamw | sgd (momentum 0.9) | adafactor
    c.optimizer.nesterov = False  # sgd: Nesterov momentum
    c.optimizer.schedule = "cosine"  # cosine | linear (the reference's): from the peak to zero
    c.optimizer.learning_rate = 1e-3  # peak, reached after warm-up
    c.optimizer.warmup_steps = 50  # linear up
    c.optimizer.weight_decay = 1e-4  # added to the gradient for sgd, decoupled from it for others
    c.optimizer.decay_mask = "kernel"  # regex: parameters whose path matches are decayed
    c.optimizer.clip_norm = 0.0  # gradients of a larger global norm are scaled to it; 0 = off
    # > 0: measure moving averages of parameters and batch statistics that keep this per step
    c.optimizer.ema_decay = 0.0
    c.optimizer.accumulate = 1  # parts of a batch that are computed one after the other

    c.mesh = ConfigDict()  # devices = data x fsdp x tensor; one of them may be -1 (what is left)
    c.mesh.data = -1  # splits the batch, replicates the parameters
    c.mesh.fsdp = 1  # splits the batch and stores parameters in pieces
    c.mesh.tensor = 1  # splits the classes of the head

    # Where parameters (and their optimiser state) live: first matching regex wins, every regex
    # must match something. replicate | first:AXIS, last:AXIS (split that dimension) |
    # largest:AXIS (split the largest dimension that divides evenly; replicate if none does).
    c.sharding = (
        ("head/(kernel|bias)", "last:tensor"),
        ("kernel", "largest:fsdp"),
        (".*", "replicate"),
    )

    c.checkpoint = ConfigDict()
    c.checkpoint.every = 200  # steps between checkpoints; the last step is always saved
    c.checkpoint.keep = 2  # newest checkpoints kept on disk

    c.eval = ConfigDict()
    c.eval.every = 0  # steps between evaluations of the val split; 0 = only at the end
    c.eval.batch_size = 256  # examples per evaluation step over all devices
    # What is measured: names of evaluators.MEASURES, or all. Most embed the train split as well.
    c.eval.measures = ("accuracy", "neighbours")
    c.eval.hierarchy = ""  # file that says which superclass a class belongs to; "" = none
    c.eval.shifts = ()  # other test sets of these classes, each "NAME=FOLDER"
    c.eval.dims = ()  # prefixes to measure; () = the nesting and the dims between
    return c.lock()


def set_method(config: ConfigDict, arg: str) -> None:
    """Sets head and nesting from "mrl", "mrl_e", "fixed=M" or "slim=M", as config files take them.

    "slim=M" is the baseline of a narrower network: FF-M whose channels are scaled by M over the
    widest nesting dim of the file, so that its whole embedding has M dims (paper, Table 1,
    "Slim. Net", which slices one slimmable network instead of training one per width).

    Raises:
      ValueError: anything else, or a network that cannot be that narrow.
    """
    method, _, dim = arg.partition("=")
    if method in ("fixed", "slim") and dim.isdecimal():
        if method == "slim":
            _make_slim(config, int(dim))
        config.head.kind = "fixed"
        config.nesting.dims = (int(dim),)
    elif arg in ("mrl", "mrl_e"):
        config.head.kind = {"mrl": "separate", "mrl_e": "shared"}[arg]
    else:
        raise ValueError(f"the argument must be mrl, mrl_e, fixed=M or slim=M, got {arg!r}")


def _make_slim(config: ConfigDict, dim: int) -> None:
    width, full = config.model.width, config.nesting.dims[-1]
    if config.model.name.startswith("resnet"):
        width = width or 64
    if not width or width * dim % full or not dim:
        raise ValueError(
            f"slim={dim} needs model.width x {dim} / {full} to be a whole number, model "
            f"{config.model.name} has width {width}"
        )
    config.model.width = width * dim // full
    if config.model.embedding_dim:
        config.model.embedding_dim = dim


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    # A KeyError's text is the repr of its message.
    return text.strip("'\"") if isinstance(error, KeyError) else text


def split_config_arg(config: str) -> tuple[str, str | None]:
    """Splits "configs/digits.py:mrl" into the file and the argument of its get_config."""
    path, colon, arg = config.partition(":")
    return path, (arg if colon else None)


def _module(path: str) -> Any:
    if not pathlib.Path(path).is_file():
        raise UsageError(f"config file {path} not found")
    spec = importlib.util.spec_from_file_location("mrl_jax_config_file", path)
    if spec is None:
        raise UsageError(f"config file {path} is not a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a config file is code: whatever it raises is its own fault
        raise UsageError(f"{path}: {type(error).__name__}: {_one_line(error)}") from error
    return module


def load(config: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Reads a config file and applies command-line overrides to its locked config.

    Args:
      config: "path.py" or "path.py:arg", as after --config.
      overrides: "--config.key=value" strings, as on the command line.

    Raises:
      UsageError: file missing or broken, unknown key (with what may have been meant), bad type.
    """
    path, arg = split_config_arg(config)
    module = _module(path)
    if not callable(getattr(module, "get_config", None)):
        raise UsageError(f"{path} has no get_config() function")
    try:
        loaded = module.get_config() if arg is None else module.get_config(arg)
    except Exception as error:
        raise UsageError(f"{path}: {_one_line(error)}") from error
    if not isinstance(loaded, ConfigDict):
        raise UsageError(f"{path}: get_config must return a ConfigDict, got {loaded!r}")
    return override(from_dict(loaded.to_dict(), where=path), overrides)


def _check_key(key: str) -> None:
    keys = list(flatten(default_config()))
    if key in keys:
        return
    inside = [k for k in keys if k.startswith(key + ".")]
    if inside:
        raise UsageError(f"config key {key!r} is a group; its keys are {', '.join(inside)}")
    # A user may also forget or mistake the group: compare with the last part alone as well.
    close = difflib.get_close_matches(key, keys, n=1) or [
        k for k in keys if k.rpartition(".")[2] == key.rpartition(".")[2]
    ]
    hint = f"; did you mean {close[0]!r}?" if close else f"; the keys are {', '.join(keys)}"
    raise UsageError(f"unknown config key {key!r}{hint}")


def override(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """The config with "--config.key=value" strings applied, locked; raises as `load`.

    Of a key that is given twice the last value counts.
    """
    values, words = {}, iter(overrides)
    for word in words:
        if not word.startswith("--config."):
            raise UsageError(f"unexpected argument {word!r}; set keys by --config.key=value")
        key, equals, value = word.removeprefix("--config.").partition("=")
        _check_key(key)
        values[key] = value if equals else next(words, None)
        if values[key] is None:
            raise UsageError(f"{word} needs a value")
    config = config.copy_and_resolve_references()  # flags write into what they are given
    for key in _LISTS_OF_WORDS & values.keys():
        values[key] = _words(values[key])
    argv = ["mrl_jax", *(f"--config.{key}={value}" for key, value in values.items())]
    parser = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=parser, sys_argv=argv)
        parser(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(_one_line(error)) from error
    return from_dict(parser.config.to_dict(), where="command line")


def _words(value: str) -> str:
    """A list of words, "accuracy,flip", as the tuple that it means."""
    try:
        ast.literal_eval(value)
    except (SyntaxError, ValueError):
        if not value.startswith(("(", "[")):
            return repr(tuple(word.strip() for word in value.split(",")))
    return value


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(_tuples(item) for item in value)
    return value


def from_dict(values: dict[str, Any], where: str) -> ConfigDict:
    """A locked config from plain nested dicts (as read from config.json), keys and types checked.

    Raises:
      UsageError: a key that is not declared, is missing or has another type; names `where`.
    """
    declared, given = flatten(default_config()), flatten(_tuples(values))
    for key in given.keys() - declared.keys():
        raise UsageError(f"{where}: unknown config key {key!r}")
    for key in declared.keys() - given.keys():
        raise UsageError(f"{where}: config key {key!r} is missing")
    for key, value in given.items():
        expected = type(declared[key])
        # bool is an int to Python, but True is no number of steps.
        fits = type(value) is expected or (expected is float and type(value) is int)
        if not fits:
            raise UsageError(
                f"{where}: config key {key!r} must be {expected.__name__}, got {value!r}"
            )
    config = default_config()
    with config.unlocked():
        config.update_from_flattened_dict(given)
    return config.lock()


def flatten(config: ConfigDict | dict[str, Any]) -> dict[str, Any]:
    """The leaves of a config by dotted key."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, (dict, ConfigDict)):
            flat.update({f"{key}.{inner}": leaf for inner, leaf in flatten(value).items()})
        else:
            flat[key] = value
    return flat


def to_json(config: ConfigDict) -> str:
    """The config as JSON text with sorted keys; tuples become lists."""
    return json.dumps(config.to_dict(), indent=1, sort_keys=True)


def digest(config: ConfigDict) -> str:
    """Eight hex digits that name what the config computes."""
    return hashlib.sha256(to_json(config).encode()).hexdigest()[:8]


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """Keys that differ in a way that changes the run's result, as "key: old -> new" lines."""
    old_flat, new_flat = flatten(old), flatten(new)
    return [
        f"{key}: {old_flat[key]!r} -> {value!r}"
        for key, value in new_flat.items()
        if value != old_flat[key]
        and not any(key == k or key.startswith(k + ".") for k in OPERATIONAL_KEYS)
    ]


def sweep_of(path: str) -> Callable[[], Any]:
    """The `sweep` function of a config file.

    Raises:
      UsageError: no such file, it does not import, or it has no sweep().
    """
    module = _module(path)
    if not callable(getattr(module, "sweep", None)):
        raise UsageError(f"{path} has no sweep() function")
    return module.sweep
