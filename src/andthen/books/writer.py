"""The ledger's pen: one thread that commits whatever has gathered as soon as the last commit has ended.

An intent waits for its commit, since nothing may be spent before it is written down. A settlement that the database
does not take goes to a file beside it and is written into the ledger later, once: what a caller got is never forgotten.
The thread also renews the lease that says that this process lives, and gives back what dead ones had reserved.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeVar

import msgspec
import structlog

from andthen.books.ledger import Bounded, Intent, Settlement
from andthen.books.store.errors import BooksError, StoreUnavailable

_Told = TypeVar("_Told")

LEASE_S = 20.0
_RENEW_S = 5.0
_INTENT_WAIT_S = 2.0
"""A request that can't be written down within this is refused."""
_SPOOL = ".spool"
_AT_ONCE = 256
_LOG = structlog.get_logger("andthen.books")


class LedgerStore(Protocol):
    """What the pen writes into. All methods block and may raise `BooksError`."""

    def record(self, entries: Sequence[Intent | Settlement]) -> list[Bounded | None]: ...

    def renew(self, holder: str, lease_s: float) -> None: ...

    def release_lost(self) -> int: ...


class _Waiting:
    """An entry and whoever waits for it."""

    __slots__ = ("entry", "future", "loop", "withdrawn")

    def __init__(self, entry: Intent | Settlement, loop: asyncio.AbstractEventLoop) -> None:
        self.entry = entry
        self.loop = loop
        self.future: asyncio.Future[Bounded | None] = loop.create_future()
        self.withdrawn = False
        """Who asked does not wait any more: an intent that is written all the same is settled at once, at no cost."""

    def answer(self, result: Bounded | None) -> None:
        self._tell(self._set_result, result)

    def fail(self, error: BooksError) -> None:
        self._tell(self._set_exception, error)

    def _set_result(self, result: Bounded | None) -> None:
        if not self.future.done():
            self.future.set_result(result)

    def _set_exception(self, error: BooksError) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    def _tell(self, tell: Callable[[_Told], None], what: _Told) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self.loop.call_soon_threadsafe(tell, what)


class LedgerWriter:
    """`async with LedgerWriter(store, holder, folder) as pen:`; leaving writes what is still to be written.

    Args:
        holder: this process's name among all that write into the database.
        folder: where settlements lie that the database did not take.
    """

    def __init__(self, store: LedgerStore, holder: str, folder: Path) -> None:
        self.holder = holder
        self._store = store
        self._spool = _Spool(folder, holder)
        self._waiting: list[_Waiting] = []
        self._woken = threading.Condition()
        self._stopping = False
        self._healthy = True
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)

    @property
    def healthy(self) -> bool:
        """Whether the database took the last entry."""
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
        await asyncio.to_thread(self._thread.join)

    async def intend(self, intent: Intent) -> Bounded | None:
        """Writes an intent down; tells the budget that has no room for it, if one has none.

        Raises:
            StoreUnavailable: it could not be written within 2 s.
        """
        waiting = self._put(intent)
        try:
            async with asyncio.timeout(_INTENT_WAIT_S):
                return await waiting.future
        except TimeoutError:
            raise StoreUnavailable("the ledger takes too long to write") from None
        finally:
            waiting.withdrawn = not (waiting.future.done() and not waiting.future.cancelled())

    async def settle(self, settlement: Settlement) -> None:
        """Writes a settlement down, into the database or beside it. Goes on also when who waits for it leaves."""
        await asyncio.shield(self._put(settlement).future)

    def _put(self, entry: Intent | Settlement) -> _Waiting:
        waiting = _Waiting(entry, asyncio.get_running_loop())
        with self._woken:
            self._waiting.append(waiting)
            self._woken.notify()
        return waiting

    def _run(self) -> None:
        renew_at_s = 0.0
        while True:
            with self._woken:
                self._woken.wait_for(lambda: self._waiting or self._stopping, max(0.0, renew_at_s - time.monotonic()))
                taken, self._waiting = self._waiting, []
                if self._stopping and not taken:
                    break
            if taken:
                self._write(taken)
            if time.monotonic() >= renew_at_s:
                renew_at_s = time.monotonic() + _RENEW_S
                self._keep_house()
        self._keep_house(lease_s=0.0)

    def _write(self, taken: list[_Waiting]) -> None:
        try:
            results = self._store.record([waiting.entry for waiting in taken])
        except Exception as error:
            self._lose(taken, error)
            return
        self._note(True)
        for waiting, result in zip(taken, results, strict=True):
            waiting.answer(result)
            if waiting.withdrawn and result is None and isinstance(waiting.entry, Intent):
                self._release(waiting.entry)

    def _lose(self, taken: list[_Waiting], error: Exception) -> None:
        """The database did not take them."""
        self._note(False, error)
        told = error if isinstance(error, BooksError) else StoreUnavailable(f"the ledger failed: {error!r}")
        settlements = [waiting for waiting in taken if isinstance(waiting.entry, Settlement)]
        self._spool.add([waiting.entry for waiting in settlements if isinstance(waiting.entry, Settlement)])
        for waiting in taken:
            if isinstance(waiting.entry, Settlement):
                waiting.answer(None)
            else:
                waiting.fail(told)

    def _release(self, intent: Intent) -> None:
        """Gives back what an intent had reserved that was written after its request had been refused."""
        now_ms = time.time_ns() // 1_000_000
        nothing = Settlement(
            intent=intent, status=503, ended_by="error", code="ledger_unavailable", settled_at_ms=now_ms
        )
        try:
            self._store.record([nothing])
        except Exception as error:
            self._note(False, error)
            self._spool.add([nothing])

    def _keep_house(self, lease_s: float = LEASE_S) -> None:
        """Renews the lease, gives back what is lost, and writes what lies beside the database into it."""
        try:
            self._store.renew(self.holder, lease_s)
            if written := self._spool.write_back(self._store.record):
                _LOG.info("ledger_caught_up", settlements=written)
            if lost := self._store.release_lost():
                _LOG.warning("ledger_released_lost", requests=lost)
        except Exception as error:
            self._note(False, error)
        else:
            self._note(True)

    def _note(self, healthy: bool, error: Exception | None = None) -> None:
        """Tells the log when the database goes and when it comes back, and no more often."""
        if healthy and not self._healthy:
            _LOG.info("ledger_back")
        elif not healthy and self._healthy:
            _LOG.error("ledger_unavailable", reason=str(error))
        self._healthy = healthy


class _Spool:
    """Settlements in files beside the database, one JSON a line, until the database takes them.

    A process writes into its own file and reads everybody's: those of the dead too. A file that two read is no harm,
    since a settlement counts once.
    """

    def __init__(self, folder: Path, holder: str) -> None:
        self._folder = folder
        self._own = folder / f"ledger-{holder}{_SPOOL}"

    def add(self, settlements: list[Settlement]) -> None:
        """Appends, and waits until the disk has it. Raises nothing: where the disk is full as well, the log gets it."""
        if not settlements:
            return
        lines = b"".join(msgspec.json.encode(settlement) + b"\n" for settlement in settlements)
        try:
            descriptor = os.open(self._own, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                os.write(descriptor, lines)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            _LOG.error("ledger_spool_failed", reason=str(error), settlements=lines.decode())

    def write_back(self, record: Callable[[list[Settlement]], object]) -> int:
        """Gives what lies in the files to `record`, and removes them; how many. Raises what `record` raises."""
        written = 0
        for path in sorted(self._folder.glob(f"ledger-*{_SPOOL}*")):
            taken = path.with_name(f"{path.name.partition(_SPOOL)[0]}{_SPOOL}.taken")
            try:
                path.replace(taken)  # what is appended from now on goes into a new file
                settlements = _read(taken)
            except FileNotFoundError:
                continue  # another took it
            for start in range(0, len(settlements), _AT_ONCE):
                record(settlements[start : start + _AT_ONCE])
            taken.unlink(missing_ok=True)
            written += len(settlements)
        return written


def _read(path: Path) -> list[Settlement]:
    """A line that was cut off at the file's end is passed over."""
    found: list[Settlement] = []
    for line in path.read_bytes().splitlines():
        with contextlib.suppress(msgspec.MsgspecError):
            found.append(msgspec.json.decode(line, type=Settlement))
    return found
