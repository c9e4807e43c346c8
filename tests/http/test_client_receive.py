"""The body handed over as it arrives, in the event loop's own call."""

from __future__ import annotations

import asyncio
import gzip

import pytest

from andthen.contract.errors import UpstreamGarbled, UpstreamTimeout
from andthen.http.client import HttpClient
from tests.http.peers import HELLO, LIMIT_S, STREAM, Peer, access, call, polite, saying, serving


async def test_it_gets_what_came_with_the_headers_and_what_comes_later(client: HttpClient) -> None:
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(STREAM + b"3\r\none\r\n")
        await go_on.wait()
        await peer.say(b"3\r\ntwo\r\n5\r\nthree\r\n", b"0\r\n\r\n")
        await polite(peer)

    seen: list[bytes] = []
    async with serving(script) as upstream:
        async with client.perform(call(upstream), access(), "Peer") as exchange:
            ended = exchange.receive(seen.append)
            assert seen == [b"one"]
            go_on.set()
            await ended
        assert seen == [b"one", b"twothree"]
        async with client.perform(call(upstream), access(), "Peer") as exchange:
            await exchange.receive(seen.append)
        assert upstream.accepted == 1


async def test_it_is_called_before_any_task_runs(client: HttpClient) -> None:
    """Between the socket's call and ours nothing else has its turn, so the stack leads back to it."""
    depths: list[bool] = []

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(STREAM, b"3\r\none\r\n", b"3\r\ntwo\r\n", b"0\r\n\r\n")

    def on_data(_: bytes) -> None:
        depths.append(asyncio.current_task() is None)

    async with serving(script) as upstream, client.perform(call(upstream), access(), "Peer") as exchange:
        await exchange.receive(on_data)
    assert depths == [True, True]


class Enough(Exception):
    pass


@pytest.mark.parametrize("at", [1, 2], ids=["at once", "later"])
async def test_what_it_raises_ends_the_exchange(client: HttpClient, at: int) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(STREAM + b"3\r\none\r\n")
        await asyncio.sleep(0.02)
        await peer.chunk(b"two")
        await peer.gone()
        upstream.left.set()

    calls = 0

    def on_data(_: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            raise Enough

    async with serving(script) as upstream:
        with pytest.raises(Enough):
            async with client.perform(call(upstream), access(), "Peer") as exchange:
                await exchange.receive(on_data)
        assert await upstream.sees_the_end() < 0.5
    assert calls == at
    assert not client._connections


async def test_reading_pauses_and_goes_on_and_the_pause_is_not_the_vendors(client: HttpClient) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(STREAM + b"3\r\none\r\n")
        await peer.say(b"3\r\ntwo\r\n")
        await peer.say(b"0\r\n\r\n")
        await polite(peer)

    seen: list[bytes] = []
    async with serving(script) as upstream:
        async with client.perform(call(upstream), access(between_tokens_s=LIMIT_S), "Peer") as exchange:

            def on_data(data: bytes) -> None:
                seen.append(data)
                exchange.pause_reading()

            ended = asyncio.ensure_future(exchange.receive(on_data))
            for _ in range(20):
                await asyncio.sleep(2 * LIMIT_S / 4)
                exchange.resume_reading()
                if ended.done():
                    break
            await ended
        assert b"".join(seen) == b"onetwo"
        async with client.perform(call(upstream), access(), "Peer") as exchange:
            assert await exchange.body(5) == b"hello"
        assert upstream.accepted == 1


async def test_a_pause_ends_with_the_time_for_the_whole_call(client: HttpClient) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(STREAM + b"3\r\none\r\n")
        await peer.gone()

    async with serving(script) as upstream, client.perform(call(upstream), access(total_s=LIMIT_S), "Peer") as exchange:
        ended = exchange.receive(lambda _: None)
        exchange.pause_reading()
        with pytest.raises(UpstreamTimeout, match="total_s"):
            await ended


@pytest.mark.parametrize("limit_s", ["between_tokens_s", "total_s"])
async def test_a_stall_ends_it(client: HttpClient, limit_s: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(STREAM + b"3\r\none\r\n")
        await peer.gone()

    limits = {limit_s: LIMIT_S}
    async with serving(script) as upstream:
        with pytest.raises(UpstreamTimeout, match=limit_s):
            async with client.perform(call(upstream), access(**limits), "Peer") as exchange:  # type: ignore[arg-type]
                await exchange.receive(lambda _: None)


async def test_a_cut_ends_it_behind_all_that_came(client: HttpClient) -> None:
    seen: list[bytes] = []
    async with serving(saying(STREAM + b"3\r\none\r\n")) as upstream:
        with pytest.raises(UpstreamGarbled, match="ended before it was complete"):
            async with client.perform(call(upstream), access(), "Peer") as exchange:
                await exchange.receive(seen.append)
    assert seen == [b"one"]


async def test_a_bomb_is_unpacked_only_as_far_as_it_is_wanted(client: HttpClient) -> None:
    packed = gzip.compress(bytes(2**27))
    said = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n%s" % (len(packed), packed)
    got = calls = 0

    async with serving(saying(said)) as upstream, client.perform(call(upstream), access(), "Peer") as exchange:

        def on_data(data: bytes) -> None:
            nonlocal got, calls
            got += len(data)
            calls += 1
            if got < 2**20:
                exchange.pause_reading()

        ended = asyncio.ensure_future(exchange.receive(on_data))
        await asyncio.sleep(0.05)
        assert (calls, got < 2**19) == (1, True)
        while not ended.done():
            exchange.resume_reading()
            await asyncio.sleep(0.001)
        await ended
    assert got == 2**27


async def test_a_request_with_head_has_no_body_and_leaves_the_connection(client: HttpClient) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(HELLO[: HELLO.index(b"\r\n\r\n") + 4])
        await polite(peer)

    async with serving(script) as upstream:
        asked = call(upstream, body=b"")
        head = type(asked)(url=asked.url, headers=(), body=b"", streams=False, method="HEAD")
        async with client.perform(head, access(), "Peer") as exchange:
            assert (exchange.status, await exchange.body(0)) == (200, b"")
        async with client.perform(call(upstream), access(), "Peer") as exchange:
            assert await exchange.body(5) == b"hello"
        assert upstream.accepted == 1
        assert b"content-length" not in upstream.requests[0].lower()
