"""Functions that Linux has and macOS lacks are done without."""

import ast
import errno
import fcntl
import mmap
import os
import pathlib
import select
import signal
import socket
import tempfile

import commands
import numpy as np
import pytest

from mrl_jax.search.index import Index
from mrl_jax.search.index.rows import InMemory
from mrl_jax.search.plan import Plan
from mrl_jax.search.schedule import Schedule

ROOT = pathlib.Path(commands.__file__).parent.parent / "mrl_jax"
# As Python's manual says ("Availability"), where the name is one of Linux or not of macOS.
MISSING = {
    os: ("sched_", "SCHED_", "posix_fallocate", "posix_fadvise", "POSIX_FADV_", "copy_file_range",
         "eventfd", "EFD_", "memfd_create", "MFD_", "pidfd_open", "PIDFD_", "P_PIDFD", "getrandom",
         "GRND_", "getresuid", "getresgid", "setresuid", "setresgid", "pipe2", "splice", "SPLICE_",
         "setns", "unshare", "CLONE_", "fdatasync", "getxattr", "setxattr", "listxattr",
         "removexattr", "XATTR_", "O_DIRECT", "O_TMPFILE", "O_PATH", "O_NOATIME", "O_LARGEFILE",
         "O_RSYNC", "waitid", "RWF_"),
    mmap: ("MAP_POPULATE", "MAP_STACK", "MAP_DENYWRITE", "MAP_EXECUTABLE", "MADV_HUGEPAGE",
           "MADV_NOHUGEPAGE", "MADV_REMOVE", "MADV_DONTFORK", "MADV_DOFORK", "MADV_MERGEABLE",
           "MADV_UNMERGEABLE", "MADV_DONTDUMP", "MADV_DODUMP", "MADV_HWPOISON"),
    signal: ("SIGPWR", "SIGSTKFLT", "SIGPOLL", "SIGCLD", "SIGRTMIN", "SIGRTMAX", "sigwaitinfo",
             "sigtimedwait"),
    fcntl: ("F_OFD_", "F_ADD_SEALS", "F_GET_SEALS", "F_SEAL_", "F_SETPIPE_SZ", "F_GETPIPE_SZ",
            "F_NOTIFY", "F_SETLEASE", "F_GETLEASE"),
    select: ("epoll", "EPOLL"),
    socket: ("SOCK_CLOEXEC", "SOCK_NONBLOCK", "AF_NETLINK", "AF_PACKET", "AF_ALG", "SO_PEERCRED",
             "SO_BINDTODEVICE", "SO_MARK", "SO_DOMAIN", "SO_PROTOCOL"),
    errno: ("EBADFD", "ECOMM", "EREMOTEIO", "EUCLEAN", "ERESTART", "ENOTUNIQ", "EREMCHG"),
}  # fmt: skip


def missing(module):
    return [name for name in dir(module) if name.startswith(MISSING[module])]


@pytest.fixture
def macos(monkeypatch):
    """Without what macOS lacks."""
    for module in (os, mmap, signal, fcntl):
        for name in missing(module):
            monkeypatch.delattr(module, name)
    # Which Python's module finds out when it is imported; numba makes such files.
    monkeypatch.setattr(tempfile, "_O_TMPFILE_WORKS", False)


def test_an_index(macos, tmp_path):
    z_nd = np.random.default_rng(0).standard_normal((300, 16)).astype(np.float32)
    for name, lists in (("flat", {}), ("lists", {"lists": 4, "list_dim": 8, "probes": 4})):
        plan = Plan(Schedule.parse("8:100 > 16"), code="int8", **lists)
        index = Index.build(tmp_path / name, InMemory(z_nd), plan=plan)
        index.delete([7])
        index.compact()
        index.verify()
        kept_n = np.delete(np.arange(300), 7)
        np.testing.assert_array_equal(index.search(z_nd[kept_n], 1)[0][:, 0], kept_n)


@pytest.mark.slow
def test_a_step_of_training(macos, tmp_path):
    commands.here(
        commands.train(tmp_path / "run", "--config.steps=1", "--config.optimizer.warmup_steps=0")
    )
    assert (tmp_path / "run" / "results.json").exists()


def test_no_such_function_is_used_without_a_look_whether_it_is_there():
    """Nor in code that other tests here do not run."""
    names = {module.__name__: missing(module) for module in MISSING}
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                lacking = node.attr in names.get(node.value.id, ())
                if lacking and f'hasattr({node.value.id}, "{node.attr}")' not in text:
                    found.append(f"{path.relative_to(ROOT)}: {node.value.id}.{node.attr}")
    # Which is only asked to bind to cores that were found.
    assert found == ["sweep.py: os.sched_setaffinity"]
