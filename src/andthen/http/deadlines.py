"""Many deadlines that are set, moved and cleared all the time, and one timer for all of them.

A timer of the event loop costs an object and a heap operation whenever it is set, and another when it is cancelled. A
connection sets and clears several for each request, and nearly none is ever reached. Here that is an assignment: the
heap has at most one live entry for each deadline, which is looked at when it is due, and put back if the deadline was
moved meanwhile.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from math import inf

_COMPACT_AT = 256
"""Below so many entries of the heap those of dropped deadlines are left there."""
_CLOCK_STEP_S = 0.001
"""uvloop's clock and timers count milliseconds, so a timer may fire a little before its time."""


class Deadline:
    """Calls `callback` once when it is reached. Made by `Deadlines.deadline`, and not set then."""

    __slots__ = ("_callback", "_deadlines", "due_s", "queued_s")

    def __init__(self, deadlines: Deadlines, callback: Callable[[], object]) -> None:
        self._deadlines = deadlines
        self._callback: Callable[[], object] | None = callback
        self.due_s = inf
        """On the loop's clock; infinity where it is not set."""
        self.queued_s = inf
        """Under which time it stands in the heap; infinity where it does not."""

    @property
    def is_live(self) -> bool:
        """It was not dropped."""
        return self._callback is not None

    def set(self, after_s: float) -> None:
        """Sets or moves it."""
        self.due_s = due_s = self._deadlines.now_s() + after_s
        if due_s < self.queued_s:
            self._deadlines.push(self)

    def clear(self) -> None:
        self.due_s = inf

    def drop(self) -> None:
        """Clears it for good and lets go of the callback."""
        self.due_s = inf
        self._callback = None
        if self.queued_s < inf:
            self._deadlines.dropped()

    def reach(self) -> None:
        """The time has come."""
        self.due_s = inf
        if self._callback is not None:
            self._callback()


class Deadlines:
    """All deadlines of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.now_s = loop.time
        self._loop = loop
        self._heap: list[tuple[float, int, Deadline]] = []
        self._numbers = itertools.count()
        """Break ties, so that deadlines are never compared."""
        self._dropped = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = inf

    def __len__(self) -> int:
        return len(self._heap)

    def deadline(self, callback: Callable[[], object]) -> Deadline:
        return Deadline(self, callback)

    def push(self, deadline: Deadline) -> None:
        """Has the deadline looked at when it is due; an older, later entry of it is void from now on."""
        deadline.queued_s = due_s = deadline.due_s
        heapq.heappush(self._heap, (due_s, next(self._numbers), deadline))
        if due_s < self._timer_s:
            self._set_timer(due_s)

    def dropped(self) -> None:
        """An entry of the heap is of no use any more."""
        self._dropped += 1
        if self._dropped > _COMPACT_AT and 2 * self._dropped > len(self._heap):
            self._heap[:] = [entry for entry in self._heap if entry[2].is_live and entry[0] == entry[2].queued_s]
            heapq.heapify(self._heap)
            self._dropped = 0

    def close(self) -> None:
        """No deadline is reached any more."""
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self, due_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(due_s, self._run)
        self._timer_s = due_s

    def _run(self) -> None:
        self._timer = None
        self._timer_s = inf
        now_s = self.now_s() + _CLOCK_STEP_S
        heap = self._heap
        while heap and heap[0][0] <= now_s:
            queued_s, _, deadline = heapq.heappop(heap)
            if queued_s != deadline.queued_s:
                continue  # void: it was put in again for an earlier time
            deadline.queued_s = inf
            if deadline.due_s <= now_s:
                deadline.reach()
            elif deadline.due_s < inf:
                self.push(deadline)
        if self._heap and self._timer is None:
            self._set_timer(self._heap[0][0])
