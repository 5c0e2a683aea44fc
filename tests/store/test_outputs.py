"""What a command may write to where the user says, and what it leaves alone."""

import json
import os
import pathlib
import signal
import socket
import stat
import subprocess
import sys
import threading

import numpy as np
import pytest

from mrl_jax import config as configs
from mrl_jax.cascade.policy import Policy
from mrl_jax.errors import UsageError
from mrl_jax.record import folder
from mrl_jax.store import outputs

OWN = outputs.holds_arrays("ids", "scores")


def test_a_file_is_replaced_only_where_the_command_wrote_it(tmp_path):
    place = tmp_path / "new" / "found.npz"
    np.savez(tmp_path / "ours.npz", ids=[1], scores=[2.0])
    ours = (tmp_path / "ours.npz").read_bytes()
    for _ in range(2):
        outputs.write_file(place, ours, OWN)
    assert [path.name for path in place.parent.iterdir()] == ["found.npz"]
    np.savez(tmp_path / "vectors.npz", ids=[1], scores=[2.0], z=[3.0])
    np.save(tmp_path / "x.npy", [1.0])
    (tmp_path / "notes.md").write_text("mine")
    for name in ("vectors.npz", "x.npy", "notes.md"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(UsageError, match=f"{name} was not written by this command"):
            outputs.write_file(tmp_path / name, ours, OWN)
        assert (tmp_path / name).read_bytes() == before
    with pytest.raises(UsageError, match="is what this command reads"):
        outputs.check_file(place, OWN, [tmp_path / "new" / ".." / "new" / "found.npz"])
    with pytest.raises(UsageError, match="is a folder"):
        outputs.write_file(tmp_path, ours, OWN)


def test_a_link_is_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    link, target = tmp_path / "found.npz", tmp_path / "disk" / "found.npz"
    link.symlink_to(target)
    outputs.write_file(link, b"new", OWN)  # which is not there yet
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    with pytest.raises(UsageError, match=r"found\.npz was not written by this command"):
        outputs.write_file(link, b"newer", OWN)
    lost = tmp_path / "lost.npz"
    lost.symlink_to(tmp_path / "unmounted" / "found.npz")
    with pytest.raises(UsageError, match="whose folder does not exist"):
        outputs.write_file(lost, b"new", OWN)
    loop = tmp_path / "loop.npz"
    loop.symlink_to(loop)
    with pytest.raises(UsageError, match=r"loop\.npz"):
        outputs.write_file(loop, b"new", OWN)
    assert target.read_bytes() == b"new"
    assert lost.is_symlink()


def test_a_pipe_is_written_into(tmp_path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    outputs.write_file(pipe, b"new", OWN)
    reader.join(30)
    assert read == [b"new"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_pipe_that_nobody_reads_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "_READER_S", 0)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="pipe is a pipe that nobody reads"):
        outputs.write_file(tmp_path / "pipe", b"new", OWN)


def test_devices_and_sockets_stay(tmp_path):
    outputs.write_file(pathlib.Path(os.devnull), b"new", OWN)
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    with pytest.raises(UsageError, match="/dev/zero is neither a file nor a pipe"):
        outputs.check_file(pathlib.Path("/dev/zero"), OWN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        with pytest.raises(UsageError, match="neither a file nor a pipe"):
            outputs.write_file(tmp_path / "socket", b"new", OWN)
        assert (tmp_path / "socket").is_socket()


def test_standard_output_is_written_into(tmp_path):
    # In a process of its own, whose standard output pytest does not hold.
    call = """
from mrl_jax.store import outputs
import pathlib, sys
for place in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"):
    print("before")
    outputs.write_file(pathlib.Path(place), b"content\\n", lambda path: False)
"""
    with (tmp_path / "out").open("w") as out:
        subprocess.run([sys.executable, "-c", call], check=True, stdout=out)
    assert (tmp_path / "out").read_text() == "before\ncontent\n" * 3


def test_a_folder_is_replaced_only_where_nothing_in_it_is_of_others(tmp_path):
    place = tmp_path / "model"

    def write(text):
        with outputs.replaced(place) as new:
            (new / "inner").mkdir()
            (new / "inner" / "weights").write_text(text)
            (new / "empty").mkdir()
            (new / "README.md").write_text("card")

    write("old")
    assert outputs.foreign(place) == ""
    write("new")
    assert (place / "inner" / "weights").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    for name in ("notes.txt", ".git/HEAD", "onnx/model.onnx", "inner/other"):
        path = place / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
        assert outputs.foreign(place) == (name if name == "inner/other" else name.split("/")[0])
        path.unlink()
        if path.parent.name in (".git", "onnx"):
            assert outputs.foreign(place) == path.parent.name
            path.parent.rmdir()
    (place / "link").symlink_to(tmp_path)
    assert outputs.foreign(place) == "link"
    (place / "link").unlink()
    (place / "README.md").write_text("a card that someone wrote")
    assert outputs.foreign(place) == "README.md"


KILLED = """
import json, os, pathlib, signal, sys
from mrl_jax.store import outputs
place = pathlib.Path(sys.argv[1])

def replace(text, left):
    def hook(event, arguments):
        nonlocal left
        changes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "ctypes.dlsym")
        if changes or event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
    if left is not None:
        sys.addaudithook(hook)
    with outputs.replaced(place) as new:
        (new / "weights").write_text(text)

replace("old", None)
found = []
for left in range(30):
    if not (child := os.fork()):
        replace("new", left)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    found.append([code, (place / "weights").read_text(), outputs.foreign(place)])
    if code == 0:
        break
print(json.dumps(found))
"""


def test_a_kill_leaves_the_old_folder_or_the_new_one(tmp_path):
    argv = [sys.executable, "-c", KILLED, tmp_path / "model"]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    codes, texts, foreign = zip(*json.loads(done.stdout), strict=True)
    assert codes == (-signal.SIGKILL,) * (len(codes) - 1) + (0,)
    assert texts == tuple(sorted(texts, reverse=True))
    assert (texts[0], texts[-1]) == ("old", "new")
    assert len(texts) > 4
    assert set(foreign) == {""}


def test_a_policy_replaces_policies_only(tmp_path):
    policy = Policy((8, 16), (0.5, 0.0))
    for _ in range(2):
        policy.save(tmp_path / "policy.json")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"config\.json was not written by this command"):
        policy.save(tmp_path / "config.json")


def test_a_new_run_takes_no_folder_whose_files_it_would_replace(tmp_path):
    config = configs.default_config()
    for name in ("evaluation", "evaluation.old", "evaluation.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.md").write_text("mine")
    (tmp_path / ".lock").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with folder.locked(tmp_path):
        with pytest.raises(UsageError, match="holds evaluation but no run"):
            folder.check_same_run(tmp_path, config)
        (tmp_path / "evaluation").rename(tmp_path / "mine")
        folder.check_same_run(tmp_path, config)
        (tmp_path / "mine").rename(tmp_path / "evaluation")
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / ".lock").read_text() == "mine"
    (tmp_path / "ckpt").mkdir()  # of a run whose config.json is lost
    folder.check_same_run(tmp_path, config)
