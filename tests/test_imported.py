"""Objects named by import path."""

import sys

import pytest

from mrl_jax.errors import UsageError
from mrl_jax.imported import by_path, code


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
        ("", "lab:", "must be an import path"),
        ("", "my lab:f", "must be an import path"),
        ("", ".lab:f", "must be an import path"),
        ("", "other.lab:f", "there is no module other;"),
        ("", "lab.other:f", "there is no module lab.other;"),
        ("", "lab:f", "lab has no 'f'"),
        ("import nowhere_to_be_found", "lab:f", "importing lab fails with ModuleNotFoundError"),
        ("1 / 0", "lab:f", "importing lab fails with ZeroDivisionError"),
        ("import sys; sys.exit(3)", "lab:f", "importing lab fails with SystemExit: 3"),
        ("def f(:", "lab:f", "importing lab fails with SyntaxError"),
    ],
)
def test_refuses_what_it_cannot_find_in_one_line(lab, code, path, message):
    (lab / "lab.py").write_text(code)
    with pytest.raises(UsageError, match=message) as error:
        by_path(path, "config.pairs.loss")
    assert str(error.value).startswith("config.pairs.loss")
    assert "\n" not in str(error.value)


def test_processes_compare_the_code_of_modules_that_are_named(lab):
    (lab / "compared.py").write_text("x = 1")
    assert "code of compared (digest)" not in code()
    by_path("compared:x", "it")
    before = code()["code of compared (digest)"]
    (lab / "compared.py").write_text("x = 2")
    assert code()["code of compared (digest)"] != before
