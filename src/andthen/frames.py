"""Messages as frames on a byte stream between our own processes: four bytes of length, little-endian, then MessagePack.

Knows no message, no socket and no event loop; both ends of a link cut and join with it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec

_LENGTH = struct.Struct("<I")

_encoder = msgspec.msgpack.Encoder()


def frame(message: object) -> bytearray:
    """The message with its length before it."""
    joined = bytearray(_LENGTH.size)
    _encoder.encode_into(message, joined, _LENGTH.size)
    _LENGTH.pack_into(joined, 0, len(joined) - _LENGTH.size)
    return joined


class FrameCutter:
    """Bytes in, whatever their cuts; whole frames out."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The frames that `data` completes. To be exhausted before the next call."""
        self._held += data
        start = 0
        while len(self._held) - start >= _LENGTH.size:
            end = start + _LENGTH.size + _LENGTH.unpack_from(self._held, start)[0]
            if end > len(self._held):
                break
            yield bytes(self._held[start + _LENGTH.size : end])
            start = end
        del self._held[:start]
