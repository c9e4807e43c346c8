"""Many deadlines on one timer of the event loop.

A timer object per request costs more than the rest of its bookkeeping, and most deadlines are moved or cancelled long
before they pass. So a deadline that is moved to a later time only notes that time: the heap keeps its earlier entry,
and when that comes up, the deadline is queued again for the time noted.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Callable
from itertools import count

_EARLY_S = 0.001
"""uvloop rounds timers to milliseconds and may run them this much too early."""
_LATE_S = 0.05
_SWEEP_ABOVE = 256


class Deadline:
    """Calls `callback` once `at_s` (in the event loop's time) has passed. It may be moved also after that."""

    __slots__ = ("_callback", "_entry_s", "_queue", "at_s")

    def __init__(self, queue: DeadlineQueue, at_s: float, callback: Callable[[], None]) -> None:
        self._queue = queue
        self._callback: Callable[[], None] | None = callback
        self._entry_s = math.inf
        """The time of its entry in the heap; infinite if it has none."""
        self.at_s = math.inf
        self.move(at_s)

    def move(self, at_s: float) -> None:
        """Sets another time. With `math.inf` it does not pass until it is moved again."""
        self.at_s = at_s
        if at_s < self._entry_s and self._callback is not None:
            self._queue._push(self, at_s)

    def cancel(self) -> None:
        """Ends it for good and lets go of the callback."""
        self.at_s = math.inf
        if self._callback is not None:
            self._callback = None
            self._queue._forget(self)


class DeadlineQueue:
    """The deadlines of one event loop. Not safe to use from another thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._heap: list[tuple[float, int, Deadline]] = []
        self._numbers = count()
        self._cancelled = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = math.inf

    def add(self, at_s: float, callback: Callable[[], None]) -> Deadline:
        return Deadline(self, at_s, callback)

    def close(self) -> None:
        """Stops the timer. No deadline passes any more."""
        self._heap.clear()
        self._set_timer()

    def _push(self, deadline: Deadline, at_s: float) -> None:
        # An earlier entry of the same deadline stays: `_run` skips an entry whose time is not `_entry_s`.
        deadline._entry_s = at_s
        heapq.heappush(self._heap, (at_s, next(self._numbers), deadline))
        if at_s < self._timer_s:
            self._set_timer()

    def _forget(self, deadline: Deadline) -> None:
        if deadline._entry_s < math.inf:
            deadline._entry_s = math.inf
            self._cancelled += 1
            if self._cancelled > _SWEEP_ABOVE and self._cancelled * 2 > len(self._heap):
                self._heap = [entry for entry in self._heap if entry[2]._entry_s == entry[0]]
                heapq.heapify(self._heap)
                self._cancelled = 0

    def _set_timer(self) -> None:
        at_s = self._heap[0][0] if self._heap else math.inf
        if at_s != self._timer_s:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(at_s, self._run) if at_s < math.inf else None
            self._timer_s = at_s

    def _run(self) -> None:
        now_s = self._loop.time()
        if now_s - self._timer_s > _LATE_S:
            # The loop was busy. uvloop runs timers before it reads sockets: what arrived in time is read first.
            self._timer_s = now_s + _EARLY_S
            self._timer = self._loop.call_later(_EARLY_S, self._run)
            return
        self._timer, self._timer_s = None, math.inf
        heap = self._heap
        while heap and heap[0][0] <= now_s + _EARLY_S:
            entry_s, _, deadline = heapq.heappop(heap)
            if deadline._entry_s == entry_s:
                deadline._entry_s = math.inf
                if deadline.at_s > now_s + _EARLY_S:
                    if deadline.at_s < math.inf:
                        self._push(deadline, deadline.at_s)
                else:
                    self._pass(deadline)
                    heap = self._heap
        self._set_timer()

    def _pass(self, deadline: Deadline) -> None:
        callback, deadline.at_s = deadline._callback, math.inf
        if callback is not None:
            try:
                callback()
            except Exception as error:
                self._loop.call_exception_handler({"message": "a deadline's callback failed", "exception": error})
