"""Server-sent events as vendors send them. WHATWG HTML, section 9.2.6, without reconnection."""

from __future__ import annotations

import re

from msgspec import Struct

MAX_EVENT_BYTES = 16 * 2**20

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\n|\r")


class ServerSentEvent(Struct, frozen=True):
    name: str
    """Of the `event:` line; empty where there is none."""
    data: bytes


class EventTooLong(ValueError):
    """An event goes on for longer than any reply does."""


class SseParser:
    """Bytes in, events out. Comments and events without data are passed over; an event that the body's end cuts off is
    dropped, so that a reply cut short never looks whole."""

    __slots__ = ("_after_cr", "_begun", "_data", "_data_size", "_line", "_name", "_size")

    def __init__(self) -> None:
        self._line: list[bytes] = []
        """The pieces of the line that is not complete."""
        self._size = 0
        """Bytes of these."""
        self._data_size = 0
        self._begun = False
        self._after_cr = False
        """The last byte was a CR: an LF now belongs to it."""
        self._name = ""
        self._data: list[bytes] = []

    def feed(self, data: bytes) -> list[ServerSentEvent]:
        """The events that `data` completes. Raises `EventTooLong`."""
        if not data:
            return []
        own = data.removeprefix(b"\n") if self._after_cr else data
        self._after_cr = data.endswith(b"\r")
        # Looking for three ends costs several times as much as for one.
        *ended, rest = _LINE_END.split(own) if b"\r" in own else own.split(b"\n")
        events: list[ServerSentEvent] = []
        for line in ended:
            if self._line:
                line = b"".join([*self._line, line])
                self._line.clear()
                self._size = 0
            self._end_line(line, events)
        if rest:
            self._line.append(rest)
            self._size += len(rest)
        if self._size + self._data_size > MAX_EVENT_BYTES:
            raise EventTooLong
        return events

    def _end_line(self, line: bytes, events: list[ServerSentEvent]) -> None:
        if not self._begun:
            self._begun = True
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if line:
            self._take(line)
            return
        if any(self._data):
            data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
            events.append(ServerSentEvent(self._name, data))
        self._name, self._data_size = "", 0
        self._data.clear()

    def _take(self, line: bytes) -> None:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
            self._data_size += len(value) + 1
        elif field == b"event":
            self._name = value.decode(errors="replace")
