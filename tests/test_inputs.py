import os
import socket

import pytest

from mrl_jax import inputs
from mrl_jax.errors import DataError, UsageError


def test_only_regular_files_are_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # names of sockets must be short
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        for path, kind in (
            ("pipe", "a pipe"),
            ("socket", "a socket"),
            ("/dev/zero", "a device"),
            (".", "a folder"),
        ):
            with pytest.raises(DataError, match=f"^{path} is {kind}, where a file is needed$"):
                inputs.check_file(path)
    os.symlink("pipe", "link")
    with pytest.raises(UsageError, match="link is a pipe"):
        inputs.check_file("link", UsageError)
    (tmp_path / "file").touch()
    inputs.check_file("file")
    inputs.check_file("missing")  # whoever opens it says so
