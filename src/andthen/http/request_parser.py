"""A client's bytes, read as HTTP/1.1 requests. Knows no socket, no event loop and no clock.

llhttp (through httptools) reads each head: the names, the values, and that they are well-formed. It gets a head and
nothing else, in a parser of its own. So where a request ends is decided here alone, an `Upgrade` has no effect on it
(RFC 9110, section 7.8: a server may ignore it), and the position in the input is always known exactly.

Everything that servers and proxies read differently is an error, after which nothing more is read: the next byte could
be one of the body or the first of a request, depending on who reads (RFC 9112, sections 3, 6 and 11.2).
"""

from __future__ import annotations

import enum
import re
from functools import lru_cache
from urllib.parse import unquote

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from msgspec import Struct

from andthen.contract.errors import BadRequest, CallerError, HeadersTooLarge, HttpVersionNotSupported

Headers = list[tuple[bytes, bytes]]

CHUNKED = -1
"""The length of a body whose length is not known before its end."""

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
# RFC 9112, section 3: exactly one space between the parts, and no fragment in the target.
_REQUEST_LINE = re.compile(rb'([A-Z-]+) ([!"$-~]+) HTTP/1\.([01])\r\n')
_OTHER_VERSION = re.compile(rb"[^\s]+ [^\s]+ HTTP/(?:[02-9]\.|1\.[2-9])")
_ABSOLUTE = re.compile(rb"https?://([^/?@]+)((?:[/?].*)?)", re.IGNORECASE)
# RFC 9110, section 7.2: a name, an IPv4 address or a bracketed IPv6 address, and a port. It may be empty.
_HOST = re.compile(rb"(?:[\w.~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?", re.ASCII)
# RFC 9112, section 7.1. Nothing of it may be empty, and no white space stands around the extensions' parts: llhttp and
# most servers refuse it, too. 16 digits hold any size that there is.
_CHUNK_LINE = re.compile(
    rb"([0-9A-Fa-f]{1,16})((?:;" + _TOKEN + rb"(?:=(?:" + _TOKEN
    + rb'|"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*"))?)*)\r\n'
)  # fmt: skip
_CHUNK_LINE_BEGUN = re.compile(rb"[0-9A-Fa-f]{1,16}(?:[;\r]|\Z)")
_TRAILER = re.compile(rb"(" + _TOKEN + rb"):[\t\x20-\x7e\x80-\xff]*\r\n")

_REMEMBERED = 256
"""Request lines and hosts that are not read anew each time: clients repeat theirs."""
_REMEMBERED_BYTES = 256
"""Longer lines are not remembered, and there are no longer hosts."""
_FRAMING_TRAILERS = frozenset((b"content-length", b"transfer-encoding"))


class RequestHead(Struct):
    """A request's line and headers."""

    method: str
    path: str
    """Decoded, without the query."""
    query: bytes
    """As it was sent, without the question mark."""
    http_version: str
    """`1.0` or `1.1`."""
    headers: Headers
    """The names in lower case."""
    fields: dict[bytes, bytes]
    """The first header of each name."""
    length: int
    """Of the body in bytes, or `CHUNKED`."""
    keep_alive: bool
    """The client may send another request on this connection."""
    expects_continue: bool
    """The client waits for `100 Continue` before it sends the body."""


class _State(enum.IntEnum):
    HEAD = enum.auto()
    """Before or inside a head."""
    BODY = enum.auto()
    """Inside a body of known length."""
    CHUNK_LINE = enum.auto()
    """At the line before a chunk's data."""
    CHUNK = enum.auto()
    """Inside a chunk's data."""
    CHUNK_END = enum.auto()
    """At the line break behind a chunk's data."""
    TRAILERS = enum.auto()
    """Behind the last chunk."""
    FAILED = enum.auto()
    """Nothing more is read."""


_HEAD, _BODY, _CHUNK_LINE_STATE, _CHUNK, _CHUNK_END, _TRAILERS, _FAILED = _State  # looked up at once


class RequestParser:
    """The requests of one connection.

    After `receive(data)`, `next_event()` gives a head, then the pieces of its body, then the next head and so on, and
    None where more bytes are needed first. `is_complete` tells after each event whether it was the last of its request.
    """

    __slots__ = (
        "_at", "_data", "_fed", "_framing_bytes", "_head_parser", "_headers", "_left", "_state", "header_bytes",
        "is_complete",
    )  # fmt: skip

    def __init__(self, header_bytes: int) -> None:
        """Args:
        header_bytes: the most that a request's line and headers may take, and the extensions of the chunks of its
            body, and its trailers.
        """
        self.header_bytes = header_bytes
        self._data = b""
        self._at = 0
        """How much of `_data` is read."""
        self._state = _HEAD
        self._head_parser: HttpRequestParser | None = None
        """Of a head that has not arrived whole."""
        self._fed = 0
        """How much of that head the parser has got."""
        self._headers: Headers = []
        self._left = 0
        """How many bytes of the body, or of the chunk, are to come."""
        self._framing_bytes = 0
        self.is_complete = True

    def receive(self, data: bytes) -> None:
        """Takes what came next. To be followed by `next_event` until that gives None, or later."""
        if self._at < len(self._data):
            self._data = self._data[self._at :] + data
        else:
            self._data = data
        self._at = 0

    @property
    def has_partial_head(self) -> bool:
        """A head has begun to arrive. Meant for when `next_event` gave None."""
        return self._state is _HEAD and self._at < len(self._data)

    def next_event(self) -> RequestHead | bytes | None:
        """Raises:
        BadRequest, HeadersTooLarge, HttpVersionNotSupported: not again, and nothing more is read.
        """
        state = self._state
        try:
            if state is _HEAD:
                return self._next_head()
            if state is _BODY:
                return self._next_piece()
            if state is not _FAILED:
                return self._next_chunks()
        except CallerError:
            self._state = _FAILED
            self._data = b""
            self._headers = []
            self._head_parser = None
            raise
        return None

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by llhttp. White space before the value is left out already, that behind it is not."""
        self._headers.append((name.lower(), value))

    def _next_head(self) -> RequestHead | None:
        data, at = self._data, self._at
        if at == len(data):
            return None
        while data.startswith(b"\r\n", at):  # some clients end a body with one (RFC 9112, section 2.2)
            self._at = at = at + 2
        end = data.find(b"\r\n\r\n", at) + 4
        if end < 4:
            self._check_partial_head(data, at)
            return None
        if end - at > self.header_bytes:
            raise self._too_large()
        self._feed(data, at, end)
        headers, self._headers = self._headers, []
        self._head_parser = None
        self._fed = 0
        self._at = end
        if data.find(b" \r", at, end) >= 0 or data.find(b"\t\r", at, end) >= 0:
            headers = [(name, value.rstrip(b" \t")) for name, value in headers]
        line = data[at : data.index(b"\n", at) + 1]
        head = _head(_read_line(line) if len(line) > _REMEMBERED_BYTES else _remembered_line(line), headers)
        length = head.length
        self.is_complete = not length
        if length > 0:
            self._left = length
            self._state = _BODY
        elif length:
            self._framing_bytes = 0
            self._state = _CHUNK_LINE_STATE
        return head

    def _check_partial_head(self, data: bytes, at: int) -> None:
        """Finds what is wrong with a head before it has arrived whole."""
        size = len(data) - at
        if size > self.header_bytes:
            raise self._too_large()
        if size > 1 or (size and not data.startswith(b"\r", at)):
            self._feed(data, at, len(data))

    def _feed(self, data: bytes, at: int, end: int) -> None:
        """Gives llhttp what it has not got of the head."""
        parser = self._head_parser
        if parser is None:
            parser = self._head_parser = HttpRequestParser(self)
        try:
            parser.feed_data(data[at + self._fed : end])
        except HttpParserUpgrade:
            pass  # it has read the whole head
        except HttpParserError as error:
            raise _bad_head(data, at, str(error)) from None
        self._fed = end - at

    def _next_piece(self) -> bytes | None:
        data, at = self._data, self._at
        size = min(len(data) - at, self._left)
        if not size:
            return None
        self._at = at + size
        self._left -= size
        if not self._left:
            self._state = _HEAD
            self.is_complete = True
        return data[at : at + size]  # the bytes themselves, without a copy, where it is all of them

    def _next_chunks(self) -> bytes | None:
        """All that is there of the body, or that it is complete."""
        pieces: list[bytes] = []
        while self._step(pieces):
            pass
        return b"".join(pieces) if pieces or self.is_complete else None

    def _step(self, pieces: list[bytes]) -> bool:
        """One state further. False where more bytes are needed or the body is complete."""
        data, at = self._data, self._at
        if self._state is _CHUNK:
            size = min(len(data) - at, self._left)
            if not size:
                return False
            pieces.append(data[at : at + size])
            self._at = at + size
            self._left -= size
            if not self._left:
                self._state = _CHUNK_END
            return True
        if self._state is _CHUNK_END:
            if data.startswith(b"\r\n", at):
                self._at = at + 2
                self._state = _CHUNK_LINE_STATE
                return True
            if data[at:] in (b"", b"\r"):
                return False
            raise BadRequest("A chunk of the body is longer than its size says: send well-formed HTTP/1.1.")
        end = data.find(b"\n", at) + 1
        self._check_framing_bytes((end or len(data)) - at)
        if self._state is _CHUNK_LINE_STATE:
            return self._read_chunk_line(at, end)
        return self._read_trailer(at, end)

    def _read_chunk_line(self, at: int, end: int) -> bool:
        if not end:
            if at < len(self._data) and not _CHUNK_LINE_BEGUN.match(self._data, at):
                raise _bad_chunk()
            return False
        line = _CHUNK_LINE.fullmatch(self._data, at, end)
        if line is None:
            raise _bad_chunk()
        self._framing_bytes += len(line[2])
        self._left = int(line[1], 16)
        self._at = end
        if self._left:
            self._state = _CHUNK
        else:
            self._framing_bytes = 0
            self._state = _TRAILERS
        return True

    def _read_trailer(self, at: int, end: int) -> bool:
        """Trailers are read and dropped: none of them is of use, and one must not pass for a header."""
        if not end:
            return False
        self._at = end
        if end - at == 2 and self._data.startswith(b"\r\n", at):
            self._state = _HEAD
            self.is_complete = True
            return False
        trailer = _TRAILER.fullmatch(self._data, at, end)
        if trailer is None or trailer[1].lower() in _FRAMING_TRAILERS:
            raise BadRequest("A trailer of the body is malformed: send well-formed HTTP/1.1.")
        self._framing_bytes += end - at
        return True

    def _check_framing_bytes(self, more: int) -> None:
        """Extensions of chunks, and trailers, are bounded as headers are. Nothing is done with either."""
        if self._framing_bytes + more > self.header_bytes:
            raise self._too_large()

    def _too_large(self) -> HeadersTooLarge:
        return HeadersTooLarge(
            f"The request's headers or trailers are larger than {self.header_bytes} bytes: send fewer."
        )


def _read_line(line: bytes) -> tuple[str, str, bytes, str, bytes | None]:
    """Method, path, query, version and, from a target in absolute form, the host. Raises: CallerError"""
    found = _REQUEST_LINE.fullmatch(line)
    if found is None:
        raise _bad_head(line, 0, "Invalid request line")
    method, target, minor = found.groups()
    host = None
    if not target.startswith(b"/"):
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is None or not _HOST.fullmatch(absolute[1]):
            raise BadRequest("The request's target is no path: send one that begins with `/`.")
        host, target = absolute.groups()
        if not target.startswith(b"/"):
            target = b"/" + target
    raw, _, query = target.partition(b"?")
    path = raw.decode("ascii")
    return method.decode(), unquote(path) if "%" in path else path, query, f"1.{minor.decode()}", host


_remembered_line = lru_cache(_REMEMBERED)(_read_line)


def _head(line: tuple[str, str, bytes, str, bytes | None], headers: Headers) -> RequestHead:
    """Raises: BadRequest"""
    method, path, query, version, host_of_target = line
    is_1_1 = version == "1.1"
    fields = dict(headers)
    if len(fields) != len(headers):
        fields = _merged(headers)
    host = fields.get(b"host")
    if is_1_1 if host is None else not _is_host(host):
        raise _bad_host()
    if host_of_target is not None:  # it takes the place of the header's (RFC 9112, section 3.2.2)
        fields[b"host"] = host_of_target
        headers = [(name, host_of_target if name == b"host" else value) for name, value in headers]
    length = 0
    if b"content-length" in fields:
        length = int(fields[b"content-length"])  # llhttp has seen to it that it is a number, and stands alone
    elif b"transfer-encoding" in fields:
        if not is_1_1 or fields[b"transfer-encoding"].lower() != b"chunked":
            raise _bad_coding()
        length = CHUNKED
    options = fields.get(b"connection")
    keep_alive = is_1_1 and (options is None or not _says_close(options))
    expects_continue = is_1_1 and fields.get(b"expect", b"").lower() == b"100-continue"
    return RequestHead(method, path, query, version, headers, fields, length, keep_alive, expects_continue)


@lru_cache(_REMEMBERED)
def _is_host(value: bytes) -> bool:
    return len(value) <= _REMEMBERED_BYTES and _HOST.fullmatch(value) is not None


def _says_close(connection: bytes) -> bool:
    if connection == b"keep-alive":
        return False
    return any(option.strip() == b"close" for option in connection.lower().split(b","))


def _merged(headers: Headers) -> dict[bytes, bytes]:
    """The headers by name, where some names are repeated. Raises: BadRequest"""
    names = [name for name, _ in headers]
    if names.count(b"host") > 1:
        raise _bad_host()
    if names.count(b"transfer-encoding") > 1:
        raise _bad_coding()
    fields = dict(reversed(headers))
    if b"connection" in fields:
        fields[b"connection"] = b",".join(value for name, value in headers if name == b"connection")
    return fields


def _bad_head(data: bytes, at: int, reason: str) -> CallerError:
    if _OTHER_VERSION.match(data, at):
        return HttpVersionNotSupported("This server speaks HTTP/1.1: send a request in that version.")
    return BadRequest(f"The request is malformed ({reason}): send well-formed HTTP/1.1.")


def _bad_host() -> BadRequest:
    return BadRequest("A request has one valid `host` header: send one.")


def _bad_coding() -> BadRequest:
    return BadRequest("The only transfer coding is `chunked`, in HTTP/1.1: send a `content-length`.")


def _bad_chunk() -> BadRequest:
    return BadRequest("The line before a chunk of the body is malformed: send well-formed HTTP/1.1.")
