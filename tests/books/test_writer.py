"""The ledger's pen over a database that works, is slow, or is gone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from andthen.books import writer
from andthen.books.ledger import Bounded, Intent, Settlement
from andthen.books.policy import Budget
from andthen.books.store import StoreUnavailable, ledger, open_sqlite
from andthen.books.store.database import now_ms
from andthen.books.store.spending import Spent
from andthen.books.writer import LedgerStore, LedgerWriter
from tests.books.test_ledger import intent, settled

TOTAL = Budget(window="total", micros=1_000)
WAIT_S = 20.0


class Fake:
    """A database whose moods a test decides; what it took stands in `taken`."""

    def __init__(self) -> None:
        self.taken: list[list[Intent | Settlement]] = []
        self.mood: Callable[[], object] = lambda: None
        self.renewals: list[float] = []

    def record(self, entries: Sequence[Intent | Settlement]) -> list[Bounded | None]:
        self.mood()
        self.taken.append(list(entries))
        return [None] * len(entries)

    def renew(self, holder: str, lease_s: float) -> None:
        self.mood()
        self.renewals.append(lease_s)

    def leases(self) -> dict[str, int]:
        return {}

    def release_lost(self, holders: Collection[str]) -> int:
        return 0


def gone() -> None:
    raise StoreUnavailable("gone")


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not true():
            await asyncio.sleep(0.01)


def files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


@asynccontextmanager
async def writing(store: LedgerStore, tmp_path: Path) -> AsyncIterator[LedgerWriter]:
    async with LedgerWriter(store, "here", tmp_path) as pen:
        yield pen


async def test_intents_and_settlements_reach_the_database(tmp_path: Path) -> None:
    store = open_sqlite(tmp_path / "andthen.db")
    async with writing(store, tmp_path) as pen:
        one = intent(1, budgets=(TOTAL,))
        assert await pen.intend(one) is None
        await pen.settle(settled(one))
        assert store.spent("key_a", [TOTAL]) == [Spent(30, 0, 15, 0)]
        refused = await pen.intend(intent(2, budgets=(TOTAL,), reserved_micros=2_000))
        assert refused is not None
        assert refused.for_good
    store.close()


async def test_what_gathers_during_a_commit_is_one_commit(tmp_path: Path) -> None:
    store, writes, slow = Fake(), threading.Event(), threading.Event()

    def dawdle() -> None:
        writes.set()
        slow.wait(WAIT_S)

    async with writing(store, tmp_path) as pen:
        await until(lambda: store.renewals)
        store.mood = dawdle
        first = asyncio.ensure_future(pen.intend(intent(0)))
        await until(writes.is_set)
        others = [asyncio.ensure_future(pen.intend(intent(number))) for number in range(1, 20)]
        await asyncio.sleep(0.05)
        slow.set()
        await asyncio.gather(first, *others)
    assert [len(batch) for batch in store.taken] == [1, 19]


async def test_what_one_turn_of_the_event_loop_puts_down_is_one_commit(tmp_path: Path) -> None:
    store = Fake()
    async with writing(store, tmp_path) as pen:
        await pen.intend(intent("first"))
        for turn in range(10):
            await asyncio.gather(*(pen.intend(intent(f"{turn}-{number}")) for number in range(20)))
    assert [len(batch) for batch in store.taken] == [1, *[20] * 10]


async def test_a_request_is_refused_soon_where_the_database_is_gone_or_slow(tmp_path: Path) -> None:
    store, still = Fake(), threading.Event()
    async with writing(store, tmp_path) as pen:
        await until(lambda: store.renewals)
        store.mood = gone
        with pytest.raises(StoreUnavailable):
            await pen.intend(intent(1))
        assert not pen.healthy
        store.mood = lambda: still.wait(WAIT_S)
        with pytest.raises(StoreUnavailable, match="taken nothing for 2 s"):
            await pen.intend(intent(2))
        await asyncio.sleep(0.5)
        still.set()
        await until(lambda: store.taken)
        await asyncio.sleep(0.05)
        assert not pen.healthy, "what it takes so late is no sign of health"
        store.mood = lambda: None
    assert store.taken == [[intent(2)]]


async def test_a_settlement_waits_beside_a_database_that_is_gone_and_is_written_once_it_is_back(tmp_path: Path) -> None:
    store = Fake()
    async with writing(store, tmp_path) as pen:
        await until(lambda: store.renewals)
        store.mood = gone
        await pen.settle(settled(intent(1)))
        await pen.settle(settled(intent(2)))
        assert len(files(tmp_path)) == 2
        store.mood = lambda: None
    assert [entry for batch in store.taken for entry in batch] == [settled(intent(1)), settled(intent(2))]
    assert not files(tmp_path)


async def test_it_is_told_once_when_the_database_goes_and_once_when_it_is_back(tmp_path: Path) -> None:
    store = Fake()
    told: list[bool] = []
    async with LedgerWriter(store, "here", tmp_path, told.append) as pen:
        await pen.settle(settled(intent(1)))
        store.mood = gone
        for number in (2, 3):
            await pen.settle(settled(intent(number)))
        assert told == [False]
        store.mood = lambda: None
        for number in (4, 5):
            await pen.settle(settled(intent(number)))
        assert told == [False, True]


async def test_a_spool_of_a_process_that_died_is_written_at_the_next_start(tmp_path: Path) -> None:
    store = Fake()
    store.mood = gone
    async with writing(store, tmp_path) as pen:
        await pen.settle(settled(intent(1)))
    (tmp_path / "ledger-a.spool").write_bytes(b'{"intent": {"id": "cut of')
    store.mood = lambda: None
    async with LedgerWriter(store, "another", tmp_path):
        await asyncio.sleep(0.1)
    assert store.taken == [[settled(intent(1))]]
    assert [path.name for path in files(tmp_path)] == ["ledger-a.unreadable"]


async def test_leaving_gives_up_the_lease(tmp_path: Path) -> None:
    store = Fake()
    async with writing(store, tmp_path):
        await asyncio.sleep(0.05)
    assert store.renewals[0] > 0
    assert store.renewals[-1] == 0


async def test_one_entry_that_cannot_be_written_takes_no_other_with_it(tmp_path: Path) -> None:
    store = open_sqlite(tmp_path / "andthen.db")
    async with writing(store, tmp_path) as pen:
        one, bad = intent(1, budgets=(TOTAL,)), settled(intent(2), total_ms=2**70)
        assert not any(await asyncio.gather(pen.intend(one), pen.settle(bad), pen.intend(intent(3))))
        await pen.settle(settled(one))
        assert pen.healthy
        assert store.spent("key_a", [TOTAL]) == [Spent(30, 100, 15, 50)]
    store.close()


async def test_what_lies_beside_the_database_holds_nothing_up_and_is_lost_by_no_second_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_RENEW_S", 0.05)
    store = Fake()
    store.mood = gone
    async with writing(store, tmp_path) as pen:
        await pen.settle(settled(intent(1)))
        store.mood = lambda: None
        full = store.record
        store.record = lambda entries: gone()  # type: ignore[assignment,method-assign,return-value]
        for number in (2, 3):
            await pen.settle(settled(intent(number)))
            renewals = len(store.renewals)
            await until(lambda renewals=renewals: len(store.renewals) > renewals + 1)  # type: ignore[misc]
        store.record = full  # type: ignore[method-assign]
    assert sorted(entry.intent.id for batch in store.taken for entry in batch if isinstance(entry, Settlement)) == [
        "cmpl-1", "cmpl-2", "cmpl-3",
    ]  # fmt: skip
    assert not files(tmp_path)


async def test_what_neither_the_database_nor_the_disk_takes_is_kept_until_one_of_them_does(tmp_path: Path) -> None:
    store, folder = Fake(), tmp_path / "full"
    async with LedgerWriter(store, "here", folder) as pen:
        await until(lambda: store.renewals)
        store.mood = gone
        await pen.settle(settled(intent(1)))
        folder.mkdir()
        await pen.settle(settled(intent(2)))
        (file,) = folder.iterdir()
        assert len(file.read_bytes().splitlines()) == 2
        file.unlink()
        folder.rmdir()
        await pen.settle(settled(intent(3)))
        store.mood = lambda: None
    assert store.taken == [[settled(intent(3))]]


async def test_a_settlement_waits_for_no_database_that_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_SETTLE_WAIT_S", 0.2)
    monkeypatch.setattr(writer, "_STOP_WAIT_S", 0.2)
    store, still = Fake(), threading.Event()
    async with writing(store, tmp_path) as pen:
        await until(lambda: store.renewals)
        store.mood = lambda: still.wait(10)
        async with asyncio.timeout(2):
            await asyncio.gather(pen.settle(settled(intent(1))), pen.settle(settled(intent(2))))
        leaver = asyncio.create_task(pen.settle(settled(intent(3))))
        await asyncio.sleep(0)
        leaver.cancel()
    async with asyncio.timeout(2):
        await pen.settle(settled(intent(4)))
    lines = [line for path in files(tmp_path) for line in path.read_bytes().splitlines()]
    still.set()
    assert {msgspec.json.decode(line)["intent"]["id"] for line in lines} == {f"cmpl-{n}" for n in range(1, 5)}


async def test_who_renews_its_lease_is_not_taken_for_dead_whatever_the_clock_says_or_the_database_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_RENEW_S", 0.05)
    monkeypatch.setattr(writer, "_STILL_S", 1.0)
    store = open_sqlite(tmp_path / "andthen.db")
    one = intent(1, budgets=(TOTAL,), holder="there")
    store.record([one, intent(2, holder="dead")])
    store.renew("dead", 20.0)
    ahead_ms = now_ms() + 3_600_000
    monkeypatch.setattr(ledger, "now_ms", lambda: ahead_ms)  # the clock is set by an hour
    released: list[tuple[float, set[str]]] = []
    began_s = time.monotonic()

    def release(holders: Collection[str]) -> int:
        released.append((time.monotonic() - began_s, set(holders)))
        return really(holders)

    really = store.release_lost
    store.release_lost = release  # type: ignore[method-assign]
    async with writing(store, tmp_path):
        for number in range(40):
            store.renew("there", 20.0 + number)
            await asyncio.sleep(0.05)
    assert released[0][0] >= 1
    assert all(holders == {"dead"} for _, holders in released)
    assert store.leases() == {"there": ahead_ms + 59_000}
    store.close()


async def test_after_an_outage_all_are_watched_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_STILL_S", 0.0)
    store, released = Fake(), 0

    def release(holders: Collection[str]) -> int:
        nonlocal released
        released += 1
        return 0

    store.release_lost = release  # type: ignore[method-assign]
    store.leases = lambda: {"there": 0}  # type: ignore[method-assign]
    pen = LedgerWriter(store, "here", tmp_path)
    pen._keep_house()
    assert released == 1
    store.mood = gone
    monkeypatch.setattr(writer, "_STILL_S", 10.0)
    pen._keep_house()
    monkeypatch.setattr(writer, "_STILL_S", 0.1)
    store.mood = lambda: None
    pen._keep_house()
    assert released == 1


async def test_a_process_has_its_lease_before_its_first_entry(tmp_path: Path) -> None:
    store = Fake()
    leases_by_then: list[int] = []
    store.mood = lambda: leases_by_then.append(len(store.renewals))
    pen = LedgerWriter(store, "here", tmp_path)
    entry = asyncio.ensure_future(pen.intend(intent(1)))
    await asyncio.sleep(0)
    async with pen:
        await entry
    assert leases_by_then[:2] == [0, 1]


async def test_who_has_been_refused_is_not_written_down_after_all(tmp_path: Path) -> None:
    store, still = Fake(), threading.Event()
    store.mood = lambda: still.wait(10)
    async with writing(store, tmp_path) as pen:
        asking = [pen.intend(intent(number)) for number in range(5)]
        await asyncio.sleep(0.05)
        for one in asking:
            one.leave()
        still.set()
    assert store.taken == []


async def test_one_of_several_who_wait_may_leave(tmp_path: Path) -> None:
    store, still = Fake(), threading.Event()
    async with writing(store, tmp_path) as pen:
        await until(lambda: store.renewals)
        store.mood = lambda: still.wait(WAIT_S)
        one = pen.intend(intent(1))

        async def wait() -> Bounded | None:
            return await one

        leaves, stays = asyncio.create_task(wait()), asyncio.create_task(wait())
        await asyncio.sleep(0.05)
        leaves.cancel()
        await asyncio.wait((leaves,))
        still.set()
        assert await stays is None
    assert store.taken == [[intent(1)]]
