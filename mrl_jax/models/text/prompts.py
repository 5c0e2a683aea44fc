"""Prompts: what is put before a text, by the role of the text."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

from mrl_jax.errors import shown

Role = Literal["query", "document", "default"]

# Their names in sentence-transformers; if a folder has none of these, its default prompt is used.
_NAMES: dict[Role, tuple[str, ...]] = {
    "query": ("query",),
    "document": ("document", "passage", "corpus"),
    "default": (),
}


def by_role(prompts: Mapping[str, str], default: str) -> dict[Role, str]:
    """The prompt of each role; `default` is the name of that for texts without one, "" for none."""
    usual = prompts.get(default, "")
    return {
        role: next((prompts[name] for name in names if name in prompts), usual)
        for role, names in _NAMES.items()
    }


def by_side(prompts: Mapping[Role, str], kind: str, sides: Iterable[str]) -> dict[str, str]:
    """The prompt of each side of training examples.

    The anchor of a pair or triplet is a query, the other sides are documents. Scored pairs and
    groups have no such order: they get the default prompt. `kind` is that of `data.text.TextSplit`.
    """
    if kind not in ("pairs", "triplets"):
        return dict.fromkeys(sides, prompts["default"])
    return {side: prompts["query" if side == "anchor" else "document"] for side in sides}


def parse(entries: Sequence[str]) -> dict[str, str]:
    """Prompts by role from "ROLE=TEXT" strings.

    Raises:
      ValueError: a string has another form or role, or a role occurs twice.
    """
    found: dict[str, str] = {}
    for entry in entries:
        role, equals, text = str(entry).partition("=")
        if not equals or role not in get_args(Role) or role in found:
            raise ValueError(
                "prompts must be some of 'query=TEXT', 'document=TEXT' and 'default=TEXT', each at "
                f"most once, got {shown(entry)}"
            )
        found[role] = text
    return found
