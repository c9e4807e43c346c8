"""The journal: an append-only file of one process, to which records go before they are posted to the database.

The records of one turn of the event loop go out in one `write(2)`. A written page survives the death of the process;
with `durability = "power"` an `fdatasync` follows, one for all records that wait, before anybody is told that they are
written.

A journal is a lock file and numbered segments in one folder. Who holds the lock lives; without, anybody may post what
the segments hold and delete them. A segment begins with a header of 16 bytes that says how far it is posted. A record
is its length and its CRC-32, both 32 bits little-endian, and then MessagePack. A process that dies while it writes
leaves part of a record at the end, which is ignored: no request relied on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple
from zlib import crc32

import msgspec
import structlog

from andthen.ledger.records import Intent, Record, Settlement

SEGMENT_BYTES = 16 * 2**20
_RETRY_S = 0.5
"""How often what the disk did not take is written again."""
_FREE_KEPT = 10_000
"""Settlements of requests that cost nothing, in memory, while the disk takes none."""
_MAGIC = b"ATJ1"
_HEADER = struct.Struct("<4sIQ")
"""The magic, nothing, and the offset up to which the segment is posted."""
HEADER_BYTES = _HEADER.size
_FRAME = struct.Struct("<II")
_POSTED_AT = 8
_RECORD_BYTES = 2**24
"""A longer one is no record."""
_LOG = structlog.get_logger("andthen.ledger")

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode


class JournalUnavailable(Exception):
    """The journal takes no intents now."""


def frame(record: Record) -> bytes:
    """A record as the journal has it."""
    body = _encode(record)
    return _FRAME.pack(len(body), crc32(body)) + body


class Scan(NamedTuple):
    """What stands in a part of a segment."""

    records: list[tuple[Record, int]]
    """Each with the offset at which it ends."""
    end: int
    """Where the last whole record ends."""
    rest: Literal["", "torn", "corrupt"]
    """What follows: nothing, a part of a record, or what is no record."""


def scan(data: bytes, most: int = 2**30) -> Scan:
    """Reads at most so many records from the beginning of `data`."""
    records: list[tuple[Record, int]] = []
    at, size = 0, len(data)
    while at < size and len(records) < most:
        start = at + _FRAME.size
        if start > size:
            return Scan(records, at, "torn")
        length, checksum = _FRAME.unpack_from(data, at)
        if not 0 < length <= _RECORD_BYTES:
            return Scan(records, at, "corrupt")
        end = start + length
        if end > size:
            return Scan(records, at, "torn")
        body = data[start:end]
        if crc32(body) != checksum:
            return Scan(records, at, "corrupt")
        try:
            record = _decode(body)
        except msgspec.MsgspecError:  # of a later version, or what happens to have the right checksum
            return Scan(records, at, "corrupt")
        records.append((record, end))
        at = end
    return Scan(records, at, "")


class PendingWrite:
    """Records on their way to the disk. Awaited, by as many as like, it returns when they are there.

    Awaiting raises:
        JournalUnavailable: the disk did not take them.
    """

    __slots__ = ("_done", "_error", "_waiters")

    def __init__(self, *, done: bool = False) -> None:
        self._done = done
        self._error: JournalUnavailable | None = None
        self._waiters: list[asyncio.Future[None]] = []

    @property
    def written(self) -> bool:
        """They are there."""
        return self._done and self._error is None

    def __await__(self) -> Generator[Any, None, None]:
        if not self._done:
            # A future for each: the cancellation of one must not end the others' wait.
            future = asyncio.get_running_loop().create_future()
            self._waiters.append(future)
            yield from future
        if self._error is not None:
            raise JournalUnavailable(*self._error.args)

    def finish(self, error: JournalUnavailable | None = None) -> None:
        self._done, self._error = True, error
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()


_WRITTEN = PendingWrite(done=True)


class Position(NamedTuple):
    """A place in a journal."""

    segment: int
    offset: int


def lock_path(folder: Path, lease_owner: str) -> Path:
    return folder / f"journal-{lease_owner}.lock"


def segment_path(folder: Path, lease_owner: str, number: int) -> Path:
    return folder / f"journal-{lease_owner}-{number:06}.log"


def segments(folder: Path, lease_owner: str) -> list[int]:
    """The numbers of the segments that there are, in their order."""
    prefix = f"journal-{lease_owner}-"
    names = (path.stem.removeprefix(prefix) for path in folder.glob(f"{prefix}*.log"))
    return sorted(int(name) for name in names if name.isdecimal())


def hold_lock(path: Path, content: str = "") -> int:
    """Makes a lock file and holds it until the returned descriptor is closed. Raises OSError."""
    part = path.with_suffix(f".{os.getpid()}.part")
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(descriptor, content.encode())
        part.rename(path)  # held before anybody can find it
    except OSError:
        os.close(descriptor)
        part.unlink(missing_ok=True)
        raise
    return descriptor


def take_dead(path: Path) -> int | None:
    """The lock of a process that is dead, held; None where it lives, or another has taken the lock."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        found = os.fstat(descriptor)
        if found.st_nlink and path.stat().st_ino == found.st_ino:  # else it was another's, who has deleted it
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


class Journal:
    """The writing end, in an event loop: `with Journal(…) as journal`. Leaving gives up the lock and leaves the files.

    Args:
        folder: is made where it doesn't exist; nobody else may read it.
        lease_owner: this process's name among all that write into the database.
        group: the name of the server that it belongs to.
        limit_bytes: with so many bytes that are not posted yet, no intent is taken.
        power: records must survive a power cut.

    In the event loop `on_written` is called after each write, `on_failed` with the reason when the disk takes nothing,
    and `on_dropped` with a settlement that is not kept.
    """

    def __init__(
        self,
        folder: Path,
        lease_owner: str,
        group: str,
        *,
        limit_bytes: int,
        power: bool = False,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self.folder = folder
        self.lease_owner = lease_owner
        self.end = Position(1, HEADER_BYTES)
        """Up to here all is written. Also for other threads."""
        self.posted_bytes = 0
        """Set by who posts, in any thread."""
        self.unwritten: dict[str, tuple[bytes, Settlement]] = {}
        """What the disk did not take, by the request's id. Changed in the event loop only."""
        self.on_written: Callable[[], None] = lambda: None
        self.on_failed: Callable[[str], None] = lambda _reason: None
        self.on_dropped: Callable[[Settlement], None] = lambda _settlement: None
        self._group = group
        self._limit_bytes = limit_bytes
        self._segment_bytes = segment_bytes
        self._written_bytes = 0
        self._closed = False
        self._broken = False
        """The segment ends with what could not be taken back; the next write begins another."""
        self._intents: list[bytes] = []
        self._settlements: dict[str, tuple[bytes, Settlement]] = {}
        self._pending_intents: PendingWrite | None = None
        self._pending_settlements: PendingWrite | None = None
        self._scheduled = False
        self._retry: asyncio.TimerHandle | None = None
        self._sync = _Sync() if power else None

    def __enter__(self) -> Journal:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = hold_lock(lock_path(self.folder, self.lease_owner), self._group)
        self._file = self._open(self.end.segment)
        self._loop = asyncio.get_running_loop()
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
        if self._sync is not None:
            self._sync.close()
        os.close(self._file)
        os.close(self._lock)

    @property
    def unposted_bytes(self) -> int:
        return self._written_bytes - self.posted_bytes

    @property
    def has_room(self) -> bool:
        """Whether it takes intents."""
        return self.unposted_bytes < self._limit_bytes

    def append_intent(self, intent: Intent) -> PendingWrite:
        """Raises: JournalUnavailable"""
        if self._closed or not self.has_room:
            raise JournalUnavailable(f"{self.unposted_bytes} bytes of the journal wait for the database")
        self._intents.append(frame(intent))
        pending = self._pending_intents
        if pending is None:
            pending = self._pending_intents = PendingWrite()
            self._schedule()
        return pending

    def append_settlement(self, settlement: Settlement, *, opened: bool) -> PendingWrite:
        """Takes any. What the disk does not take is kept in memory until it does, and counts as written.

        Args:
            opened: its intent was appended. Of requests that were refused and cost nothing, only so many are kept.
        """
        if not opened and settlement.is_free and self.unposted_bytes > self._limit_bytes * 9 // 8:
            self.on_dropped(settlement)
            return _WRITTEN
        if self._closed:
            self._append_late(settlement)
            return _WRITTEN
        self._settlements[settlement.intent.id] = frame(settlement), settlement
        pending = self._pending_settlements
        if pending is None:
            pending = self._pending_settlements = PendingWrite()
            self._schedule()
        return pending

    def flush(self) -> None:
        """Writes what was appended. To be called in the event loop, which does so by itself once in each turn."""
        self._scheduled = False
        settled = self.unwritten | self._settlements if self.unwritten else self._settlements
        intents, self._intents, self._settlements = self._intents, [], {}
        pending_intents, self._pending_intents = self._pending_intents, None
        pending_settlements, self._pending_settlements = self._pending_settlements, None
        error: JournalUnavailable | None = None
        try:
            self._write(b"".join([*intents, *(one for one, _ in settled.values())]))
            self.unwritten = {}
        except OSError as failure:
            error = JournalUnavailable(f"the journal can't be written: {failure.strerror or failure}")
            self._keep(settled, failure)
        else:
            self.on_written()
        pending = [one for one in (pending_intents, pending_settlements) if one is not None]
        if self._sync is not None and error is None:
            self._sync.add(self._file, pending)
            return
        for one in pending:
            one.finish(error if one is pending_intents else None)

    def forget_unwritten(self, request_ids: list[str]) -> None:
        """The database has these settlements."""
        for request_id in request_ids:
            self.unwritten.pop(request_id, None)

    def delete(self) -> None:
        """Deletes all files; to be called when all is posted, and before leaving."""
        for number in segments(self.folder, self.lease_owner):
            segment_path(self.folder, self.lease_owner, number).unlink(missing_ok=True)
        lock_path(self.folder, self.lease_owner).unlink(missing_ok=True)

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.flush)

    def _write(self, data: bytes) -> None:
        """All or nothing. Raises OSError."""
        if not data:
            return
        if self._broken or self.end.offset >= self._segment_bytes:
            self._rotate()
        try:
            written = os.write(self._file, data)
            while written < len(data):
                written += os.write(self._file, data[written:])
        except OSError:
            try:
                os.ftruncate(self._file, self.end.offset)
            except OSError:
                self._broken = True
            raise
        self.end = Position(self.end.segment, self.end.offset + len(data))
        self._written_bytes += len(data)

    def _rotate(self) -> None:
        """Begins another segment. Raises OSError where the present one can't be used any more."""
        try:
            file = self._open(self.end.segment + 1)
        except OSError:
            if self._broken:
                raise
            return
        if self._sync is not None:
            self._sync.retire(self._file)
        else:
            os.close(self._file)
        self._file, self._broken = file, False
        self.end = Position(self.end.segment + 1, HEADER_BYTES)

    def _open(self, number: int) -> int:
        path = segment_path(self.folder, self.lease_owner, number)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        try:
            header = _HEADER.pack(_MAGIC, 0, HEADER_BYTES)
            if os.write(file, header) != len(header):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if self._sync is not None:
                _sync_folder(self.folder)
        except OSError:
            os.close(file)
            path.unlink(missing_ok=True)
            raise
        return file

    def _keep(self, settled: dict[str, tuple[bytes, Settlement]], error: OSError) -> None:
        costly = {key: one for key, one in settled.items() if not one[1].is_free}
        free = {key: one for key, one in settled.items() if one[1].is_free}
        new = [one for key, (_, one) in costly.items() if key not in self.unwritten]
        self.unwritten = costly | dict(list(free.items())[:_FREE_KEPT])
        if new:
            _LOG.error("ledger_journal_failed", reason=str(error), settlements=repr(new))
        self.on_failed(str(error))
        if self._retry is None and self.unwritten:
            self._retry = self._loop.call_later(_RETRY_S, self._write_again)

    def _append_late(self, settlement: Settlement) -> None:
        """A request has outlived the ledger: the process ends any moment, and the next one finds a dead journal."""
        try:
            lock = hold_lock(lock_path(self.folder, self.lease_owner), self._group)
            file = self._open(max(segments(self.folder, self.lease_owner), default=self.end.segment) + 1)
            os.write(file, frame(settlement))
            os.close(file)
            os.close(lock)
        except OSError as error:
            _LOG.error("ledger_journal_failed", reason=str(error), settlements=repr([settlement]))

    def _write_again(self) -> None:
        self._retry = None
        self.flush()


class _Sync:
    """Syncs in a thread, once for all who came while the last sync ran."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "journal-sync")
        self._waiting: list[PendingWrite] = []
        self._files: set[int] = set()
        self._retired: list[int] = []
        self._running = False

    def add(self, file: int, pending: list[PendingWrite]) -> None:
        self._files.add(file)
        self._waiting += pending
        if not self._running:
            self._start()

    def retire(self, file: int) -> None:
        """It is written no more, and closed once it is synced."""
        self._retired.append(file)

    def close(self) -> None:
        self._thread.shutdown()
        for file in self._retired:
            with contextlib.suppress(OSError):
                os.fdatasync(file)
            os.close(file)
        for one in self._waiting:
            one.finish()

    def _start(self) -> None:
        waiting, self._waiting = self._waiting, []
        files, self._files = self._files, set()
        retired, self._retired = self._retired, []
        self._running = True
        loop = asyncio.get_running_loop()
        syncing = loop.run_in_executor(self._thread, _sync_all, files | set(retired))
        syncing.add_done_callback(lambda done: self._finished(done, waiting, retired))

    def _finished(self, done: asyncio.Future[None], waiting: list[PendingWrite], retired: list[int]) -> None:
        self._running = False
        for file in retired:
            os.close(file)
        failure = None if done.cancelled() else done.exception()
        error = None
        if failure is not None:
            _LOG.error("ledger_journal_not_synced", reason=str(failure))
            error = JournalUnavailable(f"the journal can't be synced: {failure}")
        for one in waiting:
            one.finish(error)
        if self._waiting:
            self._start()


def _sync_all(files: set[int]) -> None:
    for file in files:
        os.fdatasync(file)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Segment:
    """The reading end of one segment. Raises OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR)
        header = os.pread(self._file, HEADER_BYTES, 0)
        self.is_readable = len(header) == HEADER_BYTES and header.startswith(_MAGIC)
        self.posted = _HEADER.unpack(header)[2] if self.is_readable else HEADER_BYTES

    def close(self) -> None:
        os.close(self._file)

    def size(self) -> int:
        return os.fstat(self._file).st_size

    def read(self, start: int, end: int) -> bytes:
        return os.pread(self._file, max(0, end - start), start)

    def set_posted(self, offset: int) -> None:
        """Everything before is in the database."""
        self.posted = offset
        os.pwrite(self._file, offset.to_bytes(8, "little"), _POSTED_AT)
