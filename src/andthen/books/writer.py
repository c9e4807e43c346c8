"""The ledger's pen: one thread that commits whatever has gathered as soon as the last commit has ended.

An intent waits for its commit, since nothing may be spent before it is written down. A settlement that the database
does not take, or not soon, goes to a file beside it and is written into the ledger later, once: what a caller got is
never forgotten. It is written beside live work, which comes first. A refusal that cost nothing is counted and gets no
row while the database takes none. The thread also renews the lease that says that this process lives, and gives back
what dead ones had reserved.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import structlog

from andthen.books.ledger import Bounded, Intent, Settlement
from andthen.books.spool import Spool
from andthen.books.store.errors import BooksError, StoreUnavailable

_Told = TypeVar("_Told")

LEASE_S = 20.0
_RENEW_S = 5.0
_STILL_S = 2 * _RENEW_S
"""Who has not renewed its lease for so long while it was watched may be dead, and nobody else: the clock that leases
run by may have been set, and a database that was gone took no renewal."""
_INTENT_WAIT_S = 2.0
"""A request that can't be written down within this is refused."""
_SETTLE_WAIT_S = 5.0
"""A settlement that the database has not taken within this is written beside it."""
_STOP_WAIT_S = 10.0
_CATCH_UP_S = 0.02
"""What a batch of settlements that lay beside the database may take of the thread: a live entry may wait so long."""
_CATCH_UP_SHARE = 0.25
"""Of the thread's time while there is something to catch up with."""
_CATCH_UP_FIRST, _CATCH_UP_MAX = 8, 256
"""Settlements in a batch: at first, and at most however fast the database is."""
_STOP_CATCHING_UP_S = 5.0
_UNRECORDED_EVERY_S = 60.0
_LOG = structlog.get_logger("andthen.books")


class LedgerStore(Protocol):
    """What the pen writes into. All methods block and may raise `BooksError`."""

    def record(self, entries: Sequence[Intent | Settlement]) -> list[Bounded | None]: ...

    def renew(self, holder: str, lease_s: float) -> None: ...

    def leases(self) -> dict[str, int]: ...

    def release_lost(self, holders: Collection[str]) -> int: ...


class _Waiting:
    """An entry and whoever waits for it. All wait in one event loop."""

    __slots__ = ("entry", "future", "intent", "loop", "unwritten")

    def __init__(
        self, entry: Intent | Settlement, loop: asyncio.AbstractEventLoop, intent: _Waiting | None = None
    ) -> None:
        self.entry = entry
        self.intent = intent
        """That of a settlement's request, if it has one."""
        self.unwritten = True
        """Surely the database has not got it."""
        self.loop = loop
        self.future: asyncio.Future[Bounded | None] = loop.create_future()

    @property
    def dispensable(self) -> bool:
        """It is counted where the database does not take it, and not written later: a refusal that cost nothing, whose
        intent is not in the database either."""
        return (
            isinstance(self.entry, Settlement)
            and _cost_nothing(self.entry)
            and (self.intent is None or self.intent.unwritten)
        )

    def answer(self, result: Bounded | None) -> None:
        self._tell(self.set_result, result)

    def fail(self, error: BooksError) -> None:
        self._tell(self.set_exception, error)

    def set_result(self, result: Bounded | None) -> None:
        """In the event loop."""
        if not self.future.done():
            self.future.set_result(result)

    def set_exception(self, error: BooksError) -> None:
        """In the event loop."""
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()  # who waited for it may have left

    def _tell(self, tell: Callable[[_Told], None], what: _Told) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self.loop.call_soon_threadsafe(tell, what)


class Writing:
    """An intent on its way into the database. Awaited, by as many as like, it tells the budget that has no room for it,
    or None.

    Awaiting raises:
        StoreUnavailable: it could not be written within 2 s.
    """

    def __init__(self, pen: LedgerWriter, waiting: _Waiting) -> None:
        self._pen = pen
        self.waiting = waiting
        self._due_s = waiting.loop.time() + _INTENT_WAIT_S

    def __await__(self) -> Generator[Any, None, Bounded | None]:
        return self._written().__await__()

    async def _written(self) -> Bounded | None:
        future = self.waiting.future
        if not future.done():
            # One that stops waiting must not end it for the others.
            await asyncio.wait((future,), timeout=self._due_s - self.waiting.loop.time())
        if not future.done():
            self._pen._give_up(self.waiting)
        return future.result()

    @property
    def failed(self) -> bool:
        """The database did not take it, or not soon enough."""
        future = self.waiting.future
        return future.done() and not future.cancelled() and future.exception() is not None

    def leave(self) -> None:
        """Nobody waits for it any more: unless the database is at it already, it is not written."""
        self._pen._drop(self.waiting)


def _answer(taken: list[_Waiting], results: list[Bounded | None]) -> None:
    """Tells all at once: each call would wake the event loop."""

    def tell() -> None:
        for waiting, result in zip(taken, results, strict=True):
            waiting.set_result(result)

    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
        taken[0].loop.call_soon_threadsafe(tell)


class LedgerWriter:
    """`async with LedgerWriter(store, holder, folder) as pen:`; leaving writes what is still to be written.

    Args:
        holder: this process's name among all that write into the database.
        folder: where settlements lie that the database did not take.
        on_change: called in some thread when `healthy` has changed.
        on_unrecorded: called in some thread with the error's code of each request that was refused, cost nothing and
            gets no row, or with `caller` where the caller went away.
    """

    def __init__(
        self,
        store: LedgerStore,
        holder: str,
        folder: Path,
        on_change: Callable[[bool], None] = lambda _healthy: None,
        on_unrecorded: Callable[[str], None] = lambda _code: None,
    ) -> None:
        self.holder = holder
        self._store = store
        self._spool = Spool(folder, holder)
        self._waiting: dict[_Waiting, None] = {}
        """In their order."""
        self._taken: list[_Waiting] = []
        """What the database is writing."""
        self._woken = threading.Condition()
        self._calling = False
        """The event loop is about to call the thread."""
        self._called = False
        self._stopping = False
        self._over = False
        self._healthy = True
        self._on_change = on_change
        self._on_unrecorded = on_unrecorded
        self._unrecorded: Counter[str] = Counter()
        """Since the log's last line about them."""
        self._unrecorded_told_s = -math.inf
        self._batch = _CATCH_UP_FIRST
        self._catch_up_at_s = math.inf
        self._caught_up = 0
        """Since the log's last line about it."""
        self._leases: dict[tuple[str, int], float] = {}
        """Whose, until when, and since when it was seen so, by `time.monotonic`."""
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)

    @property
    def healthy(self) -> bool:
        """Whether the database took the last entry, and soon."""
        return self._healthy

    async def __aenter__(self) -> Self:
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._woken:
            self._stopping = True
            self._woken.notify()
        await asyncio.to_thread(self._thread.join, _STOP_WAIT_S)
        with self._woken:
            self._over = True
        await asyncio.to_thread(self._set_aside)

    def intend(self, intent: Intent) -> Writing:
        """Begins to write an intent down. Whatever becomes of it, who asks settles it: one that is refused may be
        written all the same."""
        waiting = _Waiting(intent, asyncio.get_running_loop())
        self._put(waiting)
        return Writing(self, waiting)

    def _give_up(self, waiting: _Waiting) -> None:
        """It takes too long for who waits."""
        error = StoreUnavailable(f"the database has taken nothing for {_INTENT_WAIT_S:g} s")
        self._note(False, error)
        waiting.set_exception(error)
        self._drop(waiting)

    def _drop(self, waiting: _Waiting) -> None:
        """Unless the database is at it already, it is not written."""
        with self._woken:
            self._waiting.pop(waiting, None)

    async def settle(self, settlement: Settlement, writing: Writing | None = None) -> None:
        """Writes a settlement down, into the database or beside it. Goes on also when who waits for it leaves.

        Args:
            writing: that of the request's intent, if it has one.
        """
        await asyncio.shield(self.hand_in(settlement, writing))

    def hand_in(self, settlement: Settlement, writing: Writing | None = None) -> asyncio.Future[Bounded | None]:
        """As `settle`, for who need not wait for it."""
        waiting = _Waiting(settlement, asyncio.get_running_loop(), None if writing is None else writing.waiting)
        if waiting.dispensable and not self._healthy:
            self._leave_out([waiting])
            waiting.set_result(None)
            return waiting.future
        self._put(waiting)
        overdue = waiting.loop.call_later(_SETTLE_WAIT_S, self._on_overdue, waiting)
        waiting.future.add_done_callback(lambda _: overdue.cancel())
        return waiting.future

    def _put(self, waiting: _Waiting) -> None:
        with self._woken:
            self._waiting[waiting] = None
        if not self._calling:
            self._calling = True
            waiting.loop.call_soon(self._call)
        if self._over:  # a request that has outlived the server: the process ends any moment
            self._set_aside()

    def _call(self) -> None:
        """Has the thread write what a turn of the event loop has put down. A call for each entry would make many small
        commits of it, and have two threads fight for the interpreter."""
        self._calling = False
        with self._woken:
            self._called = True
            self._woken.notify()

    def _on_overdue(self, waiting: _Waiting) -> None:
        if not waiting.future.done():
            threading.Thread(target=self._set_aside, name="ledger-spool", daemon=True).start()

    def _set_aside(self) -> None:
        """The database stands still: what it has not taken is written beside it. That it may take some of it all the
        same is no harm, since a settlement counts once."""
        with self._woken:
            found = [one for one in (*self._taken, *self._waiting) if isinstance(one.entry, Settlement)]
            left = [one for one in self._waiting if not isinstance(one.entry, Settlement)]
            self._taken, self._waiting = [], dict.fromkeys(left)
        self._spool_or_count(found)

    def _spool_or_count(self, settlements: list[_Waiting]) -> None:
        """What the database did not take."""
        left_out: list[_Waiting] = []
        spooled: list[Settlement] = []
        for waiting in settlements:
            if waiting.dispensable:
                left_out.append(waiting)
            elif isinstance(waiting.entry, Settlement):
                spooled.append(waiting.entry)
        self._leave_out(left_out)
        self._spool.add(spooled)
        for waiting in settlements:
            waiting.answer(None)

    def _leave_out(self, settlements: list[_Waiting]) -> None:
        """Counts requests that get no row."""
        for settlement in (waiting.entry for waiting in settlements if isinstance(waiting.entry, Settlement)):
            code = settlement.code or settlement.ended_by
            self._on_unrecorded(code)
            with self._woken:
                self._unrecorded[code] += 1

    def _run(self) -> None:
        renew_at_s = 0.0
        while True:
            wake_at_s = min(renew_at_s, self._catch_up_at_s)
            with self._woken:
                self._woken.wait_for(lambda: self._called or self._stopping, max(0.0, wake_at_s - time.monotonic()))
                if self._stopping and not self._waiting:
                    break
            if time.monotonic() >= renew_at_s:  # the first time too: nothing is to be written without a lease
                renew_at_s = time.monotonic() + _RENEW_S
                self._keep_house()
            with self._woken:
                self._called = False
                self._taken, self._waiting = list(self._waiting), {}
                taken = self._taken
                for waiting in taken:
                    waiting.unwritten = False
            if taken:
                self._write(taken)
                with self._woken:
                    self._taken = []
            if time.monotonic() >= self._catch_up_at_s:
                self._catch_up()
        self._keep_house(lease_s=0.0)
        give_up_at_s = time.monotonic() + _STOP_CATCHING_UP_S
        while self._catch_up_at_s < math.inf and time.monotonic() < give_up_at_s:
            self._catch_up()
        self._tell_counts()

    def _write(self, taken: list[_Waiting]) -> None:
        began_s = time.monotonic()
        try:
            results = self._store.record([waiting.entry for waiting in taken])
        except StoreUnavailable as error:
            self._lose(taken, error)
        except Exception as error:
            if len(taken) > 1:  # the others need not suffer for one that can't be written
                for waiting in taken:
                    self._write([waiting])
            else:
                self._refuse(taken[0], error)
        else:
            self._note_taken(began_s)
            _answer(taken, results)

    def _refuse(self, waiting: _Waiting, error: Exception) -> None:
        """No try will write it."""
        if isinstance(waiting.entry, Settlement):
            _tell_refused(waiting.entry, error)
            waiting.answer(None)
        else:
            waiting.fail(error if isinstance(error, BooksError) else StoreUnavailable(f"the ledger failed: {error!r}"))

    def _lose(self, taken: list[_Waiting], error: StoreUnavailable) -> None:
        """The database did not take them."""
        self._note(False, error)
        self._spool_or_count([waiting for waiting in taken if isinstance(waiting.entry, Settlement)])
        for waiting in taken:
            if isinstance(waiting.entry, Intent):
                waiting.unwritten = error.unwritten
                waiting.fail(error)

    def _catch_up(self) -> None:
        """Writes a batch of what lies beside the database into it, and sees when the next one's turn is."""
        began_s = time.monotonic()
        settlements = self._spool.next(self._batch)
        if not settlements:
            self._catch_up_at_s = math.inf
            self._tell_counts()
            return
        try:
            self._replay(settlements)
        except StoreUnavailable as error:
            self._catch_up_at_s = math.inf
            self._note(False, error)
            return
        self._spool.taken()
        self._caught_up += len(settlements)
        ended_s = time.monotonic()
        took_s = ended_s - began_s
        fitting = len(settlements) * _CATCH_UP_S / took_s
        self._batch = max(1, min(round(fitting), 2 * self._batch, _CATCH_UP_MAX))
        self._catch_up_at_s = ended_s + took_s * (1 / _CATCH_UP_SHARE - 1)

    def _replay(self, settlements: list[Settlement]) -> None:
        """Raises `StoreUnavailable`."""
        try:
            self._store.record(settlements)
        except StoreUnavailable:
            raise
        except Exception as error:
            if len(settlements) == 1:
                _tell_refused(settlements[0], error)
            else:
                for settlement in settlements:
                    self._replay([settlement])

    def _keep_house(self, lease_s: float = LEASE_S) -> None:
        """Renews the lease, gives back what is lost, and looks for what lies beside the database."""
        began_s = time.monotonic()
        try:
            self._store.renew(self.holder, lease_s)
            self._release_lost()
        except Exception as error:
            self._leases = {}
            self._catch_up_at_s = math.inf
            self._note(False, error)
        else:
            self._note_taken(began_s)
            self._spool.look()
            self._catch_up_at_s = min(self._catch_up_at_s, time.monotonic())
        self._tell_counts()

    def _tell_counts(self) -> None:
        if self._caught_up:
            _LOG.info("ledger_caught_up", settlements=self._caught_up)
            self._caught_up = 0
        now_s = time.monotonic()
        if not self._unrecorded or (not self._healthy and now_s - self._unrecorded_told_s < _UNRECORDED_EVERY_S):
            return
        self._unrecorded_told_s = now_s
        with self._woken:
            unrecorded, self._unrecorded = self._unrecorded, Counter()
        _LOG.warning("ledger_unrecorded", requests=dict(unrecorded))

    def _release_lost(self) -> None:
        now_s = time.monotonic()
        self._leases = {lease: self._leases.get(lease, now_s) for lease in self._store.leases().items()}
        still = [holder for (holder, _), since_s in self._leases.items() if now_s - since_s >= _STILL_S]
        if still and (lost := self._store.release_lost(still)):
            _LOG.warning("ledger_released_lost", requests=lost)

    def _note_taken(self, began_s: float) -> None:
        if time.monotonic() - began_s < _INTENT_WAIT_S:  # else it is as good as gone to who waits for it
            self._note(True)

    def _note(self, healthy: bool, error: Exception | None = None) -> None:
        """Tells the log when the database goes and when it comes back, and no more often."""
        if healthy and not self._healthy:
            _LOG.info("ledger_back")
        elif not healthy and self._healthy:
            _LOG.error("ledger_unavailable", reason=str(error))
        if healthy != self._healthy:
            self._healthy = healthy
            self._on_change(healthy)


def _cost_nothing(settlement: Settlement) -> bool:
    """Whether it is of a request that was refused or left before anything was asked of anybody."""
    return settlement.status >= 400 and not (settlement.calls or settlement.tokens.total or settlement.cost_micros)


def _tell_refused(settlement: Settlement, error: Exception) -> None:
    _LOG.error("ledger_entry_refused", request=settlement.intent.id, reason=str(error))
