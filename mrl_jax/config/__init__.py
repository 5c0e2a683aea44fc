"""Reading, checking and comparing configs.

A config file is Python (an `ml_collections` config), so run only files you trust. It starts from
`default_config(TASK)` and changes what its experiment needs; the command line may override any key.
A config holds the keys that its task reads: those in `config.keys` and those that stand beside the
task, in `tasks/TASK/keys.py`.
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

from mrl_jax import printing
from mrl_jax.config import tasks
from mrl_jax.config.keys import Key
from mrl_jax.errors import UsageError, shown
from mrl_jax.store import inputs

MOST_RUNS = 100_000  # of a sweep: one that yields more never ends
_LARGEST = 3.4028234663852886e38  # of float32


def default_config(task: str = "classification") -> ConfigDict:
    """All keys of a task with their defaults.

    Locked: a config file can set keys but not invent them. See `tasks.keys` for what is raised.
    """
    return _locked({**defaults(task), "task": task})


def _locked(values: Mapping[str, Any]) -> ConfigDict:
    """A config of these values by dotted key."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *groups, name = key.split(".")
        inner = nested
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[name] = value
    return ConfigDict(nested, convert_dict=True).lock()


@functools.cache
def defaults(task: str) -> dict[str, Any]:
    """The default of every key of a task, as declared."""
    return {name: key.default for name, key in tasks.keys(task).items()}


def key_table(config: ConfigDict) -> str:
    """Every key of a config, its value, and what it means, its range and whether it may change."""
    values, rows = flatten(config), []
    for name, key in tasks.keys(config.task).items():
        notes = [key.meaning, key.range, "may change on resume" * key.resume]
        rows.append((name, repr(values[name]), "; ".join(filter(None, notes))))
    return printing.wrapped(("key", "value", "meaning"), rows)


def check(config: ConfigDict) -> None:
    """Refuses values that are out of the range that their key declares.

    Raises:
      UsageError: names the first such key.
    """
    values = flatten(config)
    for name, key in tasks.keys(config.task).items():
        for number in _numbers(values[name]):
            if not abs(number) <= _LARGEST:  # NaN is not, either
                raise UsageError(
                    f"config.{name} must be a finite number, got {shown(number)} "
                    f"(float32 holds up to {_LARGEST:.2g})"
                )
            if type(number) is int and number >= 2**31:
                raise UsageError(f"config.{name} must be below 2**31, got {number}")
        key.check(name, values[name])


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, tuple):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, float | int):
        yield value


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
        elif isinstance(error, AttributeError | KeyError) and (key := _missing_key(said)):
            said = key
        elif not (isinstance(error, UsageError | ValueError) and said):
            said = f"{type(error).__name__}: {said}" if said else type(error).__name__
        raise UsageError(f"{where}: {said}") from error


def _missing_key(said: str) -> str:
    """A line on a key that a config lacks, of what ml_collections says of it; "" of others."""
    found = re.match(r"""["']*Key "(\w+)" does not exist|"'(\w+)'""", said)
    if not found:
        return ""
    name = found[1] or found[2]
    hint = re.search(r'Did you mean "(\w+)"', said)
    more = f"; did you mean {hint[1]!r}?" if hint else ""
    owners = [task for task in tasks.TASKS if name in ".".join(tasks.keys(task)).split(".")]
    if owners and not more:
        more = f"; it is for task {' or '.join(owners)}"
    return f"this config has no key {name!r}{more}"


def load(config: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Reads a config file and applies command-line overrides to its locked config.

    Values that the file sets by reference, e.g. `c.get_ref("steps") // 10`, follow the overrides.

    Args:
      config: "path.py" or "path.py:arg", as after --config.
      overrides: "--config.key=value" strings, as on the command line.

    Raises:
      UsageError: file missing or broken, unknown key (with what may have been meant), bad type.
    """
    path, loaded = _made_by(config)
    values = parse_overrides(overrides, _task_in(loaded, path))
    with _own_faults(path):  # it may have put anything into its config
        # The file may return a config that it keeps for the next call, or a frozen one.
        frozen = isinstance(loaded, FrozenConfigDict)
        changed = ConfigDict(loaded) if frozen else copy.deepcopy(loaded)
        _apply(changed, values)
    return from_dict(_resolved(changed, path), where=path)


def _made_by(config: str) -> tuple[str, ConfigDict]:
    """The path in "path.py:arg", and what its get_config returns."""
    path, arg = split_config_arg(config)
    module = _module(path)
    if not callable(getattr(module, "get_config", None)):
        raise UsageError(f"{path} has no get_config() function")
    with _own_faults(path):
        loaded = module.get_config() if arg is None else module.get_config(arg)
    if not isinstance(loaded, ConfigDict):
        raise UsageError(f"{path}: get_config must return a ConfigDict, got {shown(loaded)}")
    return path, loaded


def task_of(config: str) -> str:
    """The task of "path.py:arg", see `load`, which also says what is raised."""
    path, loaded = _made_by(config)
    return _task_in(loaded, path)


def _task_in(values: Mapping[str, Any] | ConfigDict, where: str) -> str:
    """The task that a config is of.

    Raises:
      UsageError: it has none, or holds the keys of another task.
    """
    task = values.get("task", "classification")
    if not isinstance(task, str):
        raise UsageError(f"{where}: config key 'task' must be str, got {shown(task)}")
    with _said_of(where):
        tasks.keys(task)
    return task


@contextlib.contextmanager
def _said_of(where: str) -> Iterator[None]:
    try:
        yield
    except UsageError as error:
        raise type(error)(f"{where}: {error}") from error


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


def check_key(key: str, task: str) -> None:
    """Raises a UsageError that suggests what was meant, unless the task reads the key."""
    keys = list(tasks.keys(task))
    if key in keys:
        return
    inside = [k for k in keys if k.startswith(key + ".")]
    if inside:
        raise UsageError(f"config key {key!r} is a group; its keys are {', '.join(inside)}")
    if readers := [other for other in tasks.TASKS if key in tasks.keys(other)]:
        raise UsageError(f"config.{key}: task {task} does not read it (only {', '.join(readers)})")
    # A user may also forget or mistake the group: compare with the last part alone as well.
    close = difflib.get_close_matches(key, keys, n=1) or [
        k for k in keys if k.rpartition(".")[2] == key.rpartition(".")[2]
    ]
    hint = f"; did you mean {close[0]!r}?" if close else f"; the keys are {', '.join(keys)}"
    raise UsageError(f"unknown config key {key!r}{hint}")


def given(words: Sequence[str]) -> dict[str, str]:
    """The texts of values in "--config.key=value" strings, by key, the last one of each key.

    A value may also be the string after its key.

    Raises:
      UsageError: another string, or a key without a value.
    """
    texts, rest = {}, iter(words)
    for word in rest:
        if not word.startswith("--config."):
            raise UsageError(f"unexpected argument {shown(word)}; set keys by --config.key=value")
        key, equals, text = word.removeprefix("--config.").partition("=")
        texts.pop(key, None)
        texts[key] = text if equals else next(rest, None)
        if texts[key] is None:
            raise UsageError(f"{word} needs a value")
    return texts


def parse_overrides(words: Sequence[str], task: str) -> dict[str, Any]:
    """The values in "--config.key=value" strings, each converted to the type that its key has.

    Raises:
      UsageError: see `given`; also an unknown key, or a value of another type.
    """
    texts, keys = given(words), tasks.keys(task)
    for key in texts:
        check_key(key, task)
        if keys[key].items == "words":
            texts[key] = _words(texts[key])
    if texts.get("task", task) != task:
        raise UsageError(
            f"config.task is {task}: the config file decides, by default_config({texts['task']!r})"
        )
    argv = ["mrl_jax", *(f"--config.{key}={text}" for key, text in texts.items())]
    parser = flags.FlagValues()
    # Of the keys that are given alone: the flag writes its whole config as text, twice.
    known: dict[str, Any] = {}
    for key in texts:
        *groups, name = key.split(".")
        inner = known
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[name] = keys[key].default
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
    _apply(config, parse_overrides(overrides, config.task))
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


def check_type(name: str, key: Key, value: Any, where: str) -> None:
    """Raises a UsageError unless a plain value has the declared type of the key."""
    expected = type(key.default)
    # bool is an int to Python, but True is not a number of steps.
    if type(value) is not expected and not (expected is float and type(value) is int):
        raise UsageError(
            f"{where}: config key {name!r} must be {expected.__name__}, got {shown(value)}"
        )
    if expected is tuple:
        _check_items(name, key, value, where)
    text = "".join(_texts(value))
    if "\0" in text:
        raise UsageError(f"{where}: config key {name!r} holds a zero character: {shown(value)}")
    try:
        os.fsencode(text)  # names of files that are not UTF-8 have a form as text, too
    except UnicodeEncodeError:
        raise UsageError(
            f"{where}: config key {name!r} is not valid Unicode: {shown(value)}"
        ) from None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, tuple):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str):
        yield value


def _check_items(name: str, key: Key, value: tuple, where: str) -> None:
    pairs = key.items.startswith("pairs")
    types = {int, float} if key.items.endswith("numbers") else {str}
    for item in value:
        items = item if pairs and isinstance(item, tuple) else (item,)
        if len(items) != 1 + pairs or not {*map(type, items)} <= types:
            legal = key.items.replace("words", "texts")
            raise UsageError(f"{where}: config key {name!r} must hold {legal}, got {shown(item)}")


def from_dict(values: dict[str, Any], where: str) -> ConfigDict:
    """A locked config from plain nested dicts that hold every key, keys and types checked.

    Raises:
      UsageError: a key that the task does not read, is missing or has another type; names `where`.
    """
    task, flat = _task_in(values, where), flatten(plain(values))
    keys = tasks.keys(task)
    for name in sorted(flat.keys() - keys.keys()):
        readers = [other for other in tasks.TASKS if name in tasks.keys(other)]
        hint = f", which is read by {' and '.join(readers)}, not by {task}" if readers else ""
        raise UsageError(f"{where}: unknown config key {name!r}{hint}")
    for name, key in keys.items():
        if name not in flat:
            raise UsageError(f"{where}: config key {name!r} is missing")
        check_type(name, key, flat[name], where)
    return _locked({name: flat[name] for name in keys})


def from_run(values: dict[str, Any], where: str) -> ConfigDict:
    """As `from_dict`, for a config that a run wrote, perhaps with another release.

    Keys that were added since get their defaults, and those of `unknown_keys` are left out.
    """
    task = _task_in(values, where)
    kept = {name: v for name, v in flatten(values).items() if name in tasks.keys(task)}
    return from_dict(_locked({**defaults(task), **kept}).to_dict(), where)


def unknown_keys(values: dict[str, Any], where: str) -> list[str]:
    """The keys of a config that a run wrote which this release does not know.

    Older releases kept the keys of all tasks in every config: these are not among them.
    """
    known = {*tasks.keys(_task_in(values, where))}.union(*map(tasks.keys, tasks.TASKS))
    return sorted(flatten(values).keys() - known)


def with_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """The values by dotted key, with a default for every key of the task that they lack.

    Where the task is not at hand, such as a module of somebody else, they stay as they are.
    """
    try:
        task = _task_in(values, "")
    except UsageError:
        return flatten(values)
    there = {name: v for name, v in flatten(values).items() if name in tasks.keys(task)}
    return {**flatten(json.loads(to_json(default_config(task)))), **there}


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
    changed = _differences(defaults(config.task), config, also)
    return hashlib.sha256("\n".join(sorted(changed)).encode()).hexdigest()[:8]


def differences(old: ConfigDict, new: ConfigDict, also: Collection[str] = ()) -> list[str]:
    """Keys that differ in a way that changes the run's result, as "key: old -> new" lines.

    Keys in `also` count even if they do not change the result.
    """
    if old.task != new.task:
        return [f"task: {old.task!r} -> {new.task!r}"]
    return _differences(flatten(old), new, also)


def _differences(old: Mapping[str, Any], new: ConfigDict, also: Collection[str]) -> list[str]:
    keys = tasks.keys(new.task)
    return [
        f"{name}: {old[name]!r} -> {value!r}"
        for name, value in flatten(new).items()
        if value != old[name] and (name in also or not keys[name].resume)
    ]


def compare_alike() -> frozenset[str]:
    """The keys of all tasks here in which runs may differ while their numbers still compare.

    They say how a run is carried out, or what is measured of it: metrics have names of their own,
    and test sets are compared by digest.
    """
    keys = (item for task in tasks.TASKS for item in tasks.keys(task).items())
    return frozenset(
        name for name, k in keys if (k.resume or name.startswith("eval.")) and not k.asks
    )


def _trains(name: str, key: Key) -> bool:
    """Whether a key decides the trained weights."""
    return not (key.resume or name == "name" or name.startswith("eval."))


def trained_by(config: ConfigDict) -> dict[str, Any]:
    """The values that decide the trained weights, by dotted key, as checkpoints store them."""
    keys, leaves = tasks.keys(config.task), flatten(json.loads(to_json(config)))
    return {name: value for name, value in leaves.items() if _trains(name, keys[name])}


def changed_since(then: dict[str, Any], config: ConfigDict) -> list[str]:
    """How a config differs from an earlier `trained_by`, as "key: then -> now" lines.

    A key that was added since is taken to have had its default.
    """
    defaults, now = trained_by(default_config(config.task)), trained_by(config)
    lines = [
        f"{name}: {then.get(name, defaults[name])!r} -> {value!r}"
        for name, value in now.items()
        if then.get(name, defaults[name]) != value
    ]
    # Older releases remembered the keys of all tasks.
    known = {*flatten(config)}.union(*map(tasks.keys, tasks.TASKS))
    return lines + [f"{name}: {then[name]!r} -> no such key" for name in sorted({*then} - known)]


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
