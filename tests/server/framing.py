"""Requests as bytes, well formed and not, with what any server of HTTP/1.1 owes to each. Knows no server.

Bytes that a request's body holds ask for `/smuggled`, so that a reply too many is seen. `KEY` stands for an API key.
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple

CLOSES, KEEPS, EITHER = "closes", "keeps", "either"
"""What becomes of the connection after the last reply."""

PATH = b"/v4/beta/completions"
GOOD = json.dumps({"model": "local/count", "prompt": "go", "max_tokens": 2}).encode()
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"
LAST = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
"""Sent on a connection that is kept, to see that the next reply is its own."""


class Case(NamedTuple):
    name: str
    pieces: tuple[bytes, ...]
    """Sent with a pause in between."""
    replies: tuple[int, ...]
    """The statuses of all replies, interim ones too."""
    end: str = KEEPS


def get(*lines: bytes, target: bytes = b"/healthz", version: bytes = b"1.1") -> bytes:
    return b"GET %s HTTP/%s\r\n" % (target, version) + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def post(*lines: bytes, body: bytes = b"", path: bytes = PATH, key: bytes = b"x-api-key: KEY") -> bytes:
    """Its framing is among `lines`."""
    lines = (b"host: x", key, b"content-type: application/json", *lines)
    return b"POST %s HTTP/1.1\r\n" % path + b"".join(line + b"\r\n" for line in lines if line) + b"\r\n" + body


def sized(body: bytes) -> bytes:
    return b"content-length: %d" % len(body)


def chunked(*chunks: bytes, trailers: bytes = b"") -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n" + trailers + b"\r\n"


CHUNKED = b"transfer-encoding: chunked"
H2C = (b"connection: Upgrade, HTTP2-Settings", b"upgrade: h2c", b"http2-settings: x")
WEBSOCKET = (b"connection: upgrade", b"upgrade: websocket", b"sec-websocket-version: 13", b"sec-websocket-key: AAAA")
PADDED = b"\nupgrade:" * (len(SMUGGLED) // 2) + SMUGGLED
"""A server that rewrites `upgrade:` in a body makes it longer than its length."""

TAKEN = [
    Case("a request", (get(b"host: x"),), (200,)),
    Case("empty lines before a request", (b"\r\n\r\n" + get(b"host: x"),), (200,)),
    Case("HTTP/1.0", (get(b"host: x", version=b"1.0"),), (200,), CLOSES),
    Case("HTTP/1.0 without Host", (get(version=b"1.0"),), (200,), CLOSES),
    Case("an empty Host", (get(b"host:"),), (200,)),
    Case("a Host with a port", (get(b"host: a-b_c.example:80"),), (200,)),
    Case("a Host with an IPv6 address", (get(b"host: [::1]:8000"),), (200,)),
    Case("an absolute target", (get(b"host: x", target=b"http://x/healthz"),), (200,)),
    Case("an absolute target in capitals", (get(b"host: x", target=b"HTTPS://X:1/healthz?a"),), (200,)),
    Case("an absolute target without a path", (get(b"host: x", target=b"http://x"),), (200,)),
    Case("an absolute target with a query alone", (get(b"host: x", target=b"http://x?a=b"),), (200,)),
    Case("a body of a length", (post(sized(GOOD), body=GOOD),), (200,)),
    Case("a length with spaces around", (post(b"content-length: \t%d \t" % len(GOOD), body=GOOD),), (200,)),
    Case("a length with zeros before", (post(b"content-length: 000%d" % len(GOOD), body=GOOD),), (200,)),
    Case("a body in chunks", (post(CHUNKED, body=chunked(GOOD[:9], GOOD[9:])),), (200,)),
    Case("chunked in capitals", (post(b"Transfer-Encoding: CHUNKED", body=chunked(GOOD)),), (200,)),
    Case("a chunk size with zeros before", (post(CHUNKED, body=b"000" + chunked(GOOD)),), (200,)),
    Case("a chunk extension", (post(CHUNKED, body=b'%x;a=b;c="d"\r\n%s\r\n0\r\n\r\n' % (len(GOOD), GOOD)),), (200,)),
    Case("a GET with a body", (get(b"host: x", sized(SMUGGLED)) + SMUGGLED,), (200,)),
    Case("two requests at once", (get(b"host: x") * 2,), (200, 200)),
    Case("a request behind one with a body", (post(sized(GOOD), body=GOOD) + get(b"host: x"),), (200, 200)),
    Case("a request behind the last one", (get(b"host: x", b"connection: close") + SMUGGLED,), (200,), CLOSES),
    Case("a request behind one of HTTP/1.0", (get(version=b"1.0") + SMUGGLED,), (200,), CLOSES),
    Case("a trailer that is no header", (post(CHUNKED, key=b"", body=chunked(GOOD, trailers=b"x-api-key: KEY\r\n")),),
         (401,)),
    Case("a Host in the trailers", (post(CHUNKED, body=chunked(GOOD, trailers=b"host: y\r\n")),), (200,)),
    Case("an upgrade in the trailers",
         (post(CHUNKED, body=chunked(GOOD, trailers=b"connection: upgrade\r\nupgrade: h2c\r\n")) + get(b"host: x"),),
         (200, 200)),
    Case("half an upgrade in the trailers",
         (post(b"upgrade: h2c", CHUNKED, body=chunked(GOOD, trailers=b"connection: upgrade\r\n")) + get(b"host: x"),),
         (200, 200)),
    Case("a close in the trailers", (post(CHUNKED, body=chunked(GOOD, trailers=b"connection: close\r\n")),), (200,),
         CLOSES),
    Case("100-continue", (post(sized(GOOD), b"expect: 100-continue"), GOOD), (100, 200)),
    Case("100-continue in chunks", (post(CHUNKED, b"expect: 100-Continue"), chunked(GOOD)), (100, 200)),
    Case("100-continue with its body", (post(sized(GOOD), b"expect: 100-continue", body=GOOD),), (100, 200)),
    Case("100-continue of HTTP/1.0",
         (post(sized(GOOD), b"expect: 100-continue").replace(b"HTTP/1.1", b"HTTP/1.0"), GOOD), (200,), CLOSES),
    Case("an upgrade without a connection option", (post(b"upgrade: h2c", sized(GOOD), body=GOOD),), (200,)),
    Case("a connection option without an upgrade", (post(b"connection: upgrade", sized(GOOD), body=GOOD),), (200,)),
    Case("an upgrade of HTTP/1.0", (post(*H2C, sized(GOOD), body=GOOD).replace(b"HTTP/1.1", b"HTTP/1.0"),), (200,),
         CLOSES),
    Case("several upgrades at once", (post(*H2C, b"Upgrade: a/1, b", sized(GOOD), body=GOOD) * 3,), (200,) * 3),
    Case("an upgrade behind a request", (get(b"host: x") + post(*H2C, CHUNKED, body=chunked(GOOD)),), (200, 200)),
]  # fmt: skip
for _name, _lines in (("h2c", H2C), ("websocket", WEBSOCKET)):
    TAKEN += [
        Case(f"{_name} without a body", (get(b"host: x", *_lines),), (200,)),
        Case(f"{_name} with a length", (post(*_lines, sized(GOOD), body=GOOD),), (200,)),
        Case(f"{_name} with a length of 0", (post(*_lines, b"content-length: 0"),), (400,)),
        Case(f"{_name} with chunks", (post(*_lines, CHUNKED, body=chunked(GOOD)),), (200,)),
        Case(f"{_name} and the body later", (post(*_lines, sized(GOOD)), GOOD), (200,)),
        Case(f"{_name} and the chunks later", (post(*_lines, CHUNKED), chunked(GOOD[:5], GOOD[5:])), (200,)),
        Case(f"{_name} with a request for a body", (get(b"host: x", *_lines, sized(SMUGGLED)) + SMUGGLED,), (200,)),
        Case(f"{_name} with 100-continue", (post(*_lines, sized(GOOD), b"expect: 100-continue"), GOOD), (100, 200)),
        Case(f"{_name} with two framings", (post(*_lines, CHUNKED, b"content-length: 5", body=chunked() + SMUGGLED),),
             (400,), CLOSES),
        Case(f"{_name} with an unknown coding", (post(*_lines, b"transfer-encoding: gzip", body=SMUGGLED),), (400,),
             CLOSES),
    ]  # fmt: skip

EARLY = [
    Case(f"{status}, {framing.split(b':')[0].decode()}{', upgrade' if lines else ''}, {how}", pieces, (status,), end)
    for status, path, key, more in (
        (401, PATH, b"", b""),
        (404, b"/none", b"", b""),
        (405, b"/healthz", b"", b""),
        (415, PATH, b"x-api-key: KEY", b"content-encoding: gzip"),
        (413, PATH, b"x-api-key: KEY", b""),
    )
    for framing, body in (
        (b"content-length: %d" % (len(PADDED) if status != 413 else 100_001), PADDED),
        (CHUNKED, chunked(PADDED)),
    )
    for lines in ((), H2C)
    for head in [post(*lines, framing, *([more] if more else []), path=path, key=key)]
    for how, pieces, end in (
        ("the body later", (head, body), CLOSES),
        ("half of the body later", (head + body[:-50], body[-50:]), CLOSES),
        ("the body with it", (head + body,), KEEPS),
    )
    if status != 413 or (framing != CHUNKED and "later" in how)
] + [
    Case("401 instead of 100", (post(sized(SMUGGLED), b"expect: 100-continue", key=b""), SMUGGLED), (401,), CLOSES),
    Case("413 instead of 100", (post(b"content-length: 100001", b"expect: 100-continue"), SMUGGLED), (413,), CLOSES),
    Case("a GET whose body is yet to come", (get(b"host: x", sized(SMUGGLED)), SMUGGLED), (200,), CLOSES),
    Case("a GET with the largest length", (get(b"host: x", b"content-length: 18446744073709551615"), SMUGGLED), (200,),
         CLOSES),
    Case("an early refusal behind a request", (get(b"host: x") + post(sized(PADDED), key=b""), PADDED), (200, 401),
         CLOSES),
    Case("a request behind an unread body", (post(sized(PADDED), key=b""), PADDED + SMUGGLED), (401,), CLOSES),
]  # fmt: skip

BAD_HEADS = {
    "no Host": get(),
    "no Host, with an absolute target": get(target=b"http://x/healthz"),
    "two Hosts": get(b"host: x", b"host: y"),
    "the same Host twice": get(b"host: x", b"Host: x"),
    "two Hosts in HTTP/1.0": get(b"host: x", b"host: x", version=b"1.0"),
    "a Host with a space": get(b"host: x y"),
    "a Host with a comma and a slash": get(b"host: x,y/z"),
    "a Host with an at sign": get(b"host: a@b"),
    "a Host with a bad port": get(b"host: x:8a"),
    "a Host with an open bracket": get(b"host: [::1"),
    "a Host with bytes": get(b"host: \xff"),
    "HTTP/2.0": get(b"host: x", version=b"2.0"),
    "HTTP/3.0": get(b"host: x", version=b"3.0"),
    "HTTP/1.2": get(b"host: x", version=b"1.2"),
    "HTTP/0.9": get(b"host: x", version=b"0.9"),
    "HTTP/1": get(b"host: x", version=b"1"),
    "HTTP/01.1": get(b"host: x", version=b"01.1"),
    "HTTP/1.1 and more": get(b"host: x", version=b"1.1x"),
    "http/1.1 in small letters": b"GET /healthz http/1.1\r\nhost: x\r\n\r\n",
    "no version": b"GET /healthz\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "CONNECT": b"CONNECT x:443 HTTP/1.1\r\nhost: x:443\r\n\r\n",
    "CONNECT with a body": b"CONNECT x:443 HTTP/1.1\r\nhost: x:443\r\ncontent-length: 3\r\n\r\nabc",
    "OPTIONS *": b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n",
    "GET *": get(b"host: x", target=b"*"),
    "a target without a slash": get(b"host: x", target=b"healthz"),
    "an authority for a target": get(b"host: x", target=b"x:80"),
    "another scheme": get(b"host: x", target=b"ftp://x/healthz"),
    "an absolute target with a user": get(b"host: x", target=b"http://a@x/healthz"),
    "a space in the target": get(b"host: x", target=b"/healthz a"),
    "NUL in the target": get(b"host: x", target=b"/health\0z"),
    "a control character in the target": get(b"host: x", target=b"/health\x01z"),
    "bytes in the target": get(b"host: x", target=b"/health\xff"),
    "a method in small letters": b"get /healthz HTTP/1.1\r\nhost: x\r\n\r\n",
    "an unknown method": b"FETCH /healthz HTTP/1.1\r\nhost: x\r\n\r\n",
    "tabs in the request line": b"GET\t/healthz\tHTTP/1.1\r\nhost: x\r\n\r\n",
    "a space behind the version": b"GET /healthz HTTP/1.1 \r\nhost: x\r\n\r\n",
    "LF behind the request line": b"GET /healthz HTTP/1.1\nhost: x\r\n\r\n",
    "LF behind a header": b"GET /healthz HTTP/1.1\r\nhost: x\nx: y\r\n\r\n",
    "LF for the end of the headers": b"GET /healthz HTTP/1.1\r\nhost: x\r\n\n",
    "CR within a value": get(b"host: x", b"x: a\rb: c"),
    "a folded header": get(b"host: x", b"x: a", b" b"),
    "a folded length": post(b"content-length:", b" 3", body=b"abc"),
    "a space before the first header": get(b" host: x"),
    "a space before a colon": get(b"host : x"),
    "a space before the colon of a length": post(b"content-length : 3", body=b"abc"),
    "a header without a colon": get(b"host: x", b"nothing"),
    "a header without a name": get(b"host: x", b": a"),
    "NUL in a name": get(b"host: x", b"a\0b: c"),
    "NUL in a value": get(b"host: x", b"a: b\0c"),
    "a control character in a value": get(b"host: x", b"a: b\x01c"),
    "DEL in a value": get(b"host: x", b"a: b\x7fc"),
    "bytes in a name": get(b"host: x", b"\xe9: a"),
    "a separator in a name": get(b"host: x", b"a(b): c"),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}
BAD_LENGTHS = (
    b"-3", b"+3", b"0x3", b"3.0", b"3, 3", b"3,4", b"3;", b"1 2", b"1_0", b"abc", b"", b'"3"', b"18446744073709551616",
    b"9" * 40, b"\xb2", b"3\0",
)  # fmt: skip
BAD_CODINGS = (
    b"xchunked", b"identity", b"gzip", b"gzip, chunked", b"chunked, gzip", b"chunked, chunked", b"chunked, identity",
    b"identity, chunked", b'"chunked"', b"chunked;q=1", b"chunked,", b",chunked", b"\x0bchunked", b"chunked\0", b"",
    b"chunked\xa0",
)  # fmt: skip
BAD_CHUNKS = {
    "no number": b"zz\r\nabc\r\n0\r\n\r\n",
    "nothing": b"\r\nabc\r\n0\r\n\r\n",
    "0x": b"0x3\r\nabc\r\n0\r\n\r\n",
    "a sign": b"+3\r\nabc\r\n0\r\n\r\n",
    "a minus": b"-3\r\nabc\r\n0\r\n\r\n",
    "an underscore": b"0_3\r\nabc\r\n0\r\n\r\n",
    "a space before": b" 3\r\nabc\r\n0\r\n\r\n",
    "a space behind": b"3 \r\nabc\r\n0\r\n\r\n",
    "an overflow": b"10000000000000003\r\nabc\r\n0\r\n\r\n",
    "many digits": b"f" * 100 + b"\r\nabc\r\n0\r\n\r\n",
    "LF": b"3\nabc\r\n0\r\n\r\n",
    "LF in an extension": b"3;a\n\r\nabc\r\n0\r\n\r\n",
    "CR in an extension": b"3;a\rb\r\nabc\r\n0\r\n\r\n",
    "LF in a quoted extension": b'3;a="\n"\r\nabc\r\n0\r\n\r\n',
    "NUL in an extension": b"3;a=\0\r\nabc\r\n0\r\n\r\n",
    "a longer chunk": b"3\r\nabcd\r\n0\r\n\r\n",
    "a shorter chunk": b"3\r\nab\r\n0\r\n\r\n",
    "LF behind a chunk": b"3\r\nabc\n0\r\n\r\n",
    "LF behind the last size": b"3\r\nabc\r\n0\n\r\n",
    "LF for the end": b"3\r\nabc\r\n0\r\n\n",
    "a length in the trailers": b"0\r\ncontent-length: 30\r\n\r\n",
    "a coding in the trailers": b"0\r\ntransfer-encoding: gzip\r\n\r\n",
    "a folded trailer": b"0\r\na: b\r\n c\r\n\r\n",
    "a trailer without a colon": b"0\r\nabc\r\n\r\n",
}
REFUSED = [
    *[Case(name, (head,), (400,), CLOSES) for name, head in BAD_HEADS.items()],
    *[Case(f"length {value!r}", (post(b"content-length: " + value, body=b"abc"),), (400,), CLOSES)
      for value in BAD_LENGTHS],
    *[Case(f"coding {value!r}", (post(b"transfer-encoding: " + value, body=chunked(GOOD)),), (400,), CLOSES)
      for value in BAD_CODINGS],
    *[Case(f"chunk: {name}", (post(CHUNKED, body=body),), (400,), CLOSES) for name, body in BAD_CHUNKS.items()],
    Case("two lengths", (post(b"content-length: 3", b"content-length: 4", body=b"abcd"),), (400,), CLOSES),
    Case("the same length twice", (post(b"content-length: 3", b"content-length: 3", body=b"abc"),), (400,), CLOSES),
    Case("chunked twice", (post(CHUNKED, CHUNKED, body=chunked(GOOD)),), (400,), CLOSES),
    Case("two codings", (post(b"transfer-encoding: identity", CHUNKED, body=chunked(GOOD)),), (400,), CLOSES),
    Case("chunked in HTTP/1.0", (post(CHUNKED, body=chunked(GOOD)).replace(b"HTTP/1.1", b"HTTP/1.0"),), (400,), CLOSES),
    Case("a length, then a coding", (post(sized(GOOD), CHUNKED, body=chunked(GOOD)),), (400,), CLOSES),
    Case("a coding, then a length", (post(CHUNKED, sized(GOOD), body=chunked(GOOD)),), (400,), CLOSES),
]  # fmt: skip
REFUSED += [
    Case("a request behind a refused one", (get() + SMUGGLED,), (400,), CLOSES),
    Case("a refused one behind a request", (get(b"host: x") + get() + SMUGGLED,), (200, 400), CLOSES),
    Case("a bad chunk behind a request", (get(b"host: x") + post(CHUNKED, body=b"zz\r\n") + SMUGGLED,), (200, 400),
         CLOSES),
    Case("a refused one behind two requests", (post(sized(GOOD), body=GOOD) * 2 + b"\0", SMUGGLED), (200, 200, 400),
         CLOSES),
]  # fmt: skip

CASES = TAKEN + EARLY + REFUSED

SPLIT_ANYWHERE = [
    Case("a length", (post(sized(GOOD), body=GOOD) + get(b"host: x"),), (200, 200)),
    Case("chunks", (post(CHUNKED, body=chunked(GOOD[:9], GOOD[9:], trailers=b"a: b\r\n")) + get(b"host: x"),),
         (200, 200)),
    Case("h2c with a length", (post(*H2C, sized(GOOD), body=GOOD) + get(b"host: x"),), (200, 200)),
    Case("h2c with chunks", (post(*H2C, CHUNKED, body=chunked(GOOD)) + get(b"host: x"),), (200, 200)),
    Case("websocket behind a request", (get(b"host: x") + post(*WEBSOCKET, sized(GOOD), body=GOOD),), (200, 200)),
    Case("401 and a request for a body", (post(*H2C, sized(SMUGGLED), key=b"", body=SMUGGLED),), (401,), EITHER),
    Case("404 and a body that asks to upgrade", (post(sized(PADDED), path=b"/none", key=b"", body=PADDED),), (404,),
         EITHER),
    Case("405 and chunks", (post(CHUNKED, path=b"/healthz", key=b"", body=chunked(PADDED)),), (405,), EITHER),
    Case("two framings", (post(sized(GOOD), CHUNKED, body=chunked(GOOD) + SMUGGLED),), (400,), CLOSES),
    Case("two Hosts", (get(b"host: x", b"host: y") + SMUGGLED,), (400,), CLOSES),
    Case("a bad chunk", (post(CHUNKED, body=b"3\nabc\r\n0\r\n\r\n" + SMUGGLED),), (400,), CLOSES),
]  # fmt: skip


class Reply(NamedTuple):
    status: int
    headers: dict[bytes, bytes]
    body: bytes


def replies(received: bytes) -> list[Reply]:
    """Of requests that were not HEAD. The last may be incomplete, and is then left out."""
    found = []
    while received:
        head, end, received = received.partition(b"\r\n\r\n")
        if not end:
            break
        line, *lines = head.split(b"\r\n")
        began = re.fullmatch(rb"HTTP/1\.1 (\d{3}) [\w ]+", line)
        assert began, f"no status line: {line!r}"
        status = int(began[1])
        headers = {name.lower(): value for name, value in (line.split(b": ", 1) for line in lines)}
        body = b""
        if headers.get(b"transfer-encoding") == b"chunked":
            size = None
            while size != 0 and received:
                number, _, received = received.partition(b"\r\n")
                size = int(number, 16)
                body, received = body + received[:size], received[size + 2 :]
            if size != 0:
                break
        elif status >= 200:
            size = int(headers[b"content-length"])
            body, received = received[:size], received[size:]
            if len(body) < size:
                break
        found.append(Reply(status, headers, body))
    return found
