"""One client's connection: its requests in their order, one in work at a time, and the bounds on what it may do."""

from __future__ import annotations

import asyncio
import enum
import socket
import struct
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, cast

import structlog

from andthen.contract.errors import AndthenError, RequestTimeout
from andthen.contract.response import error_body
from andthen.http.deadlines import Deadline, Deadlines
from andthen.http.request import CONTINUE, STATUS_LINES, ServerRequest, date_line
from andthen.http.request_parser import RequestHead, RequestParser

_MAX_WAITING = 8
"""Requests sent ahead. While so many wait, no other is read, and the connection neither."""
_UNWANTED_BYTES = 64 * 2**10
"""With more of a body than this, for which nobody waits, the connection is not read."""
_LINGER_S = 2.0
"""After the last reply, what the client still sends is read and dropped for this long: to close a socket with unread
bytes resets the connection, and the client could lose the reply (RFC 9112, section 9.6)."""
_PROBE_S = 0.02
_PROBE_GROWTH = 4
"""How long after the end of what the client sends it is probed first, and how much longer each next wait is. Some
clients bound the number of interim responses, so they must stay few."""
_SILENT_S = 1.0
"""A connection that is to be refused may send nothing for so long."""
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)

_LOG = structlog.get_logger("andthen.http")


class HttpSettings(Protocol):
    """The bounds on what a client may do. Times in seconds, sizes in bytes."""

    @property
    def header_bytes(self) -> int: ...
    @property
    def header_timeout_s(self) -> float: ...
    @property
    def body_bytes(self) -> int: ...
    @property
    def body_stall_s(self) -> float: ...
    @property
    def write_stall_s(self) -> float: ...
    @property
    def keep_alive_s(self) -> float: ...


Application = Callable[[ServerRequest], Coroutine[Any, Any, None]]
"""Answers one request. Each call is a task of its own."""


class Serving:
    """What the connections of one server share."""

    def __init__(self, application: Application, settings: HttpSettings, deadlines: Deadlines) -> None:
        self.application = application
        self.settings = settings
        self.loop = asyncio.get_running_loop()
        self.deadlines = deadlines
        self.connections: set[Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        """Of requests whose connections have gone on or are closed, and of connections that are being set up."""
        self.draining = False
        """No connection goes on to another request than those that have arrived."""
        self._one_ended = asyncio.Event()

    def keep(self, task: asyncio.Task[None]) -> None:
        """Until it is done."""
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def forget(self, connection: Connection) -> None:
        """The connection is closed."""
        self.connections.discard(connection)
        self._one_ended.set()

    async def wait_for_one_to_end(self) -> None:
        """Until a connection or a request has ended."""
        if self.connections:
            self._one_ended.clear()
            await self._one_ended.wait()
        else:
            await asyncio.wait(self.tasks, return_when=asyncio.FIRST_COMPLETED)


class _Phase(enum.IntEnum):
    """What the connection's one deadline is for."""

    NONE = enum.auto()
    HEAD = enum.auto()
    """A head is to be complete. Before the first request it need not have begun."""
    IDLE = enum.auto()
    """The next request is to begin."""
    BODY = enum.auto()
    """The application waits for the next piece of a body."""
    PROBE = enum.auto()
    """The client sends nothing more, and is probed."""
    LINGER = enum.auto()
    """All is answered, and the client is to close."""


class Connection(asyncio.Protocol):
    """Made for each accepted socket.

    Args:
        refused: what is answered to whatever is asked, where the server can take no more connections.
    """

    __slots__ = (
        "_address", "_deadline", "_deaf", "_ended", "_eof", "_parser", "_paused", "_phase", "_probe_s", "_refusal",
        "_refused", "_requests", "_server", "_task", "_transport", "_write_deadline", "loop", "write_paused",
    )  # fmt: skip

    def __init__(self, server: Serving, refused: AndthenError | None = None) -> None:
        self._server = server
        self.loop = server.loop
        self._parser = RequestParser(server.settings.header_bytes)
        self._requests: deque[ServerRequest] = deque()
        """Those that are not answered, in their order. The first is in work."""
        self._deadline = server.deadlines.deadline(self._reached)
        self._phase = _Phase.NONE
        self._write_deadline: Deadline | None = None
        self._refused = refused
        self._refusal: AndthenError | None = None
        """To be sent once the requests before it are answered."""
        self._deaf = False
        """What arrives is dropped: no further request is read."""
        self._eof = False
        """The client sends nothing more, and either waits for its replies or is gone."""
        self._ended = False
        """All that is to be written is written."""
        self._paused = False
        """The connection is not read."""
        self._probe_s = _PROBE_S
        self._task: asyncio.Task[None] | None = None
        """Of the request in work, or of the last one."""
        self.write_paused = False

    # What the transport calls:

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self._address = peer[0] if peer else ""
        self._server.connections.add(self)
        if self._refused is not None:
            self._wait(_Phase.HEAD, _SILENT_S)
        else:
            self._wait(_Phase.HEAD, self._server.settings.header_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._deaf = self._ended = True
        self._deadline.drop()
        if self._write_deadline is not None:
            self._write_deadline.drop()
        requests, self._requests = self._requests, deque()
        for request in requests:
            request.lose()
        self._keep_task()
        self._task = None
        self._server.forget(self)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if self._refused is not None:
            self._write_refusal(self._refused)
        else:
            self._parser.receive(data)
            self._read()

    def eof_received(self) -> bool:
        """The client sends nothing more. Keeps the connection while complete requests are to be answered.

        A client that closes its socket and one that only shuts down its sending side both send FIN, and nothing else
        tells them apart: TCP is in CLOSE_WAIT either way. But what is written to a closed socket is answered with a
        reset. So the reply itself, or `_probe` until there is something of it, finds a client that is gone.
        """
        self._drop_incomplete()
        if self._ended or not self._requests:
            return False
        self._eof = self._deaf = True
        self._wait(_Phase.PROBE, self._probe_s)
        return True

    def pause_writing(self) -> None:
        self.write_paused = True
        if self._write_deadline is None:
            self._write_deadline = self._server.deadlines.deadline(self.abort)
        self._write_deadline.set(self._server.settings.write_stall_s)

    def resume_writing(self) -> None:
        self.write_paused = False
        if self._write_deadline is not None:
            self._write_deadline.clear()
        if self._requests:
            self._requests[0].resume()

    # What a request calls:

    def send(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def ignore_input(self) -> None:
        """What arrives from now on is dropped: the rest of a body that is not wanted, and whatever follows it."""
        self._deaf = True
        self._stop_waiting()
        self._resume_reading()

    def may_go_on(self, request: ServerRequest) -> bool:
        """Whether anything follows the reply to this request."""
        if self._refusal is not None or self._requests[-1] is not request:
            return True
        return not (self._deaf or self._server.draining)

    def wait_for_body(self) -> None:
        """The application waits for a piece of the first request's body."""
        self._wait(_Phase.BODY, self._server.settings.body_stall_s)
        self._read_on()

    def reply_ended(self, request: ServerRequest) -> None:
        """The reply to the first request is written."""
        self._requests.popleft()
        if not request.keep_alive or (self._server.draining and not self._requests):
            self._drop_all()
            self._end()
        elif self._requests:
            self._begin(self._requests[0])
            self._read_on()
        elif self._refusal is not None:
            self._write_refusal(self._refusal)
        elif self._deaf:
            self._end()
        else:
            if self._phase is not _Phase.HEAD:
                self._wait(_Phase.IDLE, self._server.settings.keep_alive_s)
            self._read_on()

    def cut(self, *, reset: bool) -> None:
        """Ends the connection behind what was written.

        Args:
            reset: so that the client can't take it for the end of the reply.
        """
        self._drop_all()
        self._deaf = self._ended = True
        if reset:
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self._transport.abort()
        else:
            self._wait(_Phase.LINGER, self._server.settings.write_stall_s)
            self._transport.close()

    def abort(self) -> None:
        """Ends the connection at once."""
        self._transport.abort()

    # What the server calls:

    def renew(self) -> None:
        """The server's settings are others."""
        self._parser.header_bytes = self._server.settings.header_bytes

    def drain(self) -> None:
        """Closes the connection, or has it closed after the requests that have arrived."""
        if not self._requests:
            self._deaf = self._ended = True
            self._transport.close()
            self._wait(_Phase.LINGER, _LINGER_S)
        elif self._requests[-1].body_complete:
            self._deaf = True
            if self._phase is _Phase.HEAD:
                self._stop_waiting()

    # Reading:

    def _read(self) -> None:
        """Takes what the parser makes of what has arrived."""
        parser, requests = self._parser, self._requests
        while not self._deaf:
            if len(requests) > _MAX_WAITING:
                self._pause_reading()
                return
            try:
                event = parser.next_event()
            except AndthenError as error:
                self._refuse(error)
                return
            if event is None:
                break
            if isinstance(event, RequestHead):
                self._take_head(event)
            else:
                held_bytes = requests[-1].feed(event, is_last=parser.is_complete)
                if held_bytes > _UNWANTED_BYTES and not parser.is_complete:
                    self._pause_reading()
                    return
            if parser.is_complete and not requests[-1].keep_alive:
                self._deaf = True
        self._set_deadline()

    def _take_head(self, head: RequestHead) -> None:
        request = ServerRequest(self, head, self._address)
        self._requests.append(request)
        if len(self._requests) == 1:
            self._begin(request)

    def _set_deadline(self) -> None:
        """For what is waited for now that all that arrived is read."""
        if self._deaf:
            self._stop_waiting()
        elif self._parser.has_partial_head:
            if self._phase is not _Phase.HEAD:
                self._wait(_Phase.HEAD, self._server.settings.header_timeout_s)
        elif self._requests:
            if not self._requests[0].body_complete and self._requests[0].awaits_body:
                self._wait(_Phase.BODY, self._server.settings.body_stall_s)
            elif self._phase is not _Phase.NONE:
                self._stop_waiting()
        elif self._phase is not _Phase.IDLE:
            self._wait(_Phase.IDLE, self._server.settings.keep_alive_s)

    def _read_on(self) -> None:
        """After a pause, if there was one."""
        if self._paused and not self._deaf:
            self._resume_reading()
            self._read()

    def _pause_reading(self) -> None:
        self._stop_waiting()
        if not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._paused and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    def _begin(self, request: ServerRequest) -> None:
        self._keep_task()
        self._task = self.loop.create_task(self._answer(request))

    def _keep_task(self) -> None:
        """The event loop keeps no task that waits; a task that this connection lets go of may still have work to
        do."""
        if self._task is not None and not self._task.done():
            self._server.keep(self._task)

    async def _answer(self, request: ServerRequest) -> None:
        try:
            await self._server.application(request)
        except Exception:
            _LOG.exception("request_failed")
        finally:
            if not request.ended and not request.gone and not self._ended:
                self.abort()

    # Ending:

    def _refuse(self, error: AndthenError) -> None:
        """Answers in place of the application, after the replies to the requests before, and closes."""
        self._deaf = True
        self._stop_waiting()
        self._drop_incomplete()
        self._resume_reading()  # a client that leaves is to be noticed
        if self._requests:
            self._refusal = error
        else:
            self._write_refusal(error)

    def _drop_incomplete(self) -> None:
        """Gives up the last request if its body can't be read to its end and it has no reply yet."""
        if self._requests and not self._requests[-1].body_complete and not self._requests[-1].started:
            self._requests.pop().lose()

    def _drop_all(self) -> None:
        """No request is answered any more: the first was cut short, if it is in work, and no other was begun."""
        for request in self._requests:
            request.gone = True
        self._requests.clear()

    def _write_refusal(self, error: AndthenError) -> None:
        body = error_body(error)
        lines = [STATUS_LINES[error.status], date_line(), b"content-type: application/json\r\n"]
        lines.append(b"cache-control: no-store\r\ncontent-length: %d\r\n" % len(body))
        lines.append(b"x-should-retry: true\r\n" if error.should_retry else b"x-should-retry: false\r\n")
        if error.retry_after_s is not None:
            lines.append(b"retry-after: %d\r\n" % error.retry_after_s)
        self.send(b"".join([*lines, b"connection: close\r\n\r\n", body]))
        self._end()

    def _end(self) -> None:
        """Ends the connection behind what was written. The client may still be sending what nobody reads."""
        self._deaf = self._ended = True
        if self._eof or self._refused or self._server.draining or self._transport.is_closing():
            self._wait(_Phase.LINGER, self._server.settings.write_stall_s)
            self._transport.close()
        else:
            self._wait(_Phase.LINGER, _LINGER_S)
            self._resume_reading()
            self._transport.write_eof()

    # Deadlines:

    def _wait(self, phase: _Phase, at_most_s: float) -> None:
        self._phase = phase
        self._deadline.set(at_most_s)

    def _stop_waiting(self) -> None:
        self._phase = _Phase.NONE
        self._deadline.clear()

    def _reached(self) -> None:
        phase, self._phase = self._phase, _Phase.NONE
        if phase is _Phase.HEAD:
            if self._parser.has_partial_head:
                bound_s = self._server.settings.header_timeout_s
                self._refuse(RequestTimeout(f"The request's headers took longer than {bound_s:g} s."))
            else:
                self._transport.close()
        elif phase is _Phase.BODY and self._requests:
            stall_s = self._server.settings.body_stall_s
            self._requests[0].fail_body(
                RequestTimeout(f"The request's body paused for {stall_s:g} s: send it in one go.")
            )
        elif phase is _Phase.PROBE:
            self._probe()
        elif phase is _Phase.IDLE and not self._transport.get_write_buffer_size():
            self._transport.close()
        elif phase is _Phase.LINGER and self._transport.get_write_buffer_size() and not self._transport.is_closing():
            self._wait(_Phase.LINGER, self._server.settings.write_stall_s)
            self._transport.close()
        else:
            self._transport.abort()

    def _probe(self) -> None:
        """Writes what a waiting client ignores, so that a closed one is noticed: an interim response, which any
        client of HTTP/1.1 must skip (RFC 9110, section 15.2) and which is 100 because some skip no other, such as
        Python's `http.client`. A client of HTTP/1.0 takes none: unless it is answered by now, it counts as gone."""
        if self._ended or not self._requests:
            return
        request = self._requests[0]
        if request.started:
            if request.on_probe is not None:
                request.on_probe()
        elif request.http_version == "1.0":
            self._transport.abort()
            return
        else:
            self.send(CONTINUE)
        self._probe_s *= _PROBE_GROWTH
        self._wait(_Phase.PROBE, self._probe_s)
