"""The parser, at every cut of its input, on well-formed requests, on refused ones and on anything."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from andthen.contract.errors import CallerError
from andthen.http.request_parser import CHUNKED, RequestHead, RequestParser
from tests.server.framing import CASES, Case

HEADER_BYTES = 8192

Read = list[tuple[RequestHead, bytes, bool]]
"""Of each request its head, as much of its body as came, and whether that was all of it."""


def read(pieces: Iterable[bytes]) -> tuple[Read, CallerError | None]:
    """What the parser makes of the pieces, and the error that ended it."""
    parser = RequestParser(HEADER_BYTES)
    found: Read = []
    for piece in pieces:
        parser.receive(piece)
        while True:
            try:
                event = parser.next_event()
            except CallerError as error:
                assert parser.next_event() is None, "nothing is read after an error"
                return found, error
            if event is None:
                break
            if isinstance(event, RequestHead):
                found.append((event, b"", parser.is_complete))
            else:
                head, body, _ = found[-1]
                found[-1] = (head, body + event, parser.is_complete)
    return found, None


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def summary(result: tuple[Read, CallerError | None]) -> object:
    """Without a body that an error cut short: how much of that was read depends on the cut."""
    found, error = result
    if error is not None and found and not found[-1][2]:
        found = [*found[:-1], (found[-1][0], b"", False)]
    return found, None if error is None else (type(error), error.message)


names = st.sampled_from(["accept", "X-Thing", "user-agent", "a", "Cookie", "UPGRADE", "connection-x"])
values = st.from_regex(r"[\x20-\x7e\x80-\xff]{0,20}", fullmatch=True).map(lambda text: text.strip().encode("latin-1"))
headers = st.lists(st.tuples(names.map(str.encode), values), max_size=5)
targets = st.from_regex(rb"/[!-\"$-~]{0,20}", fullmatch=True)
bodies = st.binary(max_size=60)


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, bytes, bytes, list[tuple[bytes, bytes]]]:
    """A request's bytes, its target, its body and its headers but for those of its framing."""
    target, body, others = draw(targets), draw(bodies), draw(headers)
    lines = [b"host: x", *[name + b":" + b" " * draw(st.integers(0, 2)) + value for name, value in others]]
    framing = draw(st.sampled_from(["none", "length", "chunks", "upgrade"]))
    if framing == "none":
        body, sent = b"", b""
    elif framing == "chunks":
        lines.append(b"Transfer-Encoding: chunked")
        sizes = draw(st.lists(st.integers(1, 30), max_size=5))
        sent = chunks(body, sizes, draw(st.sampled_from([b"", b";a", b';a=b;c="d;e"'])))
        sent += draw(st.sampled_from([b"", b"x: y\r\n"])) + b"\r\n"
    else:
        lines.append(b"content-length: %d" % len(body))
        sent = body
        if framing == "upgrade":
            lines += [b"connection: upgrade", b"upgrade: h2c"]
    head = b"POST " + target + b" HTTP/1.1\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n"
    return draw(st.sampled_from([b"", b"\r\n"])) + head + sent, target, body, others


def chunks(body: bytes, sizes: list[int], extension: bytes) -> bytes:
    made = b""
    for size in [*sizes, max(1, len(body))]:
        piece, body = body[:size], body[size:]
        if piece:
            made += b"%x%b\r\n%b\r\n" % (len(piece), extension, piece)
    return made + b"0\r\n"


@given(st.lists(requests(), min_size=1, max_size=4), st.lists(st.integers(0, 2**16), max_size=12))
def test_requests_are_read_as_they_were_meant_wherever_they_are_cut(
    sent: list[tuple[bytes, bytes, bytes, list[tuple[bytes, bytes]]]], places: list[int]
) -> None:
    data = b"".join(request for request, *_ in sent)
    found, error = read(cut(data, places))
    assert error is None
    assert len(found) == len(sent)
    for (head, body, is_complete), (_, target, meant, others) in zip(found, sent, strict=True):
        assert is_complete
        assert body == meant
        assert head.query == target.partition(b"?")[2]
        assert head.method == "POST"
        assert head.http_version == "1.1"
        assert head.keep_alive
        for name, value in others:
            assert (name.lower(), value) in head.headers
    assert summary(read([data[at : at + 1] for at in range(len(data))])) == summary((found, error))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_case_of_the_table_is_the_same_at_every_cut(case: Case) -> None:
    data = b"".join(case.pieces)
    whole = summary(read([data]))
    for at in range(1, min(len(data), 600)):
        assert summary(read([data[:at], data[at:]])) == whole, at
    assert summary(read([data[at : at + 1] for at in range(len(data))])) == whole
    refused = whole[1] is not None  # type: ignore[index]
    assert refused == (case.replies[-1] in (400, 431, 505) and "length of 0" not in case.name)


pieces_of_http = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\n", b"POST /a?b HTTP/1.1\r\n", b"host: x\r\n", b"content-length: 5\r\n", b"\r\n", b"\n",
        b"transfer-encoding: chunked\r\n", b"5\r\n", b"hello", b"0\r\n\r\n", b"connection: close\r\n", b" ", b":",
        b"\r", b"\0",
        b"upgrade: h2c\r\nconnection: upgrade\r\n", b"HTTP/1.0\r\n", b";a=b", b"expect: 100-continue\r\n", b"\xff",
    ]
)  # fmt: skip


@given(
    st.lists(pieces_of_http | st.binary(max_size=8), max_size=30).map(b"".join),
    st.lists(st.integers(0, 2**16), max_size=8),
)
@example(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", [3, 9])
@example(b"\r\n\r\n\r\nGET / HTTP/1.1\r\nhost: x\r\n\r\n", [1])
def test_anything_gives_requests_or_one_of_our_errors_wherever_it_is_cut(data: bytes, places: list[int]) -> None:
    """And what is read is nothing but what was sent."""
    whole = read([data])
    assert summary(read(cut(data, places))) == summary(whole)
    for head, body, is_complete in whole[0]:
        assert not is_complete or head.length in (CHUNKED, len(body))
        assert all(re.fullmatch(rb"[!#$%&'*+\-.^_`|~0-9a-z]+", name) for name, _ in head.headers)
        assert all(re.fullmatch(rb"[\t\x20-\x7e\x80-\xff]*", value) for _, value in head.headers)


@pytest.mark.parametrize("step", [1, 7, 1000, 10**6])
@pytest.mark.parametrize(
    ("data", "status"),
    [
        pytest.param(b"GET / HTTP/1.1\r\nhost: x\r\na: " + b"b" * HEADER_BYTES + b"\r\n\r\n", 431, id="a header"),
        pytest.param(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * HEADER_BYTES, 431, id="headers without end"),
        pytest.param(b"GET /" + b"a" * HEADER_BYTES + b" HTTP/1.1\r\n\r\n", 431, id="a target"),
    ],
)
def test_heads_are_bounded(data: bytes, status: int, step: int) -> None:
    found, error = read([data[at : at + step] for at in range(0, len(data), step)])
    assert found == []
    assert error is not None
    assert error.status == status


def test_a_head_may_be_exactly_as_large_as_the_bound() -> None:
    begin = b"GET / HTTP/1.1\r\nhost: x\r\na: "
    head = begin + b"b" * (HEADER_BYTES - len(begin) - 4) + b"\r\n\r\n"
    assert read([head])[1] is None
    assert read([head.replace(b"a: b", b"a: bb")])[1] is not None


def test_what_a_head_says() -> None:
    ((head, body, _),), error = read(
        [b"POST http://example.org:80/a%20b?c=%64 HTTP/1.0\r\nHost: x\r\nA:  b\t \r\ncontent-length: 2\r\n\r\nhi"]
    )
    assert error is None
    assert body == b"hi"
    assert (head.path, head.query, head.http_version, head.length) == ("/a b", b"c=%64", "1.0", 2)
    assert head.headers == [(b"host", b"example.org:80"), (b"a", b"b"), (b"content-length", b"2")]
    assert not head.keep_alive


@pytest.mark.parametrize(
    ("lines", "keep_alive"),
    [
        (b"", True),
        (b"connection: keep-alive\r\n", True),
        (b"connection: close\r\n", False),
        (b"Connection: Keep-Alive, Close\r\n", False),
        (b"connection: te\r\nconnection: close\r\n", False),
        (b"connection: closed\r\n", True),
    ],
)
def test_when_a_connection_goes_on(lines: bytes, keep_alive: bool) -> None:
    ((head, _, _),), _ = read([b"GET / HTTP/1.1\r\nhost: x\r\n" + lines + b"\r\n"])
    assert head.keep_alive is keep_alive
