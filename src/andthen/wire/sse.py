"""Server-sent events as vendors send them. WHATWG HTML, section 9.2.6, without reconnection."""

from __future__ import annotations

from msgspec import Struct

MAX_EVENT_BYTES = 16 * 2**20


class ServerSentEvent(Struct, frozen=True):
    name: str
    """Of the `event:` line; empty where there is none."""
    data: bytes


class EventTooLong(ValueError):
    """An event goes on for longer than any reply does."""


class SseParser:
    """Bytes in, events out. Comments and events without data are passed over; an event that the body's end cuts off is
    dropped, so that a reply cut short never looks whole."""

    __slots__ = ("_data", "_line", "_name", "_size")

    def __init__(self) -> None:
        self._line = b""
        self._name = ""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[ServerSentEvent]:
        """The events that `data` completes. Raises `EventTooLong`."""
        buffer = self._line + data
        # A CR at the very end may be half of a CRLF: it waits for the next byte.
        tail = b""
        if buffer.endswith(b"\r"):
            buffer, tail = buffer[:-1], b"\r"
        if b"\r" in buffer:
            buffer = buffer.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = buffer.split(b"\n")
        self._line = lines.pop() + tail
        events: list[ServerSentEvent] = []
        for line in lines:
            self._size += len(line)
            if line:
                self._take(line)
            else:
                if self._data:
                    events.append(ServerSentEvent(self._name, b"\n".join(self._data)))
                self._name, self._data, self._size = "", [], 0
        if self._size + len(self._line) > MAX_EVENT_BYTES:
            raise EventTooLong
        return events

    def _take(self, line: bytes) -> None:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
        elif field == b"event":
            self._name = value.decode(errors="replace")
