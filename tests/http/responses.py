"""Responses, well-formed and not, and what each gets. Data for the tests of the parser and of the client."""

from __future__ import annotations

from msgspec import Struct


class Case(Struct, frozen=True):
    data: bytes
    body: bytes | None
    """What is read; None where it is refused as malformed."""
    kept: bool = False
    """The connection may carry another request."""
    status: int = 200
    closes: bool = False
    """The body ends with the connection."""
    late: bool = False
    """It is malformed behind its headers: these are read, and then the body is refused."""


OK = b"HTTP/1.1 200 OK\r\n"
SIZED = b"content-length: 5\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"
HELLO = b"5\r\nhello\r\n"
LAST = b"0\r\n\r\n"


def head(*lines: bytes, body: bytes = b"hello", first: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"".join(line + b"\r\n" for line in (first, *lines)) + b"\r\n" + body


def refused(data: bytes) -> Case:
    return Case(data, None)


def refused_late(data: bytes) -> Case:
    return Case(data, None, late=True)


L5 = b"content-length: 5"

ACCEPTED = {
    "a length": Case(head(L5), b"hello", kept=True),
    "no body": Case(head(b"content-length: 0", body=b""), b"", kept=True),
    "a length with spaces around": Case(head(b"content-length:   5 \t"), b"hello", kept=True),
    "a length with zeros before it": Case(head(b"content-length: 0005"), b"hello", kept=True),
    "names in capitals": Case(head(b"CONTENT-LENGTH: 5"), b"hello", kept=True),
    "no reason": Case(head(L5, first=b"HTTP/1.1 200"), b"hello", kept=True),
    "an empty reason": Case(head(L5, first=b"HTTP/1.1 200 "), b"hello", kept=True),
    "a reason in UTF-8": Case(head(L5, first=b"HTTP/1.1 200 \xc3\xa9"), b"hello", kept=True),
    "a value in UTF-8": Case(head(b"x: \xc3\xa9", L5), b"hello", kept=True),
    "an empty value": Case(head(b"x:", L5), b"hello", kept=True),
    "an empty line before it": Case(b"\r\n" + head(L5), b"hello", kept=True),
    "connection: close": Case(head(b"connection: close", L5), b"hello"),
    "close among others": Case(head(b"connection: keep-alive, Close", L5), b"hello"),
    "HTTP/1.0": Case(head(L5, first=b"HTTP/1.0 200 OK"), b"hello"),
    "HTTP/1.0 that keeps": Case(head(b"connection: keep-alive", L5, first=b"HTTP/1.0 200 OK"), b"hello", kept=True),
    "HTTP/1.0 until its end": Case(head(first=b"HTTP/1.0 200 OK"), b"hello", closes=True),
    "HTTP/1.1 until its end": Case(head(), b"hello", closes=True),
    "chunks": Case(CHUNKED + b"2\r\nhe\r\n3\r\nllo\r\n" + LAST, b"hello", kept=True),
    "chunks with capital sizes": Case(CHUNKED + b"A\r\nhellohello\r\n" + LAST, b"hellohello", kept=True),
    "chunks with zeros before sizes": Case(CHUNKED + b"0000000000000000005\r\nhello\r\n" + LAST, b"hello", kept=True),
    "chunks with extensions": Case(CHUNKED + b'5;a=b;c="d"\r\nhello\r\n0;e\r\n\r\n', b"hello", kept=True),
    "chunks with trailers": Case(CHUNKED + HELLO + b"0\r\nx: y\r\nz: \r\n\r\n", b"hello", kept=True),
    "chunks in HTTP/1.0": Case(CHUNKED.replace(b"1.1", b"1.0") + HELLO + LAST, b"hello"),
    "Chunked in capitals": Case(CHUNKED.replace(b"chunked", b"Chunked") + HELLO + LAST, b"hello", kept=True),
    "an interim response": Case(b"HTTP/1.1 100 Continue\r\n\r\n" + head(L5), b"hello", kept=True),
    "interim responses with headers": Case(
        b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\ncontent-length: 9\r\n\r\n" * 3 + head(L5), b"hello", kept=True
    ),
    "8 interim responses": Case(b"HTTP/1.1 102 Processing\r\n\r\n" * 8 + head(L5), b"hello", kept=True),
    "204": Case(head(body=b"", first=b"HTTP/1.1 204 No Content"), b"", kept=True, status=204),
    "304 with the length of what is not sent": Case(
        head(L5, body=b"", first=b"HTTP/1.1 304 Not Modified"), b"", kept=True, status=304
    ),
    "an upgrade that nobody asked for": Case(head(b"connection: upgrade", b"upgrade: h2c", L5), b"hello", kept=True),
    "a status of 999": Case(head(L5, first=b"HTTP/1.1 999 X"), b"hello", kept=True, status=999),
    "128 headers": Case(head(*[b"x: y"] * 127, L5), b"hello", kept=True),
    "a header of 16 KiB": Case(head(b"x: " + b"y" * 16_000, L5), b"hello", kept=True),
    # Behind these the connection is not used again.
    "a second response": Case(head(L5) + head(L5, body=b"POISN"), b"hello"),
    "rubbish behind a length": Case(head(L5) + b"x", b"hello"),
    "rubbish behind the last chunk": Case(CHUNKED + HELLO + LAST + b"x", b"hello"),
    "rubbish behind connection: close": Case(head(b"connection: close", L5) + b"x", b"hello"),
    "a body behind 204": Case(head(L5, first=b"HTTP/1.1 204 No Content"), b"", status=204),
    "chunks behind 204": Case(CHUNKED.replace(b"200 OK", b"204 No") + HELLO + LAST, b"", status=204),
    "a body behind 304": Case(head(L5, first=b"HTTP/1.1 304 Not Modified"), b"", status=304),
}

MALFORMED = {
    # Where the body ends: a proxy may see another end than we do.
    "a length and chunks": refused(head(L5, b"transfer-encoding: chunked", body=HELLO + LAST)),
    "chunks and a length": refused(head(b"transfer-encoding: chunked", L5, body=HELLO + LAST)),
    "two lengths": refused(head(L5, b"content-length: 6")),
    "the same length twice": refused(head(L5, L5)),
    "a list of lengths": refused(head(b"content-length: 5, 5")),
    "a length below zero": refused(head(b"content-length: -5")),
    "a length with a sign": refused(head(b"content-length: +5")),
    "a length in words": refused(head(b"content-length: five")),
    "a length in hexadecimal": refused(head(b"content-length: 0x5")),
    "a length with a fraction": refused(head(b"content-length: 5.0")),
    "a length with a gap": refused(head(b"content-length: 5 5")),
    "an empty length": refused(head(b"content-length: ")),
    "a length past 64 bits": refused(head(b"content-length: 18446744073709551616")),
    "a length in other digits": refused(head("content-length: ٥".encode())),
    "identity as transfer coding": refused(head(b"transfer-encoding: identity")),
    "gzip as transfer coding": refused(head(b"transfer-encoding: gzip")),
    "gzip and chunked": refused(head(b"transfer-encoding: gzip, chunked", body=HELLO + LAST)),
    "chunked and identity": refused(head(b"transfer-encoding: chunked, identity", body=HELLO + LAST)),
    "chunked twice": refused(head(b"transfer-encoding: chunked, chunked", body=HELLO + LAST)),
    "chunked in two headers": refused(head(*[b"transfer-encoding: chunked"] * 2, body=HELLO + LAST)),
    "nearly chunked": refused(head(b"transfer-encoding: xchunked", body=HELLO + LAST)),
    "chunked with a parameter": refused(head(b"transfer-encoding: chunked;q=1", body=HELLO + LAST)),
    "chunked in quotes": refused(head(b'transfer-encoding: "chunked"', body=HELLO + LAST)),
    "an empty transfer coding": refused(head(b"transfer-encoding:")),
    # Lines and headers.
    "a bare LF behind the status": refused(b"HTTP/1.1 200 OK\n" + SIZED + b"\r\nhello"),
    "a bare LF behind a header": refused(OK + b"content-length: 5\nx: y\r\n\r\nhello"),
    "a bare LF behind the headers": refused(OK + SIZED + b"\nhello"),
    "only bare LF": refused(head(L5).replace(b"\r\n", b"\n")),
    "a bare CR in a value": refused(head(b"x: a\rb", L5)),
    "a bare CR in the reason": refused(head(L5, first=b"HTTP/1.1 200 a\rb")),
    "a folded header": refused(head(b"x: a\r\n b", L5)),
    "a folded length": refused(head(b"content-length:\r\n 5")),
    "a fold by a tab": refused(head(b"x: a\r\n\tb", L5)),
    "a space before the first header": refused(head(b" x: y", L5)),
    "a space before the colon": refused(head(b"content-length : 5")),
    "a tab before the colon": refused(head(b"content-length\t: 5")),
    "a space in a name": refused(head(b"x y: z", L5)),
    "no colon": refused(head(b"nothing", L5)),
    "no name": refused(head(b": y", L5)),
    "a control character in a name": refused(head(b"x\x01: y", L5)),
    "a bracket in a name": refused(head(b"x(y): z", L5)),
    "NUL in a name": refused(head(b"x\x00: y", L5)),
    "NUL in a value": refused(head(b"x: a\x00b", L5)),
    "a control character in a value": refused(head(b"x: a\x01b", L5)),
    "a header of more than 16 KiB": refused(head(b"x: " + b"y" * 16_400, L5)),
    "a name of more than 16 KiB": refused(head(b"x" * 16_400 + b": y", L5)),
    "a header that does not end": refused(OK + b"x: " + b"y" * 40_000),
    "129 headers": refused(head(*[b"x: y"] * 128, L5)),
    "a status line of more than 8 KiB": refused(head(L5, first=b"HTTP/1.1 200 " + b"x" * 8200)),
    # The status line.
    "another protocol": refused(b"220 mail.example ready\r\n\r\n"),
    "TLS on a plain port": refused(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    "a request": refused(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"),
    "only a body": refused(b'{"choices": []}'),
    "HTTP/0.9": refused(head(L5, first=b"HTTP/0.9 200 OK")),
    "HTTP/1.2": refused(head(L5, first=b"HTTP/1.2 200 OK")),
    "HTTP/2.0": refused(head(L5, first=b"HTTP/2.0 200 OK")),
    "HTTP/2's preface": refused(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "no version": refused(head(L5, first=b"HTTP 200 OK")),
    "a version in small letters": refused(head(L5, first=b"http/1.1 200 OK")),
    "ICY": refused(head(L5, first=b"ICY 200 OK")),
    "no status": refused(head(L5, first=b"HTTP/1.1 OK")),
    "a status of two digits": refused(head(L5, first=b"HTTP/1.1 20 OK")),
    "a status of four digits": refused(head(L5, first=b"HTTP/1.1 2000 OK")),
    "a status of 000": refused(head(L5, first=b"HTTP/1.1 000 OK")),
    "a status of 099": refused(head(L5, first=b"HTTP/1.1 099 OK")),
    "a status below zero": refused(head(L5, first=b"HTTP/1.1 -200 OK")),
    "two spaces before the status": refused(head(L5, first=b"HTTP/1.1  200 OK")),
    "101": refused(head(b"upgrade: h2c", b"connection: upgrade", first=b"HTTP/1.1 101 Switching Protocols")),
    "101 without an upgrade": refused(head(first=b"HTTP/1.1 101 Switching Protocols")),
    "101 behind 100": refused(b"HTTP/1.1 100 C\r\n\r\n" + head(b"upgrade: x", first=b"HTTP/1.1 101 S")),
    "9 interim responses": refused(b"HTTP/1.1 102 Processing\r\n\r\n" * 9 + head(L5)),
    "an interim response with a malformed one behind it": refused(b"HTTP/1.1 100 C\r\n\r\nHTTP/2.0 200 OK\r\n\r\n"),
    # Chunks.
    "no size": refused_late(CHUNKED + b"\r\nhello\r\n" + LAST),
    "a size that is none": refused_late(CHUNKED + HELLO + b"xyz\r\n" + LAST),
    "a size below zero": refused_late(CHUNKED + b"-5\r\nhello\r\n" + LAST),
    "a size with a sign": refused_late(CHUNKED + b"+5\r\nhello\r\n" + LAST),
    "a size with 0x": refused_late(CHUNKED + b"0x5\r\nhello\r\n" + LAST),
    "a size past 64 bits": refused_late(CHUNKED + b"10000000000000005\r\nhello\r\n" + LAST),
    "a space before the size": refused_late(CHUNKED + b" 5\r\nhello\r\n" + LAST),
    "a space behind the size": refused_late(CHUNKED + b"5 \r\nhello\r\n" + LAST),
    "a bare LF behind the size": refused_late(CHUNKED + b"5\nhello\r\n" + LAST),
    "a bare LF behind an extension": refused_late(CHUNKED + b"5;a\nhello\r\n" + LAST),
    "a bare LF behind a chunk": refused_late(CHUNKED + b"5\r\nhello\n" + LAST),
    "nothing behind a chunk": refused_late(CHUNKED + b"5\r\nhello" + LAST),
    "a chunk longer than its size": refused_late(CHUNKED + b"5\r\nhello you\r\n" + LAST),
    "a bare LF behind the last chunk": refused_late(CHUNKED + HELLO + b"0\n\n"),
    "a length in the trailer": refused_late(CHUNKED + HELLO + b"0\r\ncontent-length: 5\r\n\r\n"),
    "a transfer coding in the trailer": refused_late(CHUNKED + HELLO + b"0\r\ntransfer-encoding: chunked\r\n\r\n"),
    "a content coding in the trailer": refused_late(CHUNKED + HELLO + b"0\r\ncontent-encoding: gzip\r\n\r\n"),
    "a trailer without a colon": refused_late(CHUNKED + HELLO + b"0\r\nnothing\r\n\r\n"),
    "129 headers with the trailers": refused_late(CHUNKED + HELLO + b"0\r\n" + b"x: y\r\n" * 128 + b"\r\n"),
}
assert len(MALFORMED) >= 60
