"""The hub and its links, over real sockets and real processes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from andthen.books.hub import Hub, HubBudgets, HubLimiter
from andthen.books.limits import Bounds
from andthen.books.store import SqlStore
from andthen.contract.errors import LimitsUnavailable, RateLimited
from andthen.ledger.budgets import BudgetOwner, Hold
from andthen.ledger.records import Budget
from andthen.ledger.storage import StorageUnavailable
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


def hold(number: int, micros: int = 100) -> Hold:
    budget = Budget(window="total", micros=250)
    return Hold(f"cmpl-{number}", "worker", "key_1", (budget,), 1, micros, 0)


async def test_workers_share_the_budgets_that_the_hub_holds(any_store: SqlStore, tmp_path: Path) -> None:
    path = str(tmp_path / "hub")
    async with (
        BudgetOwner(any_store, lambda: "owner") as owner,
        Hub(path, owner),
        HubBudgets(path) as one,
        HubBudgets(path) as other,
    ):
        assert one.try_reserve(hold(1)) is False
        assert await one.reserve(hold(1)) is None
        assert one.owner == "owner"
        assert await other.reserve(hold(2)) is None
        refused = await one.reserve(hold(3))
        assert refused is not None
        assert not refused.for_good
        other.settle("cmpl-2", 40, 0)
        other.settle("cmpl-2", 40, 0)
        assert await other.reserve(hold(4)) is None


async def test_what_a_worker_holds_outlives_its_link(any_store: SqlStore, tmp_path: Path) -> None:
    path = str(tmp_path / "hub")
    async with BudgetOwner(any_store, lambda: "owner") as owner, Hub(path, owner), HubBudgets(path) as budgets:
        assert await budgets.reserve(hold(1, 200)) is None
        assert budgets._link is not None
        budgets._link.close()
        await budgets._link.lost.wait()
        assert await budgets.reserve(hold(2)) is not None, "it is held still"
        budgets._link.close()
        await budgets._link.lost.wait()
        budgets.settle("cmpl-1", 30, 0)
        assert await budgets.reserve(hold(3)) is None, "what could not be sent is sent with the next link"


async def test_without_a_hub_nothing_is_reserved(tmp_path: Path) -> None:
    path = str(tmp_path / "hub")
    async with HubBudgets(path) as budgets:
        with pytest.raises(StorageUnavailable):
            await budgets.reserve(hold(1))
        async with Hub(path):
            with pytest.raises(StorageUnavailable):
                await budgets.reserve(hold(2))


async def test_a_database_that_is_gone_is_told_by_the_hub(
    any_store: SqlStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise StorageUnavailable("gone")

    path = str(tmp_path / "hub")
    async with BudgetOwner(any_store, lambda: "owner") as owner, Hub(path, owner), HubBudgets(path) as budgets:
        with monkeypatch.context() as patched:
            patched.setattr(any_store, "draw", gone)
            with pytest.raises(StorageUnavailable, match="gone"):
                await budgets.reserve(hold(1))
        budgets.settle("cmpl-1", 0, 0)
        assert await budgets.reserve(hold(2, 250)) is None
