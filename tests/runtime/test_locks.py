import errno
import fcntl
import os

import pytest

from mrl_jax.errors import UsageError
from mrl_jax.record.folder import locked
from mrl_jax.runtime import locks


def test_a_locked_folder_is_refused(tmp_path):
    with locked(tmp_path), pytest.raises(UsageError, match="in use"), locked(tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks_is_said_once(tmp_path, monkeypatch, capsys, number):
    def flock(file, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(locks, "_said", set())
    with (tmp_path / "lock").open("a") as file, (tmp_path / "other").open("a") as other:
        assert locks.taken(file)
        assert locks.taken(other)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {tmp_path / 'lock'} cannot be locked ({os.strerror(number)})")
