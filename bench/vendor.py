"""A vendor on loopback that answers every language with prepared replies: `python -m bench.vendor`, a process of its
own. Its first line tells where it listens. HTTP by hand, so that it takes little of the machine.

The path's first part names the language. A stream's pieces come `PACE_S` apart, so that each is read alone; all at
once, where the prompt says `AT_ONCE`.
"""

from __future__ import annotations

import asyncio
import re

import uvloop
from msgspec import Struct

from bench.replies import LANGUAGES

PACE_S = 0.01
AT_ONCE = "All at once."

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_STREAM = re.compile(rb'"stream": ?true')


class _Answer(Struct, frozen=True):
    """One language's replies with their heads, as they are written."""

    whole: bytes
    pieces: tuple[bytes, ...]


def _answers() -> dict[bytes, _Answer]:
    answers = {}
    for name, prepare in LANGUAGES.items():
        prepared = prepare()
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(prepared.whole)}\r\n\r\n"
        stream_head = f"HTTP/1.1 200 OK\r\ncontent-type: {prepared.media_type}\r\ntransfer-encoding: chunked\r\n\r\n"
        pieces = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (*prepared.pieces, b"")]
        answers[name.encode()] = _Answer(head.encode() + prepared.whole, (stream_head.encode(), *pieces))
    return answers


class _Connection(asyncio.Protocol):
    def __init__(self, answers: dict[bytes, _Answer]) -> None:
        self._answers = answers
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = bytes(self._received).partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not end or length is None or len(body) < int(length[1]):
            return
        self._received.clear()
        path = head.split(b" ", 2)[1]
        answer = self._answers[path.split(b"/", 2)[1]]
        if b"stream" not in path and not _STREAM.search(body):
            self._transport.write(answer.whole)
        elif AT_ONCE.encode() in body:
            self._transport.write(b"".join(answer.pieces))
        else:
            self._write(answer.pieces, 0)

    def _write(self, pieces: tuple[bytes, ...], number: int) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(pieces[number])
        if number + 1 < len(pieces):
            self._loop.call_later(PACE_S, self._write, pieces, number + 1)


async def _serve() -> None:
    answers = _answers()
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(answers), "127.0.0.1", 0)
    print(f"ready http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve())
