"""The hub and its links, over real sockets and real processes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from andthen.books.hub import Hub, HubLimiter
from andthen.books.limits import Bounds
from andthen.contract.errors import LimitsUnavailable, RateLimited
from tests.books.limiting import until
from tests.books.test_limiters import dies_with_a_request, fits


async def test_a_workers_death_releases_what_it_ran(tmp_path: Path) -> None:
    path = str(tmp_path / "limits")
    async with Hub(path), HubLimiter(path) as limiter:
        await dies_with_a_request("hub", path)
        await until(lambda: fits(limiter, Bounds(concurrent=1)), "its slot is free", within_s=2)
        assert not await fits(limiter, Bounds(requests=1)), "its request stays counted"


async def test_without_a_hub_bounded_keys_are_refused_until_it_is_there(tmp_path: Path) -> None:
    path = str(tmp_path / "limits")
    async with HubLimiter(path) as limiter:
        states = [limiter.state]
        with pytest.raises(LimitsUnavailable):
            await limiter.take("key_1", Bounds(requests=1), 0)
        async with Hub(path):
            grant = await limiter.take("key_1", Bounds(requests=1), 0)
            states.append(limiter.state)
        await limiter.settle(grant, 0)
        assert states == ["refusing", "ok"]


async def test_who_waits_when_the_hub_ends_is_told(tmp_path: Path) -> None:
    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    path = str(tmp_path / "limits")
    async with await asyncio.start_unix_server(mute, path), HubLimiter(path) as limiter:
        with pytest.raises(LimitsUnavailable):
            await limiter.take("key_1", Bounds(requests=1), 0)


@pytest.mark.parametrize("garbage", [b"\x04\x00\x00\x00abcd", b"\x01\x00\x00\x00\x90"])
async def test_a_garbled_link_ends_alone(tmp_path: Path, garbage: bytes) -> None:
    path = str(tmp_path / "limits")
    async with Hub(path), HubLimiter(path) as limiter:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(garbage)
        with pytest.raises(ConnectionResetError):
            assert await reader.read() == b""
            raise ConnectionResetError  # some systems tell an end where others tell a reset
        writer.close()
        await limiter.take("key_1", Bounds(requests=1), 0)
        with pytest.raises(RateLimited):
            await limiter.take("key_1", Bounds(requests=1), 0)
