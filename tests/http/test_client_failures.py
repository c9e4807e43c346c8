"""What goes wrong on the way, and what it is called."""

from __future__ import annotations

import asyncio
import gzip
import ssl
from collections.abc import Iterator

import pytest

from andthen.contract.errors import UpstreamError, UpstreamGarbled, UpstreamTimeout, UpstreamUnreachable
from andthen.http.client import HttpClient, HttpExchange
from andthen.vendors.settings import Access, Timeouts
from andthen.wire.base import Call
from tests.http.peers import HELLO, LIMIT_S, STREAM, Peer, access, call, polite, saying, serving


async def failing(client: HttpClient, asked: Call, way: Access) -> tuple[HttpExchange, UpstreamError]:
    """The error of a call that is read to its end."""
    reply = client.perform(asked, way, "Peer")
    with pytest.raises(UpstreamError) as caught:
        async with reply:
            async for _ in reply.chunks():
                pass
    return reply, caught.value


NO_HTTP = {
    "no status line": b"220 mail.example ready\r\n\r\n",
    "TLS on a plain port": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "no colon in a header": b"HTTP/1.1 200 OK\r\nnothing\r\n\r\n",
    "a header too long": b"HTTP/1.1 200 OK\r\nx: %s\r\n\r\n" % (b"x" * 20_000),
    "too many headers": b"HTTP/1.1 200 OK\r\n%s\r\n" % (b"x: y\r\n" * 200),
    "a length that is none": b"HTTP/1.1 200 OK\r\ncontent-length: five\r\n\r\nhello",
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
    "a length below zero": b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\nhello",
}
CUT_SHORT = {
    "before the length is full": b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello",
    "before any of it": b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n",
    "between two chunks": STREAM + b"5\r\nhello\r\n",
    "within a chunk": STREAM + b"a\r\nhello",
    "within a chunk's size": STREAM + b"5\r\nhello\r\n1",
    "before the last line": STREAM + b"5\r\nhello\r\n0\r\n",
    "within its headers": b"HTTP/1.1 200 OK\r\ncontent-le",
}
WRONG_BODY = {
    "a chunk's size that is none": STREAM + b"5\r\nhello\r\nxyz\r\n",
    "a chunk longer than its size": STREAM + b"5\r\nhello you\r\n0\r\n\r\n",
    "gzip that is none": b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 5\r\n\r\nhello",
    "chunked gzip that is none": STREAM.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n") + b"5\r\nhello\r\n",
    "a compression that nobody knows": b"HTTP/1.1 200 OK\r\ncontent-encoding: br\r\ncontent-length: 5\r\n\r\nhello",
}


@pytest.mark.parametrize("said", [*NO_HTTP.values()], ids=[*NO_HTTP])
async def test_what_is_not_http_is_garbled(client: HttpClient, said: bytes) -> None:
    async with serving(saying(said)) as upstream:
        reply, error = await failing(client, call(upstream), access())
    assert type(error) is UpstreamGarbled
    assert reply.reached


@pytest.mark.parametrize(("interim", "accepted"), [(2, True), (8, True), (9, False), (1000, False)])
async def test_few_interim_replies_are_passed_over(client: HttpClient, interim: int, accepted: bool) -> None:
    async with serving(saying(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" * interim + HELLO)) as upstream:
        if accepted:
            async with client.perform(call(upstream), access(), "Peer") as reply:
                assert await reply.body(99) == b"hello"
        else:
            _, error = await failing(client, call(upstream), access())
            assert type(error) is UpstreamGarbled


@pytest.mark.parametrize("said", [*CUT_SHORT.values()], ids=[*CUT_SHORT])
async def test_what_is_cut_short_never_ends_clean(client: HttpClient, said: bytes) -> None:
    async with serving(saying(said)) as upstream:
        reply, error = await failing(client, call(upstream), access())
    assert type(error) is UpstreamGarbled
    assert "ended" in str(error)
    assert reply.reached


@pytest.mark.parametrize("said", [*WRONG_BODY.values()], ids=[*WRONG_BODY])
async def test_a_body_against_its_headers_is_garbled(client: HttpClient, said: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(said)
        await peer.gone()

    async with serving(script) as upstream:
        _, error = await failing(client, call(upstream), access(between_tokens_s=2))
    assert type(error) is UpstreamGarbled


@pytest.mark.parametrize("at", range(1, len(HELLO), 7))
async def test_a_reset_at_any_byte_is_an_error(client: HttpClient, at: int) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(HELLO[:at])
        await asyncio.sleep(0.01)
        peer.reset()

    async with serving(script) as upstream:
        reply, error = await failing(client, call(upstream), access())
    assert type(error) in (UpstreamGarbled, UpstreamUnreachable)
    assert reply.reached


async def test_what_was_compressed_unasked_is_read(client: HttpClient) -> None:
    packed = gzip.compress(b"hello")
    said = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n%s" % (len(packed), packed)
    async with (
        serving(saying(said)) as upstream,
        client.perform(call(upstream), access(), "Peer") as reply,
    ):
        assert await reply.body(5) == b"hello"


async def test_a_small_body_that_unpacks_to_a_huge_one_is_too_long(client: HttpClient) -> None:
    packed = gzip.compress(bytes(2**26))
    said = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n%s" % (len(packed), packed)
    async with serving(saying(said)) as upstream:
        with pytest.raises(UpstreamGarbled, match="far larger"):
            async with client.perform(call(upstream), access(), "Peer") as reply:
                await reply.body(2**20)


STALLS = {
    "first_token_s": {"no headers": b"", "no body": STREAM},
    "between_tokens_s": {"after a chunk": STREAM + b"3\r\none\r\n", "within a chunk": STREAM + b"9\r\none"},
    "total_s": {"no headers": b"", "no body": STREAM, "after a chunk": STREAM + b"3\r\none\r\n"},
}


@pytest.mark.parametrize(
    ("setting", "said"),
    [(setting, said) for setting, stalls in STALLS.items() for said in stalls.values()],
    ids=[f"{setting} {at}" for setting, stalls in STALLS.items() for at in stalls],
)
async def test_a_stall_is_a_timeout_that_says_which(client: HttpClient, setting: str, said: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(said)
        await peer.gone()
        upstream.left.set()

    async with serving(script) as upstream:
        began = asyncio.get_running_loop().time()
        reply, error = await failing(
            client, call(upstream), Access(timeouts=Timeouts(**{setting: LIMIT_S}), private=True)
        )
        assert LIMIT_S * 0.9 < asyncio.get_running_loop().time() - began < LIMIT_S + 0.5
        await upstream.sees_the_end()
    assert type(error) is UpstreamTimeout
    assert f"0.15 s (`{setting}`)" in str(error) or f"0.15 s in all (`{setting}`)" in str(error)
    assert reply.reached


async def test_a_handshake_that_stalls_is_a_timeout_of_the_connection(client: HttpClient) -> None:
    async with serving(Peer.gone) as upstream:
        silent = upstream.address.replace("http:", "https:")
        reply, error = await failing(client, call(silent), access(connect_s=LIMIT_S))
    assert type(error) is UpstreamTimeout
    assert "`connect_s`" in str(error)
    assert not reply.reached


async def test_a_reply_in_one_piece_has_the_first_tokens_time_for_the_whole(client: HttpClient) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n", *[b"x"] * 90)

    async with serving(script) as upstream:
        _, error = await failing(client, call(upstream, streams=False), access(first_token_s=LIMIT_S))
    assert type(error) is UpstreamTimeout
    assert "did not complete its reply within 0.15 s (`first_token_s`)" in str(error)


async def test_a_stream_that_never_stalls_still_has_its_whole_time(client: HttpClient) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(STREAM)
        while True:
            await peer.chunk(b"more")

    async with serving(script) as upstream:
        _, error = await failing(client, call(upstream), access(total_s=LIMIT_S))
    assert type(error) is UpstreamTimeout
    assert "`total_s`" in str(error)


async def test_a_reader_that_takes_its_time_is_no_stall(client: HttpClient) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(STREAM, b"3\r\none\r\n", b"3\r\ntwo\r\n", b"0\r\n\r\n")

    async with (
        serving(script) as upstream,
        client.perform(call(upstream), access(between_tokens_s=LIMIT_S), "Peer") as reply,
    ):
        seen = []
        async for chunk in reply.chunks():
            seen.append(chunk)
            await asyncio.sleep(LIMIT_S * 1.5)
    assert b"".join(seen) == b"onetwo"


async def test_a_refused_connection_is_unreachable(client: HttpClient) -> None:
    async with serving(polite) as upstream:
        pass
    reply, error = await failing(client, call(upstream), access())
    assert type(error) is UpstreamUnreachable
    assert "connection refused" in str(error)
    assert not reply.reached


@pytest.mark.parametrize(
    "asked",
    [
        call("http://"),
        call("gopher://127.0.0.1"),
        call("http://127.0.0.1:99999"),
        call("http://127.1"),
        call("http://127.0.0.1", path="/a b"),
        call("http://127.0.0.1", path="/\r\nx: y"),
        call("http://127.0.0.1", path="/é"),
        call("http://127.0.0.1", headers=(("x", "a\r\nb: c"),)),
        call("nothing at all"),
    ],
    ids=lambda asked: repr(asked.url),
)
async def test_what_cannot_be_sent_is_unreachable(client: HttpClient, asked: Call) -> None:
    async with serving(polite) as upstream:
        if asked.url == "http://127.0.0.1/v1":
            asked = call(upstream, headers=asked.headers)
        _, error = await failing(client, asked, access())
    assert type(error) is UpstreamUnreachable
    assert upstream.requests == []


async def test_no_error_tells_a_key_a_query_or_a_password(client: HttpClient) -> None:
    scripts = [saying(), *(saying(said) for said in (*NO_HTTP.values(), *CUT_SHORT.values())), Peer.gone]
    for script in scripts:
        async with serving(script) as upstream:
            secret = upstream.address.replace("//", "//user:sesame@")
            headers = (("x-key", "sesame"),)
            sound = call(upstream, path="/v1?key=sesame", headers=headers)
            for asked, way in (
                (sound, access(total_s=LIMIT_S)),
                (sound, access(private=False)),
                (sound, access(proxy=secret, total_s=LIMIT_S)),
                (call(secret, path="/v1?key=sesame", headers=headers), access()),
            ):
                _, error = await failing(client, asked, way)
                told: BaseException | None = error
                while told is not None:
                    assert "sesame" not in repr(told)
                    told = told.__cause__ or told.__context__
                assert upstream.address.partition("//")[2] not in str(error)


def walk(kind: type[BaseException]) -> Iterator[type[BaseException]]:
    yield kind
    for child in kind.__subclasses__():
        yield from walk(child)


RAISED = sorted(
    {
        *walk(ssl.SSLError),
        *(kind for kind in walk(OSError) if kind.__module__ in ("builtins", "socket", "ssl")),
        asyncio.TimeoutError,
        UnicodeError,
        ValueError,
        RuntimeError,
    },
    key=lambda kind: kind.__name__,
)


@pytest.mark.parametrize("kind", RAISED, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("at", ["create_connection", "getaddrinfo", "start_tls"])
async def test_every_error_of_a_library_is_one_of_ours(
    client: HttpClient, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException], at: str
) -> None:
    assert issubclass(kind, (OSError, ValueError, RuntimeError))

    async def fail(*_: object, **__: object) -> None:
        raise kind.__new__(kind)  # without what its constructor would ask for

    loop = asyncio.get_running_loop()

    class Loop:
        def __getattr__(self, name: str) -> object:
            return fail if name == at else getattr(loop, name)

    monkeypatch.setattr("andthen.http.connect.get_running_loop", Loop)
    async with serving(polite) as upstream:
        address = upstream.address.replace("http:", "https:").replace("127.0.0.1", "localhost")
        reply, error = await failing(client, call(address), access())
    assert type(error) is UpstreamUnreachable
    assert (reply.reached, reply.began) == (False, False)
    assert error.__context__ is None
