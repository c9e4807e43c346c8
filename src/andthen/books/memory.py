"""Limits that are counted in this process. Enough where one process serves."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

from andthen.books.limits import WINDOW_MS, Bounds, Counts, Grant, Refused, State, check_possible, limited


def monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class MemoryLimiter:
    """The `Limiter` in memory. Nothing in it waits, so no cancellation can come in between."""

    def __init__(self, *, window_ms: int = WINDOW_MS, now_ms: Callable[[], int] = monotonic_ms) -> None:
        self._counts = Counts(window_ms)
        self._now_ms = now_ms
        self._numbers = itertools.count(1)

    @property
    def state(self) -> State:
        return "ok"

    async def take(self, key_id: str, bounds: Bounds, tokens: int) -> Grant:
        """As the protocol says."""
        if bounds.unbounded:
            return Grant("", key_id)
        check_possible(bounds, tokens)
        grant_id = str(next(self._numbers))
        outcome = self._counts.take(self._now_ms(), grant_id, key_id, bounds, tokens)
        if isinstance(outcome, Refused):
            raise limited(bounds, outcome, tokens)
        return Grant(grant_id, key_id, bounds, outcome)

    async def settle(self, grant: Grant, tokens: int) -> None:
        """As the protocol says."""
        if log := self._counts.log(grant.key_id):
            log.settle(grant.id, tokens)
