"""The endpoints of the service."""

import asyncio
import concurrent.futures
import dataclasses
import functools
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from mrl_jax import extras
from mrl_jax.errors import DataError, UsageError, cut
from mrl_jax.search.index import Index
from mrl_jax.search.index.ids import KnownIdError, UnknownIdError
from mrl_jax.search.index.threads import cores
from mrl_jax.search.service import bodies, measured
from mrl_jax.search.service.bodies import Fields, Refusal

with extras.needed("serve", "the service"):
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import Response
    from starlette.routing import Route

_WAITING = 128  # requests at a time: more are told to come again
_CLOSED = {"Connection": "close"}  # what is left of a body is not read
_LATER = {"Retry-After": "1"}
_WHY = ": its log says why"
_K = 10  # neighbours, unless a request says how many

Answer = dict[str, Any]
Endpoint = Callable[[Request], Awaitable[Answer]]


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a request may ask for.

    Attributes:
      k: neighbours.
      batch: queries of a search, or ids whose vectors are read.
      body: bytes of a request.
      seconds: until a body has arrived, and until a search is done.
    """

    k: int = 1000
    batch: int = 1024
    body: int = 16 * 10**6
    seconds: float = 30


class Service:
    """An index that answers requests; `app` is what a server of ASGI calls.

    Searches run in threads beside the event loop. Changes, and looks at what others have changed,
    run in one other thread, so that each sees what those before it did.

    Attributes:
      limits: of a request.
      measured: what it counts.

    Args:
      index: in a folder whose path is absolute, by which errors of its files are told from others.
      limits: of a request.
      writable: whether requests may change the index.
    """

    def __init__(self, index: Index, limits: Limits, writable: bool):
        self._index, self.limits, self._writable = index, limits, writable
        self._searching = concurrent.futures.ThreadPoolExecutor(cores(), "search")
        self._changing = concurrent.futures.ThreadPoolExecutor(1, "change")
        self._in_flight = self._in_search = 0
        self._fresh = True
        self.measured = measured.Measured(index)
        ask, tell = ["POST"], ["GET"]
        routes = [
            Route("/search", self._endpoint(self._search), methods=ask),
            Route("/get", self._endpoint(self._get), methods=ask),
            Route("/add", self._endpoint(self._add), methods=ask),
            Route("/upsert", self._endpoint(self._upsert), methods=ask),
            Route("/delete", self._endpoint(self._delete), methods=ask),
            Route("/reload", self._endpoint(self._reload), methods=ask),
            Route("/health", self._endpoint(self._health), methods=tell),
            Route("/metrics", self._metrics, methods=tell),
        ]
        self.app = Starlette(routes=routes, exception_handlers={HTTPException: self._no_endpoint})

    def close(self) -> None:
        """Waits for what still runs; call it when no more requests come."""
        for pool in (self._searching, self._changing):
            pool.shutdown(cancel_futures=True)

    def warm_up(self) -> None:
        """Compiles what the first searches need, of one query and of many."""
        rows = self._index.vectors
        for queries in (1, 64):
            if rows.rows:
                # As the plan says, but told to be so: these are no queries that somebody asks.
                keeps = tuple(stage.keep for stage in self._index.plan.schedule.stages)
                query_bd = rows.read(0, min(rows.rows, queries))
                self._index.search(query_bd, 1, keeps=keeps, threads=1)

    async def reload(self) -> None:
        """Sees what others have changed on disk. If that cannot be read, what is open stays."""
        before = self._index.version
        try:
            await self._in(self._changing, self._index.refresh)
        except (DataError, OSError) as error:
            self.measured.failed_reloads.inc()
            if self._fresh:
                _log(f"cannot see what is on disk, and answers from what is open: {error}")
            self._fresh = False
            return
        self._fresh = True
        if self._index.version != before:
            self.measured.reloads.inc()

    def _endpoint(self, answer: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            start, status = time.perf_counter(), 500
            try:
                response = await self._response(answer, request)
                status = response.status_code
                return response
            finally:
                seconds = time.perf_counter() - start
                self.measured.answered(request.scope["path"], status, seconds)

        return endpoint

    async def _response(self, answer: Endpoint, request: Request) -> Response:
        self._in_flight += 1
        try:
            if self._in_flight > _WAITING:
                raise Refusal(503, "too many requests at a time: try again")
            values = await answer(request)
            kind = bodies.NPZ if bodies.NPZ in request.headers.get("accept", "") else bodies.JSON
            return Response(bodies.write(kind, values), media_type=kind)
        except Refusal as error:
            return _error(error.status, str(error))
        except UnknownIdError as error:
            return _error(404, str(error))
        except KnownIdError as error:
            return _error(409, str(error))
        except ClientDisconnect:
            return _error(400, "the body did not arrive")
        except (DataError, ValueError) as error:
            # A path means the index, and such an error is not of who asks.
            if str(self._index.folder) not in str(error):
                return _error(400, str(error))
            if isinstance(error, UsageError):
                return _error(503, "another command changes the index: try again")
            _log(str(error))
            return _error(500, f"the index cannot be read or written{_WHY}")
        except Exception:
            traceback.print_exc()
            return _error(500, f"this is an error of the service{_WHY}")
        finally:
            self._in_flight -= 1

    async def _no_endpoint(self, request: Request, error: HTTPException) -> Response:
        """For paths and methods that there are not."""
        self.measured.answered("other", error.status_code, 0)
        paths = ", ".join(route.path for route in self.app.routes)
        legal = (error.headers or {}).get("Allow", "")
        if error.status_code == 405:
            return _error(405, f"{request.url.path} takes {legal}", {"Allow": legal})
        return _error(error.status_code, f"there is no such path; there are {paths}")

    async def _search(self, request: Request) -> Answer:
        fields = await self._fields(request, "vectors", "k", "allow")
        dims = self._index.plan.schedule.final, self._index.width
        query_bd = fields.vectors(dims)
        queries = 1 if query_bd.ndim == 1 else len(query_bd)
        self._check_batch("vectors", queries)
        k = fields.count("k", _K, self.limits.k)
        allow = None if fields.given("allow") is None else fields.ids("allow")

        def search() -> Answer:
            rows = self._index.allowing(allow)
            threads = max(1, cores() // max(1, self._in_search))
            ids, scores = rows.search(query_bd, k, threads=threads)
            return {"ids": ids, "scores": scores, "version": rows.version}

        self._in_search += 1
        try:
            found = await asyncio.wait_for(self._in(self._searching, search), self.limits.seconds)
        except TimeoutError:
            raise Refusal(503, f"it took longer than {self.limits.seconds:g} s") from None
        finally:
            self._in_search -= 1
        self.measured.queries.inc(queries)
        return found

    async def _get(self, request: Request) -> Answer:
        ids = (await self._fields(request, "ids")).ids()
        self._check_batch("ids", np.size(ids))
        return {"vectors": await self._in(self._searching, functools.partial(self._index.get, ids))}

    async def _add(self, request: Request) -> Answer:
        return await self._put(request, self._index.add)

    async def _upsert(self, request: Request) -> Answer:
        return await self._put(request, self._index.upsert)

    async def _put(self, request: Request, put: Callable[..., None]) -> Answer:
        self._check_writable()
        fields = await self._fields(request, "vectors", "ids", "attributes")
        z_nd, ids = np.atleast_2d(fields.vectors((self._index.width,) * 2)), fields.ids()
        attributes = fields.given("attributes")
        return await self._change(functools.partial(put, z_nd, ids, attributes=attributes))

    async def _delete(self, request: Request) -> Answer:
        self._check_writable()
        ids = (await self._fields(request, "ids")).ids()
        return await self._change(functools.partial(self._index.delete, ids))

    async def _change(self, change: Callable[[], None]) -> Answer:
        def changed() -> Answer:
            change()
            return self._state()

        return await self._in(self._changing, changed)

    async def _reload(self, request: Request) -> Answer:
        await self.reload()
        if not self._fresh:
            raise Refusal(503, f"the index on disk cannot be read{_WHY}")
        return self._state()

    async def _health(self, request: Request) -> Answer:
        plan = self._index.plan
        about = {"dims": self._index.width, "metric": plan.metric, "id_kind": self._index.kind}
        status = "ok" if self._fresh else "the index on disk cannot be read"
        return {"status": status, **self._state(), **about, "writable": self._writable}

    async def _metrics(self, request: Request) -> Response:
        return Response(self.measured.text(), media_type=measured.CONTENT_TYPE)

    def _state(self) -> Answer:
        return {"rows": self._index.rows, "version": self._index.version}

    async def _fields(self, request: Request, *legal: str) -> Fields:
        """What a request holds: in its body and, beside an .npy body, in its query string."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        content = await self._content(request)
        values = bodies.read(kind, content, self.limits.body)
        return Fields({**request.query_params, **values}, legal)

    async def _content(self, request: Request) -> bytes:
        most, parts, size = self.limits.body, [], 0
        too_large = Refusal(413, f"the body has more than {most:,} bytes")
        if int(request.headers.get("content-length", 0)) > most:
            raise too_large
        try:
            async with asyncio.timeout(self.limits.seconds):
                async for part in request.stream():
                    size += len(part)
                    if size > most:
                        raise too_large
                    parts.append(part)
        except TimeoutError:
            raise Refusal(408, "the body did not arrive in time") from None
        return b"".join(parts)

    def _check_batch(self, what: str, number: int) -> None:
        if number > self.limits.batch:
            raise Refusal(413, f"there are {number:,} {what}, {self.limits.batch:,} at most")

    def _check_writable(self) -> None:
        if not self._writable:
            raise Refusal(403, "the index cannot be changed here: serve it with --writable")

    @staticmethod
    async def _in(pool: concurrent.futures.Executor, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(pool, work)


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    headers = {**(headers or {})}
    if status == 503:
        headers |= _LATER
    if status in (408, 413):
        headers |= _CLOSED
    content = bodies.write(bodies.JSON, {"error": cut(message, 500)})
    return Response(content, status, headers, bodies.JSON)


def _log(line: str) -> None:
    print(f"error: {cut(line, 2000)}", file=sys.stderr, flush=True)
