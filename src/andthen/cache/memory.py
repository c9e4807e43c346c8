"""Replies in the memory of one process."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from msgspec import Struct

LARGEST_SHARE = 8
"""No reply takes more than such a part of the room: one must not drive all others out."""
_OVERHEAD_BYTES = 256
"""What an entry takes beyond its name and what it keeps: the objects around them (measured, CPython 3.11)."""


class _Entry(Struct, frozen=True):
    kept: bytes
    until_s: float


class MemoryStore:
    """The `ReplyStore` in memory.

    Args:
        most_bytes: its bound; what was not asked for the longest makes room.
        keep_s: how long each is kept.
        on_size: told the bytes that are taken, whenever they change.
        now_s: a clock that only goes forward.
    """

    def __init__(
        self,
        most_bytes: int,
        keep_s: float,
        on_size: Callable[[int], object] = lambda _bytes: None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most_bytes = most_bytes
        self._keep_s = keep_s
        self._on_size = on_size
        self._now_s = now_s
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        """The one asked for last at the end."""
        self._bytes = 0

    async def get(self, name: bytes) -> bytes | None:
        """As the protocol says."""
        entry = self._entries.get(name)
        if entry is None:
            return None
        if entry.until_s <= self._now_s():
            self._drop(name)
            return None
        self._entries.move_to_end(name)
        return entry.kept

    async def put(self, name: bytes, kept: bytes) -> None:
        """As the protocol says."""
        if name in self._entries:
            self._drop(name)
        size = _size(name, kept)
        if size > self._most_bytes // LARGEST_SHARE:
            return
        while self._bytes + size > self._most_bytes:
            self._drop(next(iter(self._entries)))
        self._entries[name] = _Entry(kept, self._now_s() + self._keep_s)
        self._grow(size)

    def _drop(self, name: bytes) -> None:
        self._grow(-_size(name, self._entries.pop(name).kept))

    def _grow(self, more_bytes: int) -> None:
        self._bytes += more_bytes
        self._on_size(self._bytes)


def _size(name: bytes, kept: bytes) -> int:
    return len(name) + len(kept) + _OVERHEAD_BYTES
