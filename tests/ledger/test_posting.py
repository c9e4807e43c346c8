"""From the journal into the database: each record once, whatever is cut off where, and however often it is done."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from andthen.books.store import SqlStore, StoreUnavailable, open_sqlite
from andthen.ledger import posting as posting_module
from andthen.ledger.journal import (
    HEADER_BYTES,
    Journal,
    JournalUnavailable,
    Position,
    frame,
    segment_path,
    segments,
)
from andthen.ledger.posting import JournalPosting
from andthen.ledger.records import Budget, Intent, Settlement, Spent
from andthen.ledger.recovery import Recovery
from andthen.ledger.worker_ledger import WorkerLedger
from tests.ledger.making import intent, post, settled

TOTAL = Budget(window="total", micros=10**9)


class Database:
    """Takes what it is given unless a test says otherwise."""

    def __init__(self) -> None:
        self.taken: list[tuple[list[Intent], list[Settlement]]] = []
        self.mood: Callable[[], object] = lambda: None

    def post(self, intents: Sequence[Intent], settlements: Sequence[Settlement]) -> None:
        self.mood()
        self.taken.append((list(intents), list(settlements)))

    def renew(self, lease_owner: str, lease_s: float) -> None:
        self.mood()


def gone() -> None:
    raise StoreUnavailable("gone")


async def write(folder: Path, records: Sequence[Intent | Settlement], **fields: Any) -> None:
    """A journal of a process that is dead."""
    with Journal(folder, "here", "server", limit_bytes=2**30, **fields) as journal:
        for record in records:
            if isinstance(record, Intent):
                await journal.append_intent(record)
            else:
                await journal.append_settlement(record, opened=True)


def files(folder: Path, pattern: str) -> list[str]:
    return sorted(path.name for path in folder.glob(pattern))


def dead(storage: Database | SqlStore, folder: Path) -> JournalPosting:
    return JournalPosting(storage, folder, "here")


def post_all(storage: Database | SqlStore, folder: Path) -> None:
    with closing(dead(storage, folder)) as posting:
        while posting.step(all_open=True):
            pass


async def test_a_request_that_is_over_costs_one_insert(tmp_path: Path) -> None:
    storage = Database()
    records = [record for number in range(5) for record in (intent(number), settled(intent(number)))]
    await write(tmp_path, [*records, intent("open")])
    post_all(storage, tmp_path)
    ((opened, ended),) = [batch for batch in storage.taken if any(batch)]
    assert [one.id for one in opened] == ["cmpl-open"]
    assert [one.intent.id for one in ended] == [f"cmpl-{number}" for number in range(5)]
    assert segments(tmp_path, "here") == []


async def test_an_intent_is_shown_as_open_once_it_is_a_moment_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Database()
    with Journal(tmp_path, "here", "server", limit_bytes=2**30) as journal:
        posted: list[int] = []
        with closing(JournalPosting(storage, tmp_path, "here", lambda: journal.end, posted.append)) as posting:
            await journal.append_intent(intent(1))
            posting.step()
            assert storage.taken == []
            assert posted[-1] == 0, "a restart must find it"
            assert posting.waits
            monkeypatch.setattr(posting_module, "OPEN_AFTER_S", 0.0)
            posting.step()
            assert storage.taken == [([intent(1)], [])]
            assert posted[-1] == journal.end.offset - HEADER_BYTES
            await journal.append_settlement(settled(intent(1)), opened=True)
            posting.step()
            assert storage.taken[1:] == [([], [settled(intent(1))])]
            assert not posting.waits


async def test_batches_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posting_module, "BATCH_RECORDS", 10)
    storage = Database()
    await write(tmp_path, [settled(intent(number)) for number in range(95)], segment_bytes=2000)
    post_all(storage, tmp_path)
    assert max(len(ended) for _, ended in storage.taken) == 10
    assert [one.intent.id for _, ended in storage.taken for one in ended] == [f"cmpl-{n}" for n in range(95)]
    assert files(tmp_path, "*.log") == []


async def test_what_the_database_did_not_take_is_posted_when_it_is_back(tmp_path: Path) -> None:
    storage = Database()
    await write(tmp_path, [intent(1), settled(intent(1)), intent(2)])
    with closing(dead(storage, tmp_path)) as posting:
        storage.mood = gone
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                posting.step(all_open=True)
        storage.mood = lambda: None
        while posting.step(all_open=True):
            pass
    assert sum(len(ended) for _, ended in storage.taken) == 1
    assert sum(len(opened) for opened, _ in storage.taken) == 1


async def test_one_record_that_cannot_be_written_takes_no_other_with_it(tmp_path: Path) -> None:
    with closing(open_sqlite(tmp_path / "books.db")) as store:
        records = [settled(intent(number)) for number in range(4)]
        await write(tmp_path / "journal", [*records[:2], settled(intent("bad"), total_ms=2**63), *records[2:]])
        post_all(store, tmp_path / "journal")
        (row,) = store.usage(["key"])
        assert row.requests == 4


async def test_a_record_longer_than_what_is_read_at_once_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posting_module, "_READ_BYTES", 64)
    storage = Database()
    await write(tmp_path, [settled(intent(number), plan="x" * 3000) for number in range(3)])
    post_all(storage, tmp_path)
    assert sum(len(ended) for _, ended in storage.taken) == 3


RECORDS = [
    record
    for number in range(4)
    for record in (
        intent(number, budgets=(TOTAL,), budget_owner="owner"),
        settled(intent(number, budgets=(TOTAL,), budget_owner="owner"), cost_micros=number + 1),
    )
]
SIZES = [len(frame(record)) for record in RECORDS]


@pytest.mark.parametrize("cut", [*range(0, HEADER_BYTES + 1, 5), *range(HEADER_BYTES, HEADER_BYTES + sum(SIZES), 23)])
async def test_a_journal_that_is_cut_anywhere_is_posted_up_to_there_and_its_rest_is_lost(
    tmp_path: Path, cut: int
) -> None:
    await write(tmp_path, RECORDS)
    path = segment_path(tmp_path, "here", 1)
    path.write_bytes(path.read_bytes()[:cut])
    whole, end = 0, HEADER_BYTES
    while whole < len(SIZES) and end + SIZES[whole] <= cut:
        end += SIZES[whole]
        whole += 1
    storage = Database()
    post_all(storage, tmp_path)
    assert [one for _, ended in storage.taken for one in ended] == RECORDS[1:whole:2]
    assert [one for opened, _ in storage.taken for one in opened] == RECORDS[whole - 1 : whole if whole % 2 else 0]
    assert files(tmp_path, "*.log") == []


async def test_what_is_no_record_is_kept_for_people_and_the_next_segment_is_posted(tmp_path: Path) -> None:
    await write(tmp_path, [settled(intent(number)) for number in range(10)], segment_bytes=500)
    first = segment_path(tmp_path, "here", 1)
    data = bytearray(first.read_bytes())
    data[HEADER_BYTES + 12] ^= 1
    first.write_bytes(data)
    storage = Database()
    post_all(storage, tmp_path)
    taken = [one.intent.id for _, ended in storage.taken for one in ended]
    assert taken[-1] == "cmpl-9"
    assert 5 <= len(taken) < 10
    assert files(tmp_path, "*.unreadable") == [first.with_suffix(".unreadable").name]


class Crash(Exception):
    """The process dies."""


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(crashes=st.lists(st.tuples(st.sampled_from(["before", "after"]), st.integers(1, 3)), max_size=6))
def test_whatever_dies_between_the_commit_and_the_note_of_it_each_record_counts_once(
    tmp_path_factory: pytest.TempPathFactory, crashes: list[tuple[str, int]]
) -> None:
    folder = tmp_path_factory.mktemp("posting")
    asyncio.run(write(folder / "journal", RECORDS, segment_bytes=700))
    with closing(open_sqlite(folder / "books.db")) as store, pytest.MonkeyPatch.context() as patched:
        patched.setattr(posting_module, "BATCH_RECORDS", 2)
        store.begin_owner("owner", 60.0)
        store.spent("key_a", [TOTAL])
        for when, after in [*crashes, ("never", 0)]:
            posting = dead(store, folder / "journal")
            check_in, count = posting._check_in, 0

            def crash(when: str = when, after: int = after, check_in: Callable[[], None] = check_in) -> None:
                nonlocal count
                count += 1
                if when == "after":
                    check_in()
                if count == after:
                    raise Crash

            if when != "never":
                posting._check_in = crash  # type: ignore[method-assign]
            with closing(posting):
                try:
                    while posting.step(all_open=True):
                        pass
                except Crash:
                    continue
        assert store.spent("key_a", [TOTAL]) == [Spent(10, 0, 60, 0)]
        (row,) = store.usage(["key"])
        assert (row.requests, row.open, row.cost_micros) == (4, 0, 10)
    shutil.rmtree(folder)


async def test_recovery_posts_what_the_dead_left_settles_what_they_left_open_and_deletes_it(
    any_store: SqlStore, tmp_path: Path
) -> None:
    mine = [intent(number, lease_owner="here") for number in range(3)]
    await write(tmp_path, [*mine, settled(mine[0])])
    any_store.renew("here", 60.0)
    recovery = Recovery(any_store, tmp_path)
    with Journal(tmp_path, "alive", "server", limit_bytes=2**30) as living:
        await living.append_intent(intent("alive", lease_owner="alive"))
        recovery.run_once()
        assert recovery.is_recovered("here")
        assert not recovery.is_recovered("alive")
        (row,) = any_store.usage(["key"])
        assert (row.requests, row.open, row.failed) == (3, 0, 2)
        assert files(tmp_path, "journal-*") == ["journal-alive-000001.log", "journal-alive.lock"]


async def test_recovery_goes_on_where_the_database_was_gone(any_store: SqlStore, tmp_path: Path) -> None:
    await write(tmp_path, [intent(1), settled(intent(1))])
    recovery = Recovery(any_store, tmp_path)
    really = any_store.post
    any_store.post = lambda *_: gone()  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        recovery.run_once()
    assert not recovery.is_recovered("here")
    any_store.post = really  # type: ignore[method-assign]
    recovery.run_once()
    assert any_store.usage(["key"])[0].requests == 1
    assert recovery.is_recovered("here")


async def test_what_is_settled_after_the_journal_was_left_is_there_for_the_next_process(
    any_store: SqlStore, tmp_path: Path
) -> None:
    async with WorkerLedger(any_store, Journal(tmp_path, "here", "server", limit_bytes=2**30)) as ledger:
        await ledger.append_intent(intent(1))
    assert files(tmp_path, "journal-*") == []
    for number in (1, 2):
        await ledger.append_settlement(settled(intent(number)), opened=True)
    with pytest.raises(JournalUnavailable):
        ledger.append_intent(intent(3))
    Recovery(any_store, tmp_path).run_once()
    (row,) = any_store.usage(["key"])
    assert (row.requests, row.open, row.cost_micros) == (2, 0, 60)
    assert files(tmp_path, "journal-*") == []


async def test_leaving_posts_what_there_is_or_leaves_it_behind(any_store: SqlStore, tmp_path: Path) -> None:
    really = any_store.post
    async with WorkerLedger(any_store, Journal(tmp_path, "here", "server", limit_bytes=2**30)) as ledger:
        any_store.post = lambda *_: gone()  # type: ignore[method-assign]
        await ledger.append_settlement(settled(intent(1)), opened=False)
    any_store.post = really  # type: ignore[method-assign]
    assert len(files(tmp_path, "journal-*")) == 2
    Recovery(any_store, tmp_path).run_once()
    assert any_store.usage(["key"])[0].requests == 1


async def test_it_is_told_once_when_the_database_goes_and_once_when_it_is_back(
    any_store: SqlStore, tmp_path: Path
) -> None:
    changes: list[bool] = []
    really = any_store.post
    journal = Journal(tmp_path, "here", "server", limit_bytes=2**30)
    async with WorkerLedger(any_store, journal, on_change=changes.append) as ledger:
        assert any_store.leases() == {}
        any_store.post = lambda *_: gone()  # type: ignore[method-assign]
        for number in range(3):
            await ledger.append_settlement(settled(intent(number)), opened=False)
            await asyncio.sleep(0.2)
        await until(lambda: changes == [False])
        assert not ledger.healthy
        any_store.post = really  # type: ignore[method-assign]
        await until(lambda: changes == [False, True])
    assert any_store.usage(["key"])[0].requests == 3


async def test_what_the_disk_does_not_take_the_database_may_take(
    any_store: SqlStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path, "here", "server", limit_bytes=2**30)
    async with WorkerLedger(any_store, journal) as ledger:

        def full(_data: bytes) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(journal, "_write", full)
        await ledger.append_settlement(settled(intent(1)), opened=False)
        await until(lambda: not journal.unwritten)
        assert any_store.usage(["key"])[0].requests == 1


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.01)


async def test_what_is_posted_already_is_not_read_again(tmp_path: Path) -> None:
    storage = Database()
    with Journal(tmp_path, "here", "server", limit_bytes=2**30) as journal:
        await journal.append_settlement(settled(intent(1)), opened=False)
        with closing(JournalPosting(storage, tmp_path, "here", lambda: journal.end)) as posting:
            posting.step()
        await journal.append_settlement(settled(intent(2)), opened=False)
        assert journal.end > Position(1, HEADER_BYTES)
    post_all(storage, tmp_path)
    assert [[one.intent.id for one in ended] for _, ended in storage.taken] == [["cmpl-1"], ["cmpl-2"]]


def test_posting_is_no_different_from_one_record_at_a_time(any_store: SqlStore) -> None:
    for record in RECORDS:
        post(any_store, [record])
    assert any_store.usage(["key"])[0].cost_micros == 10
