"""Connections to upstream servers, and those that are kept for the next request."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol, cast

from andthen.http.connect import Address, Origin, connect, parse_proxy, resolve
from andthen.http.deadlines import Deadlines
from andthen.http.response_parser import ResponseParser
from andthen.vendors.settings import Access

KEEP_ALIVE_S = 30.0
_ADDRESSES_FOR_S = 10.0
"""How long a name's addresses are kept."""
_CLOSE_WITHIN_S = 1.0
_WRITTEN_AT_ONCE_BYTES = 2**20
"""What is longer is written in pieces, and other requests have their turn between them."""
_PIECE_BYTES = 2**18


class Receiver(Protocol):
    """Who gets what arrives on a connection while a request is under way."""

    def received(self, data: bytes) -> None: ...

    def lost(self, error: Exception | None) -> None:
        """The connection has ended; None if the server ended it in good order."""

    def passed(self) -> None:
        """The connection's deadline has passed."""


class Connection(asyncio.Protocol):
    """One connection: with a receiver while a request is under way, without one while it is kept."""

    __slots__ = (
        "_closed",
        "_loop",
        "_pool",
        "_scheduled",
        "_unsent",
        "_write_paused",
        "deadline",
        "lost",
        "parser",
        "paused",
        "receiver",
        "reused",
        "transport",
    )  # fmt: skip

    def __init__(self, pool: Pool, loop: asyncio.AbstractEventLoop, deadlines: Deadlines) -> None:
        self._pool = pool
        self._loop = loop
        self._closed: asyncio.Future[None] | None = None
        self._unsent: memoryview | None = None
        self._scheduled = False
        self._write_paused = False
        self.transport: asyncio.Transport
        self.parser = ResponseParser()
        self.receiver: Receiver | None = None
        self.deadline = deadlines.deadline(self._passed)
        self.reused = False
        """It has carried a request before this one."""
        self.paused = False
        self.lost = False

    def send(self, receiver: Receiver, head: bytes, body: bytes, *, no_body: bool) -> None:
        """Sends a request, for whose response `receiver` waits. `no_body`: that ends with its headers."""
        self.receiver = receiver
        self.parser.expect(no_body=no_body)
        if len(body) <= _WRITTEN_AT_ONCE_BYTES:
            self.transport.write(head + body)
        else:
            self.transport.write(head)
            self._unsent = memoryview(body)
            self._write_more()

    def release(self) -> None:
        """The response is complete: the connection is kept for another request, or closed."""
        self.receiver = None
        parser = self.parser
        if self._unsent is not None or self._write_paused:
            self.abort()  # the server answered without reading the request, and waits for the rest of it
        elif not parser.keep_alive or parser.excess or self.transport.is_closing():
            self.deadline.set(_CLOSE_WITHIN_S)
            self.transport.close()
        else:
            self.reused = True
            self.resume_reading()
            self._pool.put(self)
            self.deadline.set(KEEP_ALIVE_S)

    def abort(self) -> None:
        """Closes it, and drops what was not sent yet. Whoever waits for a response hears nothing any more."""
        self.receiver = None
        self._unsent = None
        self._pool.idle.pop(self, None)
        self.transport.abort()

    async def aborted(self) -> None:
        """Closes it, and returns once that is done."""
        self.abort()
        if not self.lost:
            self._closed = self._closed or self._loop.create_future()
            await asyncio.wait((self._closed,), timeout=_CLOSE_WITHIN_S)

    def pause_reading(self) -> None:
        if not self.paused and not self.lost:
            self.paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self.paused and not self.lost:
            self.paused = False
            self.transport.resume_reading()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._pool.connections.add(self)

    def data_received(self, data: bytes) -> None:
        if self.receiver is not None:
            self.receiver.received(data)
        else:
            self.abort()  # nobody asked: it must not be taken for the next request's response

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self._unsent = None
        self._pool.connections.discard(self)
        self._pool.idle.pop(self, None)
        self.deadline.drop()
        receiver, self.receiver = self.receiver, None
        if receiver is not None:
            receiver.lost(error)
        self.parser.close()
        if self._closed is not None and not self._closed.done():
            self._closed.set_result(None)

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        if not self._scheduled:
            self._write_more()

    def _write_more(self) -> None:
        self._scheduled = False
        if self._unsent is None or self._write_paused or self.transport.is_closing():
            return
        piece, rest = self._unsent[:_PIECE_BYTES], self._unsent[_PIECE_BYTES:]
        self._unsent = rest or None
        self.transport.write(piece)
        if self._unsent is not None and not self._write_paused:
            self._scheduled = True
            self._loop.call_soon(self._write_more)

    def _passed(self) -> None:
        if self.receiver is not None:
            self.receiver.passed()
        else:
            self.abort()


class Pool:
    """The connections for one way to reach one server. Their number is not bounded."""

    def __init__(self, origin: Origin, access: Access, connections: set[Connection]) -> None:
        """Args:
        connections: all that are open, those of other pools included.
        """
        self._origin = origin
        self._access = access
        self._addresses: Sequence[Address] = ()
        self._addresses_until_s = 0.0
        self.connections = connections
        self.idle: dict[Connection, None] = {}
        """The one that was used last comes last."""

    def put(self, connection: Connection) -> None:
        self.idle[connection] = None

    def take(self) -> Connection | None:
        """The one that was used last: those that are not needed any more pass their 30 s unused."""
        while self.idle:
            connection, _ = self.idle.popitem()
            if not connection.lost and not connection.transport.is_closing():
                return connection
        return None

    async def connect(self, access: Access, deadlines: Deadlines) -> Connection:
        """A new one. Raises what `connect` raises, and ValueError."""
        loop = asyncio.get_running_loop()
        if not self._addresses or loop.time() > self._addresses_until_s:
            proxy = parse_proxy(self._access.proxy)
            self._addresses = await resolve(proxy.origin if proxy is not None else self._origin)
            self._addresses_until_s = loop.time() + _ADDRESSES_FOR_S
        connection = Connection(self, loop, deadlines)
        try:
            await connect(connection, self._origin, access, self._addresses)
        except BaseException:
            connection.deadline.drop()
            self._addresses = ()
            raise
        return connection
