"""HTTP/1.1 on a connection: uvicorn's protocol, with bounds, strict framing and detection of disconnected clients.

Where a request ends is decided by the parser alone: the bytes it gets are the bytes that came. A connection goes on to
the next request only after the body of the last one was read to its end (RFC 9112, section 9.3). Everything else ends
in a reply with `connection: close`, and what still arrives is read and dropped.

Knows bytes and time, no route and no key. What an application needs to know of its connection beside ASGI comes in the
scope, as a `Link`.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
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
"""After the last reply, what the client still sends is read and dropped for this long: closing a socket with unread
bytes resets the connection, and the client could lose the reply (RFC 9112, section 9.6)."""
_PROBE_S = 0.02
_PROBE_GROWTH = 4
"""How long after the client's end of the stream it is probed first, and how much longer each next wait is. The first
probe makes a closed peer answer with a reset, the second finds the connection reset. Growing waits keep the number of
interim responses small: some clients bound it."""
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_HOST = re.compile(rb"(?:[\w.~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?", re.ASCII)
"""`Host = uri-host [ ":" port ]` of RFC 9110, section 7.2. It may be empty."""
_ABSOLUTE = re.compile(rb"https?://[^/?#@]+(?=[/?]|$)", re.IGNORECASE)
"""What stands before the path of a target in absolute form, which a server must accept (RFC 9112, section 3.2.2)."""


class Link:
    """A request's connection.

    `on_gone` is called, once, when the client disconnects before its reply is complete. `probe`, if set, writes
    something into the begun reply that clients ignore; it is called while it is unknown whether the client is there.
    """

    __slots__ = ("_cycle", "_protocol", "gone", "on_gone", "probe")

    def __init__(self, protocol: Protocol, cycle: RequestResponseCycle) -> None:
        self._protocol = protocol
        self._cycle = cycle
        self.gone = False
        self.on_gone: Callable[[], object] | None = None
        self.probe: Callable[[], object] | None = None

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

    @property
    def begun(self) -> bool:
        """The reply's status line was written."""
        return self._cycle.response_started

    @property
    def http_version(self) -> str:
        return self._cycle.scope["http_version"]

    def begin(self) -> None:
        """To be called before the reply's status line is sent. If the body has not been read to its end by then, the
        reply says `connection: close`: nothing that follows on this connection may be taken for a request."""
        if self._cycle.more_body:
            self.close_after()

    def close_after(self) -> None:
        """The connection ends with this reply."""
        self._cycle.keep_alive = False

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
        self._unseen_bytes = 0
        """Of a body, since its last byte that counts: of a chunk extension, or of trailers."""
        self._head_timer: asyncio.TimerHandle | None = None
        self._probe_timer: asyncio.TimerHandle | None = None
        self._parse_error: AndthenError | None = None
        """Why a callback stopped the parser."""
        self._refusal: AndthenError | None = None
        """To be sent once the requests before it are answered."""
        self._deaf = False
        """What arrives is dropped: no further request is read."""
        self._eof = False
        """The client sends nothing more, and either waits for its replies or is gone."""
        self._ended = False
        """The last reply is written."""
        self.parser = self._new_parser()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._reply_transport = _ReplyTransport(self)
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        if self._probe_timer is not None:
            self._probe_timer.cancel()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        for link in self._links:
            link.lose()
        self._links.clear()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        began_before = self._in_head
        self._unset_keepalive_if_required()
        if not self._parse(data) or self._ending():
            return
        if self._in_head:
            if began_before:
                self._head_bytes += len(data)
                if self._head_bytes > self.settings.header_bytes:
                    self._refuse(self._head_too_large())
                    return
            if self._head_timer is None:
                self._start_head_timer()
        elif self._links and not self._links[-1].body_is_here:
            self._unseen_bytes += len(data)
            if self._unseen_bytes > self.settings.header_bytes + len(data):
                self._refuse(self._head_too_large())
        elif not self._links and self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends nothing more. Keeps the connection while complete requests are to be answered.

        A client that closes its socket and one that only shuts down its sending side both send FIN, and nothing else
        tells them apart: TCP is in CLOSE_WAIT either way, and a keepalive is answered by the kernel or a TCP proxy. But
        what is written to a closed socket is answered with a reset, and a write after that fails. So the reply itself,
        or `_probe` until there is something of it, finds a client that is gone.
        """
        self._drop_incomplete()
        if self._ended or not self._links:
            return False
        self._eof = self._deaf = True
        self._stop_head_timer()
        if self._refusal is None:
            self._links[-1].close_after()
        self._probe_later(_PROBE_S)
        return True

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = 0

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
        self._check_framing()
        if self.parser.should_upgrade():
            return  # `_parse` has the same head parsed again
        self._in_head = False
        self._head_bytes = self._unseen_bytes = 0
        self._stop_head_timer()
        super().on_headers_complete()
        self.cycle.transport = cast(asyncio.Transport, self._reply_transport)
        link = Link(self, self.cycle)
        self._links.append(link)
        cast(dict[str, Any], self.scope)[SCOPE_KEY] = link
        if 0 < len(self.pipeline) <= _MAX_PIPELINED:
            self.flow.resume_reading()

    def on_body(self, body: bytes) -> None:
        self._unseen_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # the parser has not read the body
        super().on_message_complete()
        if not self.parser.should_keep_alive():
            self.cycle.keep_alive = False  # also for a trailer `connection: close`: the parser reads nothing after it

    def on_message_complete(self) -> None:
        super().on_message_complete()
        # A large body paused the reading, and while that is paused a client that goes away is not noticed.
        if len(self.pipeline) <= _MAX_PIPELINED:
            self.flow.resume_reading()

    def on_response_complete(self) -> None:
        self._links.popleft()
        if self._ending():
            # What the client does not take must not keep the connection for ever.
            self.loop.call_later(self.settings.write_stall_s, self.transport.abort)
        elif self._refusal is not None and not self._links:
            self._write_refusal(self._refusal)
        else:
            super().on_response_complete()

    def end(self) -> None:
        """Ends the connection behind what was written."""
        if self._links and self._links[0].body_is_here and not self._deaf:
            self.transport.close()
        else:
            self._linger()

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    def _new_parser(self) -> HttpRequestParser:
        parser = HttpRequestParser(self)
        # As uvicorn sets it: what follows a request with `connection: close` is ignored, and is no error.
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    def _parse(self, data: bytes) -> bool:
        """Feeds the parser, and has it ignore a wish to upgrade (RFC 9110, section 7.8). False if it can't go on.

        Some clients ask for h2c with every first request. httptools 0.9 can't be told that no upgrade takes place: it
        skips the body of such a request and takes what follows for the next one (`cb_on_headers_complete`). But it says
        so in time: it stops exactly at the end of the head, however the bytes were cut, and has checked all of it. So a
        new parser gets the same head as it was parsed, without the `upgrade` headers, and then the bytes that follow.
        """
        rest = memoryview(data)
        try:
            while True:
                try:
                    self.parser.feed_data(rest)
                    return True
                except HttpParserUpgrade as stopped:
                    rest = rest[stopped.args[0] :]
                head = self._head_without_upgrade()
                self.parser = self._new_parser()
                self.parser.feed_data(head)
        except HttpParserError:
            self._refuse(self._parse_error or BadRequest("This is no valid HTTP/1.1: send a well-formed request."))
            return False

    def _head_without_upgrade(self) -> bytes:
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def _check_framing(self) -> None:
        """What the parser lets pass, and a proxy before this server might read otherwise."""
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1"):
            self._stop_parsing(BadRequest("This server speaks HTTP/1.1: send a request in that version."))
        if self.parser.get_method() == b"CONNECT":
            self._stop_parsing(BadRequest("This server is no proxy: send no CONNECT request."))
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) > 1 or (version == "1.1" and not hosts) or not all(map(_HOST.fullmatch, hosts)):
            self._stop_parsing(BadRequest("A request has one valid `Host` header: send one."))
        codings = [value for name, value in self.headers if name == b"transfer-encoding"]
        if codings and (version == "1.0" or len(codings) > 1 or codings[0].strip().lower() != b"chunked"):
            self._stop_parsing(
                BadRequest("The only transfer coding is `chunked`, once, in HTTP/1.1: send a `Content-Length`.")
            )
        if version == "1.0":
            self.expect_100_continue = False  # RFC 9110, section 10.1.1
        if not self.url.startswith(b"/"):
            authority = _ABSOLUTE.match(self.url)
            if authority is None:
                self._stop_parsing(BadRequest("The request's target is no path: send one that begins with `/`."))
            else:
                rest = self.url[authority.end() :]
                self.url = rest if rest.startswith(b"/") else b"/" + rest

    def _stop_parsing(self, error: AndthenError) -> None:
        self._parse_error = error
        raise _StopParsingError

    def _ending(self) -> bool:
        return self._ended or self.transport.is_closing()

    def _check_head(self) -> None:
        if self._head_bytes > self.settings.header_bytes:
            self._stop_parsing(self._head_too_large())

    def _head_too_large(self) -> HeadersTooLarge:
        return HeadersTooLarge(
            f"The request's headers or trailers are larger than {self.settings.header_bytes} bytes: send fewer."
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
        """Answers in place of the application, after the replies to the requests before, and closes."""
        if self._ending():
            return
        self._deaf = True
        self._stop_head_timer()
        self._drop_incomplete()
        if self._links:
            self._refusal = error
            self.flow.resume_reading()  # a client that leaves is to be noticed
        else:
            self._write_refusal(error)

    def _drop_incomplete(self) -> None:
        """Gives up the last request if its body can't be read to its end and it has no reply yet."""
        if self._links and self._links[-1].incomplete:
            self._links.pop().lose()
            if self._links:  # so it waits behind another
                self.pipeline.popleft()

    def _write_refusal(self, error: AndthenError) -> None:
        body = error_body(error)
        self.transport.write(
            STATUS_LINE[error.status] + b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n"
            b"x-should-retry: %s\r\n\r\n" % (len(body), b"true" if error.should_retry else b"false") + body
        )
        self._linger()

    def _linger(self) -> None:
        """Ends the connection behind what was written. The client may still be sending what nobody reads."""
        self._deaf = self._ended = True
        self._stop_head_timer()
        self._unset_keepalive_if_required()
        if self._eof or self.transport.is_closing():
            self.transport.close()
            return
        self.flow.resume_reading()
        self.transport.write_eof()
        self.loop.call_later(_LINGER_S, self._stop_lingering)

    def _stop_lingering(self) -> None:
        if self.transport.get_write_buffer_size():
            self.loop.call_later(self.settings.write_stall_s, self.transport.abort)
        else:
            self.transport.abort()

    def _probe_later(self, wait_s: float) -> None:
        self._probe_timer = self.loop.call_later(wait_s, self._probe, wait_s * _PROBE_GROWTH)

    def _probe(self, next_wait_s: float) -> None:
        """Writes what a waiting client ignores, so that a closed one is noticed: an interim response, which any
        client of HTTP/1.1 must skip (RFC 9110, section 15.2) and which is 100 because some skip no other, such as
        Python's `http.client`. A client of HTTP/1.0 takes none: unless it is answered by now, it counts as gone."""
        if self._ending() or not self._links:
            return
        link = self._links[0]
        if link.begun:
            if link.probe is not None:
                link.probe()
        elif link.http_version == "1.0":
            self.transport.abort()
            return
        else:
            self.transport.write(_CONTINUE)
        self._probe_later(next_wait_s)


class _ReplyTransport:
    """What uvicorn writes a reply to: the connection's transport, with our way to end it."""

    def __init__(self, protocol: Protocol) -> None:
        self.write = protocol.transport.write
        self.is_closing = protocol.transport.is_closing
        self.close = protocol.end


class _StopParsingError(Exception):
    """Raised through the parser."""


def protocol_class(settings: ServerSettings) -> type[Protocol]:
    """The protocol under these settings, in the form that uvicorn takes it."""
    return type("Protocol", (Protocol,), {"settings": settings})
