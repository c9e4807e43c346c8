"""What is sent waits for leave; a connection does not."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from andthen.contract.errors import BudgetExceeded, UpstreamTimeout, UpstreamUnreachable
from andthen.transport import Transport
from andthen.vendors.settings import Access, Timeouts
from tests.transport.peers import LIMIT_S, Peer, Upstream, access, call, polite, serving


class Leave:
    """Given or refused when the test says so."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.asked = 0

    async def __call__(self) -> None:
        self.asked += 1
        await asyncio.wait((self.answer,))
        self.answer.result()

    def refuse(self) -> None:
        self.answer.set_exception(BudgetExceeded("no room", for_good=True))

    def give(self) -> None:
        self.answer.set_result(None)


async def until_accepted(upstream: Upstream) -> None:
    async with asyncio.timeout(5):
        while not upstream.accepted:
            await asyncio.sleep(0.001)


async def ask(transport: Transport, upstream: Upstream | str, leave: Leave | None, way: Access | None = None) -> int:
    async with transport.perform(call(upstream), way or access(), "Peer", leave) as reply:
        await reply.body(5)
        return reply.status


async def test_a_connection_is_made_meanwhile_and_carries_nothing(transport: Transport) -> None:
    leave = Leave()
    async with serving(polite) as upstream:
        asking = asyncio.create_task(ask(transport, upstream, leave))
        await until_accepted(upstream)
        await asyncio.sleep(0.05)
        assert not upstream.requests
        leave.give()
        assert await asking == 200


async def test_a_kept_connection_carries_nothing_either(transport: Transport) -> None:
    leave = Leave()
    async with serving(polite) as upstream:
        await ask(transport, upstream, None)
        asking = asyncio.create_task(ask(transport, upstream, leave))
        await asyncio.sleep(0.05)
        assert (leave.asked, len(upstream.requests)) == (1, 1)
        leave.give()
        assert await asking == 200
        assert upstream.accepted == 1


@pytest.mark.parametrize("kept", [False, True])
async def test_what_is_refused_is_never_sent_and_leaves_its_connection_to_the_next(
    transport: Transport, kept: bool
) -> None:
    leave = Leave()
    async with serving(polite) as upstream:
        if kept:
            await ask(transport, upstream, None)
        refused = transport.perform(call(upstream, path="/refused"), access(), "Peer", leave)

        async def enter() -> None:
            async with refused:
                raise AssertionError

        asking = asyncio.create_task(enter())
        await until_accepted(upstream)
        await asyncio.sleep(0.05)
        leave.refuse()
        with pytest.raises(BudgetExceeded):
            await asking
        assert (refused.held_back, refused.reached, refused.began) == (True, False, False)
        assert await ask(transport, upstream, None) == 200
        assert upstream.accepted == 1
    assert not any(b"/refused" in request for request in upstream.requests)


async def test_a_connection_that_was_left_to_the_next_counts_as_a_kept_one(transport: Transport) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        peer.reset()

    leave = Leave()
    async with serving(script) as upstream:
        refused = asyncio.create_task(ask(transport, upstream, leave))
        await until_accepted(upstream)
        await asyncio.sleep(0.05)
        leave.refuse()
        with pytest.raises(BudgetExceeded):
            await refused
        reply = transport.perform(call(upstream), access(), "Peer")
        with pytest.raises(UpstreamUnreachable):
            async with reply:
                raise AssertionError
    assert not reply.reached


async def test_one_that_the_vendor_closes_meanwhile_is_made_anew(transport: Transport) -> None:
    async def script(peer: Peer) -> None:
        if upstream.accepted > 1:
            await polite(peer)

    leave = Leave()
    async with serving(script) as upstream:
        asking = asyncio.create_task(ask(transport, upstream, leave))
        await until_accepted(upstream)
        await asyncio.sleep(0.1)
        leave.give()
        assert await asking == 200
    assert upstream.accepted == 2


@contextlib.asynccontextmanager
async def deaf() -> AsyncIterator[str]:
    """An address that takes no connection and refuses none: its queue is full."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(2):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(listening.getsockname())
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


async def test_a_refusal_waits_for_no_connection(transport: Transport) -> None:
    leave = Leave()
    async with deaf() as address:
        with pytest.raises(UpstreamTimeout):
            await ask(transport, address, None, access(connect_s=LIMIT_S))
        asking = asyncio.create_task(ask(transport, address, leave))
        await asyncio.sleep(0.05)
        leave.refuse()
        async with asyncio.timeout(1):
            with pytest.raises(BudgetExceeded):
                await asking


async def test_who_leaves_meanwhile_leaves_nothing_behind(transport: Transport) -> None:
    leave = Leave()
    async with serving(polite) as upstream:
        asking = asyncio.create_task(ask(transport, upstream, leave))
        await until_accepted(upstream)
        await asyncio.sleep(0.05)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert not upstream.requests
        assert await ask(transport, upstream, None) == 200
        assert upstream.accepted == 1
    async with deaf() as address:
        asking = asyncio.create_task(ask(transport, address, leave))
        await asyncio.sleep(0.05)
        for _ in range(3):  # by its caller, by a time limit, by the server that stops
            asking.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await asking
        await asyncio.sleep(0.01)
        assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("setting", ["connect_s", "total_s"])
async def test_the_wait_is_not_the_vendors(transport: Transport, setting: str) -> None:
    leave = Leave()
    async with serving(polite) as upstream:
        way = Access(timeouts=Timeouts(**{setting: LIMIT_S}), private=True)
        asking = asyncio.create_task(ask(transport, upstream, leave, way))
        await asyncio.sleep(2 * LIMIT_S)
        leave.give()
        assert await asking == 200
