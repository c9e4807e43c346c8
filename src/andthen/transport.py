"""Performs what `wire` describes. The only file that knows the HTTP client, aiohttp.

It knows nothing of languages, models or retries. Whatever the client raises becomes an `UpstreamError` whose message
names the vendor and never a URL, a header or a key.
"""

from __future__ import annotations

import asyncio
import io
import math
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextvars import ContextVar
from functools import cache
from types import TracebackType
from typing import Any, Self
from weakref import WeakSet

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import AddrInfoType, Connection
from aiohttp.http_exceptions import ContentEncodingError, HttpProcessingError
from aiohttp.tracing import Trace
from yarl import URL

from andthen import __version__
from andthen.contract.errors import (
    AndthenError,
    ReplyTooLarge,
    UpstreamError,
    UpstreamGarbled,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from andthen.descriptors import or_refusal, upstream_socket
from andthen.vendors.addresses import is_public
from andthen.vendors.settings import Access
from andthen.wire.base import Call, Headers

_KEEP_ALIVE_S = 30.0
_STALE_WITHIN_S = 2.0
"""A kept connection that the vendor closed before our request reached it tells so within a round trip. One that breaks
later may have been at work."""
_CLOSE_WITHIN_S = 1.0
_HEAD_WITHIN_S = 5.0
"""What a refusal says is worth no longer wait: its status tells the most."""
_WRITTEN_AT_ONCE_BYTES = 2**20
"""What is longer goes out in pieces, so that others have their turn between them."""
_MAX_LINE_BYTES = 8190
_MAX_HEADER_BYTES = 16_384
_MAX_HEADERS = 128
_MAX_INTERIM = 8
"""Replies with a status of 100 to 199 before the one that counts. Servers send one or two."""

# Decompressing costs a stream its pace where the vendor fills its compressor's blocks first, so none is asked for.
_HEADERS = {"user-agent": f"andthen/{__version__}", "accept-encoding": "identity"}

LIBRARY_ERRORS = (aiohttp.ClientError, HttpProcessingError, OSError, ValueError, RuntimeError)
"""All that aiohttp raises: its own two trees; sockets, TLS and timeouts (all OSError); addresses and headers that it
will not send (ValueError); use after it was closed, and uvloop's failures to connect (RuntimeError)."""

_Leave = Callable[[], Awaitable[None]]

_LATE = {
    "connect_s": "There was no connection to {vendor} within {limit:g} s (`connect_s`)",
    "first_token_s": "{vendor} did not begin its reply within {limit:g} s (`first_token_s`)",
    "between_tokens_s": "{vendor}'s reply paused for more than {limit:g} s (`between_tokens_s`)",
    "total_s": "The call to {vendor} took more than {limit:g} s in all (`total_s`)",
}
_LATE_WHOLE = "{vendor} did not complete its reply within {limit:g} s (`first_token_s`)"


class Transport:
    """Pools of kept connections, one pool for each way to reach servers. One per worker process.

    Any number of calls run at once, and none waits for another. Names resolve as the system does; the environment's
    proxies are not used; cookies are not kept; redirects are not followed.

    Where `access.private` is not set, a connection to an address that is not globally routed (this machine, its
    network, link-local, shared, multicast, reserved, or one of these inside an IPv6 address) is refused, on the very
    address that would be connected to. With a proxy, it is the proxy that resolves names and connects: its own address
    is the operator's and may be private, and only a literal address in the URL can be checked.
    """

    def __init__(self) -> None:
        self._sessions: dict[tuple[str, str, bool], aiohttp.ClientSession] = {}
        self._open: set[aiohttp.StreamReader] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes all connections; replies that are still read end in an error."""
        # The library forgets them when it closes their connections, and they would wait until they are due.
        for content in self._open:
            content.set_exception(ConnectionAbortedError())
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            await session.close()

    def perform(self, call: Call, access: Access, vendor: str, placed: _Leave | None = None) -> Reply:
        """The reply to `call`, sent when the block is entered.

        Args:
            vendor: how messages name whom the call is for.
            placed: awaited beside the connecting, and before anything is sent. What it raises ends the exchange at
                once, and a connection that was made is kept for another.
        """
        return Reply(self, call, access, vendor, placed)

    def _session(self, access: Access) -> aiohttp.ClientSession:
        """The pool for a way to reach servers. Raises OSError where `ca_file` can't be read or holds none."""
        key = (access.proxy, access.ca_file, access.private)
        if key not in self._sessions:
            self._sessions[key] = aiohttp.ClientSession(
                connector=_Connector(access),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=_HEADERS,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
                trust_env=False,
                max_line_size=_MAX_LINE_BYTES,
                max_field_size=_MAX_HEADER_BYTES,
                max_headers=_MAX_HEADERS,
                response_class=_Response,
            )
        return self._sessions[key]


class Reply:
    """An exchange: sent on entering the block, which waits for the reply's headers. Leaving the block before the body's
    end closes the connection, also under a cancellation, and returns once it is closed.

    Entering raises what `placed` raises. Entering and reading raise:
        UpstreamTimeout: one of `access.timeouts` has passed; the message says which.
        UpstreamUnreachable: no connection, or one that closed before the reply began.
        NoDescriptors: no connection, for this process has no file descriptor left for one.
        UpstreamGarbled: the reply is not HTTP, or is cut off.
    """

    def __init__(self, transport: Transport, call: Call, access: Access, vendor: str, placed: _Leave | None) -> None:
        self._transport = transport
        self._call = call
        self._access = access
        self._vendor = vendor
        self._placed = placed
        self._response: aiohttp.ClientResponse | None = None
        self._socket: asyncio.Transport | None = None
        self._protocol: ResponseHandler | None = None
        self._timer: asyncio.Timeout | None = None
        self._watcher: asyncio.Handle | None = None
        self._watches_at = 0.0
        self._waiting = False
        self._flowing = False
        self._reused = False
        self._refused = False
        self._sent_at = 0.0
        self._total_at = self._due = math.inf
        self._setting = "total_s"
        self.reached = False
        """Whether the vendor may have got the request, and so may have done and billed it. Right at all times, also
        after an error."""
        self.held_back = False
        """It waits for `placed`, or has done so in vain: nothing was sent."""
        self.held_s = 0.0
        """How long it waited for `placed`, what was connected meanwhile included."""
        self.status = 0
        self.headers: Headers = ()
        """Names in lower case."""

    @property
    def waits(self) -> bool:
        """Whether there is something to wait for before it is sent."""
        return self._placed is not None

    @property
    def began(self) -> bool:
        """Whether the headers of a reply have come."""
        return self._response is not None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        started = self._loop.time()
        self._total_at = started + self._access.timeouts.total_s
        self._arm("connect_s", started)
        failure: AndthenError | None = None
        token = _exchange.set(self)
        try:
            async with asyncio.timeout_at(self._due) as self._timer:
                self._accept(await self._send())
        except LIBRARY_ERRORS as error:
            failure = self._failure(error)
        finally:
            _exchange.reset(token)
            if not self.began:
                await self._close()
        # Raised here, since aiohttp's errors quote URLs: they are not to be found in this one's context.
        if failure is not None:
            raise failure
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes."""
        while data := await self._read():
            yield data

    async def body(self, most: int) -> bytes:
        """The whole body. One of more than `most` bytes is `ReplyTooLarge`."""
        body = bytearray()
        while data := await self._read():
            body += data
            if len(body) > most:
                raise ReplyTooLarge(f"{self._vendor}'s reply is far larger than what was asked for.")
        return bytes(body)

    async def head(self, most: int) -> bytes:
        """The first `most` bytes of the body, or as many of them as come whole and soon. Raises nothing: it is for
        replies whose status has told already what went wrong."""
        self._total_at = min(self._total_at, self._loop.time() + _HEAD_WITHIN_S)
        self._due = min(self._due, self._total_at)
        head = bytearray()
        try:
            while len(head) < most and (data := await self._read()):
                head += data
        except UpstreamError:
            pass
        return bytes(head[:most])

    async def may_send(self) -> None:
        """Returns once it may be sent. None of that time is the vendor's or the call's. Raises what `placed` raises."""
        if self._placed is None:
            return
        began_s = self._loop.time()
        self._reschedule(None)
        self.held_back = True
        await self._placed()
        self.held_back = False
        now_s = self._loop.time()
        self.held_s += now_s - began_s
        self._total_at += now_s - began_s
        self._arm("connect_s", now_s)
        self._reschedule(self._due)

    def _reschedule(self, due: float | None) -> None:
        if self._timer is not None and not self._timer.expired():
            self._timer.reschedule(due)

    def _connected(self, connection: Connection, *, reused: bool) -> None:
        """The request is about to be sent."""
        self._protocol, self._socket = connection.protocol, connection.transport
        self._reused = reused
        self.reached = True
        self._sent_at = self._loop.time()
        self._arm("first_token_s", self._sent_at)
        self._reschedule(self._due)

    async def _send(self) -> aiohttp.ClientResponse:
        session = self._transport._session(self._access)
        if not (self._call.url.isascii() and self._call.url.isprintable()) or " " in self._call.url:
            raise ValueError
        # As the language wrote it: a signature may stand on each byte.
        url = URL(self._call.url, encoded=True)
        if not self._access.private and url.host is not None and not is_public(url.host, unless_a_name=True):
            self._refused = True
            raise _PrivateAddress
        return await session.request(
            self._call.method,
            url,
            headers=self._call.headers,
            data=io.BytesIO(self._call.body)
            if len(self._call.body) > _WRITTEN_AT_ONCE_BYTES
            else self._call.body or None,
            allow_redirects=False,
            proxy=self._access.proxy or None,
        )

    def _accept(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self._transport._open.add(response.content)
        self.status = response.status
        self.headers = tuple((name.lower(), value) for name, value in response.headers.items())

    async def _read(self) -> bytes:
        """The next bytes of the body; none at its end."""
        if self._response is None:
            raise RuntimeError("a reply is read inside its block")
        content = self._response.content
        now = self._loop.time()
        if self._flowing:
            self._arm("between_tokens_s", now)
        failure: AndthenError | None = None
        data = b""
        try:
            if now >= self._total_at:
                failure = self._late()
            elif not (data := content.read_nowait()) and not content.at_eof():
                self._watch()
                self._waiting = True
                data = await content.readany()
        except LIBRARY_ERRORS as error:
            failure = self._failure(error)
        finally:
            self._waiting = False
        if failure is not None:
            raise failure
        self._flowing = self._call.streams
        return data

    def _watch(self) -> None:
        """Sees to it that a wait ends when it is due. One timer serves a whole body, since one for each chunk would
        cost as much as the chunk: where it went off too early, it is set again."""
        if self._watcher is not None:
            if self._watches_at <= self._due:
                return
            self._watcher.cancel()
        self._watches_at = self._due
        self._watcher = self._loop.call_at(self._due, self._look)

    def _look(self) -> None:
        self._watcher = None
        if self._waiting and self._response is not None:
            if self._loop.time() >= self._due:
                self._response.content.set_exception(TimeoutError())
            else:
                self._watch()

    async def _close(self) -> None:
        """Unless the whole reply has come, closes the connection, and with it drops what was not sent yet."""
        if self._watcher is not None:
            self._watcher.cancel()
        response, protocol = self._response, self._protocol
        if response is not None:
            self._transport._open.discard(response.content)
        if self._socket is None or protocol is None or (response is not None and response.connection is None):
            return
        closed = protocol.closed
        self._socket.abort()
        if response is not None:
            response.close()
        if closed is not None:
            done, _ = await asyncio.wait((closed,), timeout=_CLOSE_WITHIN_S)
            for future in done:
                future.exception()  # whatever it was, it is closed

    def _arm(self, setting: str, since: float) -> None:
        due: float = since + getattr(self._access.timeouts, setting)
        self._due, self._setting = (due, setting) if due < self._total_at else (self._total_at, "total_s")

    def _late(self) -> UpstreamTimeout:
        whole = self._setting == "first_token_s" and not self._call.streams
        text = _LATE_WHOLE if whole else _LATE[self._setting]
        limit = getattr(self._access.timeouts, self._setting)
        return UpstreamTimeout(f"{text.format(vendor=self._vendor, limit=limit)}: send the request again.")

    def _failure(self, error: Exception) -> AndthenError:
        """What to raise for one of `LIBRARY_ERRORS`."""
        if isinstance(error, TimeoutError) or (self._timer is not None and self._timer.expired()):
            return self._late()
        if not self.reached:
            return or_refusal(UpstreamUnreachable(f"{self._vendor} can't be reached: {self._why(error)}."))
        if isinstance(error, aiohttp.ClientResponseError | HttpProcessingError):
            return UpstreamGarbled(f"{self._vendor}'s reply is not valid HTTP: send the request again.")
        if self.began:
            return UpstreamGarbled(f"{self._vendor}'s reply {_breach(error)}: send the request again.")
        if isinstance(error, aiohttp.ServerDisconnectedError) and not isinstance(error.message, str):
            return UpstreamGarbled(f"{self._vendor}'s reply ended within its headers: send the request again.")
        if self._reused and self._loop.time() - self._sent_at < _STALE_WITHIN_S:
            self.reached = False
        return UpstreamUnreachable(
            f"{self._vendor} closed the connection before it began its reply: send the request again."
        )

    def _why(self, error: Exception) -> str:
        """Why there is no connection."""
        if self._refused:
            return "its address is private, and `private = true` in its table is not set"
        if isinstance(error, ssl.SSLCertVerificationError):
            said = getattr(error.__cause__, "verify_message", "unknown reason")
            return f"its certificate is not to be trusted: {said.rstrip('.')}"
        if isinstance(error, ssl.SSLError):
            return f"TLS failed: {getattr(error.__cause__, 'reason', None) or 'unknown reason'}"
        if isinstance(error, aiohttp.ClientConnectorDNSError):
            return "its name, or its proxy's, can't be resolved"
        if isinstance(error, aiohttp.ClientHttpProxyError):
            return f"the proxy answered {error.status} when asked for a connection"
        if isinstance(error, ValueError):
            return "its address or a header, as configured, can't be sent"
        if isinstance(error, OSError):
            at = "the proxy: " if isinstance(error, aiohttp.ClientProxyConnectionError) else ""
            return at + (os.strerror(error.errno).lower() if error.errno and error.errno > 0 else "no connection")
        return "no connection"


class _Response(aiohttp.ClientResponse):
    """Bounds the interim replies (RFC 9110, section 15.2). The library takes any number, and yields to nobody."""

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        protocol: Any = connection.protocol
        read, left = protocol.read, _MAX_INTERIM

        async def read_one() -> tuple[Any, aiohttp.StreamReader]:
            nonlocal left
            message, payload = await read()
            if message.code < 200 and (left := left - 1) < 0:
                raise HttpProcessingError(message="too many interim replies")
            return message, payload

        protocol.read = read_one
        try:
            return await super().start(connection)
        finally:
            del protocol.read


_exchange: ContextVar[Reply] = ContextVar("exchange")


class _Connector(aiohttp.TCPConnector):
    """Tells the reply that asked for a connection when it has one. Where none is kept, a new one is made
    while the reply waits until it may be sent."""

    def __init__(self, access: Access) -> None:
        super().__init__(
            ssl=_trust(access.ca_file),
            limit=0,
            keepalive_timeout=_KEEP_ALIVE_S,
            socket_factory=upstream_socket if access.private or access.proxy else _public_socket,
        )
        self._used: WeakSet[ResponseHandler] = WeakSet()

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - as the library has it
    ) -> Connection:
        reply = _exchange.get()
        if not reply.waits or self._conns.get(req.connection_key):
            await reply.may_send()
            connection = await super().connect(req, traces, timeout)
        else:
            connection = await self._beside(super().connect(req, traces, timeout), reply.may_send())
            if connection.closed:  # by the other side, while it waited and carried nothing
                connection.close()
                connection = await super().connect(req, traces, timeout)
        if (protocol := connection.protocol) is not None:
            reply._connected(connection, reused=protocol in self._used)
            self._used.add(protocol)
        return connection

    async def _beside(self, connecting: Coroutine[Any, Any, Connection], leave: Awaitable[None]) -> Connection:
        """The connection, once there is leave to use it. Without it the next request has it, and none is left half
        made."""
        made = asyncio.ensure_future(connecting)
        try:
            await leave
            return await made
        except BaseException:
            made.add_done_callback(self._let_go)
            made.cancel()
            await asyncio.wait((made,))
            raise

    def _let_go(self, made: asyncio.Future[Connection]) -> None:
        if not made.cancelled() and made.exception() is None:
            connection = made.result()
            if connection.protocol is not None:
                self._used.add(connection.protocol)
            connection.release()


@cache
def _trust(ca_file: str) -> ssl.SSLContext:
    """The system's authorities and those of a file; kept, since reading them takes tens of milliseconds."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(("http/1.1",))
    if ca_file:
        context.load_verify_locations(cafile=ca_file)
    return context


def _breach(error: Exception) -> str:
    """What is wrong with a body."""
    if isinstance(error.__cause__, ContentEncodingError):
        return "is compressed wrongly"
    return "ended before it was complete"


class _PrivateAddress(OSError):
    """Not to be connected to."""


def _public_socket(address: AddrInfoType) -> socket.socket:
    """The socket for an address that is about to be connected to."""
    if not is_public(str(address[4][0])):
        _exchange.get()._refused = True
        raise _PrivateAddress
    return upstream_socket(address)
