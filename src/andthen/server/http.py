"""One HTTP request and the way back to who asked, over ASGI. Knows no route and no model.

Work ends when the client goes away: the request's task is cancelled, wherever it waits, and what it had begun is ended
on the way out.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from andthen.books.keys import Key
from andthen.contract.errors import (
    AndthenError,
    InvalidApiKey,
    MethodNotAllowed,
    PayloadTooLarge,
    RateLimited,
    RequestTimeout,
    UnsupportedMediaType,
)
from andthen.contract.response import error_body
from andthen.server.protocol import SCOPE_KEY, Link
from andthen.server.settings import ServerSettings
from andthen.telemetry.notes import Note

Headers = list[tuple[bytes, bytes]]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

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


class ClientGone(Exception):
    """The client went away, or takes nothing of its reply: there is nobody left to tell anything."""


class Exchange:
    """A request, and how far its answer is."""

    __slots__ = (
        "_receive",
        "_send",
        "_settings",
        "account",
        "address",
        "chatty",
        "client_s",
        "code",
        "headers",
        "id",
        "key",
        "link",
        "method",
        "model",
        "note",
        "path",
        "query",
        "reply_headers",
        "route",
        "source_s",
        "started_s",
        "status",
        "streams",
        "usage",
    )

    def __init__(self, scope: dict[str, Any], receive: Receive, send: Send, settings: ServerSettings) -> None:
        self._receive = receive
        self._send = send
        self._settings = settings
        self.link: Link = scope[SCOPE_KEY]
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        """Decoded. What the caller wrote: never a label, never in the log."""
        self.query: bytes = scope["query_string"]
        self.headers: Headers = scope["headers"]
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
        self.address: str = (scope.get("client") or ("",))[0]
        """The IP address at the other end of the connection: a proxy's, where there is one in between."""
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
        for key, value in self.headers:
            if key == name:
                return value
        return None

    async def body(self, *, most: int | None = None) -> bytes:
        """The whole body, as JSON as far as its headers tell.

        Args:
            most: a bound on its bytes that is below the server's.

        Raises:
            PayloadTooLarge, UnsupportedMediaType, RequestTimeout, ClientGone
        """
        bound = min(self._settings.body_bytes, most or self._settings.body_bytes)
        too_large = _too_large(bound, is_set=bound == self._settings.body_bytes)
        length = self.header(b"content-length")
        if length is not None and int(length) > bound:
            raise too_large
        self._check_type()
        message = await self._part()
        joined = bytearray(message["body"])
        while message["more_body"] and len(joined) <= bound:
            message = await self._part()
            joined += message["body"]
        if len(joined) > bound:
            raise too_large
        return bytes(joined)

    async def reply(self, status: int, headers: Headers, body: bytes) -> None:
        """The whole answer. A large body goes out in slices, as fast as the client takes them."""
        await self.start(status, [*headers, (b"content-length", b"%d" % len(body))])
        for start in range(0, len(body) or 1, _SLICE_BYTES):
            end = start + _SLICE_BYTES
            await self.write(body[start:end], more=end < len(body))

    async def start(self, status: int, headers: Headers) -> None:
        """The status line and the headers."""
        self.link.begin()
        self.status = status
        if not any(name == b"cache-control" for name, _ in headers):
            headers = [*headers, _UNSTORED]
        headers = [*headers, *self.reply_headers, (b"x-request-id", self.id.encode())]
        await self._put({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, body: bytes, *, more: bool = True) -> None:
        """A part of the body. Waits while the client is behind.

        Raises:
            ClientGone: it took nothing for `write_stall_s`.
        """
        await self._put({"type": "http.response.body", "body": body, "more_body": more})

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
        self.link.cut()

    async def _put(self, message: Message) -> None:
        if not self.link.write_paused:
            await self._send(message)
            return
        try:
            with self._waiting():
                async with asyncio.timeout(self._settings.write_stall_s):
                    await self._send(message)
        except TimeoutError:
            self.link.abort()
            raise ClientGone from None

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """For the client."""
        began_s = time.monotonic()
        try:
            yield
        finally:
            self.client_s += time.monotonic() - began_s

    async def _part(self) -> Message:
        if self.link.body_is_here:
            message = await self._receive()
        else:
            stall_s = self._settings.body_stall_s
            try:
                with self._waiting():
                    async with asyncio.timeout(stall_s):
                        message = await self._receive()
            except TimeoutError:
                raise RequestTimeout(f"The request's body paused for {stall_s:g} s: send it in one go.") from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        return message

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
