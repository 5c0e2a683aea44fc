import os
import tempfile

import numba
import pytest

from mrl_jax.search.index import compiling


@pytest.fixture
def only_named(monkeypatch, tmp_path):
    """Numba may write neither beside the code nor to a folder of caches."""
    monkeypatch.setattr(numba.config, "CACHE_LOCATOR_CLASSES", "UserProvidedCacheLocator")
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    compiling._is_kept.cache_clear()
    yield tmp_path / f"mrl_jax-numba-{os.getuid()}"
    compiling._is_kept.cache_clear()


def next_number():
    return compiling.compiled(lambda x: x + 1)(41)


def test_temporary_files_are_where_compiled_code_is_kept_at_last(only_named):
    assert next_number() == 42
    kept = list(only_named.rglob("*.nbi"))
    assert len(kept) == 1
    assert only_named.stat().st_mode & 0o777 == 0o700
    for content in (b"", kept[0].read_bytes()[:30], b"x" * 100):  # damaged: it is compiled again
        kept[0].write_bytes(content)
        assert next_number() == 42
        assert kept[0].stat().st_size > 100


def test_without_any_folder_code_is_compiled_every_time(only_named, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    assert next_number() == 42
    assert not only_named.exists()


def test_code_that_others_may_write_is_not_run(only_named):
    only_named.mkdir()
    only_named.chmod(0o777)
    assert next_number() == 42
    assert not list(only_named.iterdir())
