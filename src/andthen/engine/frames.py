"""Messages as frames on a byte stream: four bytes of length, little-endian, then MessagePack.

Knows no socket and no event loop; both ends of a link cut and join with it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec

from andthen.engine.messages import Answer, Question

_LENGTH = struct.Struct("<I")

_encoder = msgspec.msgpack.Encoder()
decode_question = msgspec.msgpack.Decoder(Question).decode
"""A frame that a worker sends: one question. Raises `msgspec.MsgspecError` for anything else."""
decode_answers = msgspec.msgpack.Decoder(list[Answer]).decode
"""A frame that the engine sends: all that one step has for one worker."""


def frame(message: Question | list[Answer]) -> bytearray:
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
