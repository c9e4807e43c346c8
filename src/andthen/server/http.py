"""What this server knows of one request, and its reply in the contract's form. Knows no route and no model.

Work ends when the client goes away: the request's task is cancelled, wherever it waits, and what it had begun is ended
on the way out.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from andthen.books.keys import Key
from andthen.contract.errors import (
    AndthenError,
    InvalidApiKey,
    MethodNotAllowed,
    PayloadTooLarge,
    RateLimited,
    UnsupportedMediaType,
)
from andthen.contract.response import error_body
from andthen.server.settings import ServerSettings
from andthen.telemetry.notes import Note

Headers = list[tuple[bytes, bytes]]

JSON: Headers = [(b"content-type", b"application/json")]

_UNSTORED = (b"cache-control", b"no-store")
"""A cache on the way knows nothing of `x-api-key`, and would keep even a 404 unasked (RFC 9111, section 4.2.2)."""
_SLICE_BYTES = 256 * 2**10
# A browser throws away what its page has not read yet when a reply breaks off, and with it the reason. Seen in
# Chromium: without a pause, the error event is lost three times in four.
_LAST_WORD_S = 0.1
_JSON_TYPE = re.compile(
    rb'application/(?:[\w.-]+\+)?json[ \t]*(?:;[ \t]*charset[ \t]*=[ \t]*"?utf-?8"?[ \t]*)?', re.IGNORECASE
)


class Request(Protocol):
    """A request and the way back to its client: `andthen.http.request.ServerRequest`, or what stands in for one."""

    method: str
    path: str
    """Decoded. What the caller wrote: never a label, never in the log."""
    query: bytes
    headers: Headers
    length: int
    """Of the body in bytes, or `andthen.http.request_parser.CHUNKED`, which is negative."""
    address: str
    """The IP address at the other end of the connection: a proxy's, where there is one in between."""
    gone: bool
    on_gone: Callable[[], object] | None
    on_probe: Callable[[], object] | None

    @property
    def body_complete(self) -> bool: ...
    @property
    def write_paused(self) -> bool: ...
    @property
    def header(self) -> Callable[[bytes], bytes | None]: ...
    async def body(self, limit: int) -> bytes: ...
    def start(self, status: int, headers: Headers, *, length: int | None = None) -> None: ...
    def write(self, data: bytes) -> None: ...
    def end(self, data: bytes = b"") -> None: ...
    async def drain(self) -> None: ...
    def cut(self) -> None: ...


class Exchange:
    """A request, and how far its answer is."""

    __slots__ = (
        "_settings",
        "account",
        "address",
        "chatty",
        "client_s",
        "code",
        "headers",
        "id",
        "key",
        "method",
        "model",
        "note",
        "path",
        "query",
        "reply_headers",
        "request",
        "route",
        "source_s",
        "started_s",
        "status",
        "streams",
        "usage",
    )

    def __init__(self, request: Request, settings: ServerSettings) -> None:
        self.request = request
        self._settings = settings
        self.method = request.method
        self.path = request.path
        self.query = request.query
        self.headers = request.headers
        self.address = request.address
        self.started_s = time.monotonic()
        self.client_s = 0.0
        """How long the client was waited for."""
        self.source_s: float | None = None
        """How long the source of a completion was waited for, if one was asked."""
        self.id = ""
        self.route = "none"
        """The name of the route."""
        self.chatty = False
        """The log tells of it only at the debug level."""
        self.key: Key | None = None
        """Known to be in force."""
        self.account: str | None = None
        self.model: str | None = None
        """A configured name, once it is known to be one."""
        self.status: int | None = None
        """Of the reply, once it is begun."""
        self.code: str | None = None
        """Of the error that it ended with."""
        self.streams = False
        """The reply is a stream of events, in which an error may stand."""
        self.usage: tuple[int, int, int] | None = None
        """Prompt, cached and completion tokens, once they are known."""
        self.note: Note | None = None
        """What telemetry is told of a completion, where there is telemetry."""
        self.reply_headers: Headers = []
        """What any reply to this request carries, an error too."""

    @property
    def key_id(self) -> str | None:
        return None if self.key is None else self.key.id

    def header(self, name: bytes) -> bytes | None:
        """The first header of this name, which is given in lower case."""
        return self.request.header(name)

    async def body(self, *, most: int | None = None) -> bytes:
        """The whole body, as JSON as far as its headers tell.

        Args:
            most: a bound on its bytes that is below the server's.

        Raises:
            PayloadTooLarge, UnsupportedMediaType, RequestTimeout, ClientGone
        """
        bound = min(self._settings.body_bytes, most or self._settings.body_bytes)
        too_large = _too_large(bound, is_set=bound == self._settings.body_bytes)
        if self.request.length > bound:
            raise too_large
        self._check_type()
        try:
            if self.request.body_complete:
                return await self.request.body(bound)
            with self._waiting():
                return await self.request.body(bound)
        except PayloadTooLarge:  # in chunks, so that its length was not known before
            raise too_large from None

    async def reply(self, status: int, headers: Headers, body: bytes) -> None:
        """The whole answer. A large body goes out in slices, as fast as the client takes them."""
        self._start(status, headers, len(body))
        if len(body) <= _SLICE_BYTES:
            self.request.end(body)
            return
        for start in range(0, len(body), _SLICE_BYTES):
            await self.write(body[start : start + _SLICE_BYTES])
        self.request.end()

    async def start(self, status: int, headers: Headers, *, length: int | None = None) -> None:
        """The status line and the headers.

        Args:
            length: of the body in bytes, where it is known.
        """
        self._start(status, headers, length)

    def _start(self, status: int, headers: Headers, length: int | None) -> None:
        self.status = status
        if not any(name == b"cache-control" for name, _ in headers):
            headers = [*headers, _UNSTORED]
        headers = [*headers, *self.reply_headers, (b"x-request-id", self.id.encode())]
        self.request.start(status, headers, length=length)

    async def write(self, body: bytes, *, more: bool = True) -> None:
        """A part of the body. Waits while the client is behind.

        Raises:
            ClientGone: it took nothing for `write_stall_s`.
        """
        if self.request.write_paused:
            with self._waiting():
                await self.request.drain()
        if more:
            self.request.write(body)
        else:
            self.request.end(body)

    async def fail(self, error: AndthenError) -> None:
        """Answers with an error. Only before anything else was."""
        headers = [*JSON, (b"x-should-retry", b"true" if error.should_retry else b"false")]
        if error.retry_after_s is not None:
            headers.append((b"retry-after", b"%d" % error.retry_after_s))
        if isinstance(error, MethodNotAllowed):
            headers.append((b"allow", ", ".join(error.allow).encode()))
        if isinstance(error, RateLimited):
            headers += [(name.encode(), value.encode()) for name, value in error.headers]
        if isinstance(error, InvalidApiKey):
            headers.append((b"www-authenticate", b"Bearer"))
        await self.reply(error.status, headers, error_body(error))

    async def break_off(self, last: bytes) -> None:
        """Ends a reply that has begun and can't be completed: `last` goes out, and the connection ends without the
        mark of a complete reply."""
        await self.write(last)
        await asyncio.sleep(_LAST_WORD_S)
        self.request.cut()

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """For the client."""
        began_s = time.monotonic()
        try:
            yield
        finally:
            self.client_s += time.monotonic() - began_s

    def _check_type(self) -> None:
        kind = self.header(b"content-type")
        if kind is not None and not _JSON_TYPE.fullmatch(kind):
            raise UnsupportedMediaType(
                "The body's content-type is not JSON: send the header `content-type: application/json`, with UTF-8."
            )
        coding = self.header(b"content-encoding")
        if coding is not None and coding.lower() != b"identity":
            raise UnsupportedMediaType("The body has a content-encoding: send it as it is.")


def _too_large(bound: int, *, is_set: bool) -> PayloadTooLarge:
    remedy = "send less, or raise `server.body_bytes`" if is_set else "this route takes no larger one, so send less"
    return PayloadTooLarge(f"The body is larger than {bound} bytes: {remedy}.")
