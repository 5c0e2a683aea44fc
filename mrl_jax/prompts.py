"""Prompts: what is put before a text, by what the text is there for."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

Role = Literal["query", "document", "default"]

# What sentence-transformers calls them; where a folder has none of these its default prompt counts.
_NAMES: dict[Role, tuple[str, ...]] = {
    "query": ("query",),
    "document": ("document", "passage", "corpus"),
    "default": (),
}


def by_role(prompts: Mapping[str, str], default: str) -> dict[Role, str]:
    """The prompt of each role, "" for none.

    Args:
      prompts: name -> text.
      default: name of the prompt of texts without a role; "" for none.
    """
    usual = prompts.get(default, "")
    return {
        role: next((prompts[name] for name in names if name in prompts), usual)
        for role, names in _NAMES.items()
    }


def by_side(prompts: Mapping[Role, str], kind: str, sides: Iterable[str]) -> dict[str, str]:
    """The prompt of each side of training examples.

    The anchor of pairs and triplets is a query, what is on its other sides are documents. Scored
    pairs, and groups, have no such order: they get the default.

    Args:
      prompts: of each role.
      kind: of the split, see `data.text.TextSplit`.
      sides: their names.
    """
    if kind not in ("pairs", "triplets"):
        return dict.fromkeys(sides, prompts["default"])
    return {side: prompts["query" if side == "anchor" else "document"] for side in sides}


def parse(entries: Sequence[str]) -> dict[str, str]:
    """Prompts by role from "ROLE=TEXT" strings.

    Raises:
      ValueError: another role, or one that is named twice.
    """
    found: dict[str, str] = {}
    for entry in entries:
        role, equals, text = str(entry).partition("=")
        if not equals or role not in get_args(Role) or role in found:
            raise ValueError(
                f"prompts must be ('query=TEXT', 'document=TEXT', 'default=TEXT') or some of them, "
                f"got {entry!r:.60}"
            )
        found[role] = text
    return found
