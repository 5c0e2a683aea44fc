"""Serving until a signal comes."""

import asyncio
import contextlib
import ipaddress
import math
import signal
import socket
from collections.abc import Iterator

from mrl_jax import extras
from mrl_jax.errors import UsageError
from mrl_jax.search.service.app import Limits, Service

with extras.needed("serve", "the service"):
    import uvicorn

__all__ = ["Limits", "Service", "is_public", "listen", "made", "run"]
REFRESH_S = 1.0  # between two looks at what others have changed
_BACKLOG = 1024


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals to `run`: uvicorn would end the process by the signal that came."""
        yield


def listen(host: str, port: int) -> socket.socket:
    """A socket to serve on; UsageError if there can be none."""
    if not 0 <= port <= 65535:
        raise UsageError(f"--port must be 0 to 65535, got {port}")
    try:
        *kind, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # Of this very protocol: only then asyncio turns off Nagle's algorithm, which would hold
        # back the body of each answer for 40 ms.
        listening = socket.socket(*kind)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(_BACKLOG)
        except BaseException:
            listening.close()
            raise
        return listening
    except (OSError, UnicodeError) as error:
        said = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot listen on {host}, port {port}: {said}") from None


def is_public(listening: socket.socket) -> bool:
    """Whether others than this machine may reach it."""
    return not ipaddress.ip_address(listening.getsockname()[0].partition("%")[0]).is_loopback


def made(service: Service) -> uvicorn.Server:
    """What serves it until its `should_exit` is set; `force_exit` leaves requests unanswered."""
    # Nothing of uvicorn's own is logged, and no header tells what serves.
    config = uvicorn.Config(
        service.app, log_config=None, access_log=False, lifespan="off", ws="none",
        server_header=False, proxy_headers=False,
        timeout_graceful_shutdown=math.ceil(service.limits.seconds) + 1,
    )  # fmt: skip
    return _Server(config)


def run(service: Service, listening: socket.socket) -> None:
    """Serves until SIGTERM, or SIGINT: what has been asked is answered, nothing else is taken.

    SIGHUP looks at the index on disk at once.

    Raises:
      KeyboardInterrupt: when it has ended by SIGINT.
    """
    try:
        interrupted = asyncio.run(_run(service, listening))
    finally:
        service.close()
    if interrupted:
        raise KeyboardInterrupt


async def _run(service: Service, listening: socket.socket) -> bool:
    """Whether it ended by SIGINT."""
    server, came, reloads = made(service), set(), set()
    loop = asyncio.get_running_loop()

    def stop(number: int) -> None:
        server.force_exit = number in came
        server.should_exit = True
        came.add(number)

    def reload() -> None:
        reloads.add(task := loop.create_task(service.reload()))  # tasks that none holds may vanish
        task.add_done_callback(reloads.discard)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
        loop.add_signal_handler(signal.SIGHUP, reload)
    looking = loop.create_task(_look(service))
    await server.serve([listening])
    looking.cancel()
    return signal.SIGINT in came


async def _look(service: Service) -> None:
    while True:
        await asyncio.sleep(REFRESH_S)
        await service.reload()
