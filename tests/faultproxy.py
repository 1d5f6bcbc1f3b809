"""A proxy in front of an S3 server (or any HTTP store) that makes faults, at seeded rates, and counts them.

Whether a request meets a fault depends on the seed, the request, and how often it was made before, not on what else is
under way: a run with the same requests meets the same faults, however its threads interleave.
"""

import asyncio
import contextlib
import random
import re
import socket
import struct
import threading
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote

from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector, web
from yarl import URL

ANSWERS = {
    "slowdown": (503, "SlowDown", "Please reduce your request rate."),
    "throttled": (429, "TooManyRequests", "Please reduce your request rate."),
    "failed": (500, "InternalError", "We encountered an internal error. Please try again."),
    "denied": (403, "AccessDenied", "Access Denied"),
    "expired": (400, "ExpiredToken", "The provided token has expired."),
    "moved": (301, "PermanentRedirect", "The bucket you are attempting to access must be addressed elsewhere."),
}
BETWEEN_HOPS = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "expect"}


@dataclass
class Fault:
    """What happens to some of the requests."""

    kind: Literal[
        "slowdown", "throttled", "failed", "denied", "expired", "moved", "reset", "lost", "truncated", "hanging"
    ]
    """An answer of `ANSWERS` in the server's place; reset: no answer and a closed connection; lost: the same after
    the server has done the work; truncated: half of the body; hanging: no answer until the client gives up."""
    rate: float = 1.0
    """Share of the requests that it happens to."""
    methods: str = "GET HEAD PUT POST DELETE LIST"
    """LIST is a GET with a query for a listing, and no other GET."""
    path: str = ""
    """Regular expression, searched in ``bucket/key`` (for LIST in ``bucket/prefix``), unquoted."""
    times: int | None = None
    """After so many it is over."""


class Endpoint:
    """What listens on `port` of this machine and speaks S3."""

    port: int

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def storage_options(self) -> dict[str, dict[str, str]]:
        return {"s3://": {"endpoint_url": self.endpoint}}

    @property
    def s3fs_options(self) -> dict[str, dict[str, Any]]:
        """The same, with an option that obstore does not know."""
        return {"s3://": {"endpoint_url": self.endpoint, "config_kwargs": {}}}


class FaultProxy(Endpoint):
    """Forwards to `upstream`, but for the faults in `faults`, which may be changed at any time.

    Attributes:
        faults: the first that fits a request is what happens to it.
        delay: seconds before each request is looked at, as if the server were far away.
        counts: requests by method, and what befell them by ``kind`` and by ``kind method``.
    """

    def __init__(self, upstream: str, seed: int = 0):
        self.upstream, self.seed = upstream, seed
        self.faults: list[Fault] = []
        self.delay = 0.0
        self.counts: Counter[str] = Counter()
        self.port = 0
        self._seen: Counter[tuple[str, ...]] = Counter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._ready, self._over = threading.Event(), asyncio.Event()

    def start(self) -> None:
        self._thread.start()
        if not self._ready.wait(30):
            raise RuntimeError("the fault proxy did not start")

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    def reset(self) -> None:
        """No faults, and nothing counted or seen."""
        self.faults = []
        self.counts.clear()
        self._seen.clear()

    def _run(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        connector = TCPConnector(limit=0)
        async with ClientSession(connector=connector, auto_decompress=False, timeout=ClientTimeout(None)) as self._out:
            everything = web.Application(client_max_size=1 << 30)
            everything.router.add_route("*", "/{path:.*}", self._answer)
            runner = web.AppRunner(everything, shutdown_timeout=1, access_log=None)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.port = site._server.sockets[0].getsockname()[1]
            self._ready.set()
            await self._over.wait()
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        method, path = _what(request)
        await asyncio.sleep(self.delay)
        kind = self._chosen(method, path)
        self.counts[method] += 1
        if kind:
            self.counts[kind] += 1
            self.counts[f"{kind} {method}"] += 1
        body = await request.read()
        if kind in ANSWERS:
            return _error(kind, method)
        if kind == "reset":
            return _cut(request)
        if kind == "hanging":
            while request.transport is not None and not self._over.is_set():
                await asyncio.sleep(0.05)
            return _cut(request)
        return await self._forward(request, body, kind)

    async def _forward(self, request: web.Request, body: bytes, kind: str | None) -> web.StreamResponse:
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in BETWEEN_HOPS]
        url = URL(self.upstream + request.raw_path, encoded=True)
        skipped = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
        try:
            async with self._out.request(
                request.method, url, headers=headers, data=body, allow_redirects=False, skip_auto_headers=skipped
            ) as answer:
                content = await answer.read()
        except ClientError:  # the server is gone: so is the connection
            return _cut(request)
        if kind == "lost":
            return _cut(request)
        kept = [(name, value) for name, value in answer.headers.items() if name.lower() not in BETWEEN_HOPS]
        response = web.StreamResponse(status=answer.status, headers=kept)
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        if kind == "truncated":
            await response.write(content[: len(content) // 2])
            await asyncio.sleep(0.01)
            _cut(request)
            return response
        await response.write(content)
        await response.write_eof()
        return response

    def _chosen(self, method: str, path: str) -> str | None:
        for fault in self.faults:
            if method not in fault.methods.split() or not re.search(fault.path, path) or fault.times == 0:
                continue
            request = (fault.kind, method, path)
            self._seen[request] += 1
            chance = random.Random(f"{self.seed} {request} {self._seen[request]}").random()
            if chance < fault.rate:
                if fault.times is not None:
                    fault.times -= 1
                return fault.kind
        return None


def _what(request: web.Request) -> tuple[str, str]:
    """The method, LIST among them, and ``bucket/key`` or ``bucket/prefix``."""
    path = unquote(request.rel_url.raw_path).removeprefix("/")
    query = request.rel_url.query
    if request.method == "GET" and ({"list-type", "prefix", "comp"} & query.keys()):
        return "LIST", f"{path}/{query.get('prefix', '')}"
    return request.method, path


def _error(kind: str, method: str) -> web.Response:
    status, code, message = ANSWERS[kind]
    text = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return web.Response(status=status, text="" if method == "HEAD" else text, content_type="application/xml")


def _cut(request: web.Request) -> web.Response:
    """Close the connection with a reset; the answer returned goes nowhere."""
    if request.transport is not None:
        connection = request.transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()
    return web.Response(status=500)
