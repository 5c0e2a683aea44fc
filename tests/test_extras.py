import importlib
import pathlib
import sys

import commands
import pytest

from mrl_jax import cli, extras
from mrl_jax.errors import UsageError

EXTRAS = {
    *("faiss", "flatbuffers", "jax2onnx", "numba", "numkong", "onnx", "onnxruntime", "psycopg"),
    *("pyarrow", "pymilvus", "ray", "safetensors", "starlette", "tensorflow", "tokenizers"),
    *("orjson", "uvicorn", "xxhash"),
}


class Missing:
    """Finds nothing but what requirements.txt installs."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in EXTRAS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.fixture
def bare(monkeypatch):
    """This process without the extras, and with none of our modules imported yet."""
    for name in list(sys.modules):
        if name.partition(".")[0] in {"mrl_jax", *EXTRAS}:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    modules = dict(sys.modules)
    yield
    for name in sys.modules.keys() - modules.keys():
        if name.partition(".")[0] == "mrl_jax":
            del sys.modules[name]


def test_without_extras_imports_say_what_to_install(bare):
    said = {}
    for path in sorted(pathlib.Path("mrl_jax").rglob("*.py")):
        name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        try:
            importlib.import_module(name)
        except ValueError as error:  # a UsageError of the package that was imported anew
            said[name] = str(error)
    for name, extra in (
        ("search.index", "search"),
        ("search.planner.propose", "search"),
        ("search.__main__", "search"),
        ("search.service.bodies", "serve"),
        ("tasks.text_inputs", "text"),
        ("models.text.tokenizer", "text"),
        ("export", "export"),
        ("interop", "weights"),
        ("engines.postgres", "engines"),
        ("engines.milvus", "engines"),
    ):
        assert f'pip install "mrl_jax[{extra}]"' in said[f"mrl_jax.{name}"]
    assert all('pip install "mrl_jax[' in line for line in said.values())
    for name in (
        *("embed", "engines.__main__", "evaluate", "report", "sweep", "train"),
        *("cascade", "heads", "nesting", "search", "search.device.exact", "search.device.funnel"),
    ):
        assert f"mrl_jax.{name}" not in said


def test_what_ends_the_imports_of_a_command_is_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        cli._uncaught(extras.MissingPackageError, extras.MissingPackageError("no x"), None)
    assert (ended.value.code, capsys.readouterr().err) == (2, "error: no x\n")


@pytest.mark.slow
def test_without_its_extra_a_command_is_one_line():
    bare = f"""
import runpy, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {EXTRAS}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
sys.argv = ["search", "--help"]
runpy.run_module("mrl_jax.search", run_name="__main__")
"""
    line = commands.fail([sys.executable, "-W", "ignore", "-c", bare], 2)
    assert 'an index needs more packages: pip install "mrl_jax[search]" (No module named' in line


def test_the_outermost_use_names_the_extra():
    message = r'exporting needs more packages: pip install "mrl_jax\[export\]" \(No module named'
    with (
        pytest.raises(UsageError, match=message),
        extras.needed("export", "exporting"),
        extras.needed("weights", "weights"),
    ):
        import no_such_module  # noqa: F401
