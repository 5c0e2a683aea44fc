"""The table of tasks, and where the parts of one are found; importing this loads no task."""

import contextlib
import functools
import importlib
from types import ModuleType, SimpleNamespace
from typing import Any

from ml_collections import ConfigDict

from mrl_jax import extras
from mrl_jax.config.keys import COMMON, Key
from mrl_jax.errors import UsageError, shown
from mrl_jax.imported import by_path

# By name, the extra that a task needs, if any.
TASKS = {
    "classification": "",
    "sentence_pairs": "text",
    "masked_lm": "text",
    "adaptor": "",
    "image_text": "text",
}


_DEFAULTS = {
    "MODEL_KEYS": "task",
    "check": lambda config: None,
    "assumed_facts": lambda config, folder: None,
    "kept": lambda data: {},
    "start": lambda config, facts, program, data: None,
    "measures": None,
    "text_folder": None,
    "image_folder": None,
}


def part(task: str, name: str) -> ModuleType:
    """The module that holds a part of a task: "keys", "build" or "inputs".

    Raises:
      UsageError: there is no such task, its module cannot be imported, or an extra is missing.
    """
    if task in TASKS:
        extra = TASKS[task] if name != "keys" else ""
        with extras.needed(extra, f"task {task}") if extra else contextlib.nullcontext():
            return importlib.import_module(f"mrl_jax.tasks.{task}.{name}")
    if "." not in task or ":" in task:
        raise UsageError(
            f"config.task must be one of {', '.join(TASKS)}, or the import path of a module such "
            f"as my_lab.toy; got {shown(task)}"
        )
    return by_path(task, "config.task")


def builder(task: str) -> Any:
    """A task's `tasks.protocols.Builder`: its module, completed by the defaults.

    Raises:
      UsageError: see `part`; or the module lacks something that has no default.
    """
    module = part(task, "build")
    for name in ("open_data", "facts", "make_task"):
        if not hasattr(module, name):
            raise UsageError(f"config.task: {task} does not define {name}, as a task must")
    return SimpleNamespace(**{**_DEFAULTS, **vars(module)})


def keeps_inputs(task: str) -> bool:
    """Whether vectors that go in are measured beside what is trained.

    The untrained spaces among the results of such a task are of these vectors. Its module of keys
    says so; of a task that is not at hand, nothing is known.
    """
    try:
        return getattr(part(task, "keys"), "KEEPS_INPUTS", False)
    except UsageError:
        return False


@functools.cache
def keys(task: str) -> dict[str, Key]:
    """All config keys of a task, the common ones first; raises as `part`."""
    own = getattr(part(task, "keys"), "KEYS", {})
    if task not in TASKS:
        _check_own(task, own)
    return {**COMMON, **own}


def _check_own(task: str, own: Any) -> None:
    """Refuses keys of a user's task that a config cannot hold."""
    if not isinstance(own, dict) or not all(isinstance(key, Key) for key in own.values()):
        raise UsageError(f"config.task: KEYS of {task} must be a dict of config.keys.Key by name")
    for name, key in own.items():
        parts = name.split(".") if isinstance(name, str) else [""]
        if not all(part.isidentifier() and not hasattr(ConfigDict, part) for part in parts):
            raise UsageError(
                f"config.task: {task} declares {shown(name)}; a key is one or several names with "
                "dots between them, none of them a method of ConfigDict"
            )
        if name in COMMON:
            raise UsageError(f"config.task: {task} declares {name}, which all tasks have")
        for other in (*COMMON, *map(str, own)):
            if f"{name}.".startswith(f"{other}.") != f"{other}.".startswith(f"{name}."):
                raise UsageError(
                    f"config.task: {task} declares {name}, and there is {other}: one is a group"
                )
        if type(key.default) not in (bool, int, float, str, tuple):
            raise UsageError(
                f"config.task: the default of {name} of {task} must be a bool, int, float, str or "
                f"tuple, got {shown(key.default)}"
            )
