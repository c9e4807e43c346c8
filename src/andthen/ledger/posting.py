"""Moves the records of one journal into the database, in batches. Blocks; for one thread at a time.

The same code posts what a living process has just appended and what a dead one has left. A request whose settlement is
there by the time that its intent is read costs one insert. An intent without one is posted as open once it is a
moment old, so that others see the request. Where a segment is posted to stands in its header, so that a restart posts
little again; and to post a record again changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from andthen.ledger.journal import HEADER_BYTES, Position, Scan, Segment, scan, segment_path, segments
from andthen.ledger.records import Intent, Record, Settlement
from andthen.ledger.storage import BadRecord, JournalStorage

OPEN_AFTER_S = 0.25
"""An intent that is so old, and has no settlement, is posted as open."""
BATCH_RECORDS = 512
"""A transaction is short: others write too."""
_READ_BYTES = 2**18
_REST_TIMES = 3
_LONGEST_REST_S = 0.2
_LOG = structlog.get_logger("andthen.ledger")


class JournalPosting:
    """Args:
    end: tells how far the journal is written; None: to the end of its files, for its process is dead.
    on_posted: called with the number of bytes after each batch.
    """

    def __init__(
        self,
        storage: JournalStorage,
        folder: Path,
        lease_owner: str,
        end: Callable[[], Position] | None = None,
        on_posted: Callable[[int], None] = lambda _bytes: None,
    ) -> None:
        self._storage = storage
        self._folder = folder
        self._lease_owner = lease_owner
        self._end = end
        self._on_posted = on_posted
        self._segments: dict[int, Segment] = {}
        """Those that are not posted to their ends."""
        self._at = Position(0, HEADER_BYTES)
        """Read up to here."""
        self.posted = self._at
        """All before is in the database."""
        self._open: dict[str, tuple[Intent, Position, float]] = {}
        """Intents that are not posted: where each began, and when it was read."""
        self._settled: dict[str, Settlement] = {}
        """Read, and not posted."""
        self._unreadable: set[int] = set()
        self._deleted_bytes = 0
        self.settlements = 0
        """So many were posted."""

    def close(self) -> None:
        for segment in self._segments.values():
            segment.close()

    @property
    def waits(self) -> bool:
        """There are intents to be posted once they are older."""
        return bool(self._open)

    def step(self, *, all_open: bool = False) -> bool:
        """Posts one batch; whether there may be more to do at once.

        Args:
            all_open: intents are posted whatever their age.

        Raises:
            StorageUnavailable: what was read is posted by the next call.
            OSError: the files can't be read.
        """
        more = self._read()
        now_s = time.monotonic()
        due = [
            intent for intent, _, read_s in self._open.values() if all_open or now_s - read_s >= OPEN_AFTER_S
        ]  # fmt: skip
        self.post(due, list(self._settled.values()))
        self.settlements += len(self._settled)
        self._settled.clear()
        for intent in due:
            del self._open[intent.id]
        self._check_in()
        return more

    def post(self, intents: Sequence[Intent], settlements: Sequence[Settlement]) -> None:
        """Posts records, and passes over what no database can hold. Raises: StorageUnavailable"""
        if not intents and not settlements:
            return
        try:
            self._storage.post(intents, settlements)
        except BadRecord as error:
            records: list[Record] = [*intents, *settlements]
            if len(records) == 1:
                refused = records[0].intent.id if isinstance(records[0], Settlement) else records[0].id
                _LOG.error("ledger_entry_refused", request=refused, reason=str(error))
                return
            middle = len(records) // 2
            for half in (records[:middle], records[middle:]):  # the others need not suffer for one
                self.post(
                    [one for one in half if isinstance(one, Intent)],
                    [one for one in half if isinstance(one, Settlement)],
                )

    def _read(self) -> bool:
        """Reads the next records; whether more may follow."""
        if self._settled:  # the last batch was not posted
            return True
        end = None if self._end is None else self._end()
        segment = self._segments.get(self._at.segment) or self._next_segment()
        if segment is None:
            return False
        live = end is not None and end.segment == self._at.segment
        upto = end.offset if live and end is not None else segment.size()
        found = _scan(segment, self._at.offset, upto)
        start, now_s = self._at.offset, time.monotonic()
        for record, ends in found.records:
            if isinstance(record, Settlement):
                self._open.pop(record.intent.id, None)
                self._settled.setdefault(record.intent.id, record)
            else:
                self._open[record.id] = record, Position(self._at.segment, start), now_s
            start = self._at.offset + ends
        if found.rest == "corrupt":
            _LOG.error("ledger_journal_unreadable", file=str(segment.path), offset=start, bytes=upto - start)
            self._unreadable.add(self._at.segment)
            start = upto
        elif found.rest == "torn":  # its process died while it wrote, or took back what a full disk did not take
            start = upto
        self._at = Position(self._at.segment, start)
        if start < upto:
            return True
        return not live and self._next_segment() is not None

    def _next_segment(self) -> Segment | None:
        """The segment after the one that was read, if there is one; reading goes on there."""
        following = [number for number in segments(self._folder, self._lease_owner) if number > self._at.segment]
        if not following:
            if self._end is None:
                self._at = Position(self._at.segment + 1, HEADER_BYTES)
            return None
        number = following[0]
        segment = self._segments[number] = Segment(segment_path(self._folder, self._lease_owner, number))
        self._at = Position(number, segment.posted)
        return segment

    def _check_in(self) -> None:
        """Writes down how far all is posted, and deletes the segments that are."""
        posted = min([self._at, *(place for _, place, _ in self._open.values())])
        for number in [number for number in self._segments if number < posted.segment]:
            segment = self._segments.pop(number)
            self._deleted_bytes += segment.size() - HEADER_BYTES
            segment.close()
            if number in self._unreadable:
                segment.path.rename(segment.path.with_suffix(".unreadable"))
            else:
                segment.path.unlink(missing_ok=True)
        current = self._segments.get(posted.segment)
        if current is not None and current.posted != posted.offset:
            current.set_posted(posted.offset)
        self.posted = posted
        self._on_posted(self._deleted_bytes + posted.offset - HEADER_BYTES)


def rest(took_s: float) -> None:
    """Between two batches that follow at once, after one that took so long: who catches up leaves live requests three
    quarters of the interpreter's time, and of the database's."""
    time.sleep(min(_LONGEST_REST_S, _REST_TIMES * took_s))


def _scan(segment: Segment, start: int, end: int) -> Scan:
    """The next records, and at least one where there is one."""
    size = _READ_BYTES
    while True:
        data = segment.read(start, min(end, start + size))
        found = scan(data, BATCH_RECORDS)
        if found.records or found.rest != "torn" or start + len(data) >= end:
            return found if start + len(data) >= end or found.rest != "torn" else found._replace(rest="")
        size *= 2  # a record that is longer
