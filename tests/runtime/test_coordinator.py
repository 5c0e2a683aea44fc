import errno
import shutil
import socket
import sys
import threading

import commands
import pytest

from mrl_jax.errors import EXIT_HUNG, UsageError
from mrl_jax.runtime import coordinator
from mrl_jax.runtime.coordinator import Address


@pytest.mark.parametrize(
    ("text", "address", "alone"),
    [
        ("127.0.0.1:1234", ("127.0.0.1", 1234), True),
        ("localhost:1", ("localhost", 1), True),
        ("[::1]:65535", ("::1", 65535), True),
        ("[fe80::1%eth0]:9", ("fe80::1%eth0", 9), True),
        ("node-0.cluster.local:8080", ("node-0.cluster.local", 8080), False),
    ],
)
def test_addresses(text, address, alone):
    found = coordinator.parse("VARIABLE", text)
    assert (found, found.alone, str(found)) == (address, alone, text)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "host",
            "127.0.0.1",
            ":1234",
            "host:",
            "host:0",
            "host:70000",
            "host:port",
            "host:-1",
        ),
        *("host:1234:5", "::1:1234", "[::1", "[::1]", "[host]:1234", "[127.0.0.1:99", "host: 12"),
        *("http://host:1234", " host:1234", "host:1234 ", "host:１２", "a b:1234"),
    ],
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(UsageError, match="VARIABLE must be HOST:PORT with a port of 1 to 65535"):
        coordinator.parse("VARIABLE", text)


def test_what_is_no_port_is_refused():
    assert coordinator.parse_port("VARIABLE", "65535") == 65535
    for text in ("0", "65536", "x", "-1", "1.5", "１"):
        with pytest.raises(UsageError, match="VARIABLE must be a port of 1 to 65535, got"):
            coordinator.parse_port("VARIABLE", text)


def test_a_port_in_use_is_refused():
    """Also where its user would share it, as JAX does."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        port = listener.getsockname()[1]
        for host in ("127.0.0.1", "localhost", "node0", ""):
            with pytest.raises(UsageError, match=f"VARIABLE=.*port {port} is in use on this mach"):
                coordinator.check_free("VARIABLE", Address(host, port))
    for host in ("127.0.0.1", "localhost", "node0"):
        coordinator.check_free("VARIABLE", Address(host, port))


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(UsageError, match=r"process 0 cannot listen there: no network interface of"):
        coordinator.check_free("VARIABLE", Address("203.0.113.77", 1234))


def test_a_host_may_become_known_a_little_later(monkeypatch, capsys):
    known = iter([False, False, True])

    def look_up(host, port, **options):
        if not next(known, False):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_DGRAM, 0, "", ("127.0.0.1", port))]

    monkeypatch.setattr(coordinator.socket, "getaddrinfo", look_up)
    monkeypatch.setattr(coordinator.time, "sleep", lambda seconds: None)
    coordinator.check_reached("VARIABLE", Address("node0", 1234))
    assert capsys.readouterr().out == "waiting until the host node0 is known here\n"
    monkeypatch.setattr(coordinator, "_RESOLVED_S", -1)
    with pytest.raises(UsageError, match=r"the host node0 is not known here .Name or service not"):
        coordinator.check_reached("VARIABLE", Address("node0", 1234))


def test_a_host_without_a_way_to_it_is_refused(monkeypatch):
    coordinator.check_reached("VARIABLE", Address("127.0.0.1", 1234))

    class Unreachable(socket.socket):
        def connect(self, address):
            raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr(coordinator.socket, "socket", Unreachable)
    with pytest.raises(UsageError, match=r"no route to .* host .*the loopback interface is down"):
        coordinator.check_reached("VARIABLE", Address("127.0.0.1", 1234))


def test_who_waits_for_others_says_so_and_does_not_wait_for_ever(monkeypatch, capsys):
    with coordinator.waiting("the others", 60):
        pass
    ended, codes = threading.Event(), []
    monkeypatch.setattr(coordinator.os, "_exit", lambda code: (codes.append(code), ended.set()))
    monkeypatch.setattr(coordinator, "_SILENT_S", 0.01)
    with coordinator.waiting("the others", 0.02):
        assert ended.wait(60)
    assert codes == [EXIT_HUNG]
    said = capsys.readouterr()
    assert said.out == "waiting for the others, for at most 0.02 s\n"
    assert said.err == "error: no sign of the others for 0.02 s\n"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("unshare"), reason="needs a network without loopback")
def test_without_loopback_every_process_says_so():
    code = (
        "from mrl_jax import cli; from mrl_jax.runtime import distributed;"
        "cli.run(lambda argv: distributed.initialize())"
    )
    launcher = (sys.executable, "launch/local.py", "--processes", "2", "--")
    done = commands.run(["unshare", "-rn", *launcher, sys.executable, "-c", code])
    assert done.returncode == 2, done.stdout + done.stderr
    assert "the loopback interface is down, `ip link set lo up` starts it" in done.stdout
