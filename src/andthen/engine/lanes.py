"""A queue between threads that serves its owners in turn.

Knows nothing of what it carries.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from typing import Generic, TypeVar

_Item = TypeVar("_Item")


class FairQueue(Generic[_Item]):
    """Items by owner. Owners are served in turn, each in its own order, and none has all workers at once.

    Args:
        workers: threads that call `get` and, after each item, `done`; at least 2.
    """

    def __init__(self, workers: int) -> None:
        self._most = workers - 1
        self._waiting: OrderedDict[str, deque[_Item]] = OrderedDict()
        self._in_work: dict[str, int] = {}
        self._closed = False
        self._changed = threading.Condition()

    def put(self, owner: str, item: _Item) -> None:
        with self._changed:
            self._waiting.setdefault(owner, deque()).append(item)
            self._changed.notify()

    def get(self) -> tuple[str, _Item] | None:
        """The next item and its owner, to be told to `done`; None once the queue is closed. Blocks."""
        with self._changed:
            while not self._closed:
                owner = next((one for one in self._waiting if self._in_work.get(one, 0) < self._most), None)
                if owner is not None:
                    return owner, self._pop(owner)
                self._changed.wait()
            return None

    def done(self, owner: str) -> None:
        """A worker has finished an item of this owner."""
        with self._changed:
            self._in_work[owner] -= 1
            if not self._in_work[owner]:
                del self._in_work[owner]
            self._changed.notify()

    def close(self) -> None:
        """Every `get` returns None from now on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _pop(self, owner: str) -> _Item:
        items = self._waiting[owner]
        item = items.popleft()
        self._waiting.move_to_end(owner)
        if not items:
            del self._waiting[owner]
        self._in_work[owner] = self._in_work.get(owner, 0) + 1
        return item
