"""The keys in force as a server sees them, with the changes made by another process or the database taken away."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from andthen.books.store import SqlStore, StoreUnavailable, open_sqlite
from andthen.books.watch import KeyWatch


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "andthen.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqlStore]:
    with closing(open_sqlite(path, busy_timeout_s=0.05)) as opened:
        yield opened


async def _another_process(path: Path, statement: str) -> str:
    store = f"open_sqlite(pathlib.Path({str(path)!r}))"
    code = f"import pathlib; from andthen.books.store import open_sqlite; print({store}.{statement})"
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


async def _until(true: Callable[[], bool], within_s: float) -> float:
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < within_s
        await asyncio.sleep(0.01)
    return time.monotonic() - began


async def test_a_revocation_by_another_process_is_in_force_within_a_second(store: SqlStore, path: Path) -> None:
    issued = store.create_key("ci")
    async with KeyWatch(store) as keys:
        assert keys.lookup(issued.secret) == issued.key
        await _another_process(path, "revoke_key('ci')")
        await _until(lambda: keys.lookup(issued.secret) is None, within_s=1)


async def test_a_revocation_waits_for_no_other_work(store: SqlStore) -> None:
    issued = store.create_key("ci")
    over = threading.Event()
    async with KeyWatch(store) as keys:
        busy = [asyncio.create_task(asyncio.to_thread(over.wait)) for _ in range(100)]
        try:
            await asyncio.sleep(0)
            store.revoke_key("ci")
            await _until(lambda: keys.lookup(issued.secret) is None, within_s=1)
        finally:
            over.set()
            await asyncio.gather(*busy)


async def test_a_second_store_of_the_same_process_does_not_blind_the_first(store: SqlStore, path: Path) -> None:
    issued = store.create_key("ci")
    async with KeyWatch(store) as keys:
        with closing(open_sqlite(path)):
            await _another_process(path, "list_keys()")
            await _another_process(path, "revoke_key('ci')")
        await _until(lambda: keys.lookup(issued.secret) is None, within_s=1)


async def test_a_key_ends_at_its_time_without_a_read(store: SqlStore) -> None:
    in_a_moment_ms = time.time_ns() // 1_000_000 + 2000
    expiring = store.create_key("ci", expires_at_ms=in_a_moment_ms)
    rotated = store.create_key("laptop")
    store.rotate_key("laptop", overlap_ms=2000)
    counted = _Counted(store)
    async with KeyWatch(counted, interval_s=3600) as keys:
        assert [keys.lookup(issued.secret) for issued in (expiring, rotated)] == [expiring.key, rotated.key]
        for issued in (expiring, rotated):
            await _until(lambda issued=issued: keys.lookup(issued.secret) is None, within_s=4)  # type: ignore[misc]
        assert counted.reads == 0


async def test_a_key_of_another_process_is_honoured_at_once(store: SqlStore, path: Path) -> None:
    async with KeyWatch(store, interval_s=3600) as keys:
        secret = await _another_process(path, "create_key('ci').secret")
        assert keys.lookup(secret) is None
        found = await keys.look_again(secret)
        assert found is not None
        assert found.name == "ci"
        assert keys.lookup(secret) == found


async def test_a_key_of_another_process_is_honoured_within_a_second_without_being_asked_for(
    store: SqlStore, path: Path
) -> None:
    async with KeyWatch(store) as keys:
        secret = await _another_process(path, "create_key('ci').secret")
        await _until(lambda: keys.lookup(secret) is not None, within_s=1)


class _Counted:
    """A real store whose reads of the stamp are counted."""

    def __init__(self, store: SqlStore) -> None:
        self.key_ring = store.key_ring
        self._store = store
        self.reads = 0

    def keys_stamp(self) -> int:
        self.reads += 1
        return self._store.keys_stamp()


async def _all(misses: list[Awaitable[object]]) -> None:
    assert set(await asyncio.gather(*misses)) == {None}


async def test_a_thousand_wrong_keys_cost_a_few_reads(store: SqlStore) -> None:
    counted = _Counted(store)
    async with KeyWatch(counted, interval_s=3600, recheck_interval_s=0.1) as keys:
        began = time.monotonic()
        for _ in range(10):
            await _all([keys.look_again(f"at-{number}") for number in range(100)])
        assert counted.reads <= 1 + (time.monotonic() - began) / 0.1


async def test_a_look_up_reads_nothing(store: SqlStore) -> None:
    counted = _Counted(store)
    async with KeyWatch(counted, interval_s=3600) as keys:
        for _ in range(100):
            assert keys.lookup("at-wrong") is None
        assert counted.reads == 0


async def test_the_last_ring_outlives_a_missing_database(store: SqlStore, path: Path) -> None:
    issued = store.create_key("ci")
    with capture_logs() as log:
        async with KeyWatch(store, interval_s=0.02) as keys:
            aside = path.with_name("aside.db")
            await asyncio.to_thread(path.rename, aside)
            await _until(lambda: bool(log), within_s=5)
            assert keys.lookup(issued.secret) == issued.key
            assert await keys.look_again("at-wrong") is None
            await asyncio.sleep(0.1)
            assert keys.age_s > 0.1
            await asyncio.to_thread(aside.rename, path)
            await _until(lambda: len(log) > 1, within_s=5)
            assert keys.age_s < 0.1
            store.revoke_key("ci")
            await _until(lambda: keys.lookup(issued.secret) is None, within_s=5)
    assert [(line["event"], line["log_level"]) for line in log] == [
        ("keys_stale", "error"),
        ("keys_fresh_again", "info"),
    ]
    assert str(path) in log[0]["reason"]
    assert issued.secret not in str(log)


async def test_the_last_ring_outlives_a_locked_database(store: SqlStore, path: Path) -> None:
    issued = store.create_key("ci")
    with capture_logs() as log:
        async with KeyWatch(store, interval_s=0.02) as keys:
            store.close()
            with closing(sqlite3.connect(path, isolation_level=None)) as raw:
                raw.execute("PRAGMA locking_mode = EXCLUSIVE")
                raw.execute("BEGIN EXCLUSIVE")
                await _until(lambda: bool(log), within_s=5)
                assert keys.lookup(issued.secret) == issued.key
            await _until(lambda: len(log) > 1, within_s=5)
    assert [line["event"] for line in log] == ["keys_stale", "keys_fresh_again"]


async def test_a_ring_is_there_before_the_first_request_or_not_at_all(store: SqlStore, path: Path) -> None:
    await asyncio.to_thread(path.unlink)
    with pytest.raises(StoreUnavailable):
        async with KeyWatch(store):
            pass


async def test_leaving_ends_the_reading(store: SqlStore) -> None:
    counted = _Counted(store)
    async with KeyWatch(counted, interval_s=0.01):
        await asyncio.sleep(0.05)
    reads = counted.reads
    await asyncio.sleep(0.05)
    assert 0 < reads == counted.reads
