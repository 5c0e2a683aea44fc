"""The address at which the first process of a group listens and the others meet it.

JAX waits minutes for an address that cannot work and then aborts, so it is checked here first.
"""

import contextlib
import errno
import ipaddress
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

from mrl_jax.errors import EXIT_HUNG, UsageError, shown

# When processes start on many machines, a machine's name may become known a little later.
_RESOLVED_S = 20
_SILENT_S = 10  # after which a process that waits for the others says so

# Mostly seen in containers.
NO_LOOPBACK = "the loopback interface is down, `ip link set lo up` starts it"


class Address(NamedTuple):
    """A host, as a name or an IP address without brackets ("" is any), and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" if host else f"{self.port}"

    @property
    def alone(self) -> bool:
        """Whether it says which network interface is meant: an IP address or localhost.

        The name of a machine does not: the machine itself often resolves it to 127.0.1.1.
        """
        return self.host.lower() == "localhost" or _is_ip(self.host)


def parse(name: str, text: str) -> Address:
    """The address in a text "HOST:PORT", IPv6 addresses in brackets.

    Raises:
      UsageError: it is not an address; calls what holds the text by `name`.
    """
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([^\s:/\[\]]+)):(\d{1,5})", text, re.ASCII)
    host = found and (found[1] or found[2])
    if not found or not 1 <= int(found[3]) <= 65535 or (found[1] and not _is_ip(host)):
        raise UsageError(
            f"{name} must be HOST:PORT with a port of 1 to 65535, such as 127.0.0.1:1234, "
            f"node0:1234 or [fd00::1]:1234; got {shown(text)}"
        )
    return Address(host, int(found[3]))


def parse_port(name: str, text: str) -> int:
    """The port in a text; arguments and errors as of `parse`."""
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
        raise UsageError(f"{name} must be a port of 1 to 65535, got {shown(text)}")
    return int(text)


def check_reached(name: str, address: Address) -> None:
    """Refuses a host that has no IP address, or none to which this machine has a route.

    Raises:
      UsageError: says which.
    """
    begin, waiting = time.monotonic(), False
    while True:
        try:
            places = socket.getaddrinfo(*address, type=socket.SOCK_DGRAM)
            break
        except (OSError, UnicodeError) as error:
            if time.monotonic() - begin > _RESOLVED_S:
                raise UsageError(
                    f"{name}={address}: the host {address.host} is not known here ({_why(error)})"
                ) from None
        if not waiting:
            print(f"waiting until the host {address.host} is known here", flush=True)
            waiting = True
        time.sleep(1)
    reason = ""
    for family, kind, protocol, _, place in places:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(place)  # sends nothing, but looks for a route
                return
        except OSError as error:
            reason = _why(error)
    raise UsageError(f"{name}={address}: there is no route to this host ({reason}){_hint()}")


def check_free(name: str, address: Address) -> None:
    """Refuses an address at which this process cannot listen.

    JAX would share the port with another group that listens there.

    Raises:
      UsageError: the port is in use or reserved, or the address is not of this machine.
    """
    host = address.host if address.alone else None
    places = socket.getaddrinfo(
        host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    reasons = []
    for family, kind, protocol, _, place in places:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(place)
                probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UsageError(
                    f"{name}={address}: port {address.port} is in use on this machine; "
                    "give all processes another one"
                ) from None
            reasons.append(error)
    if len(reasons) == len(places):
        why = _why(reasons[0])
        if reasons[0].errno == errno.EADDRNOTAVAIL:
            why = f"no network interface of this machine has the address{_hint()}"
        raise UsageError(f"{name}={address}: process 0 cannot listen there: {why}")


def has_loopback() -> bool:
    """Whether processes of this machine can reach each other."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("127.0.0.1", 1))  # sends nothing
        except OSError:
            return False
    return True


@contextlib.contextmanager
def waiting(others: str, timeout_s: float) -> Iterator[None]:
    """Reports that the with-block waits for `others`, and ends this process if they do not come.

    The exit code is that of a hang. JAX would abort it, with a trace of C++ instead of a line.
    """
    over = threading.Event()

    def watch() -> None:
        if over.wait(min(_SILENT_S, timeout_s)):
            return
        if timeout_s > _SILENT_S:
            print(f"waiting for {others}, for at most {timeout_s:g} s", flush=True)
            if over.wait(timeout_s - _SILENT_S):
                return
        print(f"error: no sign of {others} for {timeout_s:g} s", file=sys.stderr, flush=True)
        os._exit(EXIT_HUNG)

    thread = threading.Thread(target=watch, name="waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _hint() -> str:
    return "" if has_loopback() else f"; {NO_LOOPBACK}"
