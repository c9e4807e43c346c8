"""Nothing is sent, and nothing connected, before `placed` has returned."""

from __future__ import annotations

import asyncio

import pytest

from andthen.contract.errors import BudgetExceeded
from andthen.http.client import HttpClient
from andthen.vendors.settings import Access, Timeouts
from tests.http.peers import LIMIT_S, Upstream, access, call, polite, serving


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


async def ask(client: HttpClient, upstream: Upstream | str, leave: Leave | None, way: Access | None = None) -> int:
    async with client.perform(call(upstream), way or access(), "Peer", leave) as reply:
        await reply.body(5)
        return reply.status


async def test_nothing_is_sent_before(client: HttpClient) -> None:
    leave = Leave()
    async with serving(polite) as upstream:
        asking = asyncio.create_task(ask(client, upstream, leave))
        await asyncio.sleep(0.05)
        assert not upstream.requests
        leave.give()
        assert await asking == 200
        assert (leave.asked, len(upstream.requests)) == (1, 1)


async def test_a_kept_connection_carries_nothing_either(client: HttpClient) -> None:
    leave = Leave()
    async with serving(polite) as upstream:
        await ask(client, upstream, None)
        asking = asyncio.create_task(ask(client, upstream, leave))
        await asyncio.sleep(0.05)
        assert (leave.asked, len(upstream.requests)) == (1, 1)
        leave.give()
        assert await asking == 200
        assert upstream.accepted == 1


@pytest.mark.parametrize("kept", [False, True])
async def test_what_is_refused_is_never_sent(client: HttpClient, kept: bool) -> None:
    leave = Leave()
    async with serving(polite) as upstream:
        if kept:
            await ask(client, upstream, None)
        refused = client.perform(call(upstream, path="/refused"), access(), "Peer", leave)

        async def enter() -> None:
            async with refused:
                raise AssertionError

        asking = asyncio.create_task(enter())
        await asyncio.sleep(0.05)
        leave.refuse()
        with pytest.raises(BudgetExceeded):
            await asking
        assert (refused.held_back, refused.reached, refused.began) == (True, False, False)
        assert refused.held_s > 0.01
        assert await ask(client, upstream, None) == 200
        assert upstream.accepted == 1
    assert not any(b"/refused" in request for request in upstream.requests)


@pytest.mark.parametrize("error", [OSError(), ValueError("no"), RuntimeError("no"), TimeoutError()], ids=repr)
async def test_what_it_raises_is_raised_as_it_is(client: HttpClient, error: Exception) -> None:
    async def placed() -> None:
        raise error

    async with serving(polite) as upstream:
        with pytest.raises(type(error)) as caught:
            async with client.perform(call(upstream), access(), "Peer", placed):
                raise AssertionError
    assert caught.value is error


async def test_who_leaves_meanwhile_leaves_nothing_behind(client: HttpClient) -> None:
    leave = Leave()
    async with serving(polite) as upstream:
        asking = asyncio.create_task(ask(client, upstream, leave))
        await asyncio.sleep(0.05)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert (upstream.accepted, upstream.requests) == (0, [])


@pytest.mark.parametrize("setting", ["connect_s", "total_s"])
async def test_the_wait_is_not_the_vendors(client: HttpClient, setting: str) -> None:
    leave = Leave()
    async with serving(polite) as upstream:
        way = Access(timeouts=Timeouts(**{setting: LIMIT_S}), private=True)
        asking = asyncio.create_task(ask(client, upstream, leave, way))
        await asyncio.sleep(2 * LIMIT_S)
        leave.give()
        assert await asking == 200
