"""Responses from bytes: what is read of each, at any cut."""

from __future__ import annotations

import gzip
import random
import zlib
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from andthen.http.response_parser import (
    MAX_UNFINISHED_BYTES,
    Decompressor,
    MalformedResponse,
    ResponseParser,
    State,
    WronglyCompressed,
    decompressor,
)
from tests.http.responses import ACCEPTED, CHUNKED, HELLO, LAST, MALFORMED, Case, head

Read = tuple[bool, int, bytes, bool]
"""Refused or cut off; status; body; whether the connection is kept."""


def read(pieces: Iterable[bytes], *, no_body: bool = False) -> Read:
    """What a parser makes of a response in these pieces, behind which the connection ends."""
    parser = ResponseParser()
    parser.expect(no_body=no_body)
    body = bytearray()
    try:
        for piece in pieces:
            try:
                parser.feed(piece)
            finally:
                body += b"".join(parser.body)
                parser.body.clear()
    except MalformedResponse:
        assert parser.state is State.FAILED
    kept = parser.state is State.DONE and parser.keep_alive and not parser.excess
    return not parser.end(), parser.status, bytes(body), kept


def cuts(data: bytes) -> Iterator[list[bytes]]:
    """In two at each place, and byte by byte; long ones at some places."""
    places = range(1, len(data)) if len(data) < 500 else random.Random(0).sample(range(1, len(data)), 50)
    for at in places:
        yield [data[:at], data[at:]]
    yield [data[at : at + 1] for at in range(len(data))]


@pytest.mark.parametrize("case", ACCEPTED.values(), ids=ACCEPTED)
def test_what_is_well_formed_is_read_at_every_cut(case: Case) -> None:
    assert case.body is not None
    expected = (False, case.status, case.body, case.kept)
    assert read([case.data]) == expected
    for pieces in cuts(case.data):
        assert read(pieces) == expected, pieces


@pytest.mark.parametrize("case", MALFORMED.values(), ids=MALFORMED)
def test_what_is_malformed_is_refused_at_every_cut(case: Case) -> None:
    for pieces in ([case.data], *cuts(case.data)):
        refused, status, _, kept = read(pieces)
        assert (refused, kept) == (True, False), pieces
        assert bool(status) is case.late, pieces


@pytest.mark.parametrize("name", ["a length", "chunks", "an interim response", "HTTP/1.0"])
def test_what_is_cut_off_never_ends(name: str) -> None:
    data = ACCEPTED[name].data
    for at in range(len(data)):
        refused, *_ = read([data[:at]] if at else [])
        assert refused, data[:at]


def test_a_malformed_response_says_why_and_quotes_nothing() -> None:
    for case in MALFORMED.values():
        parser = ResponseParser()
        with pytest.raises(MalformedResponse) as caught:
            parser.feed(case.data)
        assert str(caught.value)
        assert "hello" not in str(caught.value)
        with pytest.raises(MalformedResponse):
            parser.feed(b"more")


def test_one_response_follows_another() -> None:
    parser = ResponseParser()
    for case in [
        ACCEPTED["a length"],
        ACCEPTED["chunks with trailers"],
        ACCEPTED["interim responses with headers"],
    ] * 3:
        parser.expect()
        parser.feed(case.data)
        assert (parser.state, parser.keep_alive, parser.excess) == (State.DONE, True, False)
        assert b"".join(parser.body) == case.body


def test_headers_are_in_order_and_their_names_in_lower_case() -> None:
    parser = ResponseParser()
    parser.feed(
        b"HTTP/1.1 103 X\r\nnot: this\r\n\r\n" + head(b"B: 1", b"a: 2", b"B: 3", b"content-length: 0", body=b"")
    )
    assert parser.headers == [(b"b", b"1"), (b"a", b"2"), (b"b", b"3"), (b"content-length", b"0")]


@pytest.mark.parametrize("rest", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b"x"])
def test_a_response_to_head_ends_with_its_headers(rest: bytes) -> None:
    data = head(b"content-length: 5", body=b"")
    assert read([data, *([rest] if rest else [])], no_body=True) == (False, 200, b"", not rest)
    assert read([data + rest], no_body=True) == (False, 200, b"", not rest)
    parser = ResponseParser()
    parser.expect(no_body=True)
    parser.feed(data)
    parser.expect()
    parser.feed(ACCEPTED["a length"].data)
    assert (parser.state, parser.body) == (State.DONE, [b"hello"])


def test_what_never_ends_is_not_gathered() -> None:
    for start in (b"HTTP/1.1 200 ", b"HTTP/1.1 200 OK\r\nx: ", CHUNKED + b"5;", CHUNKED + HELLO + b"0\r\nx: "):
        parser = ResponseParser()
        parser.feed(start)
        fed = 0
        with pytest.raises(MalformedResponse):
            while True:
                parser.feed(b"y" * 1000)
                fed += 1000
        assert fed <= MAX_UNFINISHED_BYTES


def test_a_long_body_is_none_of_that() -> None:
    parser = ResponseParser()
    parser.feed(head(b"content-length: %d" % 2**24, body=b""))
    for _ in range(2**10):
        parser.feed(bytes(2**14))
    assert parser.state is State.DONE


@given(st.binary(max_size=300), st.lists(st.integers(1, 40), max_size=30))
def test_random_bytes_are_refused_or_read(data: bytes, sizes: list[int]) -> None:
    read(in_pieces(data, sizes))


@given(
    st.sampled_from([*ACCEPTED.values(), *MALFORMED.values()]),
    st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=3), st.integers(0, 3)), max_size=4),
    st.lists(st.integers(1, 40), max_size=30),
)
def test_a_changed_response_is_read_alike_at_any_cut(
    case: Case, changes: list[tuple[int, bytes, int]], sizes: list[int]
) -> None:
    data = bytearray(case.data[:1000])
    for at, put, drop in changes:
        data[at : at + drop] = put
    refused, status, body, kept = read([bytes(data)])
    again = read(in_pieces(bytes(data), sizes))
    assert again[:2] == (refused, status)
    if not refused:
        assert again == (refused, status, body, kept)


def in_pieces(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    for size in sizes:
        if data:
            yield data[:size]
            data = data[size:]
    if data:
        yield data


def unpacked(coding: bytes, pieces: Iterable[bytes]) -> bytes:
    unpacker = Decompressor(coding)
    out = b"".join(piece for data in pieces for piece in unpacker.feed(data))
    unpacker.end()
    return out


def bare(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


PACKED = {
    "gzip": (b"gzip", gzip.compress),
    "gzip of two members": (b"x-gzip", lambda data: gzip.compress(data[:99]) + gzip.compress(data[99:])),
    "deflate": (b"deflate", zlib.compress),
    "deflate without its frame": (b"deflate", bare),
}


@pytest.mark.parametrize(("coding", "pack"), PACKED.values(), ids=PACKED)
@pytest.mark.parametrize("text", [b"", b"hello", b"hello" * 2**16, random.Random(1).randbytes(2**18)])
def test_a_compressed_body_is_unpacked_at_any_cut(coding: bytes, pack: object, text: bytes) -> None:
    assert callable(pack)
    packed = pack(text)
    for size in (1 if len(packed) < 5000 else 999, 2**14, len(packed)):
        pieces = [packed[at : at + size] for at in range(0, len(packed), size)]
        assert unpacked(coding, pieces) == text
        if text:
            with pytest.raises(WronglyCompressed):
                unpacked(coding, [packed[:-1]])


def test_a_bomb_unpacks_piece_by_piece() -> None:
    bomb = gzip.compress(bytes(2**28))
    unpacker = Decompressor(b"gzip")
    pieces = unpacker.feed(bomb)
    assert len(next(pieces)) <= 2**16
    assert unpacker.waiting
    assert len(next(unpacker.feed(b""))) <= 2**16


@pytest.mark.parametrize(
    ("coding", "packed"), [(b"gzip", b"hello"), (b"deflate", b"hello"), (b"deflate", zlib.compress(b"x") + b"more")]
)
def test_what_is_not_compressed_so_is_refused(coding: bytes, packed: bytes) -> None:
    with pytest.raises(WronglyCompressed):
        unpacked(coding, [packed])


def test_codings_that_are_no_compression_pass() -> None:
    assert [decompressor(coding) for coding in (b"", b"identity", b"utf-8", b"gzip,gzip")] == [None] * 4
    for coding in (b"br", b"zstd", b"compress"):
        with pytest.raises(WronglyCompressed):
            decompressor(coding)


def test_the_last_chunk_may_come_alone() -> None:
    assert read([CHUNKED, HELLO, LAST]) == (False, 200, b"hello", True)
