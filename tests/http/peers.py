"""Servers and proxies that say exactly the bytes that a test gives them, well-behaved or not."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from andthen.vendors.settings import Access, Timeouts
from andthen.wire.base import Call, Headers

HELLO = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello"
STREAM = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
LIMIT_S = 0.15
"""The one limit that a test lets pass."""


class Peer:
    """One accepted connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def request(self) -> bytes:
        """The next request, head and body. Raises IncompleteReadError when the client has gone."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = next(
            (int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
        )
        return head + await self.reader.readexactly(length)

    async def say(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(0.01 if len(pieces) > 1 else 0)

    async def chunk(self, data: bytes) -> None:
        await self.say(b"%x\r\n%s\r\n" % (len(data), data))

    def reset(self) -> None:
        self.writer.transport.abort()

    async def gone(self) -> None:
        """Returns when the client has closed the connection."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65536):
                pass


Script = Callable[[Peer], Awaitable[None]]


class Upstream:
    """What a server has seen."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.accepted = 0
        self.requests: list[bytes] = []
        self.left = asyncio.Event()
        """A client has closed its connection before the script was done with it."""

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    async def sees_the_end(self) -> float:
        """Seconds until a client's leaving is seen."""
        began = time.monotonic()
        await asyncio.wait_for(self.left.wait(), 5)
        return time.monotonic() - began


@contextlib.asynccontextmanager
async def serving(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[Upstream]:
    """A server whose every connection runs `script`, until it returns or its client goes."""
    tasks: set[asyncio.Task[None]] = set()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream.accepted += 1
        peer = Peer(reader, writer)
        ask = peer.request

        async def request() -> bytes:
            upstream.requests.append(await ask())
            return upstream.requests[-1]

        peer.request = request  # type: ignore[method-assign]
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                await script(peer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(converse(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls, limit=2**26)
    port = server.sockets[0].getsockname()[1]
    upstream = Upstream(f"{'https' if tls else 'http'}://127.0.0.1:{port}")
    try:
        yield upstream
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


def saying(*replies: bytes) -> Script:
    """Answers each request of a connection with the next of `replies`, and then closes."""

    async def script(peer: Peer) -> None:
        for reply in replies:
            await peer.request()
            await peer.say(reply)

    return script


async def polite(peer: Peer) -> None:
    """Answers whatever comes, for as long as it comes."""
    while True:
        await peer.request()
        await peer.say(HELLO)


def call(
    upstream: Upstream | str, *, streams: bool = True, headers: Headers = (), body: bytes = b"{}", path: str = "/v1"
) -> Call:
    address = upstream if isinstance(upstream, str) else upstream.address
    return Call(
        url=f"{address}{path}", headers=(("content-type", "application/json"), *headers), body=body, streams=streams
    )


def access(*, proxy: str = "", ca_file: str = "", private: bool = True, **limits_s: float) -> Access:
    return Access(timeouts=Timeouts(**limits_s), proxy=proxy, ca_file=ca_file, private=private)


@contextlib.asynccontextmanager
async def proxying(
    *,
    credentials: str = "",
    refuses: bool = False,
    opened: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n",
) -> AsyncIterator[Upstream]:
    """A proxy for CONNECT and for plain requests; `credentials` as they stand in its header; `opened` is what it
    answers to CONNECT."""

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(65536):
                    writer.write(data)
                    await writer.drain()
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def script(peer: Peer) -> None:
        request = await peer.request()
        line, *_ = request.split(b"\r\n")
        method, target, _ = line.decode().split()
        if refuses or (credentials and f"proxy-authorization: {credentials}".lower() not in request.decode().lower()):
            await peer.say(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n")
            return
        place = target if method == "CONNECT" else target.split("/")[2]
        host, port = place.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        if method == "CONNECT":
            await peer.say(opened)
        else:
            writer.write(request)
        await asyncio.gather(pipe(peer.reader, writer), pipe(reader, peer.writer))

    async with serving(script) as proxy:
        yield proxy
