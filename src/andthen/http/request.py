"""One request as the application sees it, and the way back to its client. What is written goes out at once."""

from __future__ import annotations

import http
import time
from asyncio import AbstractEventLoop, Future
from collections.abc import Callable, Iterable
from email.utils import formatdate
from typing import Protocol

from andthen.contract.errors import PayloadTooLarge
from andthen.http.request_parser import RequestHead

STATUS_LINES = {int(status): f"HTTP/1.1 {int(status)} {status.phrase}\r\n".encode() for status in http.HTTPStatus}

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_NO_BODY = frozenset((204, 304))


class ClientGone(Exception):
    """The client went away, or takes nothing of its reply: nobody is there to read an answer."""


class Channel(Protocol):
    """What a request needs of its connection."""

    loop: AbstractEventLoop
    write_paused: bool

    def send(self, data: bytes) -> None: ...
    def wait_for_body(self) -> None: ...
    def ignore_input(self) -> None: ...
    def may_go_on(self, request: ServerRequest) -> bool: ...
    def reply_ended(self, request: ServerRequest) -> None: ...
    def cut(self, *, reset: bool) -> None: ...
    def abort(self) -> None: ...


class _Framing:
    """How the end of a reply is told."""

    LENGTH = 0
    CHUNKED = 1
    CLOSE = 2
    NO_BODY = 3


class ServerRequest:
    """A request whose head has arrived, and its reply: `start`, any number of `write`, `end`.

    Writing never waits. Where `write_paused` is true, what is written piles up in memory: wait for `drain` first, or
    for the call of `on_writable`. Once the client is gone, what is written is dropped.
    """

    __slots__ = (
        "_body_waiter", "_chunks", "_connection", "_drain_waiter", "_expects_continue", "_framing", "_head", "_left",
        "_limit", "_size", "address", "body_complete", "ended", "gone", "header", "headers", "http_version",
        "keep_alive", "length", "method", "on_gone", "on_probe", "on_writable", "path", "query", "started",
    )  # fmt: skip

    def __init__(self, connection: Channel, head: RequestHead, address: str) -> None:
        self._connection = connection
        self.method = head.method
        self.path = head.path
        self.query = head.query
        self.http_version = head.http_version
        self.headers = head.headers
        self.header: Callable[[bytes], bytes | None] = head.fields.get
        """The first header of a name, which is given in lower case."""
        self.length = length = head.length
        """Of the body in bytes, or `CHUNKED`."""
        self.keep_alive = head.keep_alive
        """The connection goes on after the reply."""
        self._expects_continue = head.expects_continue
        self.address = address
        """The IP address at the other end of the connection: a proxy's, where there is one in between."""
        self.body_complete = not length
        self.gone = False
        """The client went away before the reply was complete."""
        self.started = False
        self.ended = False
        self.on_gone: Callable[[], object] | None = None
        """Called once, when the client goes away before the reply is complete."""
        self.on_writable: Callable[[], object] | None = None
        """Called when `write_paused` becomes false."""
        self.on_probe: Callable[[], object] | None = None
        """Called while it is unknown whether the client is still there, after the reply was started. What it writes
        must be something that a client ignores."""
        self._chunks: list[bytes] = []
        self._size = 0
        self._limit = 0
        """Of the body that is waited for."""
        self._body_waiter: Future[None] | None = None
        self._drain_waiter: Future[None] | None = None
        self._head = b""
        """Of the reply, until it goes out with what is written first."""
        self._framing = _Framing.LENGTH
        self._left = 0
        """Bytes to be written of the length that was declared."""

    @property
    def write_paused(self) -> bool:
        """The client reads more slowly than it is written to."""
        return self._connection.write_paused

    async def body(self, limit: int) -> bytes:
        """The whole body. To be called once.

        Raises:
            PayloadTooLarge: it is larger than `limit`. The rest is not read.
            RequestTimeout: it paused for `body_stall_s`.
            ClientGone
        """
        if self.length > limit:
            raise _too_large(limit)
        if self._expects_continue and not self.started:
            self._connection.send(CONTINUE)
        if not self.body_complete:
            await self._rest(limit)
        if self._size > limit:
            raise _too_large(limit)
        chunks, self._chunks = self._chunks, []
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def _rest(self, limit: int) -> None:
        """Until the body is complete or larger than it may be."""
        if self.gone:
            raise ClientGone
        if self._size > limit:
            return
        self._limit = limit
        self._body_waiter = self._connection.loop.create_future()
        self._connection.wait_for_body()
        try:
            await self._body_waiter
        finally:
            self._body_waiter = None

    def start(self, status: int, headers: Iterable[tuple[bytes, bytes]], *, length: int | None = None) -> None:
        """Begins the reply. Its head goes out with what is written first, or at the end of this turn of the loop.

        Args:
            headers: without those that tell of the connection and the body's length.
            length: of the body in bytes. Without it the body is sent in chunks, or to a client of HTTP/1.0 until the
                end of the connection.
        """
        if self.started:
            raise RuntimeError("the reply was started before")
        self.started = True
        if self.gone:
            return
        if not self.body_complete:
            self._connection.ignore_input()
        lines = [name + b": " + value + b"\r\n" for name, value in headers]
        if self.method == "HEAD" or status in _NO_BODY:
            self._framing = _Framing.NO_BODY
        elif length is not None:
            self._framing = _Framing.LENGTH
        elif self.http_version == "1.1":
            self._framing = _Framing.CHUNKED
            lines.append(b"transfer-encoding: chunked\r\n")
        else:
            self._framing = _Framing.CLOSE
            self.keep_alive = False
        if length is not None and status not in _NO_BODY:
            self._left = length
            lines.append(b"content-length: %d\r\n" % length)
        if not self.body_complete or not self.keep_alive or not self._connection.may_go_on(self):
            # What follows of the body must not be taken for a request.
            self.keep_alive = False
            lines.append(b"connection: close\r\n")
        block = b"".join(lines)
        if block.count(b"\n") != len(lines) or block.count(b"\r") != len(lines):
            raise ValueError("a header of the reply holds a line break")
        self._head = STATUS_LINES[status] + date_line() + block + b"\r\n"
        if length is None:
            self._connection.loop.call_soon(self._flush)

    def write(self, data: bytes) -> None:
        """A piece of the body."""
        if data:
            self._put(data, last=False)

    def end(self, data: bytes = b"") -> None:
        """The last piece of the body, and its end."""
        self._put(data, last=True)
        if not self.gone:
            self.ended = True
            self._connection.reply_ended(self)

    def _put(self, data: bytes, *, last: bool) -> None:
        if self.gone:
            return
        if not self.started or self.ended:
            raise RuntimeError("the reply is not started, or has ended")
        head, self._head = self._head, b""
        framing = self._framing
        if framing == _Framing.LENGTH:
            self._left -= len(data)
            if self._left < 0 or (last and self._left):
                raise RuntimeError("the reply's body is not as long as declared")
        elif framing == _Framing.CHUNKED:
            if data:
                data = b"%x\r\n%b\r\n" % (len(data), data)
            if last:
                data += b"0\r\n\r\n"
        elif framing == _Framing.NO_BODY:
            data = b""
        if head or data:
            self._connection.send(head + data if head else data)

    def _flush(self) -> None:
        """Sends the head where nothing was written at once."""
        if self._head and not self.gone and not self.ended:
            head, self._head = self._head, b""
            self._connection.send(head)

    async def drain(self) -> None:
        """Until the client has taken most of what was written. Raises: ClientGone"""
        if self.gone:
            raise ClientGone
        if not self._connection.write_paused:
            return
        self._drain_waiter = self._connection.loop.create_future()
        try:
            await self._drain_waiter
        finally:
            self._drain_waiter = None

    def cut(self, last: bytes = b"") -> None:
        """Ends the connection behind `last`, without the mark of a complete reply."""
        if last:
            self.write(last)
        if not self.gone:
            self._connection.cut(reset=self._framing == _Framing.CLOSE)

    def abort(self) -> None:
        """Ends the connection at once."""
        self._connection.abort()

    # What the connection calls:

    def feed(self, piece: bytes, *, is_last: bool) -> int:
        """Takes a piece of the body; returns how many bytes are held for which nobody waits."""
        if piece:
            self._chunks.append(piece)
            self._size += len(piece)
        self.body_complete = is_last
        waiter = self._body_waiter
        if waiter is None:
            return self._size
        if (is_last or self._size > self._limit) and not waiter.done():
            waiter.set_result(None)
        return 0

    @property
    def awaits_body(self) -> bool:
        """The application waits for more of the body."""
        return self._body_waiter is not None and not self._body_waiter.done()

    def fail_body(self, error: Exception) -> None:
        """Raises the error where the application waits for the body."""
        _raise_in(self._body_waiter, error)

    def lose(self) -> None:
        """The client is gone."""
        self.gone = True
        self._chunks = []
        _raise_in(self._body_waiter, ClientGone())
        _raise_in(self._drain_waiter, ClientGone())
        if self.on_gone is not None:
            self.on_gone()

    def resume(self) -> None:
        """The client took most of what was written."""
        if self._drain_waiter is not None and not self._drain_waiter.done():
            self._drain_waiter.set_result(None)
        if self.on_writable is not None:
            self.on_writable()


def _raise_in(waiter: Future[None] | None, error: Exception) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_exception(error)


class _DateLine:
    """The header `date`, made once a second."""

    __slots__ = ("_line", "_second")

    def __init__(self) -> None:
        self._second = 0
        self._line = b""

    def __call__(self) -> bytes:
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._line = f"date: {formatdate(second, usegmt=True)}\r\n".encode()
        return self._line


date_line = _DateLine()


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The body is larger than {limit} bytes: send less.")
