import os
import resource
import socket
import struct

import numpy as np
import pytest

from mrl_jax import config, errors
from mrl_jax.data import folder, hierarchy, text_files, tree, vector_splits
from mrl_jax.data.remarks import Remarks
from mrl_jax.errors import DataError, UsageError
from mrl_jax.interop import torch_weights
from mrl_jax.models.text import tokenizer_files
from mrl_jax.record import artefacts
from mrl_jax.search.plan import read_plan
from mrl_jax.store import id_files, inputs
from mrl_jax.store.vectors import open_vectors


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


def read_tree(path):
    tree.open_tree(path.parent)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("x.jsonl", lambda path: list(text_files.read_rows(path))),
        ("x.tsv.gz", text_files.sha256),
        ("x.npy", open_vectors),
        ("x.parquet", open_vectors),
        ("x.npy", id_files.read),
        ("x.npz", lambda path: vector_splits.read_scored(path, 2)),
        ("x.safetensors", torch_weights.read_tensors),
        ("x.csv", lambda path: hierarchy.read(str(path), ["a"])),
        ("x.noun", lambda path: hierarchy.read(f"{path}:n02084071", ["n02084072"])),
        ("tokenizer.json", tokenizer_files.read),
        ("x.py", lambda path: config.load(f"{path}:mrl")),
        ("x.json", read_plan),
        ("x.jpg", read_tree),
        ("x.jpg", lambda path: folder.image_files(path.parent, Remarks())),
    ],
)
def test_readers_refuse_what_is_no_regular_file(tmp_path, monkeypatch, name, read):
    """Seen at a socket, which cannot be opened; a pipe would be waited for."""
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        with pytest.raises(errors.USER_ERRORS, match="is a socket, where a file is needed"):
            read(tmp_path / name)


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


def test_arrays_hold_no_descriptors(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(12.0).reshape(3, 4))
    before = len(os.listdir("/dev/fd"))
    arrays = [inputs.open_npy(tmp_path / "x.npy") for _ in range(20)]
    assert len(os.listdir("/dev/fd")) == before
    (tmp_path / "x.npy").unlink()
    for x_nd in arrays:
        np.testing.assert_array_equal(x_nd, np.arange(12.0).reshape(3, 4))
        assert not x_nd.flags.writeable


def test_too_few_descriptors_are_no_damage(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(3))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(DataError, match=r"x\.npy cannot be read: Too many open files$"):
            inputs.open_npy(tmp_path / "x.npy")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_arrays_that_a_small_file_unpacks_to_without_end_are_refused(tmp_path, monkeypatch):
    """A kilobyte of .npz may hold gigabytes of zeros."""
    monkeypatch.setattr(inputs, "MOST_UNPACKED", 10_000)
    path = tmp_path / "examples.npz"
    np.savez_compressed(path, a=np.zeros((100_000, 2)), b=np.zeros(3), score=np.zeros(3))
    message = r"examples\.npz.*its \d,\d+ bytes unpack to 1,600,\d+"
    with pytest.raises(DataError, match=message):
        vector_splits.read_scored(path, 2)
    with pytest.raises(DataError, match=message):
        artefacts._read_right(path, "a", 0)
    np.savez_compressed(path, a=np.ones((500, 2)), b=np.ones((500, 2)), score=np.ones(500))
    monkeypatch.setattr(inputs, "MOST_TIMES", 10**6)
    assert len(vector_splits.read_scored(path, 2).score_n) == 500
