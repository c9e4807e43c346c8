"""The journal: what is written in which order, what a cut leaves, and what happens where the disk is full."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from andthen.ledger import journal as journal_module
from andthen.ledger.journal import (
    HEADER_BYTES,
    Journal,
    JournalUnavailable,
    PendingWrite,
    frame,
    lock_path,
    scan,
    segment_path,
    segments,
    take_dead,
)
from andthen.ledger.records import Budget, Call, Record, Settlement, Tokens
from tests.ledger.making import intent, settled

RECORDS: list[Record] = [
    intent(1),
    settled(intent(1)),
    intent("ü", user="é" * 50, budgets=(Budget(window="day", micros=3), Budget(window="total", tokens=2**40))),
    settled(intent(2, stream=True), calls=tuple(Call(model="m", status=0, tokens=Tokens(prompt=n)) for n in range(9))),
    settled(intent(3), queue_ms=7, first_ms=None, price="1 + 2", plan="n=native", origin="cache", ended_by="caller"),
]
WHOLE = b"".join(map(frame, RECORDS))


@contextmanager
def journal(folder: Path, **fields: int | bool) -> Iterator[Journal]:
    with Journal(folder, "here", "server", **({"limit_bytes": 2**30} | fields)) as made:  # type: ignore[arg-type]
        yield made


def read(folder: Path) -> list[Record]:
    """All that stands in the files."""
    found = []
    for number in segments(folder, "here"):
        data = segment_path(folder, "here", number).read_bytes()[HEADER_BYTES:]
        found += [record for record, _ in scan(data).records]
    return found


def test_what_was_written_is_read() -> None:
    found = scan(WHOLE)
    assert [record for record, _ in found.records] == RECORDS
    assert (found.end, found.rest) == (len(WHOLE), "")
    assert len(scan(WHOLE, 2).records) == 2


@pytest.mark.parametrize("cut", range(len(WHOLE)))
def test_a_cut_anywhere_leaves_the_whole_records_before_it(cut: int) -> None:
    found = scan(WHOLE[:cut])
    assert [record for record, _ in found.records] == RECORDS[: len(found.records)]
    assert found.rest == ("torn" if found.end < cut else "")
    assert len(WHOLE[: found.end]) == sum(len(frame(record)) for record, _ in found.records)
    following = RECORDS[len(found.records)]
    assert found.end + len(frame(following)) > cut, "no whole record is left out"


@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
def test_a_byte_that_changed_ends_what_is_read_and_makes_no_record(at: int, by: int) -> None:
    changed = bytearray(WHOLE)
    changed[at] ^= by
    found = scan(bytes(changed))
    assert [record for record, _ in found.records] == RECORDS[: len(found.records)]
    assert found.end <= at
    assert found.rest


@given(st.binary(max_size=200))
def test_random_bytes_are_no_records(data: bytes) -> None:
    assert scan(data).records == []


async def test_what_one_turn_of_the_event_loop_appends_is_one_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[bytes] = []

    def write(file: int, data: bytes) -> int:
        writes.append(data)
        return really(file, data)

    really = os.write
    with journal(tmp_path) as made:
        monkeypatch.setattr(os, "write", write)
        for turn in range(3):
            pending = [made.append_intent(intent(f"{turn}-{number}")) for number in range(20)]
            pending.append(made.append_settlement(settled(intent(f"{turn}-x")), opened=True))
            for one in pending:
                await one
    assert [len(scan(data).records) for data in writes] == [21] * 3
    assert len(read(tmp_path)) == 63


async def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    with journal(tmp_path / "journal") as made:
        await made.append_intent(intent(1))
        modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "journal").iterdir()}
    assert (tmp_path / "journal").stat().st_mode & 0o777 == 0o700
    assert set(modes.values()) == {0o600}
    assert len(modes) == 2


async def test_its_lock_says_that_it_lives(tmp_path: Path) -> None:
    path = lock_path(tmp_path, "here")
    with journal(tmp_path):
        assert path.read_text() == "server"
        assert take_dead(path) is None
    taken = take_dead(path)
    assert taken is not None
    assert take_dead(path) is None, "another has taken it"
    path.unlink()
    os.close(taken)
    assert take_dead(path) is None


async def test_it_grows_in_segments(tmp_path: Path) -> None:
    with journal(tmp_path, segment_bytes=500) as made:
        for number in range(20):
            await made.append_intent(intent(number))
    assert len(segments(tmp_path, "here")) == 3
    assert [record.id for record in read(tmp_path) if not isinstance(record, Settlement)] == [
        f"cmpl-{number}" for number in range(20)
    ]


async def test_past_its_bound_it_takes_settlements_only(tmp_path: Path) -> None:
    with journal(tmp_path, limit_bytes=400) as made:
        while made.has_room:
            await made.append_intent(intent(1))
        with pytest.raises(JournalUnavailable, match="wait for the database"):
            made.append_intent(intent(2))
        for number in range(10):
            await made.append_settlement(settled(intent(number)), opened=False)
        before = len(read(tmp_path))
        free = settled(intent("free"), cost_micros=0, tokens=Tokens())
        await made.append_settlement(free, opened=False)
        assert len(read(tmp_path)) == before, "what was refused and cost nothing must not fill the disk"
        await made.append_settlement(free, opened=True)
        assert len(read(tmp_path)) == before + 1
        made.posted_bytes = 2**20
        await made.append_intent(intent(2))


class FullDisk:
    """A disk that takes so many bytes more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room = 2**40
        self._write = os.write
        monkeypatch.setattr(os, "write", self.write)

    def write(self, file: int, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self._write(file, data[: self.room])
        self.room -= written
        return written


@pytest.mark.parametrize("room", [0, 1, 60, 150])
async def test_a_full_disk_refuses_intents_and_loses_no_settlement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    monkeypatch.setattr(journal_module, "_RETRY_S", 0.01)
    disk = FullDisk(monkeypatch)
    failures: list[str] = []
    with journal(tmp_path) as made:
        made.on_failed = failures.append
        await made.append_intent(intent(1))
        disk.room = room
        refused = made.append_intent(intent(2))
        kept = made.append_settlement(settled(intent(1)), opened=True)
        with pytest.raises(JournalUnavailable, match="No space left"):
            await refused
        await kept
        assert failures
        assert read(tmp_path)[0] == intent(1)
        assert settled(intent(1)) not in read(tmp_path)
        assert [one for _, one in made.unwritten.values()] == [settled(intent(1))]
        disk.room = 2**40
        async with asyncio.timeout(5):
            while made.unwritten:
                await asyncio.sleep(0.01)
        await made.append_intent(intent(3))
    assert read(tmp_path) == [intent(1), settled(intent(1)), intent(3)]


async def test_a_part_that_cannot_be_taken_back_is_left_behind_in_its_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FullDisk(monkeypatch)

    def fails(_file: int, _size: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "ftruncate", fails)
    with journal(tmp_path) as made:
        await made.append_intent(intent(1))
        disk.room = 10
        with pytest.raises(JournalUnavailable):
            await made.append_intent(intent(2))
        disk.room = 2**40
        await made.append_intent(intent(3))
    assert segments(tmp_path, "here") == [1, 2]
    assert read(tmp_path) == [intent(1), intent(3)]


async def test_where_the_power_may_fail_all_that_wait_share_a_sync_and_none_goes_on_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    really = os.fdatasync

    def sync(file: int) -> None:
        synced.append(os.fstat(file).st_size)
        really(file)

    monkeypatch.setattr(os, "fdatasync", sync)
    with journal(tmp_path, power=True, segment_bytes=4000) as made:

        async def append(number: int) -> None:
            pending = made.append_intent(intent(number))
            await pending
            assert synced
            end = segment_path(tmp_path, "here", made.end.segment).stat().st_size
            assert end <= max(synced) or made.end.segment > 1

        await asyncio.gather(*(append(number) for number in range(20)))
        assert len(synced) == 1
        for number in range(20, 60):
            await append(number)
    assert len(read(tmp_path)) == 60
    assert len(synced) >= 40


async def test_one_of_several_who_wait_may_leave(tmp_path: Path) -> None:
    with journal(tmp_path) as made:
        pending = made.append_intent(intent(1))

        async def wait() -> None:
            await pending

        leaves, stays = asyncio.ensure_future(wait()), asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        leaves.cancel()
        await stays
        assert pending.written
        await pending


async def test_a_failure_is_raised_for_all_who_wait() -> None:
    pending = PendingWrite()

    async def wait() -> None:
        await pending

    waiting = [asyncio.ensure_future(wait()) for _ in range(2)]
    await asyncio.sleep(0)
    pending.finish(JournalUnavailable("full"))
    for one in waiting:
        with pytest.raises(JournalUnavailable, match="full"):
            await one
    with pytest.raises(JournalUnavailable):
        await pending
