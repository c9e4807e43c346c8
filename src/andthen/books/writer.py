"""The ledger's pen: one thread that commits whatever has gathered as soon as the last commit has ended.

An intent waits for its commit, since nothing may be spent before it is written down. A settlement that the database
does not take, or not soon, goes to a file beside it and is written into the ledger later, once: what a caller got is
never forgotten. The thread also renews the lease that says that this process lives, and gives back what dead ones had
reserved.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Collection, Generator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import msgspec
import structlog

from andthen.books.ledger import Bounded, Intent, Settlement
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
_SPOOL = ".spool"
_KEPT_MAX = 10_000
"""Settlements of requests that cost nothing, in memory, while neither the database nor the disk takes any."""
_LOG = structlog.get_logger("andthen.books")


class LedgerStore(Protocol):
    """What the pen writes into. All methods block and may raise `BooksError`."""

    def record(self, entries: Sequence[Intent | Settlement]) -> list[Bounded | None]: ...

    def renew(self, holder: str, lease_s: float) -> None: ...

    def leases(self) -> dict[str, int]: ...

    def release_lost(self, holders: Collection[str]) -> int: ...


class _Waiting:
    """An entry and whoever waits for it. All wait in one event loop."""

    __slots__ = ("entry", "future", "loop")

    def __init__(self, entry: Intent | Settlement, loop: asyncio.AbstractEventLoop) -> None:
        self.entry = entry
        self.loop = loop
        self.future: asyncio.Future[Bounded | None] = loop.create_future()

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
        self._waiting = waiting
        self._due_s = waiting.loop.time() + _INTENT_WAIT_S

    def __await__(self) -> Generator[Any, None, Bounded | None]:
        return self._written().__await__()

    async def _written(self) -> Bounded | None:
        future = self._waiting.future
        if not future.done():
            # One that stops waiting must not end it for the others.
            await asyncio.wait((future,), timeout=self._due_s - self._waiting.loop.time())
        if not future.done():
            self._pen._give_up(self._waiting)
        return future.result()

    def leave(self) -> None:
        """Nobody waits for it any more: unless the database is at it already, it is not written."""
        self._pen._drop(self._waiting)


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
    """

    def __init__(
        self, store: LedgerStore, holder: str, folder: Path, on_change: Callable[[bool], None] = lambda _healthy: None
    ) -> None:
        self.holder = holder
        self._store = store
        self._spool = _Spool(folder, holder)
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
        return Writing(self, self._put(intent))

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

    async def settle(self, settlement: Settlement) -> None:
        """Writes a settlement down, into the database or beside it. Goes on also when who waits for it leaves."""
        await asyncio.shield(self.hand_in(settlement))

    def hand_in(self, settlement: Settlement) -> asyncio.Future[Bounded | None]:
        """As `settle`, for who need not wait for it."""
        waiting = self._put(settlement)
        overdue = waiting.loop.call_later(_SETTLE_WAIT_S, self._on_overdue, waiting)
        waiting.future.add_done_callback(lambda _: overdue.cancel())
        return waiting.future

    def _put(self, entry: Intent | Settlement) -> _Waiting:
        waiting = _Waiting(entry, asyncio.get_running_loop())
        with self._woken:
            self._waiting[waiting] = None
        if not self._calling:
            self._calling = True
            waiting.loop.call_soon(self._call)
        if self._over:  # a request that has outlived the server: the process ends any moment
            self._set_aside()
        return waiting

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
        self._spool.add([one.entry for one in found if isinstance(one.entry, Settlement)])
        for one in found:
            one.answer(None)

    def _run(self) -> None:
        renew_at_s = 0.0
        while True:
            with self._woken:
                self._woken.wait_for(lambda: self._called or self._stopping, max(0.0, renew_at_s - time.monotonic()))
                if self._stopping and not self._waiting:
                    break
            if time.monotonic() >= renew_at_s:  # the first time too: nothing is to be written without a lease
                renew_at_s = time.monotonic() + _RENEW_S
                self._keep_house()
            with self._woken:
                self._called = False
                self._taken, self._waiting = list(self._waiting), {}
                taken = self._taken
            if taken:
                self._write(taken)
                with self._woken:
                    self._taken = []
        self._keep_house(lease_s=0.0)

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
        self._spool.add([waiting.entry for waiting in taken if isinstance(waiting.entry, Settlement)])
        for waiting in taken:
            if isinstance(waiting.entry, Settlement):
                waiting.answer(None)
            else:
                waiting.fail(error)

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
        """Renews the lease, gives back what is lost, and writes what lies beside the database into it."""
        began_s = time.monotonic()
        try:
            self._store.renew(self.holder, lease_s)
            if written := self._spool.write_back(self._replay):
                _LOG.info("ledger_caught_up", settlements=written)
            self._release_lost()
        except Exception as error:
            self._leases = {}
            self._note(False, error)
        else:
            self._note_taken(began_s)

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


def _tell_refused(settlement: Settlement, error: Exception) -> None:
    _LOG.error("ledger_entry_refused", request=settlement.intent.id, reason=str(error))


class _Spool:
    """Settlements in files beside the database, one JSON a line, until the database takes them.

    A file is whole once it has its name and is never written again. Everybody reads everybody's, those of the dead
    too; that two read the same is no harm, since a settlement counts once.
    """

    def __init__(self, folder: Path, holder: str) -> None:
        self._folder = folder
        self._name = f"ledger-{holder}"
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._kept: dict[str, Settlement] = {}
        """What the disk did not take either, by the request's id."""

    def add(self, settlements: list[Settlement]) -> None:
        """Waits until the disk has them. Raises nothing: where the disk is full as well, they are kept in memory until
        it or the database takes them, and the log has those that cost something."""
        with self._lock:
            together = [*self._kept.values(), *settlements]
            if not together:
                return
            try:
                self._write(together)
            except (OSError, ValueError) as error:
                self._keep(settlements, error)
            else:
                self._kept = {}

    def _write(self, settlements: list[Settlement]) -> None:
        part = self._folder / f"{self._name}-{next(self._numbers)}.part"
        lines = [msgspec.json.encode(settlement) + b"\n" for settlement in settlements]
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
            part.rename(part.with_suffix(_SPOOL))
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise

    def _keep(self, settlements: list[Settlement], error: Exception) -> None:
        costly = [one for one in settlements if one.tokens.total or one.cost_micros]
        if isinstance(error, OSError):
            free = [one for one in settlements if one not in costly]  # of requests that were refused, without end
            kept = costly + free[: max(0, _KEPT_MAX - len(self._kept))]
            self._kept |= {one.intent.id: one for one in kept}
        _LOG.error("ledger_spool_failed", reason=str(error), settlements=repr(costly))

    def write_back(self, record: Callable[[list[Settlement]], object]) -> int:
        """Gives what is kept and what lies in the files to `record`, and removes it; how many. Raises what `record`
        raises."""
        with self._lock:
            kept = list(self._kept.values())
        if kept:
            record(kept)
        with self._lock:
            for settlement in kept:
                self._kept.pop(settlement.intent.id, None)
        written = len(kept)
        for path in sorted(self._folder.glob(f"ledger-*{_SPOOL}")):
            try:
                settlements = [msgspec.json.decode(line, type=Settlement) for line in path.read_bytes().splitlines()]
            except FileNotFoundError:
                continue  # another wrote it back
            except msgspec.MsgspecError as error:
                _LOG.error("ledger_spool_unreadable", file=str(path), reason=str(error))
                path.rename(path.with_suffix(".unreadable"))
                continue
            record(settlements)
            path.unlink(missing_ok=True)
            written += len(settlements)
        return written
