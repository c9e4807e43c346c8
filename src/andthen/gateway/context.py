"""One HTTP request, from its headers to its row in the ledger, its metrics and its line in the log.

Everything that is known about a request is an attribute of its `RequestContext`; log, metrics, ledger and trace are
written from it.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Protocol

from andthen.books.keys import Key
from andthen.books.limits import Grant
from andthen.books.texts import Draft
from andthen.contract.errors import (
    AndthenError,
    InvalidApiKey,
    MethodNotAllowed,
    PayloadTooLarge,
    RateLimited,
    UnsupportedMediaType,
)
from andthen.contract.response import error_body
from andthen.gateway.backend import Deployment
from andthen.gateway.billing import Account
from andthen.gateway.execution import Execution
from andthen.http.request import ClientGone
from andthen.ledger.records import Origin
from andthen.telemetry.notes import Note

if TYPE_CHECKING:
    from andthen.gateway.services import Services

Headers = list[tuple[bytes, bytes]]


class Client(Protocol):
    """The client's side of a request: a `ServerRequest`, or what stands in for one."""

    method: str
    path: str
    query: bytes
    length: int
    address: str
    gone: bool
    on_gone: Callable[[], object] | None
    on_probe: Callable[[], object] | None
    on_writable: Callable[[], object] | None

    @property
    def headers(self) -> Headers: ...
    @property
    def body_complete(self) -> bool: ...
    @property
    def write_paused(self) -> bool: ...
    @property
    def header(self) -> Callable[[bytes], bytes | None]: ...
    async def body(self, limit: int) -> bytes: ...
    def start(self, status: int, headers: Iterable[tuple[bytes, bytes]], *, length: int | None = None) -> None: ...
    def write(self, data: bytes) -> None: ...
    def end(self, data: bytes = b"") -> None: ...
    async def drain(self) -> None: ...
    def cut(self, last: bytes = b"") -> None: ...


CLIENT_GONE_STATUS = 499
"""The client left before its reply was complete; in the ledger, the log and metrics only."""

JSON: Headers = [(b"content-type", b"application/json")]

_NO_STORE = (b"cache-control", b"no-store")
"""A shared cache does not know that `x-api-key` identifies a caller, and may store even a 404 (RFC 9111, 4.2.2)."""
_SLICE_BYTES = 256 * 2**10
# A browser throws away what its page has not read yet when a reply breaks off, and with it the error. Seen in Chromium:
# without a pause the error event is lost three times in four.
_BREAK_OFF_S = 0.1
_JSON_TYPE = re.compile(
    rb'application/(?:[\w.-]+\+)?json[ \t]*(?:;[ \t]*charset[ \t]*=[ \t]*"?utf-?8"?[ \t]*)?', re.IGNORECASE
)


class RequestContext(Execution):
    """One request and its reply.

    Attributes:
        id: also sent as `x-request-id`.
        route: name of the route, for metrics and the log.
        quiet: logged at the debug level only.
        key: the API key, once it is authenticated.
        account: the header `x-selected-account-id`.
        started_s: when its headers had come, by `time.monotonic`.
        client_s: how long the client was waited for.
        status: of the reply, once that has begun; 499 if the client left before.
        code: code of the error that it ended with.
        streams: the reply is a stream of events, which can carry an error.
        reply_headers: sent with any reply to this request, an error too.
        asked_deployment: the deployment that is tried first for the name that was asked for.
        tokens: prompt, cached and completion tokens, once they are known.
        first_text_s: seconds from the headers to the first generated token.
        origin: where the reply comes from.
        settles_later: the reply is stored under an Idempotency-Key first; whoever stores it settles the request.
    """

    __slots__ = (
        "account", "asked_deployment", "billing", "client_s", "code", "first_text_s", "grant", "http", "id", "key",
        "note", "origin", "prompt_log", "quiet", "reply_headers", "route_name", "services", "settles_later",
        "started_s", "status", "streams", "tokens",
    )  # fmt: skip

    def __init__(self, http: Client, services: Services) -> None:
        super().__init__()
        self.http = http
        self.services = services
        self.id = ""
        self.route_name = "none"
        self.quiet = False
        self.key: Key | None = None
        self.account: str | None = None
        self.started_s = time.monotonic()
        self.client_s = 0.0
        self.status: int | None = None
        self.code: str | None = None
        self.streams = False
        self.reply_headers: Headers = []
        self.asked_deployment: Deployment | None = None
        self.tokens: tuple[int, int, int] | None = None
        self.first_text_s: float | None = None
        self.origin: Origin = "model"
        self.settles_later = False
        self.billing: Account | None = None
        self.grant: Grant | None = None
        self.prompt_log: Draft | None = None
        self.note: Note | None = None

    @property
    def method(self) -> str:
        return self.http.method

    @property
    def path(self) -> str:
        """Decoded. It is the caller's text: neither a label nor logged."""
        return self.http.path

    @property
    def query(self) -> bytes:
        return self.http.query

    @property
    def address(self) -> str:
        """The IP address at the other end of the connection: a proxy's, if there is one in between."""
        return self.http.address

    @property
    def key_id(self) -> str | None:
        return None if self.key is None else self.key.id

    @property
    def model_label(self) -> str | None:
        """The name in metrics and the log of the deployment that answers or was tried last."""
        return None if self.deployment is None else self.deployment.label

    @property
    def secret(self) -> str | None:
        """The API key as it was sent. `x-api-key` decides if both headers are there."""
        secret = self.header(b"x-api-key")
        if secret is None:
            scheme, _, secret = (self.header(b"authorization") or b"").partition(b" ")
            if scheme.lower() != b"bearer":
                return None
        return secret.strip().decode("latin-1") or None

    def header(self, name: bytes) -> bytes | None:
        """The first header of this name, which is given in lower case."""
        return self.http.header(name)

    async def body(self, *, most: int | None = None) -> bytes:
        """The whole body, checked to be JSON by its headers.

        Args:
            most: a bound in bytes below the server's own.

        Raises:
            PayloadTooLarge, UnsupportedMediaType, RequestTimeout, ClientGone
        """
        bound = min(self.services.settings.body_bytes, most or self.services.settings.body_bytes)
        too_large = _too_large(bound, is_setting=bound == self.services.settings.body_bytes)
        if self.http.length > bound:
            raise too_large
        self._check_type()
        if self.http.body_complete and self.http.length >= 0:
            return await self.http.body(bound)
        began_s = time.monotonic()
        try:
            return await self.http.body(bound)
        except PayloadTooLarge:  # in chunks, so that its length was not known before
            raise too_large from None
        finally:
            self.client_s += time.monotonic() - began_s

    def start(self, status: int, headers: Headers, *, length: int | None = None) -> None:
        """Sends the status line and the headers, with the first bytes of the body."""
        self.status = status
        if not any(name == b"cache-control" for name, _ in headers):
            headers = [*headers, _NO_STORE]
        headers = [*headers, *self.reply_headers, (b"x-request-id", self.id.encode())]
        if self.plan is not None:
            headers.append((b"x-andthen-plan", self.plan.header))
        self.http.start(status, headers, length=length)

    async def reply(self, status: int, headers: Headers, body: bytes) -> None:
        """Sends a whole reply; a large one in slices, as fast as the client reads them."""
        self.start(status, headers, length=len(body))
        if len(body) <= _SLICE_BYTES:
            self.http.end(body)
            return
        for start in range(0, len(body), _SLICE_BYTES):
            self.http.write(body[start : start + _SLICE_BYTES])
            await self.drain()
        self.http.end()

    async def drain(self) -> None:
        """Waits while the client reads more slowly than it is written to. Raises ClientGone."""
        if self.http.write_paused:
            began_s = time.monotonic()
            try:
                await self.http.drain()
            finally:
                self.client_s += time.monotonic() - began_s

    def resume(self) -> None:
        if self._paused_at_s is not None:
            self.client_s += time.monotonic() - self._paused_at_s
        super().resume()

    async def fail(self, error: AndthenError) -> None:
        """Replies with an error, if no reply has begun."""
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
        """Ends a reply that can't be completed: sends `last` and closes the connection without the end of the body."""
        if last:
            self.http.write(last)
        await asyncio.sleep(_BREAK_OFF_S)
        self.http.cut()

    def _check_type(self) -> None:
        kind = self.header(b"content-type")
        if kind is not None and kind != b"application/json" and not _JSON_TYPE.fullmatch(kind):
            raise UnsupportedMediaType(
                "The body's content-type is not JSON: send the header `content-type: application/json`, with UTF-8."
            )
        coding = self.header(b"content-encoding")
        if coding is not None and coding.lower() != b"identity":
            raise UnsupportedMediaType("The body has a content-encoding: send it without.")


def _too_large(bound: int, *, is_setting: bool) -> PayloadTooLarge:
    remedy = "send less, or raise `server.body_bytes`" if is_setting else "this route takes no larger one, so send less"
    return PayloadTooLarge(f"The body is larger than {bound} bytes: {remedy}.")


Handler = Callable[["RequestContext"], Awaitable[None]]

__all__ = ["JSON", "ClientGone", "Handler", "Headers", "RequestContext"]
