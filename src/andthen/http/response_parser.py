"""Reads HTTP/1.x responses from bytes. No input or output, no clock; any cut of the bytes gives the same result.

llhttp (by httptools) splits the bytes; it already refuses repeated, signed or overflowing lengths, a length beside
`transfer-encoding`, bare LF, folded headers and whitespace before a colon. This module adds the states, the bounds and
the rules that depend on what was asked (RFC 9112, section 6).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from enum import Enum

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpResponseParser

MAX_LINE_BYTES = 8190
MAX_HEADER_BYTES = 16_384
MAX_HEADERS = 128
"""Trailers included."""
MAX_INTERIM = 8
"""Responses with a status of 100 to 199 before the final one. Servers send one or two."""
MAX_UNFINISHED_BYTES = 2 * MAX_HEADER_BYTES
"""How much may arrive without completing a header, or, in a chunked body, without a byte of data."""
UNPACKED_AT_ONCE_BYTES = 64 * 2**10

_NO_BODY = (204, 304)
_FRAMING = frozenset((b"content-length", b"transfer-encoding", b"content-encoding"))


class State(Enum):
    HEAD = "the final response's headers are not complete"
    BODY = "the body follows"
    DONE = "the response is complete"
    FAILED = "the response is malformed"


_HEAD, _BODY, _DONE, _FAILED = State  # looked up for each piece of a body, and an attribute of an enum is slow


class MalformedResponse(Exception):
    """The bytes are no valid response. The text says why, and quotes none of them."""


class ResponseParser:
    """The responses of one connection, one after the other.

    Call `expect` when a request is sent, then `feed` for all that arrives. What was decoded of the body lies in `body`,
    from where the owner takes it.
    """

    __slots__ = (
        "_chunked", "_fresh", "_interim", "_is_1_1", "_length", "_line_bytes", "_no_body", "_parser", "_progress",
        "_trailers", "_unfinished_bytes", "begun", "body", "coding", "excess", "headers", "keep_alive", "state",
        "status",
    )  # fmt: skip

    def __init__(self) -> None:
        self._parser = HttpResponseParser(self)
        self._fresh = True
        self.expect()

    def expect(self, *, no_body: bool = False) -> None:
        """A response comes next. `no_body`: it ends with its headers (HEAD, CONNECT)."""
        if not self._fresh:
            self._parser = HttpResponseParser(self)
            self._fresh = True
        self._no_body = no_body
        self._chunked = False
        self._length = False
        self._interim = 0
        self._line_bytes = 0
        self._trailers = 0
        self._progress = False
        self._unfinished_bytes = 0
        self._is_1_1 = False
        self.begun = False
        """Something has come, if only an interim response."""
        self.state = _HEAD
        self.status = 0
        """Of the final response, once its headers are complete."""
        self.headers: list[tuple[bytes, bytes]] = []
        """Names in lower case."""
        self.body: list[bytes] = []
        self.coding = b""
        """`content-encoding`, in lower case."""
        self.keep_alive = False
        """The connection may carry another request after this response."""
        self.excess = False
        """Something came behind the response that nobody asked for: the connection is not to be used again."""

    def feed(self, data: bytes) -> None:
        """Raises MalformedResponse; what was decoded before that is in `body`."""
        before = self.state
        if before is _FAILED:
            raise MalformedResponse("it was malformed before")
        if before is _DONE:
            self.excess = True
            return
        if not self.begun:
            self._is_1_1 = data.startswith(b"HTTP/1.1 ")
        try:
            self._parser.feed_data(data)
        except HttpParserCallbackError as error:
            self._stopped(error.__context__ if isinstance(error.__context__, MalformedResponse) else error)
        except (HttpParserError, HttpParserUpgrade) as error:
            self._stopped(error)
        if self.state is _DONE:
            return
        if self._progress:
            self._progress = False
            self._unfinished_bytes = 0
        elif self.state is _HEAD or self._chunked:
            self._unfinished_bytes += len(data)
            if self._unfinished_bytes > MAX_UNFINISHED_BYTES:
                self._fail("a header, or the framing of a chunk, is too long")

    def end(self) -> bool:
        """The connection has ended. Whether that completes the response; if not, it is cut off."""
        if self.state is _BODY and not (self._chunked or self._length):
            self.state = _DONE
        return self.state is _DONE

    def close(self) -> None:
        """Breaks the circle of references between this and its parser. Nothing may be fed any more."""
        self.state = _FAILED
        del self._parser

    def _stopped(self, error: BaseException | None) -> None:
        if self.state is _DONE:
            self.excess = True  # llhttp went on to what stands behind the response
            self._fresh = False
        else:
            self._fail(str(error))

    def _fail(self, why: str) -> None:
        self.state = _FAILED
        raise MalformedResponse(why)

    # What httptools calls, in this order. Whatever they raise ends `feed_data`.

    def on_message_begin(self) -> None:
        if self.state is _DONE:
            raise MalformedResponse("there is a second response")
        self.begun = True

    def on_status(self, reason: bytes) -> None:
        self._line_bytes += len(reason)
        if self._line_bytes > MAX_LINE_BYTES:
            raise MalformedResponse("the status line is too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._progress = True
        if len(name) + len(value) > MAX_HEADER_BYTES:
            raise MalformedResponse("a header is too long")
        headers = self.headers
        if len(headers) + self._trailers >= MAX_HEADERS:
            raise MalformedResponse("there are too many headers")
        name = name.lower()
        if self.state is not _HEAD:
            self._trailers += 1
            if name in _FRAMING:
                raise MalformedResponse("a trailer changes the framing")
            return
        headers.append((name, value))
        if name in _FRAMING:
            value = value.strip().lower()
            if name == b"content-length":
                self._length = True
            elif name == b"content-encoding":
                self.coding = self.coding + b"," + value if self.coding else value
            elif self._chunked or value != b"chunked":
                # Whoever reads another coding differently than we do sees the body end elsewhere.
                raise MalformedResponse("the transfer coding is not `chunked`")
            else:
                self._chunked = True

    def on_headers_complete(self) -> None:
        parser = self._parser
        status = parser.get_status_code()
        # Asking the parser for the version makes a string, so it is asked only where the first bytes do not show it.
        if not (self._is_1_1 and not self._interim) and parser.get_http_version() not in ("1.1", "1.0"):
            raise MalformedResponse("the version is not HTTP/1.0 or HTTP/1.1")
        if status < 200:
            self._interim += 1
            if status < 100 or status == 101:
                raise MalformedResponse("the status is not one that may come here")
            if self._interim > MAX_INTERIM:
                raise MalformedResponse("there are too many interim responses")
            return
        self.status = status
        self._progress = True
        self.state = _BODY
        if self._no_body:
            self.keep_alive = parser.should_keep_alive()
            self._fresh = False  # llhttp waits for a body that does not come
            self.state = _DONE
        elif status in _NO_BODY:
            self._length = True

    def on_body(self, data: bytes) -> None:
        if self.state is _DONE:
            raise MalformedResponse("there is a body where none may be")
        self._progress = True
        self.body.append(data)

    def on_message_complete(self) -> None:
        if self.state is _BODY:
            self.keep_alive = self._parser.should_keep_alive()
            self.state = _DONE
        elif self.state is _HEAD:  # an interim response ends
            self.headers = []
            self.coding = b""
            self._length = self._chunked = False
            self._line_bytes = 0


class WronglyCompressed(Exception):
    """A body that is not what its `content-encoding` says."""


class Decompressor:
    """Unpacks a body piece by piece, so that a small one that unpacks to a huge one is stopped early."""

    __slots__ = ("_deflate", "_full", "_object", "_packed", "_used")

    def __init__(self, coding: bytes) -> None:
        self._deflate = coding == b"deflate"
        self._object = None if self._deflate else zlib.decompressobj(16 + zlib.MAX_WBITS)
        self._packed = b""
        self._full = False
        self._used = False

    @property
    def waiting(self) -> bool:
        """Whether there is more to unpack of what was fed."""
        return self._full or bool(self._packed)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What `data` and what is left from before unpack to. Stop iterating to leave the rest for the next call.

        Raises:
            WronglyCompressed
        """
        self._packed = self._packed + data if self._packed else data
        while self.waiting:
            out = self._unpack()
            if out:
                yield out

    def end(self) -> None:
        """Raises WronglyCompressed where the compressed data is cut off."""
        if self._used and (self._object is None or not self._object.eof):
            raise WronglyCompressed

    def _unpack(self) -> bytes:
        if self._object is None:
            # Some servers send a bare deflate stream (RFC 1951) where RFC 9110 demands zlib's frame around it.
            framed = self._packed[0] & 0x0F == 8
            self._object = zlib.decompressobj(zlib.MAX_WBITS if framed else -zlib.MAX_WBITS)
        elif self._object.eof:
            if self._deflate:
                raise WronglyCompressed
            self._object = zlib.decompressobj(16 + zlib.MAX_WBITS)  # another member of the file
        self._used = True
        try:
            out = self._object.decompress(self._packed, UNPACKED_AT_ONCE_BYTES)
        except zlib.error as error:
            raise WronglyCompressed from error
        self._packed = self._object.unused_data if self._object.eof else self._object.unconsumed_tail
        # All input may be consumed while zlib still holds output that had no room.
        self._full = len(out) == UNPACKED_AT_ONCE_BYTES and not self._object.eof
        return out


def decompressor(coding: bytes) -> Decompressor | None:
    """How to read a body with this `content-encoding`; None where it is read as it is. An unknown coding passes:
    servers put charsets there. What the body then is, its reader decides.

    Raises:
        WronglyCompressed: a compression that was not asked for and that the standard library can't unpack.
    """
    if coding in (b"gzip", b"x-gzip", b"deflate"):
        return Decompressor(coding)
    if coding in (b"br", b"zstd", b"compress", b"x-compress"):
        raise WronglyCompressed
    return None
