import os
import socket
import struct

import numpy as np
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


def header(descr="<f4", order="False", shape="(2, 3)", data=24, version=b"\1\0"):
    text = f"{{'descr': {descr!r}, 'fortran_order': {order}, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text.encode() + bytes(data)


@pytest.mark.parametrize(
    "content",
    [
        header(shape="(3, 3)"),
        header(shape="(1, 3)"),
        header(shape="(0, 3)"),
        header(shape="(-2, -3)"),
        header(shape="(4611686018427387904, 16)"),
        header(shape="(99999999999999999999, 16)"),
        header(shape="'ab'"),
        header(shape="(" * 3000),
        header(shape="-" * 5000 + "1"),
        header(shape="(2, 3), 'more': 1"),
        header(shape="__import__('os').abort()"),
        header(descr="<f8"),
        header(descr="<f2"),
        header(descr="O"),
        header(descr="nonsense"),
        header(order="'x'"),
        header(version=b"\7\0"),
        header()[:60],
        b"\x93NUMPY\1\0\xff\xff",
        b"",
        b"PK\3\4",
    ],
)
def test_an_array_is_as_long_as_its_header_says(tmp_path, content):
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.npy is no whole \.npy file: .+"):
        inputs.open_npy(tmp_path / "x.npy")


@pytest.mark.parametrize("form", ["<f4", ">f4", "F"])
def test_arrays_of_any_order_are_opened(tmp_path, form):
    x_nd = np.arange(6, dtype="f4").reshape(2, 3)
    x_nd = np.asfortranarray(x_nd) if form == "F" else x_nd.astype(form)
    np.save(tmp_path / "x.npy", x_nd)
    np.testing.assert_array_equal(inputs.open_npy(tmp_path / "x.npy"), x_nd)
    os.mkfifo(tmp_path / "pipe.npy")
    with pytest.raises(DataError, match="is a pipe, where a file is needed"):
        inputs.open_npy(tmp_path / "pipe.npy")
