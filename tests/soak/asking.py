"""Many requests at once to a real server, by hand: what comes back is kept to the byte."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from tests.serving import Server

WAIT_S = 60


async def ask(server: Server, **fields: object) -> bytes:
    """The reply of one request, as far as it came, on a connection of its own."""
    place = urlsplit(server.url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    received = b""
    try:
        body = json.dumps({"model": server.model, "prompt": "Once upon a time"} | fields).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: soak\r\nx-api-key: {server.key}\r\nconnection: close\r\n"
        writer.write(f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        async with asyncio.timeout(WAIT_S):
            while part := await reader.read(1 << 16):
                received += part
    except ConnectionResetError:
        pass
    finally:
        writer.transport.abort()
    return received


def is_whole(reply: bytes) -> bool:
    """A stream that came to its end."""
    return reply.startswith(b"HTTP/1.1 200 ") and reply.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


def text(reply: bytes) -> str:
    """Of a completion that was not streamed."""
    head, _, body = reply.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), reply[:500]
    return str(json.loads(body)["choices"][0]["text"])


def gauge(server: Server, name: str) -> float:
    (value,) = re.findall(rf"^{name} (\S+)$", server.get("/metrics").decode(), re.MULTILINE)
    return float(value)


def is_idle(server: Server) -> bool:
    """Nothing runs or waits in the engine, and its cells hold no more than cached prefixes may take."""
    running, waiting, used, cells = (
        gauge(server, f"andthen_engine_{name}") for name in ("running", "waiting", "cells_used", "cells")
    )
    return running == waiting == 0 and used <= cells / 4


async def until(true: Callable[[], bool], why: str) -> float:
    """How long it took, in seconds."""
    began_s = time.monotonic()
    while not await asyncio.to_thread(true):
        assert time.monotonic() < began_s + WAIT_S, f"not so after {WAIT_S} s: {why}"
        await asyncio.sleep(0.05)
    return time.monotonic() - began_s
