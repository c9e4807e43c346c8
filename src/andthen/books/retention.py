"""How long the books keep what: old rows are removed while the server runs, as its settings say.

Every process offers itself each minute, and of all that share the database one gets the turn. It removes in small
batches and rests longer after each than it took, so that those who write hardly notice.
"""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Protocol, Self

import structlog

from andthen.books.settings import BooksSettings
from andthen.books.store import BooksError
from andthen.books.store.removal import Ageing

_EVERY_S = 60.0
_TURN_S = 45.0
"""How long a turn lasts at most; the rest goes with the next."""
BATCH_ROWS = 200
_REST_S = 0.05
_REST_TIMES = 4
_DAY_MS = 86_400_000
_LOG = structlog.get_logger("andthen.books")


class Source(Protocol):
    """Where the rows are. All methods block and may raise `BooksError`."""

    def take_turn(self, lease_s: float) -> int | None: ...

    def remove_old(self, what: Ageing, before_ms: int, *, most: int) -> int: ...


class Retention:
    """`async with Retention(store, settings):` removes what is too old for as long as it is entered."""

    def __init__(self, store: Source, settings: BooksSettings) -> None:
        kept: dict[Ageing, int | None] = {
            "requests": settings.keep_requests_days,
            "texts": settings.keep_text_days,
            "audit": settings.keep_audit_days,
        }
        self._store = store
        self._days = {what: days for what, days in kept.items() if days is not None}
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._days:
            self._task = asyncio.create_task(self._run(), name="andthen-retention")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            try:
                if (at_ms := await asyncio.to_thread(self._store.take_turn, _EVERY_S)) is not None:
                    await self._remove(at_ms)
            except BooksError as error:
                _LOG.warning("retention_failed", reason=str(error))
            await asyncio.sleep(_EVERY_S)

    async def _remove(self, at_ms: int) -> None:
        """One turn, at the moment `at_ms`."""
        until_s = time.monotonic() + _TURN_S
        for what, days in self._days.items():
            before_ms, rows = at_ms - days * _DAY_MS, 0
            while time.monotonic() < until_s:
                began_s = time.monotonic()
                removed = await asyncio.to_thread(self._store.remove_old, what, before_ms, most=BATCH_ROWS)
                rows += removed
                if removed < BATCH_ROWS:
                    break
                await asyncio.sleep(max(_REST_S, _REST_TIMES * (time.monotonic() - began_s)))
            if rows:
                _LOG.info("retention_removed", what=what, rows=rows)
