"""The names of splits, and values of config keys that have the form "NAME=VALUE"."""

import pathlib
import re
from collections.abc import Collection, Sequence

from mrl_jax.errors import UsageError, shown

SPLITS = ("train", "val", "test")


def pairs(
    key: str, entries: Sequence[str], names: Collection[str], form: str, *, once: bool = False
) -> list[tuple[str, str]]:
    """(name, value) of every "NAME=VALUE" string of a config key.

    Args:
      key: of the config, for messages.
      names: the legal ones.
      form: of the entries, for messages, such as "SPLIT=FILE".
      once: whether a name may occur only once.

    Raises:
      UsageError: a string of another form, or a name that is not legal.
    """
    found: list[tuple[str, str]] = []
    left = form.partition("=")[0]
    for entry in entries:
        name, _, content = entry.partition("=")
        if name not in names or not content or (once and name in dict(found)):
            raise UsageError(
                f"config.{key} must be {form} with {left} one of {', '.join(names)}"
                f"{', each at most once' * once}; got {shown(entry)}"
            )
        found.append((name, content))
    return found


def paths(key: str, entries: Sequence[str], taken: set[str]) -> dict[str, pathlib.Path]:
    """Paths by name from "NAME=PATH" strings; the names are added to those that are taken.

    Raises:
      UsageError: a string of another form, or a name that is taken or cannot be part of a metric's
        name.
    """
    found = {}
    for entry in entries:
        name, _, path = entry.partition("=")
        if not path or not re.fullmatch("[A-Za-z0-9_-]+", name):
            raise UsageError(
                f"config.{key} must be NAME=PATH,... with letters, digits, - and _ in the name; "
                f"got {shown(entry)}"
            )
        if name in taken:
            raise UsageError(f"config.{key}: the name {name} is taken, choose another one")
        taken.add(name)
        found[name] = pathlib.Path(path)
    return found
