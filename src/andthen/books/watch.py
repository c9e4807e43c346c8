"""The keys in force, as a server sees them: in memory, and at most half a second old. Knows no request.

A look-up reads no database. One small read in a thread tells each half second whether the keys changed; a revocation
is in force within that time in every process, and what ends at a given time ends by the clock. While the database
can't be read, the last ring stays in force, and the log says so once at the beginning and once at the end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Protocol, Self, TypeVar

import structlog

from andthen.books.keys import Key, KeyRing
from andthen.books.store import BooksError

_T = TypeVar("_T")

_LOG = structlog.get_logger("andthen.books")


class Source(Protocol):
    """Where the keys are kept; a `Store` is one."""

    def keys_stamp(self) -> int:
        """Differs after every change of the keys."""

    def key_ring(self) -> KeyRing:
        """The keys, at least as new as the ring's stamp says."""


class KeyWatch:
    """`async with KeyWatch(store) as keys:`; then `keys.lookup(secret) or await keys.look_again(secret)`.

    Entering reads the ring once and raises `StoreUnavailable` where that fails: a server without keys is no use.
    """

    def __init__(self, store: Source, *, interval_s: float = 0.5, recheck_interval_s: float = 0.1) -> None:
        self._store = store
        self._interval_s = interval_s
        self._recheck_interval_s = recheck_interval_s
        self._ring = KeyRing(-1, {})
        self._confirmed_at_s = 0.0
        self._began_at_s = float("-inf")
        self._healthy = True
        self._reading = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        # Not a thread that others use: who keeps them all busy would put off the end of their own key.
        self._thread = ThreadPoolExecutor(1, "keys")

    async def __aenter__(self) -> Self:
        self._ring = await self._ask(self._store.key_ring)
        self._confirmed_at_s = time.monotonic()
        self._task = asyncio.create_task(self._run(), name="andthen-key-watch")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._thread.shutdown(wait=False, cancel_futures=True)

    @property
    def age_s(self) -> float:
        """Seconds since the ring was last known to be true."""
        return time.monotonic() - self._confirmed_at_s

    def lookup(self, secret: str) -> Key | None:
        """The key of this secret, by memory alone; None when the ring has none."""
        return self._ring.lookup(secret, time.time_ns() // 1_000_000)

    async def look_again(self, secret: str) -> Key | None:
        """After a miss: the database may know a key that is younger than the ring. All misses together cause at most
        one read each `recheck_interval_s`; a wrong key therefore waits at most about that long for its refusal."""
        asked_at_s = time.monotonic()
        async with self._reading:
            if self._began_at_s < asked_at_s:
                await asyncio.sleep(self._began_at_s + self._recheck_interval_s - time.monotonic())
                await self._read()
        return self._ring.lookup(secret, time.time_ns() // 1_000_000)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            async with self._reading:
                await self._read()

    async def _read(self) -> None:
        self._began_at_s = time.monotonic()
        try:
            if await self._ask(self._store.keys_stamp) != self._ring.stamp:
                self._ring = await self._ask(self._store.key_ring)
        except BooksError as error:
            if self._healthy:
                _LOG.error("keys_stale", reason=str(error), keys=len(self._ring))
            self._healthy = False
        else:
            self._confirmed_at_s = self._began_at_s
            if not self._healthy:
                _LOG.info("keys_fresh_again", keys=len(self._ring))
            self._healthy = True

    async def _ask(self, read: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, read)
