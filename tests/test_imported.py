"""Objects named by import path."""

import sys

import pytest

from mrl_jax.errors import UsageError
from mrl_jax.imported import by_path


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A folder on the path whose modules are forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_finds_modules_functions_and_what_is_inside_them(lab):
    (lab / "my_lab").mkdir()
    (lab / "my_lab" / "code.py").write_text("class Net:\n    def make(): return 3\n")
    assert by_path("my_lab.code", "it").Net is by_path("my_lab.code:Net", "it")
    assert by_path("my_lab.code:Net.make", "it")() == 3


@pytest.mark.parametrize(
    ("code", "path", "message"),
    [
        ("", "code:", "must be an import path"),
        ("", "my code:f", "must be an import path"),
        ("", ".code:f", "must be an import path"),
        ("", "other.code:f", "there is no module other;"),
        ("", "code.other:f", "there is no module code.other;"),
        ("", "code:f", "code has no 'f'"),
        ("import nowhere_to_be_found", "code:f", "importing code fails with ModuleNotFoundError"),
        ("1 / 0", "code:f", "importing code fails with ZeroDivisionError"),
        ("def f(:", "code:f", "importing code fails with SyntaxError"),
    ],
)
def test_refuses_what_it_cannot_find_in_one_line(lab, code, path, message):
    (lab / "code.py").write_text(code)
    with pytest.raises(UsageError, match=message) as error:
        by_path(path, "config.pairs.loss")
    assert str(error.value).startswith("config.pairs.loss")
    assert "\n" not in str(error.value)
