"""One worker's part of the ledger: its journal, and the thread that posts it and renews the lease that says that the
worker lives.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Self

import structlog

from andthen.ledger.journal import Journal, JournalUnavailable, PendingWrite
from andthen.ledger.posting import OPEN_AFTER_S, JournalPosting, rest
from andthen.ledger.records import Intent, Settlement
from andthen.ledger.storage import JournalStorage, StorageError

LEASE_S = 20.0
RENEW_S = 5.0
GATHER_S = 0.1
"""The database is written to no more often, so that what goes through quickly costs one insert, and many share one
commit."""
_RETRY_S = 0.25
_CATCH_UP_POLL_S = 0.02
_SLOW_S = 2.0
"""A database that takes longer is as good as gone to who waits for it."""
_UNRECORDED_EVERY_S = 60.0
_STOP_WAIT_S = 10.0
_START_WAIT_S = 2.0
_LOG = structlog.get_logger("andthen.ledger")


class WorkerLedger:
    """`async with WorkerLedger(storage, journal) as ledger:`; leaving posts what is still to be posted, and leaves the
    rest to whoever recovers the journal.

    Args:
        journal: which it enters and leaves.
        on_change: called when `healthy` has changed, in some thread.
        on_unrecorded: called with the error's code of each request that was refused, cost nothing and gets no row, or
            with `caller` where the caller went away.
    """

    def __init__(
        self,
        storage: JournalStorage,
        journal: Journal,
        *,
        on_change: Callable[[bool], None] = lambda _healthy: None,
        on_unrecorded: Callable[[str], None] = lambda _code: None,
    ) -> None:
        self.lease_owner = journal.lease_owner
        self.journal = journal
        self._storage = storage
        self._on_change = on_change
        self._on_unrecorded = on_unrecorded
        self._unrecorded: Counter[str] = Counter()
        """Since the log's last line about them."""
        self._unrecorded_s = -_UNRECORDED_EVERY_S
        self._posting = JournalPosting(
            storage, journal.folder, journal.lease_owner, lambda: journal.end, self._set_posted
        )  # fmt: skip
        self._stopping = False
        self._woken = threading.Event()
        self._leased = threading.Event()
        self._healthy = True
        self._owed = 0
        """Settlements that had been posted when the database went."""
        self._journal_failed = False
        self._began_s: float | None = None
        """Since when the database has been at something, by `time.monotonic`."""
        self._renew_at_s = 0.0
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)

    @property
    def healthy(self) -> bool:
        """Whether the database takes records, and soon."""
        began_s = self._began_s
        return self._healthy and (began_s is None or time.monotonic() - began_s < _SLOW_S)

    async def __aenter__(self) -> Self:
        self.journal.__enter__()
        self.journal.on_written = self._written
        self.journal.on_failed = self._failed
        self.journal.on_dropped = self._dropped
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        # Others take a process without a lease for dead.
        await asyncio.to_thread(self._leased.wait, _START_WAIT_S)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.journal.flush()
        self._stopping = True
        self._woken.set()
        await asyncio.to_thread(self._thread.join, _STOP_WAIT_S)
        if not self._thread.is_alive() and self._posting.posted == self.journal.end and not self.journal.unwritten:
            self.journal.delete()
        self.journal.__exit__()

    async def catch_up(self, within_s: float = 1.0) -> None:
        """Until the database has what was appended by now, or for so long: who reads it then finds its own writes."""
        end, due_s = self.journal.end, time.monotonic() + within_s
        while self._posting.posted < end and time.monotonic() < due_s:
            self._woken.set()
            await asyncio.sleep(_CATCH_UP_POLL_S)

    def append_intent(self, intent: Intent) -> PendingWrite:
        """Raises: JournalUnavailable"""
        try:
            return self.journal.append_intent(intent)
        except JournalUnavailable as error:
            self._note(False, str(error))
            raise

    def append_settlement(self, settlement: Settlement, *, opened: bool) -> PendingWrite:
        """As the journal's: of what it returns no failure is known."""
        return self.journal.append_settlement(settlement, opened=opened)

    def _set_posted(self, total: int) -> None:
        self.journal.posted_bytes = total

    def _written(self) -> None:
        self._journal_failed = False
        if not self._woken.is_set():
            self._woken.set()
        began_s = self._began_s
        if began_s is not None and self._healthy and time.monotonic() - began_s >= _SLOW_S:
            self._note(False, f"the database has taken nothing for {_SLOW_S:g} s")

    def _failed(self, reason: str) -> None:
        self._journal_failed = True
        self._note(False, reason)
        self._woken.set()

    def _dropped(self, settlement: Settlement) -> None:
        code = settlement.code or settlement.ended_by
        self._on_unrecorded(code)
        self._unrecorded[code] += 1
        if time.monotonic() - self._unrecorded_s >= _UNRECORDED_EVERY_S:
            self._log_unrecorded()

    def _log_unrecorded(self) -> None:
        if self._unrecorded:
            self._unrecorded_s = time.monotonic()
            unrecorded, self._unrecorded = self._unrecorded, Counter()
            _LOG.warning("ledger_unrecorded", requests=dict(unrecorded))

    def _run(self) -> None:
        while True:
            self._woken.wait(self._wait_s())
            if not self._stopping:
                time.sleep(GATHER_S)
            self._woken.clear()
            last = self._stopping
            self._began_s = time.monotonic()
            posted = self._work(last=last)
            self._began_s = None
            if last:
                return
            if not posted:
                time.sleep(_RETRY_S)
                self._woken.set()

    def _wait_s(self) -> float:
        renew_s = max(0.0, self._renew_at_s - time.monotonic())
        return min(renew_s, OPEN_AFTER_S) if self._posting.waits else renew_s

    def _work(self, *, last: bool) -> bool:
        """Posts what there is; whether the database took it."""
        try:
            if time.monotonic() >= self._renew_at_s:
                self._storage.renew(self.lease_owner, LEASE_S)
                self._renew_at_s = time.monotonic() + RENEW_S
                self._leased.set()
            began_s = time.monotonic()
            while self._post(all_open=last):
                if not self._stopping:
                    took_s, self._began_s = time.monotonic() - began_s, None
                    rest(took_s)
                self._began_s = began_s = time.monotonic()
            if last:
                self._storage.renew(self.lease_owner, 0.0)
        except StorageError as error:
            self._renew_at_s = 0.0
            self._note(False, str(error))
            return False
        except Exception as error:
            _LOG.exception("ledger_not_posted")
            self._note(False, repr(error))
            return False
        return self._note_posted()

    def _post(self, *, all_open: bool) -> bool:
        if unwritten := list(self.journal.unwritten.values()):  # the disk is full, and the database may take it
            settlements = [settlement for _, settlement in unwritten]
            self._posting.post([], settlements)
            self._owed -= len(settlements)
            ids = [settlement.intent.id for settlement in settlements]
            self._loop.call_soon_threadsafe(self.journal.forget_unwritten, ids)
        return self._posting.step(all_open=all_open)

    def _note_posted(self) -> bool:
        """All is posted; whether that was soon."""
        began_s = self._began_s
        if began_s is not None and time.monotonic() - began_s >= _SLOW_S:
            self._note(False, f"the database took more than {_SLOW_S:g} s")
            self._renew_at_s = 0.0  # so that it is asked again soon
            return False
        if not self._healthy and not self._journal_failed and self.journal.has_room:
            if caught_up := self._posting.settlements - self._owed:
                _LOG.info("ledger_caught_up", settlements=caught_up)
            self._loop.call_soon_threadsafe(self._log_unrecorded)
            self._note(True)
        return True

    def _note(self, healthy: bool, reason: str = "") -> None:
        """Logs when the ledger can't be written, and when it can again, and no more often."""
        if healthy == self._healthy:
            return
        self._healthy = healthy
        if healthy:
            _LOG.info("ledger_back")
        else:
            self._owed = self._posting.settlements
            _LOG.error("ledger_unavailable", reason=reason)
        self._on_change(healthy)
