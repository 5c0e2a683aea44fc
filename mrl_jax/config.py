"""Reading, checking and comparing configs; the keys are declared in `config_keys`.

A config file is Python (an `ml_collections` config), so run only files you trust. It starts from
`default_config()` and changes what its experiment needs; the command line may override any key.
"""

import ast
import contextlib
import copy
import difflib
import functools
import hashlib
import importlib.util
import json
import os
import pathlib
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, FrozenConfigDict, config_flags
from ml_collections.config_dict import RequiredValueError

from mrl_jax.config_keys import (
    LISTS_OF_PAIRS,
    LISTS_OF_TEXTS,
    LISTS_OF_WORDS,
    OPERATIONAL_KEYS,
    TASKS,
    TASKS_OF,
    default_config,
)
from mrl_jax.errors import UsageError, shown
from mrl_jax.store import inputs

MOST_RUNS = 100_000  # of a sweep: one that yields more never ends


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
        raise ValueError(f"the argument must be mrl, mrl_e, fixed=M or slim=M, got {shown(arg)}")


def check_task(config: ConfigDict) -> None:
    """Refuses keys that the config's task does not read, where they are not at their default.

    Raises:
      UsageError: names the key, or the tasks there are.
    """
    if config.task not in TASKS:
        raise UsageError(f"config.task must be one of {', '.join(TASKS)}; got {shown(config.task)}")
    for key, value in flatten(config).items():
        fitting = (t for k, t in TASKS_OF.items() if key == k or key.startswith(k + "."))
        readers = next(fitting, TASKS)
        if config.task not in readers and value != declared()[key]:
            raise UsageError(
                f"config.{key} is {shown(value)}, but task {config.task} does not read it (only "
                f"{', '.join(readers)})"
            )


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
    """Splits "configs/digits.py:mrl" into the file and the argument of its get_config.

    Paths and arguments may hold colons themselves: the longest part that names a file is taken.
    """
    colons = [found.start() for found in re.finditer(":", config)]
    for end in (len(config), *reversed(colons)):
        if os.path.isfile(config[:end]):  # which is False for names that no file can have
            return config[:end], config[end + 1 :] if end < len(config) else None
    # There is no such file: most likely the part that ends in .py was meant.
    ends = [end for end in colons if config[:end].endswith(".py")] or colons[:1]
    if not ends or config.endswith(".py"):
        return config, None
    return config[: ends[0]], config[ends[0] + 1 :]


def _module(path: str) -> Any:
    if not path:
        raise UsageError("the path of the config file is empty (is a shell variable unset?)")
    inputs.check_file(path, UsageError)
    if not os.path.isfile(path):
        raise UsageError(f"config file {path} not found")
    name = "mrl_jax_config" + re.sub(r"\W", "_", os.path.abspath(path))
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise UsageError(f"config file {path} is not a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses, pickle and typing look their module up there, even after the import.
    sys.modules[name] = module
    try:
        with _own_faults(path):
            spec.loader.exec_module(module)
    except UsageError:
        del sys.modules[name]
        raise
    return module


@contextlib.contextmanager
def _own_faults(where: str) -> Iterator[None]:
    """A config file is code: whatever it raises, or that it ends the process, is its own fault."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        said = _one_line(error)
        if isinstance(error, SystemExit):
            said = f"it called sys.exit({shown(error.code)})"
        elif not (isinstance(error, UsageError | ValueError) and said):
            said = f"{type(error).__name__}: {said}" if said else type(error).__name__
        raise UsageError(f"{where}: {said}") from error


def load(config: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Reads a config file and applies command-line overrides to its locked config.

    Values that the file sets by reference, e.g. `c.get_ref("steps") // 10`, follow the overrides.

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
    with _own_faults(path):
        loaded = module.get_config() if arg is None else module.get_config(arg)
    if not isinstance(loaded, ConfigDict):
        raise UsageError(f"{path}: get_config must return a ConfigDict, got {shown(loaded)}")
    values = parse_overrides(overrides)
    with _own_faults(path):  # it may have put anything into its config
        # The file may return a config that it keeps for the next call, or a frozen one.
        frozen = isinstance(loaded, FrozenConfigDict)
        changed = ConfigDict(loaded) if frozen else copy.deepcopy(loaded)
        _apply(changed, values)
    return from_dict(_resolved(changed, path), where=path)


def _resolved(group: ConfigDict, path: str, prefix: str = "") -> dict[str, Any]:
    """The values of a file's config as nested dicts, with references resolved."""
    values = {}
    for name in group:
        key = f"{prefix}{name}"
        try:
            value = group[name]
        except RequiredValueError:
            value = None
        except Exception as error:  # an operation on a reference failed
            raise UsageError(f"{path}: config key {key!r}: {_one_line(error)}") from error
        if value is None:
            raise UsageError(
                f"{path}: config key {key!r} has no value; give one with --config.{key}=VALUE"
            )
        inner = isinstance(value, ConfigDict)
        values[name] = _resolved(value, path, f"{key}.") if inner else value
    return values


def check_key(key: str) -> None:
    """Raises a UsageError that suggests what was meant, unless the key is declared."""
    keys = list(declared())
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


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """The values in "--config.key=value" strings, by key, each converted to its key's type.

    If a key is given twice, the last value counts. A value may also be the string after its key.

    Raises:
      UsageError: another string, an unknown key, or a value of another type.
    """
    texts, rest = {}, iter(words)
    for word in rest:
        if not word.startswith("--config."):
            raise UsageError(f"unexpected argument {shown(word)}; set keys by --config.key=value")
        key, equals, text = word.removeprefix("--config.").partition("=")
        check_key(key)
        texts.pop(key, None)
        texts[key] = text if equals else next(rest, None)
        if texts[key] is None:
            raise UsageError(f"{word} needs a value")
    for key in LISTS_OF_WORDS & texts.keys():
        texts[key] = _words(texts[key])
    argv = ["mrl_jax", *(f"--config.{key}={text}" for key, text in texts.items())]
    parser, defaults = flags.FlagValues(), declared()
    # Of the keys that are given alone: the flag writes its whole config as text, twice.
    known: dict[str, Any] = {}
    for key in texts:
        *groups, name = key.split(".")
        inner = known
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[name] = defaults[key]
    try:
        config_flags.DEFINE_config_dict(
            "config", ConfigDict(known), flag_values=parser, sys_argv=argv
        )
        parser(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(_one_line(error)) from error
    values = flatten(parser.config)
    return {key: values[key] for key in texts}


def _apply(config: ConfigDict, values: Mapping[str, Any]) -> None:
    # The values have the declared types, whatever types a file has used.
    with config.ignore_type():
        for key, value in values.items():
            config.update_from_flattened_dict({key: value})


def override(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """The config with "--config.key=value" strings applied, locked; raises as `load`."""
    config = config.copy_and_resolve_references()  # the argument stays as it is
    _apply(config, parse_overrides(overrides))
    return from_dict(config.to_dict(), where="command line")


def _words(value: str) -> str:
    """A list of words, "accuracy,flip", as the tuple that it means."""
    try:
        literal = ast.literal_eval(value)
        items = literal if isinstance(literal, (tuple, list)) else (literal,)
        quoted = all(isinstance(item, str) for item in items)
    except (SyntaxError, ValueError):
        quoted = False  # a name may also be a number
    if quoted or value.startswith(("(", "[")):
        return value
    return repr(tuple(word.strip() for word in value.split(",")))


def plain(value: Any) -> Any:
    """A value as configs hold it: NumPy and JAX values as Python's, sequences as tuples.

    Raises:
      UsageError: it holds itself.
    """
    try:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple, range)):
            return tuple(plain(item) for item in value)
        if isinstance(value, pathlib.PurePath):
            return str(value)
        # NumPy's float64 and str_ are subclasses of Python's types, but not the declared types.
        return plain(value.tolist()) if hasattr(value, "tolist") else value
    except RecursionError:
        raise UsageError(f"a value of a config holds itself: {shown(value)}") from None


@functools.cache
def declared() -> dict[str, Any]:
    """The default of every key."""
    return flatten(default_config())


def check_type(key: str, value: Any, where: str) -> None:
    """Raises a UsageError unless a plain value has the declared type of the key."""
    expected = type(declared()[key])
    # bool is an int to Python, but True is not a number of steps.
    if type(value) is not expected and not (expected is float and type(value) is int):
        raise UsageError(
            f"{where}: config key {key!r} must be {expected.__name__}, got {shown(value)}"
        )
    if expected is tuple:
        _check_items(key, value, where)
    text = "".join(_texts(value))
    if "\0" in text:
        raise UsageError(f"{where}: config key {key!r} holds a zero character: {shown(value)}")
    try:
        os.fsencode(text)  # names of files that are not UTF-8 have a form as text, too
    except UnicodeEncodeError:
        raise UsageError(
            f"{where}: config key {key!r} is not valid Unicode: {shown(value)}"
        ) from None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, tuple):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str):
        yield value


def _check_items(key: str, value: tuple, where: str) -> None:
    kind, types = ("texts", {str}) if key in LISTS_OF_TEXTS else ("numbers", {int, float})
    pairs = key in LISTS_OF_PAIRS
    for item in value:
        items = item if pairs and isinstance(item, tuple) else (item,)
        if len(items) != 1 + pairs or not {*map(type, items)} <= types:
            legal = f"pairs of {kind}" if pairs else kind
            raise UsageError(f"{where}: config key {key!r} must hold {legal}, got {shown(item)}")


def from_dict(values: dict[str, Any], where: str) -> ConfigDict:
    """A locked config from plain nested dicts that hold every key, keys and types checked.

    Raises:
      UsageError: a key that is not declared, is missing or has another type; names `where`.
    """
    given = flatten(plain(values))
    for key in given.keys() - declared().keys():
        raise UsageError(f"{where}: unknown config key {key!r}")
    for key in declared().keys() - given.keys():
        raise UsageError(f"{where}: config key {key!r} is missing")
    for key, value in given.items():
        check_type(key, value, where)
    config = default_config()
    with config.unlocked():
        config.update_from_flattened_dict(given)
    return config.lock()


def from_run(values: dict[str, Any], where: str) -> ConfigDict:
    """As `from_dict`, for a config that a run wrote: keys that were added since get defaults.

    Raises:
      UsageError: a key that is not declared or has another type; names `where`.
    """
    return from_dict(with_defaults(values), where)


def with_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """The nested dicts, with a default for every declared key that they lack, as in JSON."""
    return _merged(json.loads(to_json(default_config())), values)


def _merged(defaults: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    both = (k for k in values if isinstance(values[k], dict) and isinstance(defaults.get(k), dict))
    groups = {key: _merged(defaults[key], values[key]) for key in both}
    return {**defaults, **values, **groups}


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


def digest(config: ConfigDict, also: Collection[str] = ()) -> str:
    """Eight hex digits for what the config computes, and for its values of the keys `also`.

    Keys at their default are left out, so that the digest does not change when keys are added.
    """
    changed = differences(default_config(), config, also)
    return hashlib.sha256("\n".join(sorted(changed)).encode()).hexdigest()[:8]


def differences(old: ConfigDict, new: ConfigDict, also: Collection[str] = ()) -> list[str]:
    """Keys that differ in a way that changes the run's result, as "key: old -> new" lines.

    Keys in `also` count even if they do not change the result.
    """
    old_flat, new_flat = flatten(old), flatten(new)
    return [
        f"{key}: {old_flat[key]!r} -> {value!r}"
        for key, value in new_flat.items()
        if value != old_flat[key] and (key in also or not _in_groups(key, OPERATIONAL_KEYS))
    ]


def _in_groups(key: str, groups: Sequence[str]) -> bool:
    return any(key == group or key.startswith(group + ".") for group in groups)


def trained_by(config: ConfigDict) -> dict[str, Any]:
    """The values that decide the trained weights, by dotted key, as checkpoints store them."""
    apart = (*OPERATIONAL_KEYS, "eval", "name")
    leaves = flatten(json.loads(to_json(config)))
    return {key: value for key, value in leaves.items() if not _in_groups(key, apart)}


def changed_since(then: dict[str, Any], config: ConfigDict) -> list[str]:
    """How a config differs from an earlier `trained_by`, as "key: then -> now" lines.

    A key that was added since is taken to have had its default.
    """
    defaults, now = trained_by(default_config()), trained_by(config)
    lines = [
        f"{key}: {then.get(key, defaults[key])!r} -> {value!r}"
        for key, value in now.items()
        if then.get(key, defaults[key]) != value
    ]
    unknown = then.keys() - flatten(config).keys()
    return lines + [f"{key}: {then[key]!r} -> no such key" for key in sorted(unknown)]


def sweep_of(path: str) -> list[tuple[str | None, dict[str, Any]]]:
    """What a config file's sweep() yields: arguments for get_config, each with overrides by key.

    Raises:
      UsageError: no such file, it does not import, or its sweep() is missing, fails or yields
        something else.
    """
    module = _module(path)
    if not callable(getattr(module, "sweep", None)):
        raise UsageError(f"{path} has no sweep() function")
    entries = []
    with _own_faults(f"{path}: sweep()"):
        yielded = module.sweep()
        for entry in yielded if isinstance(yielded, Iterable) else ():
            if len(entries) == MOST_RUNS:
                raise ValueError(f"yields more than {MOST_RUNS:,} runs")
            entries.append(entry)
    if not isinstance(yielded, Iterable):
        raise UsageError(f"{path}: sweep() must yield (arg, overrides) pairs, got {shown(yielded)}")
    for entry in entries:
        if not (
            isinstance(entry, tuple)
            and len(entry) == 2
            and isinstance(entry[0], str | None)
            and isinstance(entry[1], dict)
        ):
            raise UsageError(
                f"{path}: sweep() must yield (arg, overrides) pairs, got {shown(entry)}"
            )
    return entries
