import sys

import commands
import pytest

from mrl_jax import extras
from mrl_jax.errors import UsageError

# A process that has nothing but what requirements.txt installs.
BARE = """
import importlib, pathlib, runpy, sys

class Missing:
    names = {
        *("faiss", "flatbuffers", "jax2onnx", "numba", "numkong", "onnx", "onnxruntime", "psycopg"),
        *("pyarrow", "pymilvus", "ray", "safetensors", "tensorflow", "tokenizers", "xxhash"),
    }
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""
IMPORTS = """
from mrl_jax.errors import UsageError

for path in sorted(pathlib.Path("mrl_jax").rglob("*.py")):
    name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    try:
        importlib.import_module(name)
    except UsageError as error:
        print(name, error)
"""


def test_without_extras_imports_say_what_to_install():
    done = commands.run([sys.executable, "-W", "ignore", "-c", BARE + IMPORTS])
    assert (done.returncode, done.stderr) == (0, "")
    said = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    for name, extra in (
        ("search.index", "search"),
        ("search.planner", "search"),
        ("search.__main__", "search"),
        ("encoder", "text"),
        ("tokenization", "text"),
        ("export", "export"),
        ("interop", "weights"),
        ("engines.postgres", "engines"),
        ("engines.milvus", "engines"),
    ):
        assert f'pip install "mrl_jax[{extra}]"' in said[f"mrl_jax.{name}"]
    assert all('pip install "mrl_jax[' in line for line in said.values())
    for name in (
        *("embed", "engines.__main__", "evaluate", "report", "sweep", "train"),
        *("cascade", "heads", "nesting", "search", "search.exact", "search.funnel"),
    ):
        assert f"mrl_jax.{name}" not in said


def test_without_its_extra_a_command_is_one_line():
    run = "sys.argv = ['search', '--help']; runpy.run_module('mrl_jax.search', run_name='__main__')"
    line = commands.fail([sys.executable, "-W", "ignore", "-c", BARE + run], 2)
    assert 'an index needs more packages: pip install "mrl_jax[search]" (No module named' in line


def test_the_outermost_use_names_the_extra():
    message = r'exporting needs more packages: pip install "mrl_jax\[export\]" \(No module named'
    with (
        pytest.raises(UsageError, match=message),
        extras.needed("export", "exporting"),
        extras.needed("weights", "weights"),
    ):
        import no_such_module  # noqa: F401
