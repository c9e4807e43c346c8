"""Servers that answer in any way but the right one: what a caller gets, and what becomes of the connection."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import warnings

import pytest

from andthen.contract.errors import UpstreamError, UpstreamGarbled, UpstreamTimeout
from andthen.http.client import HttpClient
from andthen.vendors.settings import Access
from tests.http.peers import HELLO, LIMIT_S, STREAM, Peer, access, call, polite, serving
from tests.http.responses import ACCEPTED, MALFORMED, Case


async def ask(client: HttpClient, address: str, way: Access | None = None) -> tuple[int, bytes]:
    async with client.perform(call(address), way or access(), "Peer") as reply:
        return reply.status, b"".join([chunk async for chunk in reply.chunks()])


@pytest.mark.parametrize("size", [2**20, 1], ids=["whole", "in bytes"])
@pytest.mark.parametrize("case", MALFORMED.values(), ids=MALFORMED)
async def test_what_is_malformed_is_garbled_at_once_and_its_connection_closed(
    client: HttpClient, case: Case, size: int
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        for at in range(0, len(case.data), size):
            if peer.writer.is_closing():
                break  # the client has seen enough
            peer.writer.write(case.data[at : at + size])
            if at < 300:
                await asyncio.sleep(0)
        await peer.gone()
        upstream.left.set()

    async with serving(script) as upstream:
        exchange = client.perform(call(upstream), access(), "Peer")
        with pytest.raises(UpstreamGarbled, match="is not valid HTTP"):
            async with exchange:
                async for _ in exchange.chunks():
                    pass
        assert exchange.reached
        await upstream.sees_the_end()
    assert not client._connections


@pytest.mark.parametrize("case", ACCEPTED.values(), ids=ACCEPTED)
async def test_what_is_well_formed_is_read_and_its_connection_kept_or_not(client: HttpClient, case: Case) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(case.data)
        if case.closes:
            return
        await peer.request()
        await peer.say(HELLO)
        await peer.gone()

    async with serving(script) as upstream:
        assert await ask(client, upstream.address) == (case.status, case.body)
        await asyncio.sleep(0.01)
        assert bool(client._connections) is case.kept
        if case.kept:
            assert await ask(client, upstream.address) == (200, b"hello")
            assert upstream.accepted == 1


async def test_what_comes_unasked_on_a_kept_connection_is_nobodys_reply(client: HttpClient) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(HELLO)
        if upstream.accepted == 1:
            await asyncio.sleep(0.02)
            await peer.say(HELLO.replace(b"hello", b"POISN"))
        await polite(peer)

    async with serving(script) as upstream:
        assert await ask(client, upstream.address) == (200, b"hello")
        await asyncio.sleep(0.1)
        assert await ask(client, upstream.address) == (200, b"hello")
        assert upstream.accepted == 2


async def test_interim_responses_do_not_lengthen_the_time_for_the_first_byte(client: HttpClient) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        for _ in range(8):
            await peer.say(b"HTTP/1.1 102 Processing\r\n\r\n")
            await asyncio.sleep(LIMIT_S / 2)

    async with serving(script) as upstream:
        began = asyncio.get_running_loop().time()
        with pytest.raises(UpstreamTimeout, match="first_token_s"):
            await ask(client, upstream.address, access(first_token_s=LIMIT_S))
        assert asyncio.get_running_loop().time() - began < 4 * LIMIT_S


async def test_a_body_that_nobody_reads_is_not_taken(client: HttpClient) -> None:
    sent = 0

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.say(STREAM)
        while True:
            await peer.chunk(bytes(2**16))
            sent += 2**16

    async with (
        serving(script) as upstream,
        client.perform(call(upstream), access(between_tokens_s=LIMIT_S), "Peer") as reply,
    ):
        await anext(aiter(reply.chunks()))
        await asyncio.sleep(0.5)
        before = sent
        await asyncio.sleep(3 * LIMIT_S)
        assert sent == before < 2**24
        read = 0
        async for chunk in reply.chunks():
            read += len(chunk)
            if read > before:
                break
        assert sent > before


async def test_a_server_that_answers_before_it_has_read_is_heard_and_not_asked_again(client: HttpClient) -> None:
    async def script(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.say(b"HTTP/1.1 413 Too large\r\ncontent-length: 2\r\n\r\nno")
        await asyncio.sleep(0.1)
        await peer.gone()

    async with serving(script) as upstream:
        async with client.perform(call(upstream, body=bytes(2**25)), access(), "Peer") as reply:
            assert (reply.status, await reply.head(10)) == (413, b"no")
        await asyncio.sleep(0.01)
        assert not client._connections


async def test_random_bytes_never_crash_hang_or_leak(client: HttpClient) -> None:
    chance = random.Random(20261130)
    starts = [case.data for case in (*ACCEPTED.values(), *MALFORMED.values()) if len(case.data) < 2000]

    async def script(peer: Peer) -> None:
        await peer.request()
        data = bytearray(chance.choice(starts))
        for _ in range(chance.choice((1, 1, 2, 8))):
            at = chance.randrange(len(data) + 1)
            data[at : at + chance.choice((0, 1, 1, 5))] = chance.randbytes(chance.choice((0, 1, 1, 5)))
        while data:
            size = chance.choice((1, 7, 50, 5000))
            await peer.say(bytes(data[:size]))
            del data[:size]
        if chance.random() < 0.3:
            peer.reset()

    async def one() -> None:
        with contextlib.suppress(UpstreamError):
            await ask(client, upstream.address, access(total_s=2))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with serving(script) as upstream:
            for _ in range(20):
                await asyncio.wait_for(asyncio.gather(*(one() for _ in range(25))), 20)
            await asyncio.sleep(0.05)
            assert not client._connections
        gc.collect()
    assert len(asyncio.all_tasks()) == 1
