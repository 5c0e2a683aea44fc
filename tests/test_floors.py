"""No room of the package imports one above it: the rooms, lowest first, and what each is for."""

import ast
import pathlib

import mrl_jax

PACKAGE = pathlib.Path(mrl_jax.__file__).parent
ROOMS = {
    "errors": "the ways a command can fail, with their exit codes",
    "extras": "libraries that only some uses need",
    "imported": "objects by their import path",
    "printing": "tables as text",
    "plots": "charts as PNG",
    "store": "files: vectors, tables, JSON, checked and written whole",
    "config": "reading and overriding a config; the keys of each task stand beside it",
    "nesting": "which prefixes there are, and their weights",
    "kernels": "the arithmetic over prefixes",
    "heads": "classifiers on every prefix",
    "losses": "losses over prefixes",
    "models": "networks for images, texts and vectors",
    "runtime": "mesh, step, checkpoints, signals: how a program runs",
    "cli": "what every command shares",
    "data": "where examples come from, and which make up a batch",
    "interop": "weights and model folders of others",
    "record": "the run folder and the results in it",
    "cascade": "short prefixes answer where they are sure",
    "search": "neighbours: on devices, in an index, and a plan for either",
    "evaluators": "what is measured of an embedding",
    "tasks": "what is trained: one room per task",
    "experiment": "from a config to data, program and measurements",
    "model": "a trained model of any task, opened",
    "reporting": "runs side by side, as pages and plots",
    "dry_run": "what a step costs",
    **dict.fromkeys(("train", "evaluate", "embed", "export", "sweep", "report"), "commands"),
    "engines": "search engines of others",
    "__main__": "the list of commands",
    "__init__": "the package",
}
# Imports that still lead upwards, as (room, room).
EXCEPTIONS: set[tuple[str, str]] = set()


def _modules(path: pathlib.Path) -> set[str]:
    """The modules that a file imports from, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "mrl_jax":
            found |= {f"mrl_jax.{name.name}" for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "mrl_jax.tasks":
            found |= {f"mrl_jax.tasks.{name.name}" for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return found


def _imported(path: pathlib.Path) -> set[str]:
    """The rooms that a file imports from."""
    return {name.split(".")[1] for name in _modules(path) if name.startswith("mrl_jax.")}


def _upwards() -> dict[tuple[str, str], list[str]]:
    """The files that import upwards, by (room, room)."""
    order = {room: number for number, room in enumerate(ROOMS)}
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for other in _imported(path):
            if order[other] > order[room]:
                found.setdefault((room, other), []).append(str(path.relative_to(PACKAGE)))
    return found


def test_no_task_imports_from_the_room_of_another():
    tasks = [path for path in (PACKAGE / "tasks").iterdir() if (path / "task.py").exists()]
    assert len(tasks) > 3
    for room in tasks:
        others = tuple(f"mrl_jax.tasks.{other.name}" for other in tasks if other != room)
        for path in room.rglob("*.py"):
            found = {name for name in _modules(path) if name.startswith(others)}
            assert not found, f"{path} imports {found}"


def test_every_room_is_listed():
    there = {path.name.removesuffix(".py") for path in PACKAGE.iterdir()} - {"__pycache__"}
    assert there == set(ROOMS)


def test_no_room_imports_one_above_it():
    found = _upwards()
    assert {rooms: files for rooms, files in found.items() if rooms not in EXCEPTIONS} == {}
    assert set(found) >= EXCEPTIONS, "an exception that is no longer needed"
