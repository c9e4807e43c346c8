"""A reply that comes whole: gathered, then read at once by its language."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from andthen.contract.events import Event
from andthen.wire.base import Target
from andthen.wire.failures import garbled

MAX_REPLY_BYTES = 64 * 2**20
"""Of any reply, whole or the part of a stream that waits to be read."""

_Shape = TypeVar("_Shape")


class WholeDecoder:
    """Decodes a reply that is one JSON value.

    Args:
        read: makes events of the whole body; raises `AndthenError`.
    """

    fingerprint: str | None = None

    def __init__(self, target: Target, read: Callable[[bytes], list[Event]]) -> None:
        self._target = target
        self._read = read
        self._body = bytearray()

    def feed(self, data: bytes) -> list[Event]:
        self._body += data
        if len(self._body) > MAX_REPLY_BYTES:
            raise garbled(self._target, "is too long")
        return []

    def end(self) -> list[Event]:
        return self._read(bytes(self._body))


def decoded(decode: Callable[[bytes], _Shape], body: bytes, target: Target) -> _Shape:
    """A body as its language's struct. Raises `UpstreamGarbled`."""
    try:
        return decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise garbled(target, "is not what the language says") from None
