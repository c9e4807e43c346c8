"""A call performed: what is sent, what comes back, and what becomes of the connection."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import cast

import pytest

from andthen import __version__
from andthen.contract.errors import UpstreamError, UpstreamGarbled, UpstreamUnreachable
from andthen.transport import Transport
from tests.transport.peers import HELLO, STREAM, Peer, access, call, polite, saying, serving


async def test_a_reply_has_its_status_its_headers_in_lower_case_and_its_body(transport: Transport) -> None:
    async with serving(polite) as upstream, transport.perform(call(upstream), access(), "Peer") as reply:
        assert reply.status == 200
        assert ("content-type", "text/plain") in reply.headers
        assert await reply.body(5) == b"hello"
        assert reply.began
        assert reply.reached


async def test_the_request_goes_out_as_the_language_wrote_it(transport: Transport) -> None:
    asked = call(
        "",
        path="/model/a%3Ab%2Fc/x?alt=sse&q=%41",
        headers=(("x-one", "1"), ("authorization", "Bearer k")),
        body=b"{1}",
    )
    async with serving(polite) as upstream:
        asked = type(asked)(
            url=upstream.address + asked.url, headers=asked.headers, body=asked.body, streams=True, method="POST"
        )
        async with transport.perform(asked, access(), "Peer") as reply:
            await reply.body(5)
    head, body = upstream.requests[0].split(b"\r\n\r\n")
    line, *headers = head.decode().lower().split("\r\n")
    assert line == "post /model/a%3ab%2fc/x?alt=sse&q=%41 http/1.1"
    assert b"/model/a%3Ab%2Fc/x?alt=sse&q=%41 " in head
    assert body == b"{1}"
    assert set(headers) == {
        f"host: 127.0.0.1:{upstream.port}",
        "accept: */*",
        "accept-encoding: identity",
        f"user-agent: andthen/{__version__}",
        "content-type: application/json",
        "content-length: 3",
        "x-one: 1",
        "authorization: bearer k",
    }


async def test_a_body_comes_as_it_is_made(transport: Transport) -> None:
    more = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(STREAM)
        for word in (b"one", b"two", b"three"):
            await peer.chunk(word)
            await more.wait()
            more.clear()
        await peer.say(b"0\r\n\r\n")

    async with serving(script) as upstream, transport.perform(call(upstream), access(), "Peer") as reply:
        seen = []
        async for chunk in reply.chunks():
            seen.append(chunk)
            more.set()
    assert seen == [b"one", b"two", b"three"]


async def test_connections_are_kept_for_the_next_call(transport: Transport) -> None:
    async with serving(polite) as upstream:
        for _ in range(5):
            async with transport.perform(call(upstream), access(), "Peer") as reply:
                assert [chunk async for chunk in reply.chunks()] == [b"hello"]
    assert upstream.accepted == 1
    assert len(upstream.requests) == 5


async def test_a_refusals_head_leaves_the_connection_to_the_next_call(transport: Transport) -> None:
    async with serving(polite) as upstream:
        for _ in range(2):
            async with transport.perform(call(upstream), access(), "Peer") as reply:
                assert await reply.head(100) == b"hello"
    assert upstream.accepted == 1


async def test_ways_to_reach_a_server_share_no_connections(transport: Transport) -> None:
    async with serving(polite) as upstream, serving(polite) as other:
        for way in (access(), access(proxy=other.address), access()):
            async with transport.perform(call(upstream), way, "Peer") as reply:
                await reply.body(5)
    assert (upstream.accepted, other.accepted) == (1, 1)


async def test_no_call_waits_for_another(transport: Transport) -> None:
    everybody = asyncio.Barrier(150)

    async def script(peer: Peer) -> None:
        await peer.request()
        await everybody.wait()
        await peer.say(HELLO)

    async def ask() -> bytes:
        async with transport.perform(call(upstream), access(), "Peer") as reply:
            return await reply.body(5)

    async with serving(script) as upstream:
        assert set(await asyncio.gather(*(ask() for _ in range(150)))) == {b"hello"}


async def test_leaving_early_closes_the_connection_at_once(transport: Transport) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(STREAM)
        await peer.chunk(b"one")
        await peer.gone()
        upstream.left.set()

    async with serving(script) as upstream:
        async with transport.perform(call(upstream), access(), "Peer") as reply:
            async for _ in reply.chunks():
                break
        assert await upstream.sees_the_end() < 0.5


@pytest.mark.parametrize("said", [b"", STREAM, STREAM + b"3\r\none\r\n"], ids=["nothing", "headers", "a chunk"])
async def test_a_cancellation_passes_through_and_closes_the_connection(transport: Transport, said: bytes) -> None:
    heard = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(said)
        heard.set()
        await peer.gone()
        upstream.left.set()

    async def ask() -> None:
        async with transport.perform(call(upstream), access(), "Peer") as reply:
            async for _ in reply.chunks():
                pass

    async with serving(script) as upstream:
        task = asyncio.create_task(ask())
        await asyncio.wait_for(heard.wait(), 5)
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await upstream.sees_the_end() < 0.5


async def test_a_request_that_the_vendor_does_not_take_is_dropped_when_its_caller_leaves(transport: Transport) -> None:
    leave = asyncio.Event()
    taken = 0

    async def script(peer: Peer) -> None:
        nonlocal taken
        await peer.reader.readuntil(b"\r\n\r\n")
        reads = cast(asyncio.ReadTransport, peer.writer.transport)
        reads.pause_reading()
        leave.set()
        await asyncio.sleep(0.3)
        reads.resume_reading()
        with contextlib.suppress(ConnectionError):
            while data := await peer.reader.read(65536):
                taken += len(data)
        upstream.left.set()

    body = b" " * 2**25

    async def ask() -> None:
        async with transport.perform(call(upstream, body=body), access(), "Peer"):
            raise AssertionError

    async with serving(script) as upstream:
        task = asyncio.create_task(ask())
        await asyncio.wait_for(leave.wait(), 5)
        await asyncio.sleep(0.1)
        task.cancel()
        began = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - began < 0.5
        await upstream.sees_the_end()
    assert taken < len(body)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(transport: Transport, status: int) -> None:
    async with serving(polite) as target:
        moved = b"HTTP/1.1 %d Moved\r\nlocation: %s\r\ncontent-length: 0\r\n\r\n" % (status, target.address.encode())
        async with (
            serving(saying(moved)) as upstream,
            transport.perform(call(upstream), access(), "Peer") as reply,
        ):
            assert reply.status == status
    assert target.accepted == 0


async def test_cookies_are_not_kept(transport: Transport) -> None:
    baker = b"HTTP/1.1 200 OK\r\nset-cookie: a=b\r\ncontent-length: 0\r\n\r\n"
    async with serving(saying(baker, baker)) as upstream:
        for _ in range(2):
            async with transport.perform(call(upstream), access(), "Peer") as reply:
                await reply.body(0)
    assert b"cookie" not in upstream.requests[1].lower()


async def test_a_body_that_is_too_long_is_an_error(transport: Transport) -> None:
    async with serving(polite) as upstream:
        with pytest.raises(UpstreamGarbled, match="far larger"):
            async with transport.perform(call(upstream), access(), "Peer") as reply:
                await reply.body(4)


async def test_the_head_of_a_refusal_is_what_came_of_it(transport: Transport) -> None:
    refusal = b"HTTP/1.1 429 Slow down\r\ncontent-length: 100\r\n\r\nwait a"
    async with (
        serving(saying(refusal)) as upstream,
        transport.perform(call(upstream), access(), "Peer") as reply,
    ):
        assert reply.status == 429
        assert await reply.head(4) == b"wait"
    async with (
        serving(saying(refusal)) as upstream,
        transport.perform(call(upstream), access(), "Peer") as reply,
    ):
        assert b"wait a".startswith(await reply.head(100))


async def test_a_kept_connection_that_the_vendor_closes_has_carried_nothing(transport: Transport) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(HELLO)
        await peer.request()
        peer.reset()

    async with serving(script) as upstream:
        async with transport.perform(call(upstream), access(), "Peer") as reply:
            await reply.body(5)
        again = transport.perform(call(upstream), access(), "Peer")
        with pytest.raises(UpstreamUnreachable, match="closed the connection before it began its reply"):
            async with again:
                raise AssertionError
    assert not again.reached
    assert not again.began
    assert len(upstream.requests) == 2


async def test_a_new_connection_that_the_vendor_closes_may_have_carried_the_request(transport: Transport) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()

    async with serving(script) as upstream:
        reply = transport.perform(call(upstream), access(), "Peer")
        with pytest.raises(UpstreamUnreachable, match="closed the connection before it began its reply"):
            async with reply:
                raise AssertionError
    assert reply.reached
    assert len(upstream.requests) == 1


async def test_the_environments_proxies_are_not_used(transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(polite) as upstream, serving(polite) as proxy:
        monkeypatch.setenv("http_proxy", proxy.address)
        monkeypatch.setenv("no_proxy", "")
        async with transport.perform(call(upstream), access(), "Peer") as reply:
            await reply.body(5)
    assert (upstream.accepted, proxy.accepted) == (1, 0)


@pytest.mark.parametrize("said", [b"", STREAM], ids=["nothing", "headers"])
async def test_a_transport_that_closes_ends_what_is_still_read(said: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(said)
        await peer.gone()
        upstream.left.set()

    async def ask() -> None:
        async with transport.perform(call(upstream), access(), "Peer") as reply:
            async for _ in reply.chunks():
                pass

    async with serving(script) as upstream:
        async with Transport() as transport:
            task = asyncio.create_task(ask())
            while not upstream.requests:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
        with pytest.raises(UpstreamError):
            await asyncio.wait_for(task, 1)
        await upstream.sees_the_end()
