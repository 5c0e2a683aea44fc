"""Lists the commands: `python -m mrl_jax`."""

import ast
import importlib.util
import pathlib
from collections.abc import Sequence

from mrl_jax import cli
from mrl_jax.errors import UsageError

COMMANDS = ("train", "evaluate", "sweep", "report", "embed", "export", "search", "engines")


def summary(command: str) -> str:
    """What a command does and how it is called; read without importing it, which takes seconds."""
    module = importlib.util.find_spec(f"mrl_jax.{command}")
    path = pathlib.Path(module.origin)
    if module.submodule_search_locations:
        path = path.with_name("__main__.py")
    return ast.get_docstring(ast.parse(path.read_text())).partition("\n")[0]


def main(argv: Sequence[str]) -> None:
    """Runs the command line; see the module's docstring.

    Raises:
      UsageError: there are arguments; every command is a module of its own.
    """
    if argv not in ([], ["--help"], ["-h"]):
        known = next((name for name in argv if name in COMMANDS), "COMMAND")
        raise UsageError(f"unexpected {argv[0]!r}: call a command as python -m mrl_jax.{known}")
    print("Commands (each explains itself with --help):\n")
    for command in COMMANDS:
        print(f"  {summary(command)}")


if __name__ == "__main__":
    cli.run(main)
