"""HTTP/1.1 on a connection: uvicorn's, with the bounds and the notice of a client's going away that it lacks.

Knows bytes and time, no route and no key. What an application needs to know of its connection beside ASGI comes in the
scope, as a `Link`.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from andthen.contract.errors import AndthenError, BadRequest, HeadersTooLarge, RequestTimeout
from andthen.contract.response import error_body
from andthen.server.settings import ServerSettings

SCOPE_KEY = "andthen.link"

_MAX_PIPELINED = 8
"""Past so many requests sent ahead the connection is not read, and a disconnect not seen, until some are answered."""
_LINGER_S = 2.0
"""After a refusal the rest of what comes is thrown away for so long: closing at once would reset the connection and
could take the reply with it."""


_UPGRADE = re.compile(rb"(\n)(upgrade)(?=[ \t]*:)", re.IGNORECASE)


class Link:
    """A request's connection. `on_gone` is called, once, when the client goes away before its reply is complete."""

    __slots__ = ("_cycle", "_protocol", "gone", "on_gone")

    def __init__(self, protocol: Protocol, cycle: RequestResponseCycle) -> None:
        self._protocol = protocol
        self._cycle = cycle
        self.gone = False
        self.on_gone: Callable[[], object] | None = None

    @property
    def write_paused(self) -> bool:
        """The client reads more slowly than it is written to."""
        return self._protocol.flow.write_paused

    @property
    def body_is_here(self) -> bool:
        """The request's body has arrived completely."""
        return not self._cycle.more_body

    @property
    def incomplete(self) -> bool:
        """More of the request is to come, and nothing was answered yet."""
        return self._cycle.more_body and not self._cycle.response_started

    def cut(self) -> None:
        """Ends the connection behind what was written, with the reply incomplete."""
        self._cycle.disconnected = True
        self._protocol.transport.close()

    def abort(self) -> None:
        """Ends the connection at once."""
        self._cycle.disconnected = True
        self._protocol.transport.abort()

    def lose(self) -> None:
        self.gone = self._cycle.disconnected = True
        if self.on_gone:
            self.on_gone()


class Protocol(HttpToolsProtocol):
    """One connection. `settings` is set by `protocol_class`."""

    settings: ServerSettings

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._links: deque[Link] = deque()
        """Of the requests that are not answered, in their order; the first is in work."""
        self._in_head = False
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._refusal: AndthenError | None = None
        self._closing = False
        self._unwanted_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        for link in self._links:
            link.lose()
        self._links.clear()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        began_before = self._in_head
        if b"pgrade" in data and (not self._links or self._links[-1].body_is_here):
            data = _without_upgrade(data)
        super().data_received(data)
        if self._ending():
            return
        if self._in_head:
            if began_before:
                self._head_bytes += len(data)
                if self._head_bytes > self.settings.header_bytes:
                    self._refuse(self._head_too_large())
                    return
            if self._head_timer is None:
                self._start_head_timer()
        elif not self._links and self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = 0
        self._unwanted_bytes = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._head_bytes += len(url)
        self._check_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value) + 4
        self._check_head()
        if self._in_head:  # a trailer must not pass for a header
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_bytes = 0
        self._stop_head_timer()
        super().on_headers_complete()
        link = Link(self, self.cycle)
        self._links.append(link)
        cast(dict[str, Any], self.scope)[SCOPE_KEY] = link
        if 0 < len(self.pipeline) <= _MAX_PIPELINED:
            self.flow.resume_reading()

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        if self.cycle.response_complete:
            self._unwanted_bytes += len(body)
            if self._unwanted_bytes > self.settings.body_bytes:
                self._close()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        # A large body paused the reading, and while that is paused a client that goes away is not noticed.
        if len(self.pipeline) <= _MAX_PIPELINED:
            self.flow.resume_reading()

    def on_response_complete(self) -> None:
        self._links.popleft()
        super().on_response_complete()
        if self.transport.is_closing():
            # What the client does not take must not keep the connection for ever.
            self.loop.call_later(self.settings.write_stall_s, self.transport.abort)

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:
        """Where the parser gave up: at what is no HTTP, or at a bound of ours."""
        self._refuse(self._refusal or BadRequest(f"{msg} Send well-formed HTTP/1.1."))

    def _unsupported_upgrade_warning(self) -> None:
        """No protocol but this one is spoken here; a request for another needs no log line."""

    def _ending(self) -> bool:
        return self._closing or self.transport.is_closing()

    def _check_head(self) -> None:
        if self._head_bytes > self.settings.header_bytes:
            self._refusal = self._head_too_large()
            raise _StopParsingError

    def _head_too_large(self) -> HeadersTooLarge:
        return HeadersTooLarge(
            f"The request's line and headers are larger than {self.settings.header_bytes} bytes: send fewer."
        )

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(self.settings.header_timeout_s, self._head_timed_out)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_timed_out(self) -> None:
        self._head_timer = None
        if self._in_head:
            self._refuse(
                RequestTimeout(f"The request's headers took longer than {self.settings.header_timeout_s:g} s.")
            )
        else:
            self.transport.close()

    def _refuse(self, error: AndthenError) -> None:
        """Answers in place of the application, unless a reply is under way, and closes."""
        if self._ending():
            return
        if len(self._links) == 1 and self._links[0].incomplete:
            self._links.pop().lose()
        if not self._links:
            body = error_body(error)
            self.transport.write(
                STATUS_LINE[error.status]
                + b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n"
                b"x-should-retry: %s\r\n\r\n" % (len(body), b"true" if error.should_retry else b"false") + body
            )
        self._close()

    def _close(self) -> None:
        self._closing = True
        self._stop_head_timer()
        self._unset_keepalive_if_required()
        if self._links:
            self.transport.close()
        else:
            self.transport.write_eof()
            self.loop.call_later(_LINGER_S, self.transport.abort)


class _StopParsingError(Exception):
    """Raised through the parser."""


def _without_upgrade(data: bytes) -> bytes:
    """Hides the wish for another protocol, such as h2c, which some clients send with every first request: the parser
    would leave out such a request's body (httptools 0.9, `cb_on_headers_complete`)."""
    head, end, rest = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(rb"\1x-\2", head) + end + rest


def protocol_class(settings: ServerSettings) -> type[Protocol]:
    """The protocol under these settings, in the form that uvicorn takes it."""
    return type("Protocol", (Protocol,), {"settings": settings})
