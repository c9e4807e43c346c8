"""The HTTP client: exchanges with upstream servers over kept connections.

It knows nothing of API formats, models or retries. Whatever goes wrong becomes an `UpstreamError` whose message names
the vendor and never a URL, a header or a key.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Self

from andthen.contract.errors import (
    AndthenError,
    ReplyTooLarge,
    UpstreamError,
    UpstreamGarbled,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from andthen.descriptors import or_refusal
from andthen.http.connect import Origin, check_literal, parse_proxy, parse_url, reason
from andthen.http.connection_pool import Connection, Pool
from andthen.http.deadlines import Deadlines
from andthen.http.request_head import RequestHeads
from andthen.http.response_parser import MalformedResponse, ResponseParser, State, WronglyCompressed, decompressor
from andthen.vendors.settings import Access
from andthen.wire.base import Call, Headers

_STALE_WITHIN_S = 2.0
"""A kept connection that the server closed before our request reached it tells so within a round trip. One that breaks
later may have been at work."""
_HEAD_WITHIN_S = 5.0
"""What a refusal says is worth no longer wait: its status tells the most."""
_MAX_UNREAD_BYTES = 2**18
"""Above this, reading from the connection is paused until the caller has read what has come."""
_MAX_ROUTES = 1024

_LATE = {
    "connect_s": "There was no connection to {vendor} within {limit:g} s (`connect_s`)",
    "first_token_s": "{vendor} did not begin its reply within {limit:g} s (`first_token_s`)",
    "between_tokens_s": "{vendor}'s reply paused for more than {limit:g} s (`between_tokens_s`)",
    "total_s": "The call to {vendor} took more than {limit:g} s in all (`total_s`)",
    "whole": "{vendor} did not complete its reply within {limit:g} s (`first_token_s`)",
}


class HttpClient:
    """Pools of kept connections, one for each server and way to reach it. One client per worker process.

    Any number of exchanges run at once, and none waits for another. Names resolve as the system does; the environment's
    proxies are not used; cookies are not kept; redirects are not followed.

    Where `access.private` is not set, a connection to an address that is not globally routed (this machine, its
    network, link-local, shared, multicast, reserved, or one of these inside an IPv6 address) is refused, on the very
    address that would be connected to. With a proxy, it is the proxy that resolves names and connects: its own address
    is the operator's and may be private, and only a literal address in the URL can be checked.
    """

    def __init__(self) -> None:
        self._connections: set[Connection] = set()
        self._pools: dict[tuple[Origin, str, str, bool], Pool] = {}
        self._routes: dict[tuple[str, str, str, bool], tuple[Pool, RequestHeads]] = {}
        self._deadlines: Deadlines | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Closes all connections; replies that are still read end in an error."""
        self._closed = True
        connections = list(self._connections)
        for connection in connections:
            if connection.receiver is not None:
                connection.receiver.lost(ConnectionAbortedError())
        if connections:
            await asyncio.gather(*(connection.aborted() for connection in connections))
        if self._deadlines is not None:
            self._deadlines.close()

    def perform(
        self, call: Call, access: Access, vendor: str, placed: Callable[[], Awaitable[None]] | None = None
    ) -> HttpExchange:
        """The exchange for `call`, which is sent when the block is entered.

        Args:
            vendor: how messages name whom the call is for.
            placed: awaited before anything else. Nothing is sent if it raises.
        """
        return HttpExchange(self, call, access, vendor, placed)

    def _route(self, call: Call, access: Access) -> tuple[Pool, RequestHeads]:
        """What is the same for all calls of one URL by one way. Raises ValueError and PrivateAddress."""
        key = (call.url, access.proxy, access.ca_file, access.private)
        route = self._routes.get(key)
        if route is None:
            if len(self._routes) >= _MAX_ROUTES:
                self._routes.clear()  # URLs may hold names of models, which callers choose
            origin, target = parse_url(call.url)
            proxy = parse_proxy(access.proxy)
            check_literal(origin, access)
            pool_key = (origin, *key[1:])
            pool = self._pools.get(pool_key)
            if pool is None:
                pool = self._pools[pool_key] = Pool(origin, access, self._connections)
            heads = RequestHeads(origin, target, None if origin.encrypted else proxy)
            route = self._routes[key] = (pool, heads)
        return route

    async def _connect(self, pool: Pool, access: Access) -> Connection:
        if self._deadlines is None:
            self._deadlines = Deadlines(asyncio.get_running_loop())
        connection = await pool.connect(access, self._deadlines)
        if self._closed:
            await connection.aborted()
            raise ConnectionAbortedError
        return connection


class HttpExchange:
    """A request and its reply. Entering the block sends the request and waits for the reply's headers. Leaving it
    before the body's end closes the connection, also under a cancellation, and returns once it is closed.

    Entering raises what `placed` raises. Entering and reading raise:
        UpstreamTimeout: one of `access.timeouts` has passed; the message says which.
        UpstreamUnreachable: no connection, or one that closed before the reply began.
        UpstreamGarbled: the reply is not HTTP, or is cut off.
    """

    __slots__ = (
        "_access", "_arrived", "_call", "_client", "_connection", "_ended", "_error", "_flowing", "_headers", "_loop",
        "_on_data", "_paused", "_pieces", "_placed", "_sent_at", "_setting", "_total_at", "_unpacker", "_unread",
        "_vendor", "_waiter", "began", "held_back", "held_s", "reached", "status",
    )  # fmt: skip

    def __init__(
        self,
        client: HttpClient,
        call: Call,
        access: Access,
        vendor: str,
        placed: Callable[[], Awaitable[None]] | None,
    ) -> None:
        self._client = client
        self._call = call
        self._access = access
        self._vendor = vendor
        self._placed = placed
        self._connection: Connection | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._waiter: asyncio.Future[None] | None = None
        self._error: Exception | None = None
        self._on_data: Callable[[bytes], None] | None = None
        self._pieces: list[bytes] = []
        self._unread = 0
        self._unpacker: Any = None
        self._paused = False
        self._flowing = False
        self._arrived = False
        self._ended = False
        self._sent_at = 0.0
        self._total_at = math.inf
        self._setting = "connect_s"
        self.status = 0
        self.began = False
        """Whether the headers of a reply have come."""
        self.reached = False
        """Whether the vendor may have got the request, and so may have done and billed it. Right at all times, also
        after an error."""
        self.held_back = False
        """It waits for `placed`, or has done so in vain: nothing was sent."""
        self.held_s = 0.0
        """How long it waited for `placed`."""

    @property
    def headers(self) -> Headers:
        """Names in lower case."""
        return tuple((name.decode("latin-1"), value.strip().decode("latin-1")) for name, value in self._headers)

    async def __aenter__(self) -> Self:
        loop = self._loop = asyncio.get_running_loop()
        if self._placed is not None:
            began_s = loop.time()
            self.held_back = True
            try:
                await self._placed()
            finally:
                self.held_s = loop.time() - began_s
            self.held_back = False
        self._total_at = loop.time() + self._access.timeouts.total_s
        failure: AndthenError | None = None
        try:
            pool, heads = self._client._route(self._call, self._access)
            head = heads.head(self._call)
            connection = pool.take() or await self._connect(pool)
            self._send(connection, head)
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: uvloop's, of a closed handle
            failure = self._failed_to_connect(error)
        # Raised here, since the library's errors may quote addresses: they are not to be found in this one's context.
        if failure is not None:
            raise failure
        try:
            while not self.began and self._error is None:
                await self._wait()
        finally:
            if not self.began:
                await self._close()
        if not self.began and self._error is not None:
            raise self._error
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._connection is not None:
            await self._close()

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes."""
        while data := await self._read():
            yield data

    async def body(self, most: int) -> bytes:
        """The whole body. One of more than `most` bytes is `ReplyTooLarge`."""
        if self._ended and self._error is None and self._unread <= most:
            return self._take()
        pieces: list[bytes] = []
        size = 0

        def collect(data: bytes) -> None:
            nonlocal size
            size += len(data)
            if size > most:
                raise ReplyTooLarge(f"{self._vendor}'s reply is far larger than what was asked for.")
            pieces.append(data)

        await self.receive(collect)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def head(self, most: int) -> bytes:
        """The first `most` bytes of the body, or as many of them as come whole and soon. Raises nothing: it is for
        replies whose status has told already what went wrong."""
        self._total_at = min(self._total_at, self._loop.time() + _HEAD_WITHIN_S)
        if self._connection is not None and self._connection.deadline.due_s > self._total_at:
            self._connection.deadline.set(_HEAD_WITHIN_S)
        head = bytearray()
        try:
            while len(head) < most and (data := await self._read()):
                head += data
        except UpstreamError:
            pass
        return bytes(head[:most])

    def receive(self, on_data: Callable[[bytes], None]) -> Coroutine[Any, Any, None]:
        """Has `on_data` called with what came of the body so far and, inside the event loop's call, with each piece
        that arrives. Await what it returns: that ends with the body, or raises. What `on_data` raises ends the exchange
        and is raised there."""
        if not self.began:
            raise RuntimeError("a reply is read inside its block")
        self._on_data = on_data
        was_paused, self._paused = self._paused, False  # for what nobody read; `on_data` may pause it for itself
        if self._pieces:
            self._hand_over(self._take())
        if was_paused and not self._paused:
            self._paused = True
            self.resume_reading()
        return self._end()

    def pause_reading(self) -> None:
        """No more of the body is wanted for now. The pause does not count as the vendor's."""
        if not self._paused and not self._ended:
            self._paused = True
            if self._connection is not None:
                self._connection.pause_reading()
                if self._flowing:
                    self._set_deadline(math.inf)

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            if self._unpacker is not None and self._unpacker.waiting:
                self._unpack(b"")
            if self._connection is not None and not self._paused and self._error is None:
                if self._flowing:
                    self._set_deadline(self._access.timeouts.between_tokens_s)
                self._connection.resume_reading()

    # What the connection calls.

    def received(self, data: bytes) -> None:
        connection = self._connection
        if connection is None or self._error is not None:
            return
        parser = connection.parser
        malformed = False
        try:
            parser.feed(data)
        except MalformedResponse:
            malformed = True
        if not self.began and parser.status:
            self._begin(parser)
        if parser.body:
            pieces, parser.body = parser.body, []
            body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            if self._call.streams:
                self._flowing = True
                if not self._paused:
                    self._set_deadline(self._access.timeouts.between_tokens_s)
            if self._unpacker is None:
                self._hand_over(body)
            else:
                self._unpack(body)
        if malformed:
            self.fail(self._garbled("is not valid HTTP"))
        elif parser.state is State.DONE and self._error is None:
            self._complete(connection)
        if self._waiter is not None and (self._on_data is None or self._ended):
            self._wake()

    def lost(self, error: Exception | None) -> None:
        connection = self._connection
        if connection is None or self._error is not None:
            return
        parser = connection.parser
        if error is None and parser.end():
            self._complete(connection)
            self._wake()
        elif self.began:
            self.fail(self._garbled("ended before it was complete"))
        elif parser.begun:
            self.fail(self._garbled("ended within its headers"))
        else:
            if connection.reused and self._loop.time() - self._sent_at < _STALE_WITHIN_S:
                self.reached = False
            self.fail(
                UpstreamUnreachable(
                    f"{self._vendor} closed the connection before it began its reply: send the request again."
                )
            )

    def passed(self) -> None:
        self.fail(self._late())

    # The exchange's own steps.

    async def _connect(self, pool: Pool) -> Connection:
        connect_s = self._access.timeouts.connect_s
        due = self._loop.time() + connect_s
        self._setting = "connect_s" if due < self._total_at else "total_s"
        timer = asyncio.timeout_at(min(due, self._total_at))
        try:
            async with timer:
                return await self._client._connect(pool, self._access)
        except TimeoutError:
            if timer.expired():
                raise _Late from None
            raise

    def _send(self, connection: Connection, head: bytes) -> None:
        self._connection = connection
        self._sent_at = self._loop.time()
        self.reached = True
        connection.send(self, head, self._call.body, no_body=self._call.method == "HEAD")
        self._setting = "first_token_s"
        self._set_deadline(self._access.timeouts.first_token_s)

    def _set_deadline(self, limit_s: float) -> None:
        """From now; `math.inf` leaves only the time for the whole call."""
        if self._flowing:
            self._setting = "between_tokens_s"
        left_s = self._total_at - self._loop.time()
        if left_s <= limit_s:
            limit_s, self._setting = left_s, "total_s"
        if self._connection is not None:
            self._connection.deadline.set(limit_s)

    def _begin(self, parser: ResponseParser) -> None:
        self.began = True
        self.status = parser.status
        self._headers = parser.headers
        if parser.coding:
            try:
                self._unpacker = decompressor(parser.coding)
            except WronglyCompressed:
                self.fail(self._garbled("is compressed wrongly"))

    def _complete(self, connection: Connection) -> None:
        """The whole reply has arrived."""
        self._connection = None
        self._arrived = True
        connection.release()
        if self._unpacker is None:
            self._ended = True
        elif not self._unpacker.waiting:
            self._end_unpacking()

    def _unpack(self, data: bytes) -> None:
        try:
            for piece in self._unpacker.feed(data):
                self._hand_over(piece)
                if self._paused or self._error is not None:
                    return
        except WronglyCompressed:
            self.fail(self._garbled("is compressed wrongly"))
        else:
            if self._arrived:
                self._end_unpacking()

    def _end_unpacking(self) -> None:
        try:
            self._unpacker.end()
        except WronglyCompressed:
            self.fail(self._garbled("is compressed wrongly"))
        else:
            self._ended = True
            self._wake()

    def _hand_over(self, data: bytes) -> None:
        if self._error is not None:
            return
        if self._on_data is None:
            self._pieces.append(data)
            self._unread += len(data)
            if self._unread > _MAX_UNREAD_BYTES:
                self.pause_reading()
        else:
            try:
                self._on_data(data)
            except Exception as error:
                self.fail(error)

    def _take(self) -> bytes:
        """All of the body that waits to be read."""
        pieces, self._pieces = self._pieces, []
        self._unread = 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _read(self) -> bytes:
        """The next bytes of the body; none at its end."""
        if not self.began:
            raise RuntimeError("a reply is read inside its block")
        while True:
            if self._pieces:
                data = self._take()
                self.resume_reading()
                return data
            if self._error is not None:
                raise self._error
            if self._ended:
                return b""
            await self._wait()

    async def _end(self) -> None:
        while self._error is None and not self._ended:
            await self._wait()
        if self._error is not None:
            raise self._error

    async def _wait(self) -> None:
        """Until something has come."""
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, error: Exception) -> None:
        """Ends the exchange: whoever waits for it gets the error."""
        if self._error is None:
            self._error = error
            if self._connection is not None:
                self._connection.abort()
            self._wake()

    async def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.aborted()

    def _late(self) -> UpstreamTimeout:
        whole = self._setting == "first_token_s" and not self._call.streams
        text = _LATE["whole" if whole else self._setting]
        limit = getattr(self._access.timeouts, self._setting)
        return UpstreamTimeout(f"{text.format(vendor=self._vendor, limit=limit)}: send the request again.")

    def _garbled(self, how: str) -> UpstreamGarbled:
        return UpstreamGarbled(f"{self._vendor}'s reply {how}: send the request again.")

    def _failed_to_connect(self, error: Exception) -> AndthenError:
        if isinstance(error, _Late):
            return self._late()
        return or_refusal(UpstreamUnreachable(f"{self._vendor} can't be reached: {reason(error)}."))


class _Late(OSError):
    """There was no connection in time."""
