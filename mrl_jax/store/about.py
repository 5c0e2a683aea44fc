"""The file about.json of an export, which says what its other files read and give."""

from collections.abc import Mapping
from typing import Any

ABOUT = "about.json"


def each_tower(about: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What it says of every tower, together with what it says of all; "" where there is one alone.

    Raises:
      AttributeError, TypeError: it is damaged.
    """
    shared = {key: value for key, value in about.items() if key != "towers"}
    parts = about.get("towers", {"": {}})
    return {name: {**shared, **part} for name, part in parts.items()}
